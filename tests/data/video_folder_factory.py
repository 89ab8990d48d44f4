"""Writes small video folders of random frames for the tests of this folder."""

from pathlib import Path

import numpy as np

from jaxdeblur.data.image_io import ImageFile, write_image


def random_frames_u8(n_frames: int, height_px: int, width_px: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n_frames, height_px, width_px, 3), np.uint8)


def write_clip(folder: Path, blur_u8: np.ndarray, sharp_u8: np.ndarray, *, suffix: str = ".png") -> None:
    """Frames 0, 1, ... without leading zeros, so that text order is not time order from ten frames on."""
    for side, frames in (("blur", blur_u8), ("sharp", sharp_u8)):
        (folder / side).mkdir(parents=True)
        for number, frame in enumerate(frames):
            write_image(folder / side / f"{number}{suffix}", ImageFile(frame))


def write_random_clip(folder: Path, n_frames: int, height_px: int, width_px: int, *, seed: int) -> None:
    frames = random_frames_u8(2 * n_frames, height_px, width_px, seed=seed)
    write_clip(folder, frames[:n_frames], frames[n_frames:])
