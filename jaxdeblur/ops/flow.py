"""Optical flow as an array: lengths, resizing, colours."""

import jax.numpy as jnp
import numpy as np

from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.types import Features, Flow, Image, Pixels

_WHEEL_HUES = (0, 15, 21, 25, 36, 49, 55)
"""Where the corners of the colour wheel lie among its 55 hues: red, yellow, green, cyan, blue, magenta, red again."""
_WHEEL_RGB = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0))
_BEYOND_MAX = 0.75


def resize_flow(flow_1to0: Flow, height: Pixels, width: Pixels, *, align_corners: bool) -> Flow:
    """Resizes a flow and its vectors with it, so that it stays in pixels of its own resolution.

    u scales by width / W and v by height / H (with align_corners too: the frames' extents scale, whichever points the
    interpolation aligns).

    Args:
        flow_1to0: (..., H, W, 2) in pixels of H x W.
    Returns:
        (..., height, width, 2) in pixels of height x width.
    """
    old_height, old_width = flow_1to0.shape[-3:-1]
    scale = jnp.asarray([width / old_width, height / old_height], flow_1to0.dtype)
    resized = resize_bilinear(flow_1to0, height, width, align_corners=align_corners)
    return resized * scale.reshape((1,) * (resized.ndim - 1) + (2,))


def vector_length(vectors: Features) -> Features:
    """Euclidean norm over the last axis, which is kept: (..., C) -> (..., 1). Where the vector is zero the norm has no
    gradient, and zero is taken for it."""
    squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def flow_to_colour(flow: Flow, *, max_px: float | None = None) -> Image:
    """Shows a flow by the colour wheel of Baker et al. (IJCV 2011): direction as hue, length as saturation.

    No motion is white; to the right is red, down yellow, left between cyan and blue, up violet. A vector of max_px has
    the full colour of the wheel, a longer one three quarters of its brightness, one that is not finite is black.
    Differs from the published code in: the 55 hues go round the whole circle, where 54 did, so that nothing jumps
    between just above and just below rightward motion. Hues differ by less than one step of the 55.

    Args:
        flow: (..., H, W, 2).
        max_px: length of the vectors in full colour, in the flow's unit; None takes the largest finite one of the
            array. Pictures that are to be compared need the same.
    Returns:
        (..., H, W, 3) float32 in [0, 1].
    """
    if max_px is not None and not max_px > 0:
        raise ValueError(f"max_px is a length above 0, not {max_px}")
    flow = jnp.asarray(flow, jnp.float32)
    finite = jnp.all(jnp.isfinite(flow), axis=-1)
    u, v = (jnp.where(finite, component, 0.0) for component in (flow[..., 0], flow[..., 1]))
    length = jnp.hypot(u, v)
    if max_px is None:
        full = jnp.max(length)
        full = jnp.where(full > 0, full, 1.0)
    else:
        full = jnp.float32(max_px)
    hue = jnp.mod(jnp.arctan2(v, u) / (2 * np.pi), 1.0) * _WHEEL_HUES[-1]
    hues = np.array(_WHEEL_HUES, np.float32)
    colour = jnp.stack([jnp.interp(hue, hues, channel) for channel in np.array(_WHEEL_RGB, np.float32).T], axis=-1)
    saturation = jnp.minimum(length / full, 1.0)[..., None]
    shown = jnp.where((length > full)[..., None], _BEYOND_MAX * colour, 1 - saturation * (1 - colour))
    return jnp.where(finite[..., None], shown, 0.0)
