"""Anybody's results, their truth and what is said of what does not fit; and the command."""

import csv
import json
import shutil

import numpy as np
import pytest

from jaxdeblur import cli
from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.evaluation.results import pair_clips


def write_frames(folder, frames):
    """name -> level of a frame, 16 x 12, a little texture so that SSIM has something to compare."""
    folder.mkdir(parents=True)
    texture = np.random.default_rng(0).integers(0, 20, (12, 16, 3))
    for name, level in frames.items():
        write_image(folder / f"{name}.png", ImageFile((texture + level).astype(np.uint8)))


def levels(clip):
    return [(int(image.min()), int(sharp.min())) for image, sharp in clip.frames()]


@pytest.fixture
def folders(tmp_path):
    """Two clips; the results' frames have names of their own order."""
    for clip, base in (("a", 100), ("b", 150)):
        write_frames(tmp_path / "truth" / clip, {"f2": base, "f10": base + 1})
        write_frames(tmp_path / "results" / clip, {"f2": base + 4, "f10": base + 6})
        write_frames(tmp_path / "blurred" / clip, {"f2": base + 20, "f10": base + 21})
    return tmp_path


def test_frames_are_paired_by_name_in_the_order_of_numbers(folders):
    clips, notes = pair_clips(folders / "results", folders / "truth")
    assert [clip.name for clip in clips] == ["a", "b"]
    assert levels(clips[0]) == [(104, 100), (106, 101)]
    assert levels(clips[0]) == levels(clips[0])  # from the first frame each time
    assert notes == []


def test_results_without_truth_are_said_and_left_out(folders):
    write_frames(folders / "results" / "c", {"f1": 9})
    write_image(folders / "results" / "a" / "f11.png", ImageFile(np.zeros((12, 16, 3), np.uint8)))
    clips, notes = pair_clips(folders / "results", folders / "truth")
    assert [len(levels(clip)) for clip in clips] == [2, 2]
    assert notes == ["no truth of c, which are left out", "a: 1 of 3 frames have no truth and are left out"]


def test_truth_without_results_is_an_error(folders):
    (folders / "results" / "a" / "f10.png").unlink()
    with pytest.raises(ValueError, match=r"results/a: has no frame f10, of which .*truth/a has the truth"):
        pair_clips(folders / "results", folders / "truth")
    shutil.rmtree(folders / "results" / "b")
    write_frames(folders / "results" / "z", {"f2": 1, "f10": 1})
    with pytest.raises(ValueError, match=r"results: has no clip b, of which there is the truth"):
        pair_clips(folders / "results", folders / "truth")


def test_single_clips_need_no_names(folders):
    (clip,), _ = pair_clips(folders / "results" / "a", folders / "truth" / "b")
    assert levels(clip) == [(104, 150), (106, 151)]


def test_blurred_frames_beside(folders):
    clips, _ = pair_clips(folders / "results", folders / "truth", folders / "blurred")
    assert levels(clips[1]) == [(170, 150), (171, 151)]
    assert [int(image.min()) for image in clips[1].restored()] == [154, 156]


def test_a_folder_of_both_sides(folders):
    for clip in ("a", "b"):
        shutil.copytree(folders / "blurred" / clip, folders / "pairs" / clip / "blur")
        shutil.copytree(folders / "truth" / clip, folders / "pairs" / clip / "sharp")
    (folders / "pairs" / "a" / "sharp" / "f2.png").unlink()
    clips, notes = pair_clips(folders / "pairs", None)
    assert [levels(clip) for clip in clips] == [[(121, 101)], [(170, 150), (171, 151)]]
    assert notes == ["a: 1 of 2 frames have no truth and are left out"]
    (clip,), _ = pair_clips(folders / "pairs" / "b", None)
    assert (clip.name, levels(clip)) == ("b", [(170, 150), (171, 151)])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda root: None, FileNotFoundError, r"pairs: no such folder; expected <clip>/blur and <clip>/sharp"),
        (
            lambda root: (root / "pairs").mkdir(),
            FileNotFoundError,
            "holds no <clip>/blur and <clip>/sharp; give results",
        ),
        (
            lambda root: (root / "pairs" / "a" / "blur").mkdir(parents=True),
            FileNotFoundError,
            "clip a has blur but no sharp",
        ),
    ],
)
def test_what_is_no_folder_of_both_sides(tmp_path, make, error, words):
    make(tmp_path)
    with pytest.raises(error, match=words):
        pair_clips(tmp_path / "pairs", None)


def test_videos_are_paired_by_place(folders, tmp_path):
    from tiny_video import smooth_frames, write_video_file

    write_video_file(tmp_path / "a.mp4", smooth_frames(3))
    write_video_file(tmp_path / "b.mp4", smooth_frames(3))
    (clip,), _ = pair_clips(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert len(list(clip.frames())) == 3
    write_video_file(tmp_path / "short.mp4", smooth_frames(2))
    (clip,), _ = pair_clips(tmp_path / "short.mp4", tmp_path / "b.mp4")
    with pytest.raises(ValueError, match=r"short.mp4: ends after 2 frames, .*b.mp4 goes on"):
        list(clip.frames())
    (clip,), _ = pair_clips(tmp_path / "b.mp4", folders / "truth" / "a")
    with pytest.raises(ValueError, match=r"frame 0 is .*, its truth 16x12; they must have one size"):
        list(clip.frames())


def test_the_command_prints_common_beside_the_named(folders, capsys):
    out, page = folders / "out", folders / "page.html"
    paths = [str(folders / name) for name in ("results", "truth")]
    assert (
        cli.main(
            [
                "score",
                *paths,
                f"--blurred={folders / 'blurred'}",
                "--protocol=mtu_inloop",
                f"--out={out}",
                f"--html={page}",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "protocol common" in printed
    assert "protocol mtu_inloop" in printed
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["protocol"], list(scores["other_protocols"])) == ("mtu_inloop", ["common"])
    # Levels 4 and 5 off, and 20; whatever the texture.
    assert scores["clips"][0]["psnr_restored_db"] == pytest.approx(
        np.mean([20 * np.log10(255 / d) for d in (4, 5)]), abs=1e-3
    )
    assert scores["clips"][0]["psnr_blurred_db"] == pytest.approx(20 * np.log10(255 / 20), abs=1e-3)
    assert scores["other_protocols"]["common"]["mean"]["gain_db"] == pytest.approx(scores["mean"]["gain_db"], abs=1e-3)
    with (out / "scores.csv").open() as stream:
        rows = [(row["protocol"], row["clip"]) for row in csv.DictReader(stream)]
    assert rows == [(protocol, clip) for protocol in ("mtu_inloop", "common") for clip in ("a", "b", "mean")]
    assert page.read_text().count("<section>") == 3


def test_a_protocol_that_takes_no_frame_says_so(folders, capsys):
    """Clips of two frames have none with two neighbours on either side."""
    paths = [str(folders / name) for name in ("results", "truth")]
    assert cli.main(["score", *paths, "--protocol=common,estrnn"]) == 0
    assert "protocol estrnn: scores no frame of these clips" in capsys.readouterr().out
    assert cli.main(["score", *paths, "--protocol=estrnn"]) == 2
    printed = capsys.readouterr()
    assert "no frame was scored: protocol estrnn" in printed.err
    assert "protocol common" in printed.out  # which is not lost
    assert cli.main(["score", *paths, "--protocol=vmaf"]) == 2
    assert "there is no protocol 'vmaf'; expected common" in capsys.readouterr().err


def test_without_results_only_the_blurred_frames_are_shown(folders, capsys):
    shutil.copytree(folders / "blurred" / "a", folders / "pairs" / "a" / "blur")
    shutil.copytree(folders / "truth" / "a", folders / "pairs" / "a" / "sharp")
    assert cli.main(["score", str(folders / "pairs"), f"--out={folders / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "gain" not in printed
    assert "22.11 dB" in printed  # of the median frame: 20 levels off


def test_names_are_printed_as_they_are(folders, capsys):
    (folders / "truth" / "a").rename(folders / "truth" / "a[red]")
    (folders / "results" / "a").rename(folders / "results" / "a[red]")
    assert cli.main(["score", str(folders / "results"), str(folders / "truth"), f"--out={folders / 'out'}"]) == 0
    assert capsys.readouterr().out.count("a[red]") >= 2
    missing = folders / "nowhere" / "page.html"
    (folders / "nowhere").write_text("a file")
    assert cli.main(["score", str(folders / "results"), str(folders / "truth"), f"--html={missing}"]) == 2
    assert "partial" not in capsys.readouterr().err


def test_names_steer_neither_terminals_nor_spreadsheets(folders, capsys):
    name = "=1+1\x1b[2J\u202egnp"
    for side in ("truth", "results"):
        (folders / side / "a").rename(folders / side / name)
    assert cli.main(["score", str(folders / "results"), str(folders / "truth"), f"--out={folders / 'out'}"]) == 0
    printed = capsys.readouterr()
    assert "\x1b[2J" not in printed.out + printed.err
    assert "\u202e" not in printed.out + printed.err
    with (folders / "out" / "scores.csv").open(newline="") as stream:
        assert sorted(row["clip"] for row in csv.DictReader(stream)) == [f"'{name}", "b", "mean"]
    assert cli.main(["score", str(folders / "results" / f"{name}x"), str(folders / "truth")]) == 2
    assert r"=1+1\x1b[2J\u202egnpx" in capsys.readouterr().err
