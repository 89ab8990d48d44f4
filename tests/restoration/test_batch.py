"""Which file becomes which, that nothing of the user's is written over, and that one failure is not the others'."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
from identity_model import IdentityModel
from tiny_video import first_frame, smooth_frames, write_video_file

from jaxdeblur import cli
from jaxdeblur.data import video_writer
from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.restoration import batch
from jaxdeblur.restoration.batch import run_job, run_jobs
from jaxdeblur.restoration.jobs import Job, plan_jobs


@pytest.fixture
def videos(tmp_path):
    for name in ("a.mp4", "b.avi"):
        write_video_file(tmp_path / name, smooth_frames(3))
    (tmp_path / "results").mkdir()
    return tmp_path


@pytest.fixture
def brightening(monkeypatch):
    """`deblur` makes frames brighter, whatever the checkpoint."""
    monkeypatch.setattr("jaxdeblur.restoration.export.load_restorer", lambda *_, **__: (IdentityModel(lift=0.2), {}))


def test_names(videos):
    a, b, results = videos / "a.mp4", videos / "b.avi", videos / "results"
    assert plan_jobs([a], videos / "new.mp4", None, None) == [Job(a, videos / "new.mp4")]
    assert plan_jobs([b], results, Path(), Path("x")) == [
        Job(b, results / "b.mkv", results / "b-compare.mkv", Path("x"))
    ]
    assert plan_jobs([a, b], results, None, None) == [Job(a, results / "a.mp4"), Job(b, results / "b.mkv")]
    assert plan_jobs([results], videos / "frames", Path(), None) == [
        Job(results, videos / "frames", videos / "frames-compare.mp4")
    ]
    with pytest.raises(ValueError, match="go with a single source"):
        plan_jobs([a, b], results, Path("mine.mp4"), None)
    with pytest.raises(ValueError, match=r"a\.mp4: is a file; of several sources"):
        plan_jobs([a, b], a, None, None)
    with pytest.raises(FileNotFoundError, match=r"c\.mp4: no such file"):
        plan_jobs([videos / "c.mp4"], results, None, None)


def test_nothing_that_is_read_or_written_is_written_over(videos):
    a, results = videos / "a.mp4", videos / "results"
    before = results / "a-compare.mp4"
    before.write_bytes(a.read_bytes())
    with pytest.raises(ValueError, match=r"a-compare\.mp4 would be written for .*a\.mp4, but is itself to be restored"):
        plan_jobs([a, before], results, Path(), None)
    other = videos / "other"
    other.mkdir()
    (other / "a.mp4").write_bytes(a.read_bytes())
    with pytest.raises(ValueError, match=r"a\.mp4 would be written for .*, but is written for .*a\.mp4; restore them"):
        plan_jobs([a, other / "a.mp4"], results, None, None)
    with pytest.raises(ValueError, match="itself to be restored"):
        plan_jobs([a, videos / "b.avi"], videos, None, None)
    (results / "a.mp4").symlink_to(videos / "b.avi")
    with pytest.raises(ValueError, match="itself to be restored"):
        plan_jobs([a, videos / "b.avi"], results, None, None)


def test_compare_alone_takes_no_name(videos, brightening, capsys):
    """Or of `deblur b.avi new.mp4 --compare a.mp4` a.mp4 would be written over."""
    a = videos / "a.mp4"
    before = a.read_bytes()
    with pytest.raises(SystemExit):
        cli.main(["deblur", str(videos / "b.avi"), str(videos / "new.mp4"), "--compare", str(a)])
    assert a.read_bytes() == before
    assert cli.main(["deblur", "--compare", str(a), str(videos / "new.mp4")]) == 0
    assert (videos / "new-compare.mp4").exists()


def test_one_failure_is_not_the_others(videos, brightening, capsys):
    (videos / "broken.mp4").write_bytes(b"nothing")
    names = [str(videos / name) for name in ("a.mp4", "broken.mp4", "b.avi")]
    assert cli.main(["deblur", *names, str(videos / "results")]) == 1
    assert sorted(os.listdir(videos / "results")) == ["a.mp4", "b.mkv"]
    said = capsys.readouterr()
    assert "broken.mp4: not a video" in said.err
    assert "1 of 3 files failed" in said.err


def test_what_is_there_is_left_alone_if_asked(videos, brightening, capsys):
    existing = videos / "results" / "a.mp4"
    existing.write_bytes(b"mine")
    command = ["deblur", str(videos / "a.mp4"), str(videos / "b.avi"), str(videos / "results")]
    assert cli.main([*command, "--skip-existing"]) == 0
    assert existing.read_bytes() == b"mine"
    assert (videos / "results" / "b.mkv").exists()
    assert cli.main(command) == 2
    assert r"a.mp4: exists already (and 1 more); name another file, or replace it" in capsys.readouterr().err
    assert existing.read_bytes() == b"mine"
    assert cli.main([*command, "--overwrite"]) == 0
    assert existing.read_bytes() != b"mine"
    assert cli.main([*command, "--overwrite", "--skip-existing"]) == 2


@pytest.mark.parametrize("kind", ["videos", "folders"])
def test_a_batch_that_was_stopped_goes_on(videos, brightening, monkeypatch, capsys, kind):
    """The second of three is stopped; what the message then says works."""
    monkeypatch.setattr(video_writer, "SEGMENT_FRAMES", 8)
    names = ["a", "b", "c"]
    for name in names:
        if kind == "videos":
            write_video_file(videos / f"{name}.mp4", smooth_frames(12))
            continue
        (videos / name).mkdir()
        for number, frame in enumerate(smooth_frames(12)):
            write_image(videos / name / f"{number:02d}.png", ImageFile(frame))
    names = [f"{name}.mp4" if kind == "videos" else name for name in names]
    command = ["deblur", *(str(videos / name) for name in names), str(videos / "results")]

    def stop_in_the_second(job, model, variables, of_all, of_videos, progress):
        def stop(done, total):
            if job.source.name.startswith("b") and done == 10:
                raise KeyboardInterrupt

        return run_job(job, model, variables, {**of_all, "save_every_s": 0.0}, of_videos, stop)

    monkeypatch.setattr(batch, "run_job", stop_in_the_second)
    assert cli.main(command) == 130
    assert sorted(os.listdir(videos / "results")) == [f".{names[1]}.jaxdeblur", names[0]]
    monkeypatch.setattr(batch, "run_job", run_job)
    capsys.readouterr()
    assert cli.main(command) == 2
    assert capsys.readouterr().err.rstrip().endswith(", or leave what is there with --skip-existing")
    before = (videos / "results" / names[0]).stat().st_mtime_ns
    assert cli.main([*command, "--skip-existing"]) == 0
    assert sorted(os.listdir(videos / "results")) == names
    assert (videos / "results" / names[0]).stat().st_mtime_ns == before


@pytest.mark.parametrize("options", [["--compare"], ["--skip-existing", "--compare"]])
def test_no_way_out_is_named_that_is_none(videos, brightening, capsys, options):
    """A comparison that is there without its target is not left alone by --skip-existing."""
    (videos / "results" / "a-compare.mp4").touch()
    assert cli.main(["deblur", str(videos / "a.mp4"), str(videos / "b.avi"), str(videos / "results"), *options]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.endswith("or replace it with --overwrite")


def test_sharp_frames_stay_unless_asked(tmp_path, brightening, capsys):
    noise = np.random.default_rng(0).integers(60, 160, (3, 96, 96, 3), np.uint8)
    write_video_file(tmp_path / "in.mp4", noise, pix_fmt="yuv444p", crf=1)
    source = first_frame(tmp_path / "in.mp4").astype(float)
    for options, least, most in (([], 0, 2), (["--no-gate"], 40, 60)):
        command = ["deblur", str(tmp_path / "in.mp4"), str(tmp_path / "out.mkv"), "--lossless", "--overwrite"]
        assert cli.main([*command, *options]) == 0
        assert least <= np.mean(first_frame(tmp_path / "out.mkv") - source) <= most
    assert "left as they were, being sharp: 3 frames" in capsys.readouterr().err


def test_what_ffmpeg_raises_is_one_of_ours(videos, monkeypatch):
    def fails(*_, **__):
        raise av.error.ExternalError(1, "Generic error in an external library")

    monkeypatch.setattr(batch, "deblur_video", fails)
    with pytest.raises(OSError, match=r"a\.mp4: FFmpeg fails with Generic error"):
        run_job(Job(videos / "a.mp4", videos / "out.mp4"), IdentityModel(), {}, {}, {})
    with pytest.raises(ValueError, match="is a folder of frames, for which there is no --codec"):
        run_job(Job(videos, videos / "out"), IdentityModel(), {}, {}, {"codec": "av1"})


def test_folders_made_for_results_go_with_them(tmp_path):
    def run(job):
        raise ValueError("no")

    outcomes = run_jobs([Job(tmp_path / "a", tmp_path / "new" / "a")], run, lambda outcome: None)
    assert isinstance(outcomes[0].error, ValueError)
    assert os.listdir(tmp_path) == []
