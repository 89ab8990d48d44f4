"""Whole videos and folders through a model that changes nothing, or lifts everything by a known amount."""

import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from identity_model import IdentityModel
from tiny_video import psnr_db, smooth_frames, sound_packets, time_stamps_s, write_video_file

from jaxdeblur.data.image_io import ImageFile, read_image, write_image
from jaxdeblur.data.video_folder import list_images
from jaxdeblur.data.video_io import VideoReader
from jaxdeblur.restoration.files import deblur_folder, deblur_video, side_by_side


def frames_of(path):
    with VideoReader(path) as reader:
        return np.stack([frame.rgb for frame in reader])


@pytest.mark.parametrize(
    ("size", "count", "options"),
    [
        ((32, 48), 12, {}),
        ((33, 47), 4, {"pix_fmt": "yuv444p"}),
        ((1, 1), 2, {"pix_fmt": "yuv444p"}),
        ((32, 48), 1, {}),
        ((32, 48), 6, {"pts": [0, 40, 95, 100, 700, 701]}),
        ((48, 32), 3, {"tag": 1, "matrix": "ITU709"}),
        ((32, 48), 3, {"rotation": 90}),
        ((32, 48), 20, {"options": {"bf": "3", "b-pyramid": "normal"}}),
    ],
)
def test_identity_gives_the_video_back(tmp_path, size, count, options):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video_file(source, smooth_frames(count, *size), audio_s=0.5, **options)
    calls = []
    done = deblur_video(source, target, IdentityModel(), {}, crf=4, progress=lambda *call: calls.append(call))
    assert done == count
    assert calls == [(index + 1, count) for index in range(count)]
    blurred, restored = frames_of(source), frames_of(target)
    assert restored.shape == blurred.shape
    assert min(size) == 1 or psnr_db(blurred, restored) >= 45
    assert time_stamps_s(target) == time_stamps_s(source)
    assert sound_packets(target) == sound_packets(source)
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", "out.mp4"]


def test_ten_bit_video(tmp_path):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video_file(source, smooth_frames(3, dtype=np.uint16), pix_fmt="yuv420p10le", crf=2)
    deblur_video(source, target, IdentityModel(), {}, crf=2)
    assert frames_of(target).dtype == np.uint16
    assert psnr_db(frames_of(source), frames_of(target)) >= 48


def test_comparison_shows_blurred_left_and_restored_right(tmp_path):
    source, target, compare = (tmp_path / name for name in ("in.mp4", "out.mp4", "both.mp4"))
    write_video_file(source, smooth_frames(6), pts=[0, 40, 95, 100, 700, 701], audio_s=0.2)
    deblur_video(source, target, IdentityModel(lift=0.1), {}, compare=compare, crf=4)
    blurred, restored, both = frames_of(source), frames_of(target), frames_of(compare)
    assert both.shape == (6, 32, 98, 3)
    assert both[:, :, 48:50].min() > 200
    # 4:2:0 bleeds the line's chroma and x264 a little of its brightness into the neighbours.
    assert psnr_db(both[:, :, :44], blurred[:, :, :44]) >= 38
    assert psnr_db(both[:, :, 54:], restored[:, :, 4:]) >= 38
    assert 15 < np.mean(both[:, :, 54:].astype(float) - both[:, :, 4:48]) < 35
    assert time_stamps_s(compare) == time_stamps_s(source)
    with av.open(str(compare)) as container:
        assert not container.streams.audio


def test_side_by_side():
    blurred, restored = np.full((2, 3, 3), 5, np.uint16), np.full((2, 3, 3), 7, np.uint16)
    expected = [5, 5, 5, 65535, 65535, 7, 7, 7]
    np.testing.assert_array_equal(side_by_side(blurred, restored)[1, :, 2], expected)


def test_refused_videos_leave_nothing(tmp_path):
    source = tmp_path / "in.mp4"
    write_video_file(source, smooth_frames(3), audio_s=0.2)
    before = source.read_bytes()
    (tmp_path / "link.mp4").symlink_to(source)

    def attempt(target, **options):
        deblur_video(source, tmp_path / target, IdentityModel(), {}, **options)

    for name in ("in.mp4", "link.mp4"):
        with pytest.raises(ValueError, match=f"{name}: is the input itself"):
            attempt(name)
        with pytest.raises(ValueError, match=f"{name}: is the input itself"):
            attempt("out.mp4", compare=tmp_path / name)
    with pytest.raises(ValueError, match=r"out\.mp4: is .* or lies in it; name another for --compare"):
        attempt("out.mp4", compare=tmp_path / "out.mp4")
    with pytest.raises(ValueError, match="unknown video suffix"):
        attempt("out.mp4", compare=tmp_path / "both.gif")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        attempt("nowhere/out.mp4")
    assert source.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", "link.mp4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_video_leaves_nothing(tmp_path, error):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video_file(source, smooth_frames(9), audio_s=0.2)

    def stop(done, total):
        if done == 4:
            raise error

    with pytest.raises(error):
        deblur_video(source, target, IdentityModel(), {}, compare=tmp_path / "both.mp4", progress=stop)
    assert os.listdir(tmp_path) == ["in.mp4"]


def test_truncated_video_leaves_nothing(tmp_path):
    source = tmp_path / "in.mp4"
    write_video_file(source, np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8), faststart=True)
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    with pytest.raises(ValueError, match=r"in\.mp4: truncated .* of 9 frames were readable"):
        deblur_video(source, tmp_path / "out.mp4", IdentityModel(), {}, strict=True)
    assert os.listdir(tmp_path) == ["in.mp4"]


def image(kind, bits=8, seed=0):
    generator = np.random.default_rng(seed)
    rgb = generator.integers(0, 2**bits, (7, 9, 3)).astype(f"u{bits // 8}")
    if kind.startswith("grey"):
        rgb = np.repeat(rgb[..., :1], 3, -1)
    alpha = generator.integers(0, 2**bits, (7, 9)).astype(rgb.dtype) if kind.endswith("alpha") else None
    return ImageFile(rgb, alpha, kind.startswith("grey"))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_folder_keeps_names_and_kinds(tmp_path, suffix, bits):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    images = {
        f"{index}{suffix}": image(kind, bits, index)
        for index, kind in enumerate(["grey", "rgb", "grey alpha", "rgb alpha"] * 3)
    }
    for name, content in images.items():
        write_image(source / name, content)
    (source / "notes.txt").write_text("not an image")
    (source / "._0.png").write_bytes(b"what a Mac leaves behind")
    seen = []
    done = deblur_folder(source, target, IdentityModel(), {}, progress=lambda done, total: seen.append((done, total)))
    assert done == 12
    assert seen[-1] == (12, 12)
    assert sorted(os.listdir(target)) == sorted(images)
    for name, content in images.items():
        written = read_image(target / name)
        np.testing.assert_array_equal(written.rgb, content.rgb)
        assert (written.bits, written.is_grey) == (bits, content.is_grey)
        assert (written.alpha is None) == (content.alpha is None)
        if content.alpha is not None:
            np.testing.assert_array_equal(written.alpha, content.alpha)
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_folder_goes_by_numbers_and_makes_a_comparison(tmp_path):
    source, target, compare = tmp_path / "in", tmp_path / "out", tmp_path / "both.mp4"
    source.mkdir()
    target.mkdir()  # empty: as good as none
    for number in (1, 2, 10):
        write_image(source / f"f{number}.JPG", ImageFile(np.full((8, 10, 3), 20 * number, np.uint8)))
    assert [path.name for path in list_images(source)] == ["f1.JPG", "f2.JPG", "f10.JPG"]
    deblur_folder(source, target, IdentityModel(lift=0.1), {}, compare=compare, crf=4)
    assert sorted(os.listdir(target)) == ["f1.JPG", "f10.JPG", "f2.JPG"]
    both = frames_of(compare).astype(int)
    np.testing.assert_allclose(both[:, 4, 2, 1], [20, 40, 200], atol=4)
    np.testing.assert_allclose(both[:, 4, 19, 1], [45, 65, 225], atol=4)
    assert time_stamps_s(compare) == [Fraction(index, 24) for index in range(3)]


def test_refused_folders_leave_nothing(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"

    def attempt(target=target):
        deblur_folder(source, target, IdentityModel(), {}, compare=tmp_path / "both.mp4")

    with pytest.raises(FileNotFoundError, match="in"):
        attempt()
    source.mkdir()
    with pytest.raises(ValueError, match=r"in: has no images; looked for \.png"):
        attempt()
    (source / "notes.txt").write_text("not an image")
    with pytest.raises(ValueError, match="has no images"):
        attempt()
    for number in range(5):
        write_image(source / f"{number}.png", image("rgb"))
    with pytest.raises(FileExistsError, match="in: exists and is not an empty folder"):
        attempt(source)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        attempt(tmp_path / "nowhere" / "out")
    write_image(source / "3.png", ImageFile(np.zeros((7, 8, 3), np.uint8)))
    with pytest.raises(ValueError, match=r"3\.png: is 8x7 of 8 bit, but 0\.png is 9x7 of 8 bit"):
        attempt()
    write_image(source / "3.png", image("rgb", 16))
    with pytest.raises(ValueError, match=r"3\.png: is 9x7 of 16 bit, but"):
        attempt()
    (source / "3.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"3\.png: the image file is empty"):
        attempt()
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_folder_leaves_nothing(tmp_path, error):
    source = tmp_path / "in"
    source.mkdir()
    for number in range(6):
        write_image(source / f"{number}.png", image("rgb"))

    def stop(done, total):
        if done == 3:
            raise error

    with pytest.raises(error):
        deblur_folder(source, tmp_path / "out", IdentityModel(), {}, compare=tmp_path / "both.mp4", progress=stop)
    assert os.listdir(tmp_path) == ["in"]


_MEASURE = """
import re, sys
from identity_model import IdentityModel
from jaxdeblur.restoration.files import deblur_video
deblur_video(sys.argv[1], sys.argv[2], IdentityModel(), {}, overwrite=True)
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("frames", [400, pytest.param(3000, marks=pytest.mark.exhaustive)])
def test_memory_does_not_grow_with_length(tmp_path, frames):
    """Peak resident memory of a process of its own, against that of 100 frames.

    Not getrusage's: that one starts from what the parent had in memory.
    """
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs Linux's /proc")
    here = os.path.dirname(os.path.dirname(__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.path.dirname(here)])}
    peaks = []
    for count in (100, frames):
        source = tmp_path / f"{count}.mp4"
        write_video_file(source, smooth_frames(50, 96, 128)[np.arange(count) % 50], audio_s=count / 25)
        result = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(source), str(tmp_path / "out.mp4")],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(result.stdout))
    assert peaks[1] < 1.05 * peaks[0]
