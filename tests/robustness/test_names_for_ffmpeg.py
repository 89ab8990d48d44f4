"""Names that FFmpeg would read something into: they are names of files, and nothing else."""

import os

import numpy as np
import pytest
from identity_model import IdentityModel
from tiny_video import smooth_frames, write_video_file

from jaxdeblur.data.image_io import ImageFile, read_rgb_u8, write_image
from jaxdeblur.data.video_io import VideoReader
from jaxdeblur.restoration.files import deblur_pictures, deblur_video

NAMES = (
    "12:30.mp4",
    "a:b/o.mp4",
    "http:x.mkv",
    "pipe:1.mov",
    "concat:a|b.mkv",
    "subfile,,start,0,end,9,,:x.mp4",
    "x%d.mp4",
    "x%03d.mkv",
    "it's [f=null] 1.mkv",
    "b\\c|d.mov",
    "-o.mp4",
    "*?.webm",
    "ä ö\n.mp4",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_video_may_have_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    source, target = os.path.join("in", name), os.path.join("out", name)
    for path in (source, target):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    write_video_file(tmp_path / "plain.mp4", smooth_frames(3))
    os.rename(tmp_path / "plain.mp4", source)
    assert deblur_video(source, target, IdentityModel(), {}) == 3
    os.chdir(os.path.dirname(target))  # a name alone, too
    with VideoReader(os.path.basename(target)) as reader:
        assert sum(1 for _ in reader) == 3
    assert os.listdir() == [os.path.basename(name)]


@pytest.mark.parametrize("name", ["x%d.png", "x%03d.png", "[1-9].png", "a:b.jpg", "*.png"])
def test_a_picture_is_no_pattern(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for other in ("x1.png", "x001.png", "1.png"):
        write_image(other, ImageFile(rng.integers(0, 256, (16, 16, 3), np.uint8)))
    write_image(name, ImageFile(rng.integers(0, 256, (16, 16, 3), np.uint8)))
    os.mkdir("out")
    target = os.path.join("out", name.replace(".jpg", ".png"))
    assert deblur_pictures([name], target, IdentityModel(), {}, is_file=True) == 1
    np.testing.assert_array_equal(read_rgb_u8(target), read_rgb_u8(name))
    assert len(os.listdir("out")) == 1
