"""Training batches from a video folder, through tf.data.

Batch k of a run holds its samples k*B .. (k+1)*B-1, and what a sample is follows from (seed, its number)
alone: see `clips` for the order and `transforms` for the geometry. So the step is the whole state of the
input; a checkpoint stores nothing else.

Batches are uint8. Four times fewer bytes pass through the batching, the prefetching and the copy to the
accelerator than with floats, and the noise of the augmentation is drawn there, in the jitted step, by
`transforms.to_float_batch`.
"""

import atexit
import errno
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from jaxdeblur.data.clips import (
    ClipWindow,
    WindowSpec,
    batch_share,
    blurred_frame_numbers,
    check_start,
    cut_windows,
    sharp_frame_numbers,
    window_of_sample,
)
from jaxdeblur.data.image_io import read_rgb_u8
from jaxdeblur.data.pack import find_packed, open_packed
from jaxdeblur.data.transforms import Augmentation, check_crop, draw_geometry, orient, resize_to_crop
from jaxdeblur.data.video_folder import SIDES, ClipFiles, Side

_PREFETCHED_BATCHES = 2
_PNG_BIT_DEPTH_BYTE = 24
_JPEG_BLOCK_PX = _JPEG_MARGIN_PX = 32
"""The largest block that is coded together, four times coarser in chroma; and more than interpolation looks at."""


def video_folder_batches(
    index: Sequence[ClipFiles],
    *,
    window: WindowSpec,
    batch_size: int,
    crop_px: tuple[int, int],
    seed: int,
    augmentation: Augmentation | None,
    first_batch: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    packed: str | os.PathLike[str] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, in an order that does not depend on threads.

    Only the frames of a window are decoded, of JPEG files and packed clips only the crop, and no frame twice.

    Args:
        index: what `index_video_folder` found.
        window: how the clips are cut into windows.
        batch_size: B, over all processes.
        crop_px: (height, width) of the result, at a random place of each window.
        seed: of the order and the geometry, 0 to 2**32-1.
        augmentation: rotations and flips; its noise is `to_float_batch`'s. None crops only.
        first_batch: k to begin as an uninterrupted run goes on after k batches.
        process_index: which of process_count equal, consecutive parts of every batch this process yields.
        process_count: processes that share a batch.
        packed: where `pack_video_folder` was told to write, if elsewhere than in the video folder.
    Yields:
        {"blurred": (B / process_count, past+T+future, h, w, 3), "sharp": (B / process_count, T, h, w, 3)},
        uint8.
    Raises:
        ImportError: TensorFlow is missing.
        ValueError: a clip is shorter than the window or smaller than the crop, or batch_size cannot be
            shared out. While iterating: a file is damaged or changed; the message names it.
    """
    share = batch_share(batch_size, process_index, process_count)
    check_start(seed, first_batch)
    windows = cut_windows(index, window)
    for clip in index:
        check_crop(clip.folder, (clip.height_px, clip.width_px), crop_px, augmentation)
    plans = _Plans(index, find_packed(index, packed=packed), windows, window, crop_px, seed, augmentation)
    return _iterate(
        import_tensorflow(),
        plans,
        first_batch=first_batch,
        batch_size=batch_size,
        share=share,
    )


def import_tensorflow() -> ModuleType:
    """TensorFlow, kept away from the accelerators, which are JAX's.

    Raises:
        ImportError: it is not installed; says how to.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "reading a video folder for training needs TensorFlow (tf.data); install it with "
            '`pip install "jaxdeblur[data]"`, or train on the built-in scenes, which need none'
        ) from error
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf


@dataclass(frozen=True)
class _Plans:
    """What is to be read for a sample: frame numbers, files and geometry, as plain values."""

    index: Sequence[ClipFiles]
    packed_folders: Sequence[str | None]
    windows: Sequence[ClipWindow]
    spec: WindowSpec
    crop_px: tuple[int, int]
    seed: int
    augmentation: Augmentation | None

    def plan(self, sample: int) -> dict[str, Any]:
        window = window_of_sample(self.windows, seed=self.seed, sample=sample)
        clip, folder = self.index[window.clip], self.packed_folders[window.clip]
        geometry = draw_geometry(
            seed=self.seed,
            sample=sample,
            frame_size_px=(clip.height_px, clip.width_px),
            crop_px=self.crop_px,
            augmentation=self.augmentation,
        )
        plan: dict[str, Any] = {
            "packed_folder": os.fsencode(folder or ""),
            "box_px": np.array([geometry.top_px, geometry.left_px, geometry.height_px, geometry.width_px], np.int32),
            "turns": np.array([geometry.swap_axes, geometry.reverse_rows, geometry.reverse_columns]),
            "channels": np.array(geometry.channels, np.int32),
        }
        frame_numbers: dict[Side, list[int]] = {
            "blur": blurred_frame_numbers(window, clip.n_frames, self.spec),
            "sharp": sharp_frame_numbers(window, self.spec),
        }
        for side, numbers in frame_numbers.items():
            # Frames that stand for missing neighbours repeat others: read once, then repeat.
            distinct, positions = np.unique(numbers, return_inverse=True)
            plan[f"{side}_frames"] = distinct.astype(np.int32)
            plan[f"{side}_positions"] = positions.astype(np.int32)
            paths = [] if folder else [clip.paths(side)[frame] for frame in distinct]
            plan[f"{side}_paths"] = np.array([os.fsencode(path) for path in paths], object)
            plan[f"{side}_plain"] = np.array([path not in clip.unplain_paths for path in paths], np.bool_)
        return plan


def _iterate(
    tf: ModuleType, plans: _Plans, *, first_batch: int, batch_size: int, share: range
) -> Iterator[dict[str, np.ndarray]]:
    def samples_of(batch: int) -> range:
        return range(batch * batch_size + share.start, batch * batch_size + share.stop)

    height_px, width_px = plans.crop_px
    n_frames = {"blur": plans.spec.past + plans.spec.frames + plans.spec.future, "sharp": plans.spec.frames}
    plan_dtypes = {"packed_folder": tf.string, "box_px": tf.int32, "turns": tf.bool, "channels": tf.int32}
    for side in SIDES:
        plan_dtypes |= {f"{side}_paths": tf.string, f"{side}_plain": tf.bool}
        plan_dtypes |= {f"{side}_frames": tf.int32, f"{side}_positions": tf.int32}

    def plan_values(local_sample: np.int64) -> list[Any]:
        batch, position = divmod(int(local_sample), len(share))
        plan = plans.plan(samples_of(batch)[position])
        return [plan[name] for name in plan_dtypes]

    def read(local_sample: Any) -> dict[str, Any]:
        values = tf.numpy_function(plan_values, [local_sample], list(plan_dtypes.values()), stateful=False)
        plan = dict(zip(plan_dtypes, values))
        plan["box_px"] = tf.ensure_shape(plan["box_px"], (4,))
        return {
            side: tf.ensure_shape(_read_side(tf, plan, side, plans.crop_px), (n_frames[side], height_px, width_px, 3))
            for side in SIDES
        }

    # Counts this process's samples from the run's beginning; endless in practice.
    dataset = tf.data.Dataset.range(first_batch * len(share), np.iinfo(np.int64).max)
    dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(len(share), drop_remainder=True).prefetch(_PREFETCHED_BATCHES)
    # TensorFlow's threads call back into Python. An iterator that lives on while the interpreter shuts down, in a
    # traceback say, waits for them forever: so it goes before that, whoever still holds this generator.
    live = [dataset.as_numpy_iterator()]
    atexit.register(live.clear)
    try:
        for batch in itertools.count(first_batch):
            try:
                images_u8 = next(live[0])
            except tf.errors.OpError as error:
                # TensorFlow does not say which file it was, but the order is fixed: it is one of this batch.
                for sample in samples_of(batch):
                    _raise_if_unreadable(tf, plans.plan(sample))
                error.add_note(f"while reading batch {batch} of the video folder; all its files are readable now")
                raise
            yield {"blurred": images_u8["blur"], "sharp": images_u8["sharp"]}
    finally:
        live.clear()
        atexit.unregister(live.clear)


def _read_side(tf: ModuleType, plan: dict[str, Any], side: Side, crop_px: tuple[int, int]) -> Any:
    """The window of one side, cropped, turned and resized: (frames, h, w, 3) uint8."""

    def from_images() -> Any:
        return tf.map_fn(
            lambda file: _decode_crop(tf, file[0], file[1], plan["box_px"]),
            (plan[f"{side}_paths"], plan[f"{side}_plain"]),
            fn_output_signature=tf.uint8,
        )

    def from_packed() -> Any:
        arguments = [plan["packed_folder"], plan[f"{side}_frames"], plan["box_px"]]
        return tf.numpy_function(functools.partial(_read_packed, side), arguments, tf.uint8, stateful=False)

    frames = tf.cond(tf.equal(plan["packed_folder"], ""), from_images, from_packed)
    turn = functools.partial(_turn, crop_px=crop_px)
    frames = tf.numpy_function(turn, [frames, plan["turns"], plan["channels"]], tf.uint8, stateful=False)
    return tf.gather(frames, plan[f"{side}_positions"])


def _decode_crop(tf: ModuleType, path: Any, is_plain: Any, box_px: Any) -> Any:
    """The crop of one file, with the values that `image_io` gives."""
    contents = tf.io.read_file(path)
    box = top_px, left_px, height_px, width_px = tf.unstack(box_px)

    def png_u8() -> Any:
        return tf.io.decode_png(contents, channels=3)

    def png_u16_to_u8() -> Any:
        # Rounded, as image_io does; decode_png itself would cut the low byte off.
        image_u16 = tf.io.decode_png(contents, channels=3, dtype=tf.uint16)
        return tf.cast((tf.cast(image_u16, tf.int32) + 128) // 257, tf.uint8)

    def crop_png() -> Any:
        is_16_bit = tf.equal(tf.strings.substr(contents, _PNG_BIT_DEPTH_BYTE, 1), b"\x10")
        image_u8 = tf.cond(is_16_bit, png_u16_to_u8, png_u8)
        return tf.slice(image_u8, [top_px, left_px, 0], [height_px, width_px, 3])

    def crop_jpeg() -> Any:
        # Of a crop only, libjpeg interpolates chroma at the edges of its blocks: so these are taken whole, and more.
        height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(contents))
        top, left = (tf.maximum((edge - _JPEG_MARGIN_PX) // _JPEG_BLOCK_PX * _JPEG_BLOCK_PX, 0) for edge in box[:2])
        ends = box[0] + box[2], box[1] + box[3]
        bottom, right = (
            tf.minimum(-(-(end + _JPEG_MARGIN_PX) // _JPEG_BLOCK_PX) * _JPEG_BLOCK_PX, tf.maximum(side, end))
            for end, side in zip(ends, (height, width))
        )
        wide_u8 = tf.image.decode_and_crop_jpeg(
            contents,
            [top, left, bottom - top, right - left],
            channels=3,
            fancy_upscaling=True,
            dct_method="INTEGER_ACCURATE",
        )
        return tf.slice(wide_u8, [box[0] - top, box[1] - left, 0], [box[2], box[3], 3])

    def crop_unplain() -> Any:
        return tf.numpy_function(_read_crop, [path, box_px], tf.uint8, stateful=False)

    def crop_plain() -> Any:
        return tf.cond(tf.io.is_jpeg(contents), crop_jpeg, crop_png)

    return tf.cond(is_plain, crop_plain, crop_unplain)


def _read_crop(path: bytes, box_px: np.ndarray) -> np.ndarray:
    top_px, left_px, height_px, width_px = box_px
    image_u8 = read_rgb_u8(os.fsdecode(path))
    if image_u8.shape[0] < top_px + height_px or image_u8.shape[1] < left_px + width_px:
        raise ValueError(f"it is {image_u8.shape[1]}x{image_u8.shape[0]}")
    return image_u8[top_px : top_px + height_px, left_px : left_px + width_px]


def _read_packed(side: Side, folder: bytes, frames: np.ndarray, box_px: np.ndarray) -> np.ndarray:
    top_px, left_px, height_px, width_px = box_px
    frames_u8 = open_packed(os.fsdecode(folder), side)
    # One plain copy a frame; indexing with all frame numbers at once would walk the file pixel by pixel.
    rows, columns = slice(top_px, top_px + height_px), slice(left_px, left_px + width_px)
    return np.stack([frames_u8[frame, rows, columns] for frame in frames])


def _turn(frames: np.ndarray, turns: np.ndarray, channels: np.ndarray, *, crop_px: tuple[int, int]) -> np.ndarray:
    swap_axes, reverse_rows, reverse_columns = turns.tolist()
    turned = orient(frames, swap_axes=swap_axes, reverse_rows=reverse_rows, reverse_columns=reverse_columns)
    return resize_to_crop(np.ascontiguousarray(turned[..., channels]), crop_px)


def _raise_if_unreadable(tf: ModuleType, plan: dict[str, Any]) -> None:
    for side in SIDES:
        if plan["packed_folder"]:
            _read_packed(side, plan["packed_folder"], plan[f"{side}_frames"], plan["box_px"])
            continue
        for path, is_plain in zip(plan[f"{side}_paths"], plan[f"{side}_plain"]):
            try:
                _decode_crop(tf, path, is_plain, plan["box_px"])
            except tf.errors.NotFoundError as error:
                raise FileNotFoundError(
                    errno.ENOENT, "a frame vanished while its video folder was read", os.fsdecode(path)
                ) from error
            except tf.errors.OpError as error:
                reason = " ".join(error.message.split("[Op:")[0].split("\n")[0].split())
                raise ValueError(
                    f"{os.fsdecode(path)!r} cannot be decoded, or is smaller than when its folder was "
                    f"indexed "
                    f"({reason}); write that frame again or remove its clip"
                ) from error
