"""Small separable filters on (..., H, W, C)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

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


def sliding_mean(image: Features, size: int, axis: int) -> Features:
    """Means over each `size` neighbours along one axis, only where all of them lie inside (the axis shrinks); where it
    has no more values than that, there is one mean, of them all.

    Sums of two neighbours are added up to sums of four, and so on: few passes over the image, however many neighbours.
    No digits are lost, as they are in differences of cumulative sums, and values that are no numbers stay where they
    are looked at.

    Args:
        image: (..., H, W, C), floating.
        axis: counted from the end, or not.
    Returns:
        In float32.
    """
    if size < 1:
        raise ValueError(f"size is {size}; expected 1 value or more")
    length, values = image.shape[axis], image.astype(jnp.float32)
    if not export.is_symbolic_dim(length):
        if length <= size:
            return jnp.mean(values, axis=axis, keepdims=True)
        count: Any = size
    else:  # which of the two it is, is not known; zeros make it long enough
        missing = jax.core.max_dim(size - length, 0)
        fill = jnp.zeros([missing if n == axis % values.ndim else side for n, side in enumerate(values.shape)])
        values = jnp.concatenate([values, fill], axis=axis)
        count = jnp.asarray(size - missing, jnp.float32)
    length = values.shape[axis] - size + 1
    total, summed, width = jnp.zeros((), jnp.float32), 0, 1
    while summed < size:  # values are sums over `width` neighbours
        if size & width:
            total = total + jax.lax.slice_in_dim(values, summed, summed + length, axis=axis)
            summed += width
        if summed < size:
            rest = values.shape[axis] - width
            values = jax.lax.slice_in_dim(values, 0, rest, axis=axis) + jax.lax.slice_in_dim(
                values, width, width + rest, axis=axis
            )
            width *= 2
    return total / count


def gaussian_taps(size: int, sigma_px: float) -> np.ndarray:
    """Taps of a sampled Gaussian that sum to one."""
    offset = np.arange(size) - (size - 1) / 2
    taps = np.exp(-0.5 * (offset / sigma_px) ** 2)
    return taps / taps.sum()
