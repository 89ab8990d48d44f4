"""Runs that are stopped, at any moment, end with the bytes of one that was not."""

import contextlib
import errno
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from identity_model import Outputs
from stopping import StoppedError, stopping_at
from test_steps import Remembering, SeesAll
from tiny_video import smooth_frames, write_video_file

from jaxdeblur.data import video_writer
from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.data.video_io import Cut
from jaxdeblur.restoration import files
from jaxdeblur.restoration.clip import Halfway
from jaxdeblur.restoration.files import deblur_folder, deblur_video
from jaxdeblur.restoration.journal import Journal
from jaxdeblur.restoration.memory import Plan
from jaxdeblur.restoration.steps import Tiling


class Echo(nn.Module):
    """Mixes every frame with all before it, and with its neighbours, so that nothing may be lost on the way."""

    past_frames: int = 2
    future_frames: int = 1
    size_multiple: int = 4
    beyond_ends: str = "alternate"
    padding: str = "edge"

    def start(self, window):
        return {"echo": window[:, 2], "half": jnp.zeros_like(window[:, 0], jnp.bfloat16)}

    def explain(self, carry, window):
        return {"echo": carry["echo"]}

    def step(self, carry, window):
        half = carry["half"].astype(jnp.float32)
        echo = 0.7 * carry["echo"] + 0.2 * window[:, 2] + 0.1 * half
        restored = 0.5 * echo + 0.2 * window[:, 0] + 0.3 * window[:, 3]
        return {"echo": echo, "half": window[:, 1].astype(jnp.bfloat16)}, Outputs(restored)


@pytest.fixture
def short_segments(monkeypatch):
    monkeypatch.setattr(video_writer, "SEGMENT_FRAMES", 8)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_video_goes_on_where_it_was(tmp_path, short_segments, suffix):
    source = tmp_path / "in.mp4"
    write_video_file(source, smooth_frames(43), pts=[3 * t * t for t in range(43)], audio_s=1)
    ways = []
    for name, stops in (("undisturbed", []), ("stopped", [4, 8, 9, 17, 18, 30, 43])):
        folder = tmp_path / name
        folder.mkdir()

        def run(progress=None, folder=folder):
            deblur_video(
                source,
                folder / f"out{suffix}",
                Echo(),
                {},
                compare=folder / "both.mp4",
                explain=folder / "sheets",
                save_every_s=0.0,
                progress=progress,
            )

        for stop in stops:
            with pytest.raises(StoppedError):
                run(stopping_at(stop))
            assert os.listdir(folder) == ([f".out{suffix}.jaxdeblur"] if stop > 8 else [])
        began = []
        run(lambda done, total, began=began: began.append(done))
        assert began[0] == (41 if stops else 1)
        ways.append(contents(folder))
        assert sorted(os.listdir(folder)) == sorted(["both.mp4", f"out{suffix}", "sheets"])
    assert ways[0] == ways[1]
    assert len(ways[0]) == 45


def test_a_folder_goes_on_where_it_was(tmp_path, short_segments):
    source = tmp_path / "in"
    source.mkdir()
    for number, frame in enumerate(smooth_frames(21)):
        write_image(source / f"{number}.png", ImageFile(frame))
    ways = []
    for name, stops in (("undisturbed", []), ("stopped", [3, 12, 17])):
        folder = tmp_path / name
        folder.mkdir()
        options = {"compare": folder / "both.mp4", "save_every_s": 0.0}
        for stop in stops:
            with pytest.raises(StoppedError):
                deblur_folder(source, folder / "out", Echo(), {}, **options, progress=stopping_at(stop))
        assert deblur_folder(source, folder / "out", Echo(), {}, **options) == 21
        ways.append(contents(folder))
    assert ways[0] == ways[1]
    assert len(ways[0]) == 22


def test_another_task_does_not_take_over_what_was_done(tmp_path, short_segments):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video_file(source, smooth_frames(20))

    def run(**options):
        return deblur_video(source, target, Echo(), {}, save_every_s=0.0, **options)

    with pytest.raises(StoppedError):
        run(progress=stopping_at(12))
    with pytest.raises(
        ValueError, match=r"out\.mp4: an interrupted run waits .*\(8 frames done\).*crf was None, is 30.*--restart"
    ):
        run(crf=30)
    with pytest.raises(ValueError, match="part was"):
        run(cut=Cut(end_s=Fraction(1)))
    assert (tmp_path / ".out.mp4.jaxdeblur").exists()
    assert run(crf=30, restart=True) == 20
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", "out.mp4"]


@pytest.mark.parametrize("taken", ["out", "both.mp4", "sheets", "memory"])
@pytest.mark.parametrize("kind", ["video", "folder"])
def test_a_restart_that_is_refused_loses_nothing(tmp_path, short_segments, kind, taken):
    write_video_file(tmp_path / "in.mp4", smooth_frames(12))
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(smooth_frames(12)):
        write_image(tmp_path / "in" / f"{number}.png", ImageFile(frame))
    suffix, deblur = (".mp4", deblur_video) if kind == "video" else ("", deblur_folder)
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"

    def run(**options):
        places = {"compare": tmp_path / "both.mp4", "explain": tmp_path / "sheets"}
        return deblur(source, target, Echo(), {}, **places, save_every_s=0.0, **options)

    with pytest.raises(StoppedError):
        run(progress=stopping_at(10))
    place = tmp_path / (f"out{suffix}" if taken == "out" else taken)
    if place.suffix:
        place.write_bytes(b"mine")
    elif taken != "memory":
        place.mkdir()
        (place / "mine").touch()
    with pytest.raises((FileExistsError, ValueError), match=r"exists|leave out --memory"):
        run(restart=True, memory_bytes=2**30 if taken == "memory" else None)
    if taken != "memory":
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    began = []
    assert run(progress=lambda done, total: began.append(done)) == 12
    assert began[0] == 9


def test_two_runs_of_one_target_do_not_meet(tmp_path):
    with (
        Journal(tmp_path / "out.mp4", {}),
        pytest.raises(BlockingIOError, match=r"out\.mp4: another run is writing it"),
    ):
        Journal(tmp_path / "out.mp4", {})
    assert os.listdir(tmp_path) == []


def test_what_was_settled_stays(tmp_path):
    with contextlib.suppress(StoppedError), Journal(tmp_path / "out", {"a": 1}, save_every_s=0.0) as journal:
        assert journal.settle("plan", lambda: {"tile": 3}) == {"tile": 3}
        journal.save(Halfway(1, [np.zeros(3, np.float32)]))
        raise StoppedError
    with Journal(tmp_path / "out", {"a": 1}) as journal:
        assert journal.settle("plan", lambda: {"tile": 4}) == {"tile": 3}
        assert json.loads((journal.folder / "job.json").read_text())["task"]["a"] == 1


@pytest.mark.parametrize("change", ["weights", "source"])
def test_other_weights_and_another_source_are_another_task(tmp_path, short_segments, change):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video_file(source, smooth_frames(20))
    with pytest.raises(StoppedError):
        deblur_video(source, target, Echo(), {"params": {"w": np.zeros(2)}}, save_every_s=0.0, progress=stopping_at(12))
    if change == "source":
        write_video_file(source, smooth_frames(20)[::-1])
    with pytest.raises(ValueError, match=f"of another task: {change}"):
        deblur_video(
            source, target, Echo(), {"params": {"w": np.full(2, change == "weights", float)}}, save_every_s=0.0
        )


def test_a_folder_of_another_size_is_said_in_a_line(tmp_path):
    with contextlib.suppress(StoppedError), Journal(tmp_path / "out", {"source": ["a"] * 300}) as journal:
        journal.set_complete(300, [])
        raise StoppedError
    with pytest.raises(ValueError, match="another task: source changed") as caught:
        Journal(tmp_path / "out", {"source": ["b"] * 300})
    assert len(str(caught.value)) < 400


def planned(tiling, precision=None):
    return lambda *_, **__: Plan(tiling, precision, 0)


@pytest.mark.parametrize("model", [Remembering(), SeesAll()])
def test_tiles_go_on_as_they_were_planned(tmp_path, short_segments, monkeypatch, model):
    """With the memory of the tiles, and in the tiles of the first run, whatever would be planned by now: a network that
    sees everything shows which tiles there were."""
    source = tmp_path / "in.mp4"
    noise = np.random.default_rng(0).integers(-30, 30, (20, 96, 160, 3))
    write_video_file(source, (np.linspace(40, 210, 160)[:, None] + noise).astype(np.uint8))  # each tile has its mean
    first, later = Tiling(96, 96, 8), Tiling(96, 128, 8)
    results = {}
    for name, tiling, stop in (("first", first, None), ("later", later, None), ("resumed", first, 13)):
        monkeypatch.setattr(files, "plan", planned(tiling))
        run = functools.partial(
            deblur_video, source, tmp_path / f"{name}.mkv", model, {}, lossless=True, do_no_harm=False, save_every_s=0.0
        )
        if stop is not None:
            with pytest.raises(StoppedError):
                run(progress=stopping_at(stop))
            monkeypatch.setattr(files, "plan", planned(later))
        run()
        results[name] = (tmp_path / f"{name}.mkv").read_bytes()
    if isinstance(model, SeesAll):
        assert results["first"] != results["later"]
    assert results["resumed"] == results["first"]


def test_the_planned_precision_is_kept(tmp_path, short_segments, monkeypatch):
    source = tmp_path / "in.mp4"
    write_video_file(source, smooth_frames(20))
    asked = []
    monkeypatch.setattr(files, "with_precision", lambda model, precision: asked.append(precision) or model)
    monkeypatch.setattr(files, "plan", planned(None, "bfloat16"))
    with pytest.raises(StoppedError):
        deblur_video(source, tmp_path / "out.mp4", Echo(), {}, save_every_s=0.0, progress=stopping_at(12))
    monkeypatch.setattr(files, "plan", planned(None, None))
    deblur_video(source, tmp_path / "out.mp4", Echo(), {}, save_every_s=0.0)
    assert asked == ["bfloat16", "bfloat16"]


def test_plans_know_of_the_encoders(tmp_path, monkeypatch):
    source = tmp_path / "in.mp4"
    write_video_file(source, smooth_frames(3, 64, 64))
    beside = []

    def plan(*_, beside_bytes, **__):
        beside.append(beside_bytes)
        return Plan(None, None, 0)

    monkeypatch.setattr(files, "plan", plan)
    deblur_video(source, tmp_path / "one.mp4", Echo(), {})
    deblur_video(source, tmp_path / "two.mp4", Echo(), {}, compare=tmp_path / "both.mp4")
    assert beside[0] > 64 * 64
    assert beside[1] > 2.5 * beside[0]


def test_nothing_is_noted_that_is_not_there(tmp_path, short_segments, monkeypatch):
    """Stopped while segments are written, the run before the last note is gone on with, not the one after."""
    source = tmp_path / "in.mp4"
    write_video_file(source, smooth_frames(30))
    deblur_video(source, tmp_path / "whole.mp4", Echo(), {})
    end_segment = video_writer.VideoWriter.end_segment
    ended = []

    def fails(writer):
        ended.append(None)
        if len(ended) == 2:
            raise StoppedError
        end_segment(writer)

    monkeypatch.setattr(video_writer.VideoWriter, "end_segment", fails)
    with pytest.raises(StoppedError):
        deblur_video(source, tmp_path / "out.mp4", Echo(), {}, save_every_s=0.0)
    assert int(np.load(tmp_path / ".out.mp4.jaxdeblur" / "state.npz")["frames_done"]) == 8
    monkeypatch.setattr(video_writer.VideoWriter, "end_segment", end_segment)
    deblur_video(source, tmp_path / "out.mp4", Echo(), {}, save_every_s=0.0)
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


@pytest.mark.parametrize("moves", range(3))
@pytest.mark.parametrize("kind", ["video", "folder"])
def test_stopped_while_results_are_moved_it_goes_on(tmp_path, short_segments, monkeypatch, kind, moves):
    """With nothing computed again: some results are at their places, some are still in the journal."""
    source = tmp_path / "in.mp4"
    write_video_file(source, smooth_frames(12))
    if kind == "folder":
        source = tmp_path / "in"
        source.mkdir()
        for number, frame in enumerate(smooth_frames(12)):
            write_image(source / f"{number}.png", ImageFile(frame))
    deblur = deblur_folder if kind == "folder" else deblur_video
    results = {}
    for way in ("undisturbed", "stopped"):
        folder = tmp_path / way
        folder.mkdir()
        target = folder / ("out" if kind == "folder" else "out.mp4")

        def run(progress=None, folder=folder, target=target):
            return deblur(
                source, target, Echo(), {}, compare=folder / "both.mp4", explain=folder / "sheets", progress=progress
            )

        if way == "stopped":
            move, done = files._move, []

            def fails(part, place, move=move, done=done):
                if len(done) == moves:
                    raise OSError(errno.ENOSPC, "No space left on device")
                done.append(place)
                move(part, place)

            monkeypatch.setattr(files, "_move", fails)
            with pytest.raises(OSError, match="No space left"):
                run()
            assert len(os.listdir(folder)) == moves + 1
            monkeypatch.setattr(files, "_move", move)
        began = []
        assert run(lambda done, total, began=began: began.append(done)) == 12
        assert began == ([] if way == "stopped" else list(range(1, 13)))
        results[way] = contents(folder)
    assert results["stopped"] == results["undisturbed"]
    assert not any("jaxdeblur" in name for name in results["stopped"])


@pytest.mark.parametrize("is_folder", [False, True])
def test_results_move_to_another_disk_whole(tmp_path, monkeypatch, is_folder):
    part, place = tmp_path / "part", tmp_path / "place"
    if is_folder:
        part.mkdir()
        (part / "a").write_bytes(b"new")
    else:
        part.write_bytes(b"new")
        place.write_bytes(b"old")
    replace = os.replace

    def across_disks(source, target):
        if source == part:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", across_disks)
    copy = shutil.copytree if is_folder else shutil.copy2
    monkeypatch.setattr(shutil, copy.__name__, lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        files._move(part, place)
    assert part.exists()
    assert place.exists() != is_folder
    monkeypatch.setattr(shutil, copy.__name__, copy)
    files._move(part, place)
    assert os.listdir(tmp_path) == ["place"]
    assert ((place / "a") if is_folder else place).read_bytes() == b"new"


_KILLED = """
import sys, time
from test_journal import Echo
from jaxdeblur.data import video_writer
from jaxdeblur.restoration import files
video_writer.SEGMENT_FRAMES = 8
stream = files.restore_stream
def slowly(*arguments, **options):
    for frame in stream(*arguments, **options):
        time.sleep(0.02)
        yield frame
if sys.argv[3] == "slowly":
    files.restore_stream = slowly
both = sys.argv[2][:-4] + "_both.mp4"
files.deblur_video(sys.argv[1], sys.argv[2], Echo(), {}, compare=both, overwrite=True, save_every_s=0.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("wanted_kills", [2, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_killed_at_any_moment(tmp_path, wanted_kills):
    source = tmp_path / "in.mp4"
    write_video_file(source, np.random.default_rng(0).integers(0, 256, (150, 48, 64, 3), np.uint8), audio_s=5)
    here = os.path.dirname(__file__)
    paths = [here, os.path.dirname(here), os.path.dirname(os.path.dirname(here))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def begin(target, pace):
        return subprocess.Popen([sys.executable, "-c", _KILLED, str(source), str(target), pace], env=environment)

    assert begin(tmp_path / "whole.mp4", "fast").wait() == 0
    moments = random.Random(0)
    kills = finished = 0
    target = tmp_path / "out.mp4"
    while kills < wanted_kills:
        target.unlink(missing_ok=True)
        process = begin(target, "slowly")
        while not (tmp_path / ".out.mp4.jaxdeblur" / "job.json").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        finished += process.wait() == 0
        if process.returncode == 0:
            assert target.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert begin(target, "fast").wait() == 0
    for name in ("{}.mp4", "{}_both.mp4"):
        assert (tmp_path / name.format("out")).read_bytes() == (tmp_path / name.format("whole")).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", "out.mp4", "out_both.mp4", "whole.mp4", "whole_both.mp4"]
