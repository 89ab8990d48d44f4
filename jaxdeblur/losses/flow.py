"""Losses on motion."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Integer

from jaxdeblur.losses.pixel import generalized_charbonnier
from jaxdeblur.ops.flow import vector_length
from jaxdeblur.ops.resample import downsample_area
from jaxdeblur.ops.warp import warp_backward
from jaxdeblur.types import Array, CostVolume, Flow, Image, Mask, Scalars

Outside = Literal["clamped", "masked"]


def displacement_class(flow_cur_to_prev: Flow, *, radius: int, block: int) -> Integer[Array, "..."]:
    """Cost-volume channel that a flow asks for on a coarser grid.

    Mean over block x block pixels, in coarse pixels, clamped to [-radius, radius], rounded half to even;
    class = (dy + radius) (2 radius + 1) + (dx + radius).

    Args:
        flow_cur_to_prev: (..., H, W, 2), pixels of H x W; H and W multiples of block.
    Returns:
        (..., H / block, W / block) int32. Clamped, occluded and out-of-frame positions are classes like any other.
    """
    coarse = downsample_area(jax.lax.stop_gradient(flow_cur_to_prev), block) / block
    whole = jnp.round(jnp.clip(coarse, -radius, radius) + radius).astype(jnp.int32)
    return whole[..., 1] * (2 * radius + 1) + whole[..., 0]


def displacement_cross_entropy(cost: CostVolume, target: Integer[Array, "..."]) -> Float[Array, "..."]:
    """Softmax cross entropy of cost (..., K), taken as logits without temperature, against classes (...): (...)."""
    return optax.softmax_cross_entropy_with_integer_labels(cost.astype(jnp.float32), target)


def motion_loss(cost: CostVolume, target: Integer[Array, "..."]) -> Scalars:
    """Mean cross entropy over the positions of each example: (B,). Logits in [0, 1] keep it within
    [ln(e + K - 1) - 1, ln(1 + (K - 1) e)]: it never gets near zero."""
    entropy = displacement_cross_entropy(cost, target)
    return jnp.mean(entropy, axis=tuple(range(1, entropy.ndim)))


def end_point_error(flow: Flow, target: Flow) -> Float[Array, "..."]:
    """Euclidean distance |flow - target| at every position: (..., H, W) float32, in the flows' unit.

    The gradient is zero where the two are equal; there the distance has none.
    """
    if flow.shape != target.shape:
        raise ValueError(f"flow has shape {flow.shape} but target has {target.shape}; resize with resize_flow first")
    return vector_length(flow.astype(jnp.float32) - target.astype(jnp.float32))[..., 0]


def mean_end_point_error(flow: Flow, target: Flow, valid: Mask) -> Scalars:
    """Mean end-point error over the valid pixels of each example.

    Args:
        flow: (B, H, W, 2).
        target: (B, H, W, 2) in the same unit; anything at all, NaN included, where it is not valid.
        valid: (B, H, W).
    Returns:
        (B,) in that unit; 0 for an example without any valid pixel.
    """
    error = end_point_error(flow, _known_or_zero(target, valid))
    count = jnp.sum(valid, axis=(-2, -1)).astype(jnp.float32)
    return jnp.sum(jnp.where(valid, error, 0.0), axis=(-2, -1)) / jnp.maximum(count, 1.0)


def multi_scale_end_point_error(
    levels: Sequence[Flow],
    target_flow_1to0: Flow,
    valid: Mask,
    *,
    weights: Sequence[float],
    flow_scale: float = 20.0,
) -> Scalars:
    """The training loss of FlowNet (Dosovitskiy et al., ICCV 2015) and PWC-Net (Sun et al., CVPR 2018, Eq. 1).

    sum over levels l of weights[l] sum over positions of |levels[l] - target_l|, where target_l is the mean of
    target / flow_scale over the valid pixels that a position covers; a position without any counts nothing. A position
    (y, x) of an (h, w) level covers rows floor(y H / h) to ceil((y + 1) H / h) - 1, columns likewise: blocks where the
    sizes divide, and PyTorch's adaptive average pooling where they do not.
    Sums, not means: the weights belong to the size of the training crop. The papers' are 0.005, 0.01, 0.02, 0.08, 0.32
    for 1/4, 1/8, 1/16, 1/32, 1/64.

    Args:
        levels: (B, h, w, 2), finest first, all in pixels of the full resolution divided by flow_scale.
        target_flow_1to0: (B, H, W, 2) in pixels; anything at all, NaN included, where it is not valid.
        valid: (B, H, W).
        weights: one a level, finest first.
        flow_scale: pixels in the unit of the levels.
    Returns:
        (B,): one value an example, for the caller to average.
    """
    sizes = [level.shape[-3:-1] for level in levels]
    if len(weights) != len(levels) or sizes != sorted(sizes, reverse=True):
        raise ValueError(
            f"{len(weights)} weights for {len(levels)} levels of sizes {sizes}; expected one weight a level, levels "
            "finest first"
        )
    target = _known_or_zero(target_flow_1to0, valid) / flow_scale
    total = jnp.zeros(target.shape[:-3], jnp.float32)
    for level, weight in zip(levels, weights):
        level_target, known = _mean_of_valid(target, valid, *level.shape[-3:-1])
        error = jnp.where(known, end_point_error(level, level_target), 0.0)
        total = total + weight * jnp.sum(error, axis=(-2, -1))
    return total


def multi_scale_warping_error(
    levels: Sequence[Flow],
    image_1: Image,
    image_0: Image,
    *,
    weights: Sequence[float],
    flow_scale: float = 20.0,
    outside: Outside = "clamped",
) -> Scalars:
    """How well flows without truth bring one image onto the other (Yan et al., CVPRW 2020, their unlabelled loss).

    sum over levels l of weights[l] sum over positions and channels of rho(image_0on1 - image_1), rho the generalised
    Charbonnier penalty. At every level both images are means over the level's blocks of pixels, and image 0 is warped
    by the flow in positions of that grid.
    Sums, not means, as in `multi_scale_end_point_error`; the paper leaves rho, what counts outside and the levels open.

    Args:
        levels: flow_1to0 (B, h, w, 2), finest first, all in pixels of the full resolution divided by flow_scale.
        image_1: (B, H, W, C); H and W multiples of each level's h and w, by one factor.
        image_0: likewise.
        weights: one a level, finest first.
        flow_scale: pixels in the unit of the levels.
        outside: of positions whose flow leads out of image 0. "clamped": they are compared with the nearest pixel
            inside. "masked": they count nothing, as is usual; then nothing costs less than flows that all lead out.
    Returns:
        (B,): one value an example, for the caller to average.
    """
    if len(weights) != len(levels):
        raise ValueError(f"{len(weights)} weights for {len(levels)} levels; expected one weight a level")
    total = jnp.zeros(image_1.shape[:-3], jnp.float32)
    for level, weight in zip(levels, weights):
        factor = image_1.shape[-2] // level.shape[-2]
        coarse_1, coarse_0 = (downsample_area(image, factor) for image in (image_1, image_0))
        image_0on1, valid = warp_backward(coarse_0, flow_scale / factor * level, border="edge")
        counts = valid[..., None] if outside == "masked" else jnp.ones((), bool)
        error = jnp.where(counts, image_0on1 - coarse_1, 0.0)
        penalty = jnp.where(counts, generalized_charbonnier(error), 0.0)
        total = total + weight * jnp.sum(penalty, axis=(-3, -2, -1))
    return total


def _known_or_zero(target: Flow, valid: Mask) -> Flow:
    if valid.shape != target.shape[:-1]:
        raise ValueError(f"valid has shape {valid.shape} but target has {target.shape}; expected {target.shape[:-1]}")
    return jnp.where(valid[..., None], target.astype(jnp.float32), 0.0)


def _mean_of_valid(target: Flow, valid: Mask, height: int, width: int) -> tuple[Flow, Mask]:
    """Means over the valid pixels that each of (height, width) positions covers, and whether it covers any.

    target is zero where not valid.
    """
    rows, columns = _covers(target.shape[-3], height), _covers(target.shape[-2], width)

    def add_up(values: Array) -> jax.Array:
        # Ones and zeros times the values: at the default precision an accelerator would round the values.
        return jnp.einsum("yY,...YXc,xX->...yxc", rows, values, columns, precision=jax.lax.Precision.HIGHEST)

    count = add_up(valid[..., None].astype(jnp.float32))
    return add_up(target) / jnp.maximum(count, 1.0), count[..., 0] > 0


def _covers(size: int, positions: int) -> np.ndarray:
    """(positions, size) float32: 1 where a position of the coarse axis covers one of the fine axis."""
    if not 1 <= positions <= size:
        raise ValueError(f"a level of size {positions} cannot be compared with a target of size {size}")
    first = np.arange(positions) * size // positions
    end = -(-np.arange(1, positions + 1) * size // positions)
    pixel = np.arange(size)
    return ((pixel >= first[:, None]) & (pixel < end[:, None])).astype(np.float32)
