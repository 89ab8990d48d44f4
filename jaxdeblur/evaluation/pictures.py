"""Pictures of frames: the same one blurred, restored and sharp, side by side; and maps of what distinguishes them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.ops.filters import box_mean

GAP_PX = 4

_MAP_COLOURS = np.array([(8, 8, 28), (56, 30, 120), (178, 46, 98), (246, 140, 44), (252, 248, 196)], np.float64)
"""From nothing to most; their brightness rises evenly."""


def strip(images_u8: Sequence[np.ndarray]) -> np.ndarray:
    """Equal (H, W, 3) uint8 images from left to right with a white gap between."""
    gap = np.full((images_u8[0].shape[0], GAP_PX, 3), 255, np.uint8)
    parts = [images_u8[0]]
    for image in images_u8[1:]:
        parts += [gap, image]
    return np.concatenate(parts, axis=1)


def stack(strips_u8: Sequence[np.ndarray]) -> np.ndarray:
    """Strips of any width from top to bottom with a white gap between."""
    width = max(image.shape[1] for image in strips_u8)
    rows = []
    for image in strips_u8:
        rows += [np.pad(image, ((0, GAP_PX), (0, width - image.shape[1]), (0, 0)), constant_values=255)]
    return np.concatenate(rows, axis=0)[:-GAP_PX]


def sharpness_map(image_u8: np.ndarray) -> np.ndarray:
    """(H, W) float32: differences of the grey image to the right and down, root mean square over 5 x 5 pixels, in 8-bit
    levels. Edges that blur has spread are low."""
    grey = image_u8.astype(np.float32).mean(axis=-1)
    across, down = (np.diff(grey, axis=axis, append=np.take(grey, [-1], axis)) for axis in (1, 0))
    return np.sqrt(np.asarray(box_mean((across**2 + down**2)[..., None], 5))[..., 0])


def error_map(image_u8: np.ndarray, sharp_u8: np.ndarray) -> np.ndarray:
    """(H, W) float32: differences to the sharp image, root mean square over channels, in 8-bit levels."""
    difference = image_u8.astype(np.float32) - sharp_u8.astype(np.float32)
    return np.sqrt(np.mean(difference**2, axis=-1))


def map_to_colour(values: np.ndarray, most: float) -> np.ndarray:
    """(H, W, 3) uint8: dark at 0, bright at `most` and above."""
    place = np.clip(values / max(most, 1e-6), 0, 1) * (len(_MAP_COLOURS) - 1)
    below = np.minimum(place.astype(np.intp), len(_MAP_COLOURS) - 2)
    part = (place - below)[..., None]
    return np.rint((1 - part) * _MAP_COLOURS[below] + part * _MAP_COLOURS[below + 1]).astype(np.uint8)


def write_picture(path: Path, image_u8: np.ndarray) -> None:
    """Writes an (H, W, 3) uint8 picture, making the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, ImageFile(image_u8))
