"""Dense optical flow without weights: Lucas and Kanade's, from coarse to fine."""

import jax
import jax.numpy as jnp

from jaxdeblur.ops.filters import correlate_axis, gaussian_taps
from jaxdeblur.ops.resample import enlarge_bilinear, shrink_bilinear
from jaxdeblur.ops.warp import warp_backward
from jaxdeblur.types import Features, Flow, Image

WINDOW_PX = 31
"""Side of the Gaussian window in which motion is taken for uniform; its standard deviation is a quarter."""

_TURNS = 3
_COARSEST_PX = 12
"""Images are halved until a side would be shorter."""
_OUTLIER = 0.02
"""Differences as large count half in the fit, larger ones less: they are seldom of the same surface."""
_DAMPING = 1e-5
_MOST_STEP_PX = 1.0


def lucas_kanade_flow(image_0: Image, image_1: Image) -> Flow:
    """The flow from frame 0 to frame 1, on frame 0's grid (Lucas and Kanade, IJCAI 1981; pyramid as in Bouguet 2001).

    On every level, from the coarsest on, three times: frame 1 is warped by the flow so far, and in a Gaussian window
    around each pixel the step d that minimises sum w (g . d + e)^2 is added, e the difference that is left, g the mean
    of both gradients, w = 1 / (1 + (e / 0.02)^2) (Cauchy's weight, as in iteratively reweighted least squares). After
    each step every component is replaced by the median of its 3 x 3 neighbours (Sun, Roth, Black, CVPR 2010). For
    frames that are sharp, or were restored; in blurred ones motion is less certain. No gradient is meant to be taken.

    Args:
        image_0, image_1: (..., H, W, C) in [0, 1] of one shape; the mean over channels is looked at.
    Returns:
        flow_0to1, (..., H, W, 2) float32 in pixels.
    Raises:
        ValueError: the shapes differ.
    """
    if image_0.shape != image_1.shape:
        raise ValueError(f"image_0 has shape {image_0.shape}, image_1 {image_1.shape}; expected two alike")
    height, width = image_0.shape[-3:-1]
    grey_0, grey_1 = (
        jnp.mean(jnp.asarray(image, jnp.float32), axis=-1, keepdims=True).reshape(-1, height, width, 1)
        for image in (image_0, image_1)
    )
    levels = [(grey_0, grey_1)]
    while min(levels[-1][0].shape[1:3]) >= 2 * _COARSEST_PX:
        levels.append((_halved(levels[-1][0]), _halved(levels[-1][1])))
    flow = jnp.zeros((*levels[-1][0].shape[:-1], 2), jnp.float32)
    for number, (at_0, at_1) in enumerate(reversed(levels)):
        if number:
            rows, columns = at_0.shape[1:3]
            flow = 2 * enlarge_bilinear(flow, 2)[:, :rows, :columns]
        flow = jax.lax.fori_loop(0, _TURNS, lambda _, flow, at_0=at_0, at_1=at_1: _refined(at_0, at_1, flow), flow)
    return flow.reshape(*image_0.shape[:-1], 2)


def _refined(image_0: Image, image_1: Image, flow_0to1: Flow) -> Flow:
    moved, _ = warp_backward(image_1, flow_0to1, border="edge")
    (x_0, y_0), (x_1, y_1) = _gradient(image_0), _gradient(moved)
    x, y, rest = (x_0 + x_1) / 2, (y_0 + y_1) / 2, moved - image_0
    weight = 1 / (1 + jnp.square(rest / _OUTLIER))
    terms = weight * jnp.concatenate([x * x, x * y, y * y, x * rest, y * rest], axis=-1)
    xx, xy, yy, xe, ye = jnp.split(_in_window(terms), 5, axis=-1)
    xx, yy = xx + _DAMPING, yy + _DAMPING
    step = jnp.concatenate([xy * ye - yy * xe, xy * xe - xx * ye], axis=-1) / (xx * yy - xy * xy)
    return _median_3x3(flow_0to1 + jnp.clip(step, -_MOST_STEP_PX, _MOST_STEP_PX))


def _halved(image: Image) -> Image:
    odd_rows, odd_columns = (side % 2 for side in image.shape[1:3])
    even = jnp.pad(image, [(0, 0), (0, odd_rows), (0, odd_columns), (0, 0)], mode="edge")
    return shrink_bilinear(even, 2)


def _gradient(image: Image) -> tuple[Image, Image]:
    """Central differences to the right and down; one-sided halves at the border."""
    padded = jnp.pad(image, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    return across, (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2


def _in_window(terms: Features) -> Features:
    taps, around = gaussian_taps(WINDOW_PX, WINDOW_PX / 4), WINDOW_PX // 2
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (around, around)
        terms = correlate_axis(jnp.pad(terms, pad, mode="edge"), taps, axis)
    return terms


def _median_3x3(values: Features) -> Features:
    """Of every pixel and its eight neighbours; beyond the border the nearest are repeated."""
    height, width = values.shape[1:3]
    padded = jnp.pad(values, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    # Columns of three are sorted; the median of nine is that of the largest low, the middle mid, the smallest high.
    low, mid, high = _sorted(*(padded[:, row : row + height] for row in range(3)))
    lows, mids, highs = ([x[:, :, column : column + width] for column in range(3)] for x in (low, mid, high))
    largest_low = jnp.maximum(jnp.maximum(lows[0], lows[1]), lows[2])
    smallest_high = jnp.minimum(jnp.minimum(highs[0], highs[1]), highs[2])
    return _sorted(largest_low, _sorted(*mids)[1], smallest_high)[1]


def _sorted(first: jax.Array, second: jax.Array, third: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    first, second = jnp.minimum(first, second), jnp.maximum(first, second)
    second, third = jnp.minimum(second, third), jnp.maximum(second, third)
    return jnp.minimum(first, second), jnp.maximum(first, second), third
