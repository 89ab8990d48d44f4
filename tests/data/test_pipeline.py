import itertools
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from video_folder_factory import random_frames_u8, write_clip, write_random_clip

from jaxdeblur.data.clips import WindowSpec, blurred_frame_numbers, cut_windows, window_of_sample
from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.data.pack import pack_video_folder
from jaxdeblur.data.pipeline import video_folder_batches
from jaxdeblur.data.transforms import MTU_AUGMENTATION, SVRNN_AUGMENTATION, draw_geometry, resize_to_crop
from jaxdeblur.data.video_folder import index_video_folder, read_clip_frame

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

WINDOW = WindowSpec(frames=3, past=2, future=2, mode="grid")
CROP_PX = (8, 6)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A landscape and a portrait clip."""
    root = tmp_path_factory.mktemp("video")
    write_random_clip(root / "train" / "landscape", 10, 11, 17, seed=0)
    write_random_clip(root / "train" / "portrait", 4, 16, 9, seed=1)
    return root


def batches(root, n_batches, *, split="train", augmentation=MTU_AUGMENTATION, **options):
    index = index_video_folder(root, split)
    options = {"window": WINDOW, "batch_size": 4, "crop_px": CROP_PX, "seed": 7} | options
    return list(itertools.islice(video_folder_batches(index, augmentation=augmentation, **options), n_batches))


def plain_batch(root, number, *, augmentation, batch_size=4, window=WINDOW, seed=7, split="train"):
    """The oracle: whole frames, read, cropped and turned one after the other."""
    index = index_video_folder(root, split)
    windows = cut_windows(index, window)
    batch = {"blurred": [], "sharp": []}
    for sample in range(number * batch_size, (number + 1) * batch_size):
        chosen = window_of_sample(windows, seed=seed, sample=sample)
        clip = index[chosen.clip]
        geometry = draw_geometry(
            seed=seed,
            sample=sample,
            frame_size_px=(clip.height_px, clip.width_px),
            crop_px=CROP_PX,
            augmentation=augmentation,
        )
        frame_numbers = {
            "blur": blurred_frame_numbers(chosen, clip.n_frames, window),
            "sharp": range(chosen.first_frame, chosen.first_frame + window.frames),
        }
        for side, name in (("blur", "blurred"), ("sharp", "sharp")):
            frames = []
            for frame_number in frame_numbers[side]:
                frame = read_clip_frame(clip, frame_number, side)
                frame = frame[geometry.top_px :, geometry.left_px :][: geometry.height_px, : geometry.width_px]
                frame = frame.transpose(1, 0, 2) if geometry.swap_axes else frame
                frame = np.flipud(frame) if geometry.reverse_rows else frame
                frame = np.fliplr(frame) if geometry.reverse_columns else frame
                frame = resize_to_crop(frame[None][..., list(geometry.channels)], CROP_PX)[0]
                frames.append(frame)
            batch[name].append(np.stack(frames))
    return {name: np.stack(clips) for name, clips in batch.items()}


def assert_equal_batches(batch, expected):
    assert batch.keys() == expected.keys() == {"blurred", "sharp"}
    for name in batch:
        assert batch[name].dtype == np.uint8
        np.testing.assert_array_equal(batch[name], expected[name])


@pytest.mark.parametrize("augmentation", [None, MTU_AUGMENTATION, SVRNN_AUGMENTATION])
@pytest.mark.parametrize("window", [WINDOW, WindowSpec(frames=2, past=1, future=2, mode="sliding")])
def test_batches_equal_the_plain_loop(root, augmentation, window):
    read = batches(root, 5, augmentation=augmentation, window=window)
    assert read[0]["blurred"].shape == (4, window.past + window.frames + window.future, 8, 6, 3)
    assert read[0]["sharp"].shape == (4, window.frames, 8, 6, 3)
    for number, batch in enumerate(read):
        assert_equal_batches(batch, plain_batch(root, number, augmentation=augmentation, window=window))


def test_packed_frames_give_the_same_batches(root, tmp_path, caplog):
    from_images = batches(root, 4)
    packed = pack_video_folder(root, out=tmp_path / "packed")
    with caplog.at_level(logging.INFO, logger="absl"):
        from_packed = batches(root, 4, packed=packed)
    assert "reading 2 of 2 clips from their packed form" in caplog.text
    for batch, expected in zip(from_packed, from_images):
        assert_equal_batches(batch, expected)
    # One clip from images, one packed.
    (packed / "train" / "portrait" / "index.json").unlink()
    for batch, expected in zip(batches(root, 4, packed=packed), from_images):
        assert_equal_batches(batch, expected)


def test_starting_at_a_batch_equals_skipping_to_it(root):
    whole = batches(root, 6)
    for batch, expected in zip(batches(root, 3, first_batch=3), whole[3:]):
        assert_equal_batches(batch, expected)
    assert np.any(whole[0]["blurred"] != batches(root, 1, seed=8)[0]["blurred"])


def test_the_shares_of_two_processes_make_the_batch(root):
    whole = batches(root, 4)[1:]
    shares = [batches(root, 3, first_batch=1, process_index=process, process_count=2) for process in range(2)]
    for batch, first, second in zip(whole, *shares):
        assert first["sharp"].shape[0] == 2
        assert_equal_batches({name: np.concatenate([first[name], second[name]]) for name in batch}, batch)


def test_blurred_and_sharp_have_one_geometry(tmp_path):
    frames = random_frames_u8(9, 12, 20, seed=2)
    write_clip(tmp_path / "train" / "same", frames, frames)
    for batch in batches(tmp_path, 4):
        np.testing.assert_array_equal(batch["blurred"][:, 2:5], batch["sharp"])


def test_grey_rgba_and_16_bit_frames(tmp_path):
    rgb_u8 = random_frames_u8(1, 12, 12, seed=3)[0]
    rgb_u16 = np.random.default_rng(4).integers(0, 2**16, (12, 12, 3), np.uint16)
    grey_u8, grey_u16 = (np.repeat(image[..., :1], 3, -1) for image in (rgb_u8, rgb_u16))
    images = [
        ImageFile(grey_u8, is_grey=True),
        ImageFile(grey_u8, alpha=rgb_u8[..., 1].copy(), is_grey=True),
        ImageFile(rgb_u8, alpha=rgb_u8[..., 0].copy()),
        ImageFile(rgb_u16),
        ImageFile(grey_u16, is_grey=True),
        ImageFile(rgb_u16, alpha=rgb_u16[..., 0].copy()),
    ]
    for side in ("blur", "sharp"):
        (tmp_path / "train" / "c" / side).mkdir(parents=True)
        for number, image in enumerate(images):
            write_image(tmp_path / "train" / "c" / side / f"{number}.png", image)
    window = WindowSpec(frames=6, past=0, future=0, mode="grid")
    (batch,) = batches(tmp_path, 1, window=window, augmentation=None)
    assert_equal_batches(batch, plain_batch(tmp_path, 0, augmentation=None, window=window))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1", "grey"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_crops_equal_crops_of_the_decoded_frame(tmp_path, subsampling, progressive):
    frames_u8 = random_frames_u8(8, 87, 93, seed=8)
    options = {} if subsampling == "grey" else {"subsampling": subsampling}
    for number, frame in enumerate(frames_u8):
        path = tmp_path / "train" / "c" / ("blur", "sharp")[number % 2] / f"{number // 2}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(frame)
        image = image.convert("L") if subsampling == "grey" else image
        image.save(path, quality=70, progressive=progressive, **options)
    for number, batch in enumerate(batches(tmp_path, 3)):
        assert_equal_batches(batch, plain_batch(tmp_path, number, augmentation=MTU_AUGMENTATION))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_frames_on_their_side_come_upright_packed_or_not(tmp_path, suffix):
    exif = Image.Exif()
    for side, orientations in (("blur", (6, 1, 8)), ("sharp", (1, 5, 6))):
        (tmp_path / "train" / "c" / side).mkdir(parents=True)
        for number, orientation in enumerate(orientations):
            exif[ExifTags.Base.Orientation] = orientation
            size_px = (20, 14) if orientation == 1 else (14, 20)
            image = Image.fromarray(random_frames_u8(1, *size_px, seed=number)[0])
            image.save(tmp_path / "train" / "c" / side / f"{number}{suffix}", exif=exif)
    (clip,) = index_video_folder(tmp_path, "train")
    assert (clip.height_px, clip.width_px) == (20, 14)
    assert len(clip.unplain_paths) == 4
    for _ in range(2):
        for number, batch in enumerate(batches(tmp_path, 2)):
            assert_equal_batches(batch, plain_batch(tmp_path, number, augmentation=MTU_AUGMENTATION))
        pack_video_folder(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_corrupt_frame_is_named(tmp_path, suffix):
    frames = random_frames_u8(8, 16, 16, seed=5)
    write_clip(tmp_path / "train" / "c", frames[:4], frames[4:], suffix=suffix)
    path = tmp_path / "train" / "c" / "sharp" / f"1{suffix}"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"c/sharp/1\{suffix}' cannot be decoded.*write that frame again"):
        batches(tmp_path, 1)


def test_a_corrupt_frame_stops_at_its_own_batch_only(tmp_path):
    for number in range(6):
        write_random_clip(tmp_path / "train" / str(number), 3, 9, 9, seed=number)
    index = index_video_folder(tmp_path, "train")
    windows = cut_windows(index, WINDOW)
    last = window_of_sample(windows, seed=7, sample=5)
    path = Path(index[last.clip].blur_paths[0])
    path.write_bytes(path.read_bytes()[:60])
    options = {"batch_size": 1, "augmentation": None}
    expected = [plain_batch(tmp_path, n, augmentation=None, batch_size=1) for n in range(5)]
    for batch, plain in zip(batches(tmp_path, 5, **options), expected):
        assert_equal_batches(batch, plain)
    with pytest.raises(ValueError, match=f"{last.clip}/blur/0.png"):
        batches(tmp_path, 6, **options)


def test_a_frame_that_vanishes_or_shrinks_is_named(tmp_path):
    write_random_clip(tmp_path / "train" / "c", 3, 16, 16, seed=6)
    index = index_video_folder(tmp_path, "train")
    options = {"window": WINDOW, "batch_size": 2, "seed": 0, "augmentation": None}
    path = Path(index[0].sharp_paths[2])
    write_image(path, ImageFile(random_frames_u8(1, 4, 4, seed=6)[0]))
    with pytest.raises(ValueError, match=r"sharp/2\.png' cannot be decoded, or is smaller than when"):
        next(video_folder_batches(index, crop_px=(16, 16), **options))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="vanished") as caught:
        next(video_folder_batches(index, crop_px=(16, 16), **options))
    assert caught.value.filename == str(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "process_count": 2}, "batch of 3 cannot be shared out equally to 2 processes"),
        ({"process_index": 1}, "process_index is 0 to 0, not 1"),
        ({"seed": -1}, "seed is 0 to"),
        ({"first_batch": -1}, "first_batch >= 0"),
        (
            {"crop_px": (12, 8)},
            r"crop of 8x12 does not fit clip '.*landscape', whose frame is 17x11 and is also",
        ),
        ({"window": WindowSpec(5, 0, 0, "grid")}, "portrait' has 4; choose a shorter window"),
    ],
)
def test_impossible_options_are_refused_before_the_first_batch(root, options, message):
    index = index_video_folder(root, "train")
    options = {"window": WINDOW, "batch_size": 4, "crop_px": CROP_PX, "seed": 7} | options
    with pytest.raises(ValueError, match=message):
        video_folder_batches(index, augmentation=MTU_AUGMENTATION, **options)


def test_without_tensorflow_the_error_says_what_to_install(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r'pip install "jaxdeblur\[data\]"'):
        batches(root, 1)


@pytest.mark.parametrize("end", ["raise RuntimeError('end')", "sys.exit(1)"])
def test_a_program_ends_while_batches_are_read(root, end):
    code = f"""if True:
        import sys
        from jaxdeblur.data.clips import WindowSpec
        from jaxdeblur.data.pipeline import video_folder_batches
        from jaxdeblur.data.video_folder import index_video_folder
        endless = video_folder_batches(
            index_video_folder({str(root)!r}, "train"), window=WindowSpec(1, 0, 0, "sliding"), batch_size=64,
            crop_px=(4, 4), seed=0, augmentation=None,
        )
        next(endless)
        {end}
    """
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 1
