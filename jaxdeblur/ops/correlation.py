"""Local cost volumes and the displacement of best match."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from jaxdeblur.types import CostVolume, Displacement, Features

Similarity: TypeAlias = Literal["dot", "cosine"]
SIMILARITIES: tuple[Similarity, ...] = ("dot", "cosine")

# Columns a matrix product takes at once. A product of n columns with the n + 2 radius columns they can reach computes
# (n + 2 radius) / (2 radius + 1) times what is kept; 16 measured best or equal at radius 4 and 10 on CPU.
_BLOCK_COLUMNS = 16

# Reduced-precision products, the default of some accelerators, would move best matches whose costs nearly tie.
_PRECISION = jax.lax.Precision.HIGHEST


def local_cost_volume(features_1: Features, features_0: Features, *, radius: int, similarity: Similarity) -> CostVolume:
    """Similarity of every position of frame 1 with the positions around it in frame 0.

    cost[y, x, k] = sum over channels of features_1[y, x] * features_0[y + dy, x + dx],
    k = (dy + radius) (2 radius + 1) + (dx + radius); zero where (y + dy, x + dx) lies outside frame 0.

    Args:
        features_1, features_0: (B, H, W, C), equal shapes and dtypes.
        radius: largest |dx| and |dy|, whole pixels of this grid.
        similarity: "dot": as above, without any scaling; "cosine": both feature vectors are first brought to unit
            length.
    Returns:
        (B, H, W, (2 radius + 1)^2) in the features' dtype; products are accumulated in at least float32.
    """
    if features_1.shape != features_0.shape:
        raise ValueError(f"features_1 {features_1.shape} and features_0 {features_0.shape} must have one shape")
    if radius < 0:
        raise ValueError(f"radius is {radius}; expected 0 or more")
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is {similarity!r}; expected one of {', '.join(SIMILARITIES)}")
    features_1, features_0 = jnp.asarray(features_1), jnp.asarray(features_0)
    if similarity == "cosine":
        features_1, features_0 = normalize_channels(features_1), normalize_channels(features_0)
    # One pass over the rows keeps the working set in a CPU's cache; an accelerator wants all rows in one launch.
    return jax.lax.platform_dependent(
        features_1,
        features_0,
        cpu=lambda one, zero: _dot_by_rows(one, zero, radius),
        default=lambda one, zero: _dot_by_row_displacements(one, zero, radius),
    )


def strided_cost_volume(features_1: Features, features_0: Features, *, radius: int, stride: int) -> CostVolume:
    """Similarity of every position of frame 1 with positions in frame 0 that lie whole strides away.

    cost[y, x, k] = sum over channels of features_1[y, x] * features_0[y + stride dy, x + stride dx],
    k = (dy + radius) (2 radius + 1) + (dx + radius); zero where that position lies outside frame 0.
    Positions that differ by whole strides only meet each other, so each of the stride^2 classes of positions is a
    frame of its own, with an ordinary local cost volume.

    Args:
        features_1, features_0: (B, H, W, C), equal shapes and dtypes; any size.
        radius: largest |dx| and |dy|, in strides.
        stride: whole pixels of this grid.
    Returns:
        (B, H, W, (2 radius + 1)^2) in the features' dtype, without any scaling; products are accumulated in at least
        float32.
    """
    if features_1.shape != features_0.shape:
        raise ValueError(f"features_1 {features_1.shape} and features_0 {features_0.shape} must have one shape")
    if stride < 1:
        raise ValueError(f"stride is {stride}; expected 1 or more")
    batch, height, width, channels = features_1.shape
    rows, columns = -(-height // stride), -(-width // stride)

    def by_class(features: Features) -> Features:
        beyond = ((0, 0), (0, rows * stride - height), (0, columns * stride - width), (0, 0))
        cells = jnp.pad(features, beyond).reshape(batch, rows, stride, columns, stride, channels)
        return cells.transpose(2, 4, 0, 1, 3, 5).reshape(stride * stride * batch, rows, columns, channels)

    cost = local_cost_volume(by_class(features_1), by_class(features_0), radius=radius, similarity="dot")
    cost = cost.reshape(stride, stride, batch, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    return cost.reshape(batch, rows * stride, columns * stride, -1)[:, :height, :width]


def normalize_channels(features: Features) -> Features:
    """Brings each spatial vector to unit L2 length; vectors shorter than 1e-12 become zero, with a zero gradient."""
    vectors = jnp.asarray(features, jnp.float32)  # in float16 the scale of a short vector would overflow
    energy = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    nonzero = energy > 1e-24
    scale = jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, energy, 1.0)), 0.0)
    return (vectors * scale).astype(features.dtype)


def best_displacement(cost: CostVolume) -> tuple[Displacement, CostVolume]:
    """Displacement (dx, dy) of the largest cost and that cost with a last axis of 1; the lowest channel wins ties.

    Args:
        cost: (..., H, W, (2 radius + 1)^2), channels as in local_cost_volume.
    Returns:
        (..., H, W, 2) int32 in pixels of this grid, from frame 1 to frame 0. Carries no gradient.
    """
    side = round(cost.shape[-1] ** 0.5)
    if side * side != cost.shape[-1] or side % 2 == 0:
        raise ValueError(f"a cost volume has (2 radius + 1)^2 channels, got {cost.shape[-1]}")
    best = jnp.argmax(cost, axis=-1).astype(jnp.int32)
    radius = side // 2
    displacement = jnp.stack([best % side - radius, best // side - radius], axis=-1)
    return displacement, jnp.max(cost, axis=-1, keepdims=True)


def _blocks(features_1: jax.Array, features_0: jax.Array, radius: int) -> tuple[jax.Array, jax.Array]:
    """(B, blocks, H, n, C) and the columns each block can reach, (B, blocks, H + 2 radius, n + 2 radius, C)."""
    batch, height, width, channels = features_1.shape
    n = _BLOCK_COLUMNS
    blocks = -(-width // n)
    extra = blocks * n - width
    block_1 = jnp.pad(features_1, ((0, 0), (0, 0), (0, extra), (0, 0)))
    block_1 = block_1.reshape(batch, height, blocks, n, channels).transpose(0, 2, 1, 3, 4)
    # Every block beside those that follow it: to cut out one after the other their number would have to be known, and
    # of symbolic sizes (jax.export) it is not.
    further = -(-2 * radius // n)
    padded_0 = jnp.pad(features_0, ((0, 0), (radius, radius), (radius, further * n - radius + extra), (0, 0)))
    cells_0 = padded_0.reshape(batch, height + 2 * radius, blocks + further, n, channels)
    reach_0 = jnp.concatenate([cells_0[:, :, k : k + blocks] for k in range(further + 1)], axis=3)
    return block_1, reach_0[:, :, :, : n + 2 * radius].transpose(0, 2, 1, 3, 4)


def _band(product: jax.Array, radius: int) -> jax.Array:
    """Keeps (i, i + j), j = 0..2 radius, of the last two axes (n, n + 2 radius): skewing by a reshape, no gather."""
    *lead, n, reach = product.shape
    flat = product.reshape(*lead, n * reach)
    flat = jnp.pad(flat, [(0, 0)] * len(lead) + [(0, n)])
    return flat.reshape(*lead, n, reach + 1)[..., : 2 * radius + 1]


def _dot_by_rows(features_1: jax.Array, features_0: jax.Array, radius: int) -> jax.Array:
    batch, height, width, _ = features_1.shape
    side = 2 * radius + 1
    block_1, reach_0 = _blocks(features_1, features_0, radius)
    blocks = block_1.shape[1]

    def row(y: jax.Array) -> jax.Array:
        one = jax.lax.dynamic_index_in_dim(block_1, y, axis=2, keepdims=False)
        zero = jax.lax.dynamic_slice_in_dim(reach_0, y, side, axis=2)
        product = jnp.einsum("bnic,bnkmc->bnkim", one, zero, preferred_element_type=jnp.float32, precision=_PRECISION)
        band = _band(product, radius).transpose(0, 1, 3, 2, 4)
        return band.reshape(batch, blocks * _BLOCK_COLUMNS, side * side).astype(features_1.dtype)

    rows = jax.lax.map(row, jnp.arange(height))
    return rows.transpose(1, 0, 2, 3)[:, :, :width]


def _dot_by_row_displacements(features_1: jax.Array, features_0: jax.Array, radius: int) -> jax.Array:
    batch, height, width, _ = features_1.shape
    side = 2 * radius + 1
    block_1, reach_0 = _blocks(features_1, features_0, radius)
    bands = [
        _band(
            jnp.einsum(
                "bnhic,bnhmc->bhnim",
                block_1,
                reach_0[:, :, dy : dy + height],
                preferred_element_type=jnp.float32,
                precision=_PRECISION,
            ),
            radius,
        ).astype(features_1.dtype)
        for dy in range(side)
    ]
    cost = jnp.stack(bands, axis=4)  # (B, H, blocks, n, dy, dx)
    return cost.reshape(batch, height, -1, side * side)[:, :, :width]
