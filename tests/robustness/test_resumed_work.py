"""What an interrupted restoration has left is damaged, emptied or gone: the result is the same, byte for byte."""

import itertools
import os
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import pytest
from identity_model import Outputs
from stopping import StoppedError, stopping_at
from tiny_video import smooth_frames, write_video_file

from jaxdeblur.data import video_writer
from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.restoration import files
from jaxdeblur.restoration.files import deblur_folder, deblur_video


class Neighbours(nn.Module):
    """Without a memory, or with one that never ends."""

    remembers: bool = False
    past_frames: int = 1
    future_frames: int = 1
    size_multiple: int = 4
    beyond_ends: str = "repeat"
    padding: str = "edge"

    def start(self, window):
        return jnp.zeros_like(window[:, 0]) if self.remembers else ()

    def explain(self, carry, window):
        return {"blurred": window[:, 1]}

    def step(self, carry, window):
        restored = 0.6 * window[:, 1] + 0.2 * window[:, 0] + 0.1 * window[:, 2]
        if self.remembers:
            restored = carry = 0.5 * carry + 0.5 * restored
        return carry, Outputs(restored)


def flipped(data):
    """One bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def few(*quick, every):
    """All combinations, those that are not `quick` only where tests are exhaustive."""
    return [
        pytest.param(*values, marks=[] if values in quick else pytest.mark.exhaustive)
        for values in itertools.product(*every)
    ]


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "changed": lambda path: path.write_bytes(flipped(path.read_bytes())),
}
KINDS = {
    "video": ("in.mp4", "out.mp4"),
    "folder": ("in", "out"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(video_writer, "SEGMENT_FRAMES", 8)
    frames = smooth_frames(20, 32, 48)
    write_video_file(tmp_path / "in.mp4", frames)
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(frames):
        write_image(tmp_path / "in" / f"{number}.png", ImageFile(frame))
    return tmp_path


class Work:
    """A restoration, and what it should come to."""

    def __init__(self, place, kind, remembers, **places):
        self.folder = place
        self.source, self.target = (place / name for name in KINDS[kind])
        self.deblur = deblur_video if kind == "video" else deblur_folder
        self.model = Neighbours(remembers)
        self.places = {name: place / path for name, path in places.items()}
        self.said = []
        self.began = []

    def run(self, progress=None):
        options = {"save_every_s": 0.0, "do_no_harm": False, "say": self.said.append}
        self.deblur(self.source, self.target, self.model, {}, **self.places, **options, progress=progress or self.see)

    def see(self, done, total):
        self.began.append(done)

    def expected(self):
        """Run undisturbed; its results are taken away."""
        self.run()
        found = self.results()
        for path in self.outputs():
            remove(path)
        self.said, self.began = [], []
        return found

    def outputs(self):
        return [self.target, *self.places.values()]

    def results(self):
        """Names and bytes of all that was made; nothing else is left."""
        assert not list(self.folder.glob(".*"))
        found = {}
        for output in self.outputs():
            for path in [output] if output.is_file() else sorted(output.iterdir()):
                found[str(path.relative_to(self.folder))] = path.read_bytes()
        return found

    @property
    def journal(self) -> Path:
        return self.target.with_name(f".{self.target.name}.jaxdeblur")


def remove(path):
    if path.is_dir():
        for inside in path.iterdir():
            inside.unlink()
        path.rmdir()
    else:
        path.unlink()


def done_in(journal):
    return sorted(path for path in journal.rglob("*") if path.is_file() and path.name != "lock")


@pytest.mark.parametrize(
    ("kind", "remembers", "damage"),
    few(("video", False, "halved"), ("folder", True, "deleted"), every=(KINDS, (False, True), DAMAGES)),
)
def test_whatever_is_amiss_of_what_was_done_is_made_anew(place, kind, remembers, damage):
    work = Work(place, kind, remembers, compare="both.mp4", explain="sheets")
    expected = work.expected()
    with pytest.raises(StoppedError):
        work.run(stopping_at(18))
    names = [path.relative_to(work.journal) for path in done_in(work.journal)]
    # The first and the last of every sort; of frames and sheets there are many.
    chosen = [list(group) for _, group in itertools.groupby(names, key=lambda name: (name.parent, name.name[:4]))]
    for name in {*(group[0] for group in chosen), *(group[-1] for group in chosen)}:
        if not work.journal.exists():
            with pytest.raises(StoppedError):
                work.run(stopping_at(18))
        work.said, work.began = [], []
        DAMAGES[damage](work.journal / name)
        work.run()
        assert work.results() == expected, name
        noted = "restored_000002" not in name.name and int("".join(filter(str.isdigit, name.stem)) or 0) < 16
        gone = damage == "deleted" and name.name in ("job.json", "state.npz")
        if (name.name, damage) != ("state.npz", "changed"):  # of a zip file not every bit means something
            assert len(work.said) == (noted and not gone), (name, work.said)
        if not remembers and name.name == "restored_000001.npz":
            assert work.began[0] == 9
        for path in work.outputs():
            remove(path)


TEXTS = ("", "[]", "5", "{}", "null", "[" * 10**5, '{"task": {}}', "\0\1", '{"settled": 3}')


@pytest.mark.parametrize(
    ("kind", "text"), few(("folder", "[]"), ("folder", TEXTS[5]), ("video", "{}"), every=(KINDS, TEXTS))
)
def test_notes_that_are_none_are_forgotten(place, kind, text):
    work = Work(place, kind, remembers=True)
    expected = work.expected()
    with pytest.raises(StoppedError):
        work.run(stopping_at(12))
    (work.journal / "job.json").write_text(text)
    work.run()
    assert work.results() == expected
    assert work.began[0] == 1
    assert len(work.said) == 1
    assert "job.json: damaged, so that all is restored anew" in work.said[0]


@pytest.mark.parametrize(
    ("kind", "moved", "damage"),
    few(("video", 1, "changed"), ("folder", 0, "emptied"), every=(KINDS, (0, 1), DAMAGES)),
)
def test_what_is_amiss_of_whole_results_is_made_anew(place, monkeypatch, kind, moved, damage):
    """Stopped when all is complete, before it has got its names or after the comparison has."""
    work = Work(place, kind, remembers=False, compare="both.mp4")
    expected = work.expected()
    move, moves = files._move, []

    def stop(part, to):
        if len(moves) == moved:
            raise StoppedError
        moves.append(part)
        move(part, to)

    monkeypatch.setattr(files, "_move", stop)
    with pytest.raises(StoppedError):
        work.run()
    monkeypatch.setattr(files, "_move", move)
    amiss = work.journal / ("restored.mp4" if kind == "video" else "frames/3.png")
    DAMAGES[damage](amiss)
    if moved:
        (place / "both.mp4").unlink()
    work.run()
    assert work.results() == expected
    assert work.said


def test_of_whole_results_the_halfway_state_is_not_needed(place, monkeypatch):
    work = Work(place, "folder", remembers=True)
    expected = work.expected()
    move = files._move

    def stop(*_):
        raise StoppedError

    monkeypatch.setattr(files, "_move", stop)
    with pytest.raises(StoppedError):
        work.run()
    monkeypatch.setattr(files, "_move", move)
    (work.journal / "state.npz").write_bytes(b"")
    work.began = []
    work.run()
    assert work.results() == expected
    assert not work.began
    assert not work.said


def test_a_power_cut_takes_nothing_that_was_noted(place, monkeypatch):
    """Whatever was not written through is emptied, and names that were not are gone."""
    whole, names, fsync = {}, set(), os.fsync

    def written(path):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def seen_fsync(handle):
        fsync(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_dir():
            names.update((inside, inside.stat().st_ino) for inside in path.iterdir())
        else:
            whole[path.stat().st_ino] = written(path)

    work = Work(place, "folder", remembers=True, compare="both.mp4", explain="sheets")
    expected = work.expected()
    monkeypatch.setattr(os, "fsync", seen_fsync)
    with pytest.raises(StoppedError):
        work.run(stopping_at(18))
    kept = 0
    for path in done_in(work.journal):
        if (path, path.stat().st_ino) not in names:
            path.unlink()
        elif whole.get(path.stat().st_ino) != written(path):
            path.write_bytes(b"")
        else:
            kept += 1
    assert kept >= 2 * 16 + 2 + 2  # frames, sheets, segments, notes
    work.began = []
    work.run()
    assert work.began[0] == 17
    assert work.results() == expected
    assert not work.said
