"""Blurry videos of which no sharp ones exist: windows around their frames, held in memory, and crops of them.

As in `clips` and `transforms` nothing has a state: what sample n of a run is follows from (seed, n).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxdeblur.data.clips import batch_share, check_start, epoch_order, frame_windows
from jaxdeblur.data.streams import Stream
from jaxdeblur.data.transforms import draw_geometry
from jaxdeblur.data.video_folder import alike
from jaxdeblur.types import Array, Batch, BeyondEnds


class UnlabelledWindow(NamedTuple):
    """A frame with what lies around it."""

    clip: str
    frame: int
    """Its number in the clip, from 0."""
    frames: tuple[np.ndarray, ...]
    """before + 1 + after of them, (H, W, 3), uint8 or uint16; windows share their frames' memory."""


def windows_of_clip(
    clip: str, frames: Iterable[np.ndarray], *, before: int, after: int, beyond_ends: BeyondEnds = "repeat"
) -> Iterator[UnlabelledWindow]:
    """A window of every frame that has a neighbour on either side, as they come. What stands in a neighbour's place
    beyond a clip's ends (`frame_windows`) would show another motion than that which blurred the frame, hence not of
    every frame.

    Raises:
        ValueError: a frame's size or type is not the first one's.
    """

    held_back: UnlabelledWindow | None = None
    for number, window in enumerate(frame_windows(alike(frames, clip), before, after, beyond_ends=beyond_ends)):
        if held_back is not None:  # by now it has a successor
            yield held_back
        held_back = UnlabelledWindow(clip, number, window) if number > 0 else None


def cut_out(window: UnlabelledWindow, side_px: int, *, seed: int) -> UnlabelledWindow:
    """A square of a window at a random place, in memory of its own: frames of any size then take the same."""
    height, width, _ = window.frames[0].shape
    rows, columns = min(side_px, height), min(side_px, width)
    place = draw_geometry(
        seed=seed, sample=window.frame, frame_size_px=(height, width), crop_px=(rows, columns), augmentation=None
    )
    inside = np.s_[place.top_px : place.top_px + rows, place.left_px : place.left_px + columns]
    return window._replace(frames=tuple(frame[inside].copy() for frame in window.frames))


def choose_windows(windows: Iterable[UnlabelledWindow], *, most_bytes: int, seed: int) -> list[UnlabelledWindow]:
    """As many windows as fit, each as likely as any other, in order (reservoir sampling: whatever the length of a
    video, no more is ever held). At least one, if there is one. All are taken to be as large as the first, and to share
    no memory."""
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence((Stream.UNLABELLED_CHOICE, seed))))
    chosen: list[tuple[int, UnlabelledWindow]] = []
    most = 1
    for number, window in enumerate(windows):
        if number == 0:
            most = max(1, most_bytes // sum(frame.nbytes for frame in window.frames))
        if len(chosen) < most:
            chosen.append((number, window))
        elif (place := int(draw.integers(number + 1))) < most:
            chosen[place] = (number, window)
    return [window for _, window in sorted(chosen, key=lambda entry: entry[0])]


def unlabelled_batches(
    windows: Sequence[UnlabelledWindow],
    *,
    batch_size: int,
    crop_px: int,
    seed: int,
    first_batch: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[np.ndarray]:
    """Endless batches (B / process_count, before + 1 + after, crop, crop, 3), float32 in [0, 1]: every window once in
    each pass, in a new order, cut at a place of its own that is the same for all its frames.

    Raises:
        ValueError: no windows, or a frame smaller than the crop.
    """
    if not windows:
        raise ValueError("there is no frame with a neighbour on either side; clips need 3 frames or more")
    for window in windows:
        height, width, _ = window.frames[0].shape
        if min(height, width) < crop_px:
            raise ValueError(f"{window.clip}: frames are {width}x{height}, smaller than crops of {crop_px} px")
    share = batch_share(batch_size, process_index, process_count)
    check_start(seed, first_batch)
    number = first_batch
    while True:
        samples = range(number * batch_size + share.start, number * batch_size + share.stop)
        yield np.stack([crop_of_sample(windows, sample, crop_px=crop_px, seed=seed) for sample in samples])
        number += 1


def crop_of_sample(windows: Sequence[UnlabelledWindow], sample: int, *, crop_px: int, seed: int) -> np.ndarray:
    """Crop number `sample` of a run, (before + 1 + after, crop, crop, 3), float32 in [0, 1]."""
    epoch, position = divmod(sample, len(windows))
    frames = windows[epoch_order(len(windows), seed=seed, epoch=epoch)[position]].frames
    height, width, _ = frames[0].shape
    place = draw_geometry(
        seed=seed, sample=sample, frame_size_px=(height, width), crop_px=(crop_px, crop_px), augmentation=None
    )
    rows, columns = slice(place.top_px, place.top_px + crop_px), slice(place.left_px, place.left_px + crop_px)
    return stacked([frame[rows, columns] for frame in frames])


def stacked(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Integer frames as one clip, float32 in [0, 1]."""
    clip = np.stack(frames)
    return clip.astype(np.float32) / np.float32(np.iinfo(clip.dtype).max)


def half_labelled(labelled: Iterable[Batch], unlabelled: Iterable[Array]) -> Iterator[Batch]:
    """Batches with truth, of which only what is learned from is kept, each with unlabelled clips beside it."""
    for batch, clips in zip(labelled, unlabelled, strict=True):
        yield {"blurred": batch["blurred"], "sharp": batch["sharp"], "unlabelled": clips}
