"""Losses on motion."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Integer

from jaxdeblur.ops.resample import downsample_area
from jaxdeblur.types import Array, CostVolume, Flow, Scalars


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
