"""Optical flow as an array: resizing."""

import jax.numpy as jnp

from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.types import Flow


def resize_flow(flow_1to0: Flow, height: int, width: int, *, align_corners: bool) -> Flow:
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
