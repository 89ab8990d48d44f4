import re
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from video_folder_factory import random_frames_u8, write_clip, write_random_clip

from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.data.video_folder import (
    frame_size_px,
    index_video_folder,
    iterate_clip,
    list_images,
    list_splits,
    numeric_order,
    read_clip_frame,
)


def test_index_lists_clips_and_frames_in_numeric_order(tmp_path):
    for name, n_frames in (("clip10", 2), ("clip9", 11)):
        write_random_clip(tmp_path / "train" / name, n_frames, 5, 7, seed=0)
    (tmp_path / "packed").mkdir()
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "clip9" / "blur" / "notes.txt").write_text("not a frame")
    first, second = index_video_folder(tmp_path, "train")
    assert (first.name, second.name) == ("clip9", "clip10")
    assert first.folder == str(tmp_path / "train" / "clip9")
    assert (first.height_px, first.width_px, first.n_frames) == (5, 7, 11)
    assert [Path(path).name for path in first.blur_paths] == [f"{i}.png" for i in range(11)]
    assert [Path(path).parent.name for path in first.sharp_paths] == ["sharp"] * 11
    assert list_splits(tmp_path) == ["train"]


def test_frames_are_read_from_the_side_and_place_asked_for(tmp_path):
    frames = random_frames_u8(6, 4, 6, seed=1)
    write_clip(tmp_path / "s" / "c", frames[:3], frames[3:])
    (clip,) = index_video_folder(tmp_path, "s")
    np.testing.assert_array_equal(read_clip_frame(clip, 2, "blur"), frames[2])
    np.testing.assert_array_equal(read_clip_frame(clip, 2, "sharp"), frames[5])
    pairs = list(iterate_clip(clip))
    np.testing.assert_array_equal(np.stack([pair[0] for pair in pairs]), frames[:3])
    np.testing.assert_array_equal(np.stack([pair[1] for pair in pairs]), frames[3:])


def test_grey_rgba_and_16_bit_frames_are_read(tmp_path):
    rgb_u8 = random_frames_u8(1, 4, 6, seed=2)[0]
    rgb_u16 = np.random.default_rng(3).integers(0, 2**16, (4, 6, 3), np.uint16)
    rgb_u16[0, 0] = 65535, 128, 129  # 128/257 and 129/257 are on either side of a half
    grey_u8 = np.repeat(rgb_u8[..., :1], 3, -1)
    images = [
        ImageFile(grey_u8, is_grey=True),
        ImageFile(rgb_u8, alpha=rgb_u8[..., 0].copy()),
        ImageFile(rgb_u16),
    ]
    for side in ("blur", "sharp"):
        (tmp_path / "s" / "c" / side).mkdir(parents=True)
        for number, image in enumerate(images):
            write_image(tmp_path / "s" / "c" / side / f"{number}.png", image)
    (clip,) = index_video_folder(tmp_path, "s")
    np.testing.assert_array_equal(read_clip_frame(clip, 0, "blur"), grey_u8)
    np.testing.assert_array_equal(read_clip_frame(clip, 1, "blur"), rgb_u8)
    np.testing.assert_array_equal(read_clip_frame(clip, 2, "blur"), np.rint(rgb_u16 / 257).astype(np.uint8))
    assert read_clip_frame(clip, 2, "blur")[0, 0].tolist() == [255, 0, 1]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("size_px", [(1, 1), (3, 300), (257, 5)])
def test_size_is_read_from_the_header(tmp_path, suffix, size_px):
    path = tmp_path / f"frame{suffix}"
    write_image(path, ImageFile(random_frames_u8(1, *size_px, seed=4)[0]))
    assert frame_size_px(str(path)) == size_px


def test_jpeg_size_behind_a_long_comment_and_fill_bytes(tmp_path):
    path = tmp_path / "frame.jpg"
    write_image(path, ImageFile(random_frames_u8(1, 24, 40, seed=5)[0]))
    data = path.read_bytes()
    # A camera's preview: its own start of frame must not be taken for the picture's.
    preview = b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01" + bytes(60_000)
    comment = b"\xff\xff\xff\xfe" + (len(preview) + 2).to_bytes(2) + preview
    path.write_bytes(data[:2] + comment + data[2:])
    assert frame_size_px(str(path)) == (24, 40)


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (b"", "is empty"),
        (b"GIF89a", "is not a PNG or JPEG"),
        (b"\x89PNG\r\n\x1a\n\0", "cut short"),
        (b"\xff\xd8\xff", "cut"),
    ],
)
def test_a_file_without_a_readable_header_is_named(tmp_path, content, state):
    write_random_clip(tmp_path / "s" / "c", 2, 4, 4, seed=6)
    path = tmp_path / "s" / "c" / "sharp" / "1.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{state}.*write that frame again"):
        index_video_folder(tmp_path, "s")


def test_missing_root_and_split(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'.*<root>/<split>"):
        index_video_folder(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match="no split 'train'; it has none"):
        index_video_folder(tmp_path, "train")
    for split in ("test10", "test9"):
        (tmp_path / split).mkdir()
    with pytest.raises(FileNotFoundError, match="no split 'train'; it has 'test9', 'test10'"):
        index_video_folder(tmp_path, "train")
    with pytest.raises(ValueError, match="test9' holds no clips"):
        index_video_folder(tmp_path, "test9")


def test_empty_and_missing_sides(tmp_path):
    clip = tmp_path / "s" / "c"
    (clip / "blur").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"blur' holds no frames; expected \.png"):
        index_video_folder(tmp_path, "s")
    write_image(clip / "blur" / "0.png", ImageFile(random_frames_u8(1, 4, 4, seed=7)[0]))
    with pytest.raises(ValueError, match=r"no folder '.*sharp'"):
        index_video_folder(tmp_path, "s")


def test_frames_without_partner_are_listed(tmp_path):
    write_random_clip(tmp_path / "s" / "c", 14, 4, 4, seed=8)
    for number in range(2, 14):
        (tmp_path / "s" / "c" / "sharp" / f"{number}.png").unlink()
    (tmp_path / "s" / "c" / "blur" / "0.png").unlink()
    message = "sharp has no partner of 2, 3, .*, 11 and 2 more; blur has no partner of 0; every frame needs"
    with pytest.raises(ValueError, match=message):
        index_video_folder(tmp_path, "s")


def test_the_same_frame_twice(tmp_path):
    write_random_clip(tmp_path / "s" / "c", 1, 4, 4, seed=9)
    write_image(tmp_path / "s" / "c" / "blur" / "0.jpg", ImageFile(random_frames_u8(1, 4, 4, seed=9)[0]))
    with pytest.raises(ValueError, match="same frame twice"):
        index_video_folder(tmp_path, "s")


def test_unequal_sizes_within_a_clip(tmp_path):
    write_random_clip(tmp_path / "s" / "c", 2, 4, 6, seed=10)
    write_random_clip(tmp_path / "s" / "other_size_is_fine", 1, 8, 8, seed=10)
    index_video_folder(tmp_path, "s")
    write_image(tmp_path / "s" / "c" / "sharp" / "1.png", ImageFile(random_frames_u8(1, 6, 4, seed=10)[0]))
    with pytest.raises(ValueError, match=r"first frame is 6x4 but .*sharp/1\.png is 4x6; scale or crop"):
        index_video_folder(tmp_path, "s")


def test_a_frame_that_changed_after_the_index(tmp_path):
    write_random_clip(tmp_path / "s" / "c", 1, 4, 6, seed=11)
    (clip,) = index_video_folder(tmp_path, "s")
    write_image(Path(clip.blur_paths[0]), ImageFile(random_frames_u8(1, 6, 4, seed=11)[0]))
    with pytest.raises(ValueError, match="is 4x6 but was 6x4 when"):
        read_clip_frame(clip, 0, "blur")


@hypothesis.given(st.lists(st.integers(0, 10**6)), st.booleans())
def test_numbers_sort_as_numbers(numbers, padded):
    names = [f"frame{number:08d}" if padded else f"frame{number}" for number in numbers]
    assert sorted(names, key=numeric_order) == [
        f"frame{number:08d}" if padded else f"frame{number}" for number in sorted(numbers)
    ]


@hypothesis.given(st.lists(st.text(alphabet="ab01_", max_size=4)), st.randoms())
def test_any_names_can_be_sorted_and_the_order_is_total(names, random):
    shuffled = random.sample(names, len(names))
    assert sorted(names, key=numeric_order) == sorted(shuffled, key=numeric_order)


def test_an_animated_gif_is_a_video(tmp_path, caplog):
    (tmp_path / "a.gif").touch()
    with pytest.raises(ValueError, match=r"has no images; looked for \.png.*; a\.gif is a video: name it itself"):
        list_images(tmp_path)
    write_image(tmp_path / "b.png", ImageFile(random_frames_u8(1, 4, 4, seed=0)[0]))
    assert list_images(tmp_path) == [tmp_path / "b.png"]
    assert "a.gif: is left aside" in caplog.text
