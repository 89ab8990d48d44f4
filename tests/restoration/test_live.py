"""Frames through pipes: the same kind out as in, none waiting for more than the frames it needs."""

import collections
import contextlib
import os
import select
import subprocess
import sys
import threading

import numpy as np
import pytest
from identity_model import IdentityModel
from tiny_video import smooth_frames

from jaxdeblur.restoration.clip import restore
from jaxdeblur.restoration.live import Delays, deblur_pipe
from jaxdeblur.restoration.steadying import Steadied


@contextlib.contextmanager
def restoring(model, **options):
    """A restoration in a thread: (file to write frames to, file descriptor to read them from, what became of it)."""
    (source, feed), (out, target) = os.pipe(), os.pipe()
    found = []

    def run():
        with open(source, "rb", buffering=0) as frames, open(target, "wb", buffering=0) as restored:
            try:
                found.append(deblur_pipe(frames, restored, model, {}, **options))
            except (ValueError, OSError) as error:
                found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with open(feed, "wb", buffering=0) as writable:
        yield writable, out, found
    thread.join(60)
    os.close(out)


def read(out, count, patience_s=60.0):
    """So many bytes, or as many as come."""
    data = b""
    while len(data) < count and select.select([out], [], [], patience_s)[0]:
        part = os.read(out, count - len(data))
        if not part:
            break
        data += part
    return data


@pytest.mark.parametrize("future", [0, 1, 2])
def test_a_frame_comes_out_when_those_it_needs_are_in(future):
    frames = smooth_frames(6, 33, 47)
    with restoring(IdentityModel(future_frames=future), raw_size=(33, 47)) as (feed, out, found):
        for number, frame in enumerate(frames):
            feed.write(frame.tobytes())
            if number >= future:
                shown = np.frombuffer(read(out, frame.nbytes), np.uint8).reshape(frame.shape)
                np.testing.assert_array_equal(shown, frames[number - future])
        feed.close()
        assert read(out, 10**9) == frames[len(frames) - future :].tobytes()
    assert found[0].frames_behind == future
    assert len(found[0].seconds) == 6


def test_steadied_frames_wait_for_one_more():
    frames = smooth_frames(5, 32, 64)  # not padded, hence as from restore
    expected = restore(frames, Steadied(IdentityModel(future_frames=0)), {})
    model = Steadied(IdentityModel(future_frames=0))
    with restoring(model, raw_size=(32, 64), do_no_harm=False) as (feed, out, found):
        feed.write(frames.tobytes())
        feed.close()
        assert read(out, 10**9) == expected.tobytes()
    assert found[0].frames_behind == 1


@pytest.mark.parametrize(
    ("kind", "planes_a_pixel", "dtype"),
    [("C420jpeg", 1.5, "u1"), ("C422", 2, "u1"), ("C444", 3, "u1"), ("C420p10", 1.5, "<u2"), ("C444p10", 3, "<u2")],
)
@pytest.mark.parametrize("color_range", ["FULL", "LIMITED"])
def test_yuv4mpeg_keeps_its_kind(kind, planes_a_pixel, dtype, color_range):
    height, width = 48, 66
    header = f"YUV4MPEG2 W{width} H{height} F30000:1001 Ip A1:1 {kind} XCOLORRANGE={color_range}\n".encode()
    largest = 255 if dtype == "u1" else 1023
    frames = [
        np.full(round(height * width * planes_a_pixel), level * largest // 255, dtype).tobytes()
        for level in (60, 128, 190)
    ]
    with restoring(IdentityModel()) as (feed, out, found):
        feed.write(header + b"".join(b"FRAME\n" + frame for frame in frames))
        feed.close()
        shown = read(out, 10**9)
    assert not isinstance(found[0], Exception)
    head, *rest = shown.split(b"FRAME\n")
    words = head.decode().split()
    assert words[:4] == ["YUV4MPEG2", f"W{width}", f"H{height}", "F30000:1001"]
    assert kind.removesuffix("jpeg") in head.decode()
    assert f"XCOLORRANGE={color_range}" in words or color_range == "LIMITED"
    # A colour that RGB cannot hold is clipped; grey levels come back but for rounding.
    middle = np.frombuffer(rest[1], dtype).astype(int)
    assert len(rest) == 3
    assert np.abs(middle - np.frombuffer(frames[1], dtype)).max() <= 1 + 3 * (dtype != "u1")


def test_what_is_no_frames_says_so():
    for options, data in (({}, b"hello\n"), ({}, b""), ({"raw_size": (8, 8)}, b"")):
        with restoring(IdentityModel(), **options) as (feed, _, found):
            feed.write(data)
        assert isinstance(found[0], ValueError)
        assert "standard input" in str(found[0])


@pytest.mark.parametrize("kind", ["raw", "y4m"])
def test_half_a_frame_at_the_end_takes_no_whole_one_with_it(kind):
    frames = smooth_frames(3, 16, 16)
    head, options = b"YUV4MPEG2 W16 H16 F25:1 Ip A1:1 C444\n", {}
    parts = [b"FRAME\n" + frame.tobytes() for frame in frames]
    if kind == "raw":
        head, parts, options = b"", [frame.tobytes() for frame in frames], {"raw_size": (16, 16)}
    with restoring(IdentityModel(future_frames=2), **options) as (feed, out, found):
        feed.write(head + parts[0] + parts[1] + parts[2][:300])
        feed.close()
        shown = read(out, 10**9)
    if kind == "raw":
        assert isinstance(found[0], ValueError)
        assert "standard input" in str(found[0])
        assert shown == parts[0] + parts[1]
    else:
        assert found[0].frames == 2
        assert len(shown.split(b"FRAME\n")) == 3


def test_nobody_who_reads_ends_it():
    (source, feed), (out, target) = os.pipe(), os.pipe()
    os.close(out)
    os.write(feed, smooth_frames(5, 8, 8).tobytes())
    os.close(feed)
    with (
        open(source, "rb", buffering=0) as frames,
        open(target, "wb", buffering=0) as restored,
        pytest.raises(BrokenPipeError),
    ):
        deblur_pipe(frames, restored, IdentityModel(), {}, raw_size=(8, 8))


def test_percentiles_leave_out_the_first_and_the_last():
    delays = Delays(2, collections.deque([9.0, 0.1, 0.2, 0.3, 7.0, 8.0]))
    assert delays.percentile_ms(50.0) == pytest.approx(200)
    assert delays.percentile_ms(100.0) == pytest.approx(300)
    assert Delays(2, collections.deque([0.5])).percentile_ms(50.0) == pytest.approx(500)


_COMMAND = """
import sys, types
from identity_model import IdentityModel
sys.modules["jaxdeblur.checkpoint"] = types.SimpleNamespace(load_model=lambda path: (IdentityModel(), {}))
from jaxdeblur.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)  # of the tests: here the command keeps its own
    here = os.path.dirname(os.path.dirname(__file__))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([here, os.path.dirname(here)]),
        "XDG_CACHE_HOME": str(tmp_path),
    }

    def run(*options, frames=b""):
        command = [sys.executable, "-c", _COMMAND, "deblur", "--pipe", "--checkpoint=/", *options]
        return subprocess.run(command, input=frames, capture_output=True, env=environment, check=False)

    frames = smooth_frames(5, 20, 30).tobytes()
    done = run("--raw=30x20", frames=frames)
    assert (done.returncode, done.stdout) == (0, frames)
    assert b"30x20: 1 frame behind" in done.stderr
    assert b"5 frames; from the last one needed to the one written: p50" in done.stderr
    for options, message in (
        (["in.mp4"], b"--pipe reads standard input and writes standard output; leave out in.mp4"),
        (
            ["--memory=1G", "--end=3", "--lossless", "--skip-existing"],
            b"--memory, --end, --lossless, --skip-existing: of files only; leave out with --pipe",
        ),
        (["--raw=big"], b"--raw is 'big'; expected WIDTHxHEIGHT"),
    ):
        refused = run(*options)
        assert refused.returncode == 2
        assert message in refused.stderr
