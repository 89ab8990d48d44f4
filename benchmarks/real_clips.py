"""Real footage for benchmarks: clips with truth, frames of videos, and what a network makes of them.

PAIRS/<clip>/{blur,sharp}/<frame>.png are clips with truth. A frame need not have one: it is looked at all the same.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdeblur.data.image_io import read_rgb_u8
from jaxdeblur.data.video_folder import list_images
from jaxdeblur.data.video_io import VideoReader
from jaxdeblur.restoration.clip import restore
from jaxdeblur.restoration.gate import Gate, passing_share
from jaxdeblur.types import Variables


class Clip(NamedTuple):
    """uint8 frames (N, H, W, 3) that belong together, all but if `alone`; `has_truth` says for which sharp ones are."""

    name: str
    blurred: np.ndarray
    has_truth: list[bool]
    sharp: np.ndarray
    alone: bool


class Restored(NamedTuple):
    """Of each frame: what the network makes of it, what is left of that behind the gate, and how much passes."""

    free: np.ndarray
    gated: np.ndarray
    share: list[float]


def add_singles_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--singles", default="gopro_singles", help="clips whose frames do not belong together")


def add_clips_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clips", default="", help="some of PAIRS; default: all")


def read_clips(pairs: Path, singles: Sequence[str], chosen: str = "", side: int | None = None) -> Iterator[Clip]:
    """All clips, or those of these names, with commas between; whole, or the middle side x side pixels."""
    for folder in sorted(folder for folder in pairs.iterdir() if (folder / "sharp").is_dir()):
        if chosen and folder.name not in chosen.split(","):
            continue
        paths = list_images(folder / "blur")
        truths = [folder / "sharp" / path.name for path in paths]
        clip = Clip(
            name=folder.name,
            blurred=np.stack([read_rgb_u8(path) for path in paths]),
            has_truth=[truth.exists() for truth in truths],
            sharp=np.stack([read_rgb_u8(truth) for truth in truths if truth.exists()]),
            alone=folder.name in singles,
        )
        yield clip if side is None else _middle(clip, side)


def _middle(clip: Clip, side: int) -> Clip:
    """The middle side x side pixels of every frame; of smaller frames all there is."""
    height, width = clip.blurred.shape[1:3]
    rows, columns = min(side, height), min(side, width)
    top, left = (height - rows) // 2, (width - columns) // 2
    blurred, sharp = (
        np.ascontiguousarray(images[:, top : top + rows, left : left + columns])
        for images in (clip.blurred, clip.sharp)
    )
    return clip._replace(blurred=blurred, sharp=sharp)


def first_frames(video: Path, count: int = 16) -> np.ndarray:
    with VideoReader(video) as reader:
        return np.stack([frame.rgb for frame in itertools.islice(reader, count)])


def stillest_frames(video: Path, count: int = 16) -> tuple[int, np.ndarray]:
    """Number of the first, and frames: so many in a row, between which least changes, or all if there are fewer."""
    with VideoReader(video) as reader:
        pairs = itertools.pairwise(frame.rgb.astype(np.int16) for frame in reader)
        changes = [float(np.mean(np.square(after - before, dtype=np.float32))) for before, after in pairs]
    sums = [sum(changes[first : first + count - 1]) for first in range(max(1, len(changes) - count + 2))]
    first = int(np.argmin(sums))
    with VideoReader(video) as reader:
        return first, np.stack([frame.rgb for frame in itertools.islice(reader, first, first + count)])


def restored(frames: np.ndarray, model: Any, variables: Variables, *, alone: bool = False) -> Restored:
    """Of a clip's frames, or if they are alone, of each as a clip by itself."""
    clips = [frames[i : i + 1] for i in range(len(frames))] if alone else [frames]
    free, gate = np.concatenate([restore(clip, model, variables) for clip in clips]), Gate()
    return Restored(
        free,
        gated=np.stack([gate(before, after) for before, after in zip(frames, free, strict=True)]),
        share=[passing_share(before, after) for before, after in zip(frames, free, strict=True)],
    )


def nearness_db(frames: np.ndarray, others: np.ndarray) -> np.ndarray:
    """PSNR of each frame; equal ones count as 100 dB."""
    errors = np.mean(np.square(frames.astype(np.float64) - others), axis=(1, 2, 3))
    return np.minimum(100, 10 * np.log10(255**2 / np.maximum(errors, 1e-12)))


def print_sharp_videos(videos: Sequence[Path], model: Any, variables: Variables) -> None:
    """How near what comes out is to what went in, with the gate and without, where least moves and is blurred."""
    print("| sharp video | stillest frames | output against input, dB: mean | least | gated: mean | least | share |")
    print("|---|---|---|---|---|---|---|")
    for video in videos:
        first, frames = stillest_frames(video)
        found = restored(frames, model, variables)
        free, gated = nearness_db(found.free, frames), nearness_db(found.gated, frames)
        print(
            f"| {video.name} | {first}-{first + len(frames) - 1} | {free.mean():.1f} | {free.min():.1f} | "
            f"{gated.mean():.1f} | {gated.min():.1f} | {np.mean(found.share):.2f} |",
            flush=True,
        )
