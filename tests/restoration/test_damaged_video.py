"""Damaged videos through the whole program: restored with a line that says what was damaged, or with --strict refused;
and errors name the user's files."""

import errno
import os
import resource
import sys
import types
from fractions import Fraction

import av
import numpy as np
import pytest
from identity_model import IdentityModel
from stopping import StoppedError, stopping_at
from test_journal import Echo
from tiny_video import smooth_frames, sound_packets, time_stamps_s, write_video_file
from video_summary import summary

from jaxdeblur import cli
from jaxdeblur.data import stream_copy, video_writer
from jaxdeblur.restoration.files import deblur_video

COUNT = 24


def damaged(path, numbers=(9, 10), **options):
    options = {"options": {"bf": "2", "g": "12"}, **options}
    write_video_file(path, smooth_frames(COUNT), time_base=Fraction(1, 25), audio_s=1, **options)
    times = time_stamps_s(path)
    with av.open(str(path)) as container:
        payloads = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    for number in numbers:
        assert content.count(payloads[number]) == 1
        content = content.replace(payloads[number], bytes(len(payloads[number])))
    path.write_bytes(content)
    return times


@pytest.fixture
def checkpoint(monkeypatch):
    stand_in = types.SimpleNamespace(load_model=lambda path, **options: (IdentityModel(), {}))
    monkeypatch.setitem(sys.modules, "jaxdeblur.checkpoint", stand_in)


def test_the_program_restores_what_is_there(tmp_path, capsys, caplog, checkpoint):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    times = damaged(source)
    command = ["deblur", str(source), str(target), "--checkpoint=/"]
    assert cli.main([*command, "--strict"]) == 1
    errors = capsys.readouterr().err
    assert "in.mp4: truncated or damaged video" in errors
    assert "leave out --strict to restore the rest" in errors
    assert os.listdir(tmp_path) == ["in.mp4"]
    assert cli.main(command) == 0
    assert f"out.mp4: {COUNT} frames" in capsys.readouterr().out
    assert sum("22 of 24 frames were readable; repeated from a neighbour: 2" in line for line in caplog.messages) == 1
    assert summary(target)["frames"] == times
    assert sound_packets(target) == sound_packets(source)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_resumed_run_gives_the_same_bytes(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(video_writer, "SEGMENT_FRAMES", 4)
    source = tmp_path / "in.mp4"
    damaged(source, numbers=(0, 9, 10, 17))
    results = []
    for name, stops in (("whole", []), ("stopped", [6, 11, 12, 19])):
        target = tmp_path / f"{name}{suffix}"
        for stop in stops:
            with pytest.raises(StoppedError):
                deblur_video(source, target, Echo(), {}, save_every_s=0.0, progress=stopping_at(stop))
        assert deblur_video(source, target, Echo(), {}, save_every_s=0.0) == COUNT
        results.append(target.read_bytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("first", [False, True])
def test_strict_is_another_task(tmp_path, monkeypatch, first):
    """What was restored without it may hold damage, and is not lost for it."""
    monkeypatch.setattr(video_writer, "SEGMENT_FRAMES", 4)
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    damaged(source, numbers=(17,))

    def run(**options):
        return deblur_video(source, target, Echo(), {}, save_every_s=0.0, **options)

    with pytest.raises(StoppedError):
        run(strict=first, progress=stopping_at(10))
    with pytest.raises(ValueError, match=r"\(8 frames done\), but of another task: strict was"):
        run(strict=not first)
    began = []
    if first:
        with pytest.raises(ValueError, match=r"damaged video.*; leave out --strict to restore the rest$"):
            run(strict=True)
    assert run(progress=lambda done, total: began.append(done)) == COUNT
    assert began[0] == (1 if first else 9)


def test_damage_of_the_first_frame_is_found_before_a_network_is_loaded(tmp_path, capsys):
    damaged(tmp_path / "in.mp4", numbers=(0,))
    assert cli.main(["deblur", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), "--strict"]) == 2
    assert "leave out --strict to restore the rest" in capsys.readouterr().err


@pytest.fixture
def with_gaps(tmp_path):
    """A transport stream of which packets are missing in the middle."""
    source = tmp_path / "in.ts"
    write_video_file(source, smooth_frames(50, 64, 96), time_base=Fraction(1, 25), audio_s=2)
    content = source.read_bytes()
    for gap in (31, 60, 83):
        content = content[: 188 * gap] + content[188 * (gap + 3) :]
    source.write_bytes(content)
    return source


def test_packets_of_sound_that_cannot_be_copied_are_counted(tmp_path, caplog, monkeypatch, with_gaps):
    """Behind those that show what the container takes."""
    monkeypatch.setattr(stream_copy, "_SAMPLE_PACKETS", 20)
    with pytest.raises(ValueError, match=r"in\.ts: damaged beside the pictures; other packets left out: 1; leave out"):
        deblur_video(with_gaps, tmp_path / "out.mp4", IdentityModel(), {}, strict=True)
    assert os.listdir(tmp_path) == ["in.ts"]
    deblur_video(with_gaps, tmp_path / "out.mp4", IdentityModel(), {})
    assert "out.mp4: damaged beside the pictures; other packets left out: 1" in caplog.text


def test_sound_that_is_damaged_keeps_nothing_from_being_written(tmp_path, with_gaps):
    for suffix in (".mp4", ".mov", ".mkv"):
        target = tmp_path / f"out{suffix}"
        frames = deblur_video(with_gaps, target, IdentityModel(), {})
        assert frames > 30
        assert len(summary(target)["frames"]) == frames


# --- Names in messages ---


def test_an_error_while_writing_names_the_target(tmp_path, monkeypatch):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video_file(source, smooth_frames(3), audio_s=0.2)

    def refuse(self, path, *_):
        raise av.error.ArgumentError(errno.EINVAL, "Invalid argument", os.fspath(path))

    monkeypatch.setattr(video_writer.VideoWriter, "_write_all", refuse)
    with pytest.raises(OSError, match=r"out\.mp4: FFmpeg cannot write the pictures") as caught:
        deblur_video(source, target, IdentityModel(), {})
    assert "jaxdeblur" not in str(caught.value)

    def fill(self, path, *_):
        raise av.error.FFmpegError(errno.ENOSPC, "No space left on device", os.fspath(path))

    monkeypatch.setattr(video_writer.VideoWriter, "_write_all", fill)
    with pytest.raises(OSError, match="No space left on device") as caught:
        deblur_video(source, target, IdentityModel(), {})
    assert ".jaxdeblur" not in str(caught.value)


@pytest.mark.parametrize("limit_bytes", [1, 3000, 20_000, 60_000])
def test_a_full_disk_names_the_target_at_any_moment(tmp_path, limit_bytes):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (12, 64, 96, 3), np.uint8)
    write_video_file(source, frames, audio_s=0.5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            deblur_video(source, target, IdentityModel(), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(target) in str(caught.value)
    assert ".jaxdeblur" not in str(caught.value)
    assert "partial" not in str(caught.value)
    assert os.listdir(tmp_path) == ["in.mp4"]
