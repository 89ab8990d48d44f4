"""Small separable filters on (..., H, W, C)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxdeblur.types import Features


def correlate_axis(image: Features, taps: Sequence[float] | np.ndarray, axis: int) -> Features:
    """sum over k of taps[k] * image[i + k] along one axis, only where every tap lies inside (the axis shrinks)."""
    size = image.shape[axis] - len(taps) + 1
    if size < 1:
        raise ValueError(f"axis of {image.shape[axis]} is shorter than the filter's {len(taps)} taps")
    index: list[slice] = [slice(None)] * image.ndim
    total = None
    for k, tap in enumerate(taps):
        index[axis] = slice(k, k + size)
        term = image[tuple(index)] * jnp.asarray(tap, image.dtype)
        total = term if total is None else total + term
    assert total is not None
    return total


def box_mean(image: Features, size: int) -> Features:
    """Mean over size x size pixels (odd size), same shape out; pixels outside count as zero and are counted."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size is {size}; expected an odd number of pixels")
    half = size // 2
    taps = np.full(size, 1.0 / size)
    for axis in (-3, -2):
        pad = [(0, 0)] * image.ndim
        pad[axis] = (half, half)
        image = correlate_axis(jnp.pad(image, pad), taps, axis)
    return image


def gaussian_taps(size: int, sigma_px: float) -> np.ndarray:
    """Taps of a sampled Gaussian that sum to one."""
    offset = np.arange(size) - (size - 1) / 2
    taps = np.exp(-0.5 * (offset / sigma_px) ** 2)
    return taps / taps.sum()
