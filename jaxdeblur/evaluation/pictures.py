"""Picture strips: the same frame blurred, restored and sharp, side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdeblur.data.image_io import ImageFile, write_image

GAP_PX = 4


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


def write_picture(path: Path, image_u8: np.ndarray) -> None:
    """Writes an (H, W, 3) uint8 picture, making the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, ImageFile(image_u8))
