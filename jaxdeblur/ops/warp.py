"""Backward warping: bringing another frame onto this frame's grid along a flow."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdeblur.ops.resample import sample_bicubic, sample_bilinear
from jaxdeblur.types import Array, Border, Displacement, Features, Flow, Image, Mask, Pixels


def warp_backward(image_0: Image, flow_1to0: Flow, *, border: Border) -> tuple[Image, Mask]:
    """Resamples frame 0 on the pixel grid of frame 1.

    out[y, x] = image_0[y + v, x + u], (u, v) = flow_1to0[y, x], bilinear in pixel coordinates. Equals PyTorch's
    `grid_sample(align_corners=True)` with coordinates scaled by size - 1.

    Args:
        image_0: (..., H, W, C), any range; float32 or bfloat16.
        flow_1to0: (..., H, W, 2) in pixels at this resolution; whole numbers read exact pixels.
        border: "zeros": each of the four taps that falls outside contributes nothing; "edge": reads the nearest pixel
            inside.
    Returns:
        frame_0on1 in image_0's dtype, and valid_0on1, True where all taps of non-zero weight lie inside.
    """
    _refuse_another_size(image_0, flow_1to0)
    return sample_bilinear(image_0, *_positions(flow_1to0), border=border)


def warp_bicubic(image_0: Image, flow_1to0: Flow) -> Image:
    """As `warp_backward` with border "edge", but read by cubic convolution, which keeps far more of fine detail.

    Args:
        image_0: (..., H, W, C), floating.
        flow_1to0: (..., H, W, 2) in pixels at this resolution.
    Returns:
        frame_0on1 in image_0's dtype; `points_inside` says where it was seen.
    """
    _refuse_another_size(image_0, flow_1to0)
    return sample_bicubic(image_0, *_positions(flow_1to0))


def inside_weight(flow_1to0: Flow) -> Float[Array, "... _h _w"]:
    """The share of a warped pixel's bilinear weights that falls on taps inside the frame.

    w = o(x + u) o(y + v), o(t) = clip(1 - max(0, -t, t - (N - 1)), 0, 1) with N the width or height: what warp_backward
    makes of an image of ones with border "zeros", but exactly 1 wherever the position lies inside.

    Args:
        flow_1to0: (..., H, W, 2) in pixels at this resolution; NaN reads as outside.
    Returns:
        (..., H, W) float32 in [0, 1]. Carries no gradient.
    """

    def inside(position: jax.Array, size: Pixels) -> jax.Array:
        beyond = jnp.maximum(-position, position - (size - 1))
        return jnp.where(jnp.isnan(position), 0.0, jnp.clip(1 - beyond, 0.0, 1.0))

    height, width = flow_1to0.shape[-3:-1]
    x, y = _positions(flow_1to0)
    return jax.lax.stop_gradient(inside(x, width) * inside(y, height))


def points_inside(flow_1to0: Flow) -> Mask:
    """Where a flow points into the frame: x + u in [0, W), y + v in [0, H). (..., H, W)"""
    x, y = _positions(flow_1to0)
    height, width = flow_1to0.shape[-3:-1]
    return (x >= 0) & (x < width) & (y >= 0) & (y < height)


def visible_in_next(flow_cur_to_next: Flow, flow_next_to_cur: Flow) -> Mask:
    """Where the current frame shows what the next one shows, too (Lai et al. 2018, "Learning Blind Video Temporal
    Consistency", after Ruder et al. 2016).

    With w the flow, w' the way back warped by it, and (u, v) = w, a pixel is left out where
    |w + w'|^2 > 0.01 (|w|^2 + |w'|^2) + 0.5 (covered), |grad u|^2 + |grad v|^2 > 0.01 |w|^2 + 0.002 (an edge of
    motion), or where w points out of the frame. The last is ours: the released code reads the nearest pixel inside.

    Args:
        flow_cur_to_next, flow_next_to_cur: (..., H, W, 2) in pixels.
    """
    back, _ = warp_backward(flow_next_to_cur, flow_cur_to_next, border="edge")
    length, length_back = (jnp.sum(jnp.square(flow), axis=-1) for flow in (flow_cur_to_next, back))
    covered = jnp.sum(jnp.square(flow_cur_to_next + back), axis=-1) > 0.01 * (length + length_back) + 0.5
    down, across = (
        jnp.sum(jnp.square(jnp.diff(flow_cur_to_next, axis=axis, append=_last(flow_cur_to_next, axis))), axis=-1)
        for axis in (-3, -2)
    )
    edge = down + across > 0.01 * length + 0.002
    return ~covered & ~edge & points_inside(flow_cur_to_next)


def _last(flow: Flow, axis: int) -> Flow:
    return jax.lax.slice_in_dim(flow, flow.shape[axis] - 1, None, axis=axis)


def _refuse_another_size(image_0: Image, flow_1to0: Flow) -> None:
    if image_0.shape[:-1] != flow_1to0.shape[:-1]:
        raise ValueError(
            f"flow_1to0 has leading axes, height, width {flow_1to0.shape[:-1]} but image_0 has {image_0.shape[:-1]}; "
            "resize the flow with resize_flow first"
        )


def _positions(flow_1to0: Flow) -> tuple[jax.Array, jax.Array]:
    """Where each pixel's vector points, in columns and in rows, (..., H, W) each; float32."""
    flow = jnp.asarray(flow_1to0, jnp.float32)
    columns = jax.lax.broadcasted_iota(jnp.float32, flow.shape[:-1], flow.ndim - 2)
    rows = jax.lax.broadcasted_iota(jnp.float32, flow.shape[:-1], flow.ndim - 3)
    return columns + flow[..., 0], rows + flow[..., 1]


def warp_blocks(features_0: Features, displacement_1to0: Displacement, *, block: int) -> Features:
    """Moves whole blocks of pixels by whole blocks: nearest up-sampling of a coarse displacement, without arithmetic.

    out[y, x] = features_0[y + block dy, x + block dx], (dx, dy) = displacement_1to0[y // block, x // block], and zero
    where that lies outside. Same as warp_backward with the displacement repeated over blocks, times block, border
    "zeros".

    Args:
        features_0: (B, H, W, C); H and W multiples of block.
        displacement_1to0: (B, H / block, W / block, 2), whole coarse pixels. No gradient flows to it.
    """
    batch, height, width, channels = features_0.shape
    expected = (batch, height // block, width // block, 2)
    if displacement_1to0.shape != expected or height % block or width % block:
        raise ValueError(
            f"displacement_1to0 has shape {displacement_1to0.shape} but features_0 {features_0.shape} with block "
            f"{block} needs {expected}, and a height and width that are multiples of {block}"
        )
    rows, columns = height // block, width // block
    # One gather a row of a block: `block` neighbouring pixels lie together in memory, so no transposition is needed.
    runs = features_0.reshape(batch, height * columns, block * channels)
    column_0 = jnp.arange(columns)[None, None, :] + displacement_1to0[..., 0]
    row_0 = jnp.arange(rows)[None, :, None] + displacement_1to0[..., 1]
    inside = (column_0 >= 0) & (column_0 < columns) & (row_0 >= 0) & (row_0 < rows)
    pixel_row_0 = block * jnp.clip(row_0, 0, rows - 1)[:, :, None, :] + jnp.arange(block)[None, None, :, None]
    index = pixel_row_0 * columns + jnp.clip(column_0, 0, columns - 1)[:, :, None, :]
    moved = jax.vmap(lambda run, i: jnp.take(run, i, axis=0, mode="clip"))(runs, index)
    moved = jnp.where(inside[:, :, None, :, None], moved, jnp.zeros((), moved.dtype))
    return moved.reshape(batch, height, width, channels)
