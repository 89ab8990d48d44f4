import functools
import inspect

import jax
import jax.export
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdeblur.ops import correlation
from jaxdeblur.ops.correlation import (
    best_displacement,
    local_cost_volume,
    normalize_channels,
    strided_cost_volume,
)

SEEDS = st.integers(0, 2**32 - 1)


def matches(height, width, radius, stride=1):
    """(y, x, k, y there, x there) of every pair of positions inside both frames."""
    side = 2 * radius + 1
    for y, x, row, column in np.ndindex(height, width, side, side):
        there = y + stride * (row - radius), x + stride * (column - radius)
        if 0 <= there[0] < height and 0 <= there[1] < width:
            yield y, x, row * side + column, *there


def cost_oracle(features_1, features_0, radius, stride=1):
    batch, height, width, _ = features_1.shape
    cost = np.zeros((batch, height, width, (2 * radius + 1) ** 2))
    for b in range(batch):
        for y, x, k, y_0, x_0 in matches(height, width, radius, stride):
            cost[b, y, x, k] = np.dot(features_1[b, y, x], features_0[b, y_0, x_0])
    return cost


def cost_gradient_oracle(features_1, features_0, cotangent, radius, stride):
    """Of the sum of cost times cotangent, to both features."""
    to_1, to_0 = np.zeros(features_1.shape), np.zeros(features_0.shape)
    for b in range(len(features_1)):
        for y, x, k, y_0, x_0 in matches(*features_1.shape[1:3], radius, stride):
            to_1[b, y, x] += cotangent[b, y, x, k] * features_0[b, y_0, x_0]
            to_0[b, y_0, x_0] += cotangent[b, y, x, k] * features_1[b, y, x]
    return to_1, to_0


def normalize_oracle(features):
    length = np.linalg.norm(features.astype(np.float64), axis=-1, keepdims=True)
    return features / np.maximum(length, 1e-12)


cost_volume = jax.jit(local_cost_volume, static_argnames=("radius", "similarity"))


def random_pair(seed, shape=(2, 4, 19, 3)):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)


# Widths around the block of columns that is computed at once, and displacements that reach beyond the frame.
SHAPES = [(1, 1, 1, 2, 0), (1, 2, 3, 4, 4), (2, 3, 15, 3, 2), (1, 4, 16, 5, 1), (1, 2, 17, 2, 3), (1, 3, 35, 2, 10)]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize(("batch", "height", "width", "channels", "radius"), SHAPES)
def test_cost_volume_equals_the_oracle(batch, height, width, channels, radius, similarity):
    one, zero = random_pair(0, (batch, height, width, channels))
    out = cost_volume(one, zero, radius=radius, similarity=similarity)
    if similarity == "cosine":
        one, zero = normalize_oracle(one), normalize_oracle(zero)
    np.testing.assert_allclose(out, cost_oracle(one, zero, radius), atol=2e-6)


@pytest.mark.parametrize(("batch", "height", "width", "channels", "radius"), SHAPES)
def test_both_forms_agree_in_value_and_gradient(batch, height, width, channels, radius):
    """One runs on CPU, the other on accelerators."""
    pair = random_pair(1, (batch, height, width, channels))
    forms = (correlation._dot_by_rows, correlation._dot_by_row_displacements)
    (rows, rows_vjp), (displacements, displacements_vjp) = (
        jax.vjp(jax.jit(functools.partial(form, radius=radius)), *pair) for form in forms
    )
    np.testing.assert_allclose(rows, displacements, atol=1e-6)
    np.testing.assert_allclose(rows, cost_oracle(*pair, radius), atol=2e-6)
    cotangent = np.random.default_rng(2).standard_normal(rows.shape).astype(np.float32)
    for a, b in zip(rows_vjp(cotangent), displacements_vjp(cotangent), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("form", [correlation._dot_by_rows, correlation._dot_by_row_displacements])
def test_one_exported_form_serves_every_size(form):
    features = jax.ShapeDtypeStruct(jax.export.symbolic_shape("1, h, w, 2"), np.float32)
    exported = jax.export.export(jax.jit(functools.partial(form, radius=10)))(features, features)
    for height, width in ((1, 1), (2, 35)):
        pair = random_pair(5, (1, height, width, 2))
        np.testing.assert_allclose(exported.call(*pair), cost_oracle(*pair, 10), atol=2e-6)


@given(seed=SEEDS)
def test_swapped_frames_hold_the_same_costs(seed):
    one, zero = random_pair(seed)
    cost_10 = np.asarray(cost_volume(one, zero, radius=2, similarity="cosine"))
    cost_01 = np.asarray(cost_volume(zero, one, radius=2, similarity="cosine"))
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            y = slice(max(0, -dy), 4 - max(0, dy))
            x = slice(max(0, -dx), 19 - max(0, dx))
            moved = (slice(y.start + dy, y.stop + dy), slice(x.start + dx, x.stop + dx))
            there = cost_10[:, y, x, (dy + 2) * 5 + dx + 2]
            back = cost_01[:, *moved, (-dy + 2) * 5 - dx + 2]
            np.testing.assert_allclose(there, back, atol=1e-6)


@given(seed=SEEDS)
def test_cosine_lies_between_minus_one_and_one_whatever_the_scale(seed):
    one, zero = random_pair(seed)
    scale = 10.0 ** np.random.default_rng(seed).uniform(-6, 6, (2, 4, 19, 1)).astype(np.float32)
    cost = cost_volume(one * scale, zero, radius=2, similarity="cosine")
    assert np.max(np.abs(cost)) <= 1 + 1e-6
    np.testing.assert_allclose(cost, cost_volume(one, zero, radius=2, similarity="cosine"), atol=2e-6)
    own = cost_volume(one * scale, one, radius=2, similarity="cosine")[..., 12]
    np.testing.assert_allclose(own, np.ones((2, 4, 19)), atol=1e-6)


@given(seed=SEEDS, dx=st.integers(-2, 2), dy=st.integers(-2, 2))
def test_a_shift_is_found(seed, dx, dy):
    _, zero = random_pair(seed, (2, 4, 19, 8))
    one = np.roll(zero, (-dy, -dx), (1, 2))  # one[y, x] = zero[y + dy, x + dx]
    cost = cost_volume(one, zero, radius=2, similarity="cosine")
    displacement, best = best_displacement(cost)
    inside = (slice(None), slice(max(0, -dy), 4 - max(0, dy)), slice(max(0, -dx), 19 - max(0, dx)))
    np.testing.assert_array_equal(displacement[inside], np.broadcast_to([dx, dy], displacement[inside].shape))
    np.testing.assert_allclose(best[inside], np.ones((*displacement[inside].shape[:3], 1)), atol=1e-6)
    assert displacement.dtype == jnp.int32


def test_the_lowest_channel_wins_ties():
    cost = np.zeros((1, 1, 3, 49), np.float32)
    cost[0, 0, 1, [10, 40]] = 1.0
    cost[0, 0, 2, [48]] = 1.0
    displacement, best = best_displacement(cost)
    # All equal: channel 0. Channel 10 of radius 3 is dy = 1 - 3, dx = 3 - 3.
    np.testing.assert_array_equal(displacement[0, 0], [[-3, -3], [0, -2], [3, 3]])
    np.testing.assert_array_equal(best[0, 0, :, 0], [0, 1, 1])


def test_zero_vectors_cost_nothing_and_have_finite_gradients():
    one, zero = random_pair(3)
    one[0, 1] = 0.0
    zero[1, :, 3] = 0.0
    one[1, 2, 5] = 1e-14
    cost, vjp = jax.vjp(lambda a, b: cost_volume(a, b, radius=2, similarity="cosine"), one, zero)
    assert not np.any(cost[0, 1])
    assert not np.any(cost[1, 2, 5])
    for gradient, features in zip(vjp(jnp.ones_like(cost)), (one, zero), strict=True):
        assert np.all(np.isfinite(gradient))
        short = np.linalg.norm(features, axis=-1) < 1e-12
        assert not np.any(np.asarray(gradient)[short])


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_cost_volume_gradients(similarity):
    pair = random_pair(4, (1, 3, 4, 3))
    value = functools.partial(cost_volume, radius=1, similarity=similarity)
    jax.test_util.check_grads(value, pair, order=1, modes=("fwd", "rev"), eps=1e-2, atol=5e-3, rtol=5e-3)


strided = jax.jit(strided_cost_volume, static_argnames=("radius", "stride"))

# Odd and even sizes, strides that do not divide them or exceed them, FlowNetC's reach.
STRIDED_SHAPES = [(1, 1, 1, 2, 1, 2), (2, 4, 6, 3, 1, 2), (1, 7, 5, 3, 2, 3), (1, 2, 35, 2, 2, 4), (1, 5, 43, 2, 10, 2)]


@pytest.mark.parametrize(("batch", "height", "width", "channels", "radius", "stride"), STRIDED_SHAPES)
def test_strided_cost_volume_and_its_gradients_equal_the_oracle(batch, height, width, channels, radius, stride):
    pair = random_pair(6, (batch, height, width, channels))
    cost, vjp = jax.vjp(functools.partial(strided, radius=radius, stride=stride), *pair)
    np.testing.assert_allclose(cost, cost_oracle(*pair, radius, stride), atol=2e-6)
    cotangent = np.random.default_rng(7).standard_normal(cost.shape).astype(np.float32)
    expected = cost_gradient_oracle(*pair, cotangent, radius, stride)
    for gradient, expected_gradient in zip(vjp(cotangent), expected, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, atol=2e-5)


def test_stride_one_is_the_local_cost_volume_and_jit_is_eager():
    pair = random_pair(8)
    local = cost_volume(*pair, radius=2, similarity="dot")
    np.testing.assert_allclose(strided(*pair, radius=2, stride=1), local, atol=1e-6)
    eager = strided_cost_volume(*pair, radius=2, stride=3)
    np.testing.assert_allclose(strided(*pair, radius=2, stride=3), eager, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_strided_cost_volume_keeps_the_dtype(dtype):
    one, zero = (jnp.asarray(features, dtype) for features in random_pair(9, (1, 3, 5, 4)))
    cost = strided(one, zero, radius=1, stride=2)
    assert cost.dtype == dtype
    expected = cost_oracle(*(np.asarray(features, np.float64) for features in (one, zero)), 1, 2)
    np.testing.assert_allclose(np.asarray(cost, np.float64), expected, rtol=2**-8, atol=1e-6)


def test_vmap_is_a_loop():
    pairs = [random_pair(seed, (1, 3, 5, 2)) for seed in range(3)]
    ones, zeros = (np.stack([pair[k] for pair in pairs]) for k in (0, 1))
    call = functools.partial(cost_volume, radius=2, similarity="cosine")
    out = jax.vmap(call)(ones, zeros)
    for i, pair in enumerate(pairs):
        np.testing.assert_allclose(out[i], call(*pair), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_accumulates_in_float32(dtype):
    # 2048 products of one: float16 and bfloat16 sums would stop growing at 2048 and 256.
    ones = np.ones((1, 1, 2, 3000), dtype)
    for form in (correlation._dot_by_rows, correlation._dot_by_row_displacements):
        out = form(jnp.asarray(ones), jnp.asarray(ones), 1)
        assert out.dtype == dtype
        np.testing.assert_allclose(np.asarray(out[0, 0, 0, 4], np.float32), 3000, rtol=2**-8)
    # 1e-6 in float16: the reciprocal of its length would overflow.
    short = normalize_channels(jnp.full((1, 1, 1, 4), 1e-6, dtype))
    assert short.dtype == dtype
    np.testing.assert_allclose(np.asarray(short, np.float32), np.full((1, 1, 1, 4), 0.5), rtol=1e-2)


def test_errors():
    one, zero = random_pair(5)
    with pytest.raises(
        ValueError, match=r"features_1 \(2, 4, 19, 3\) and features_0 \(2, 3, 19, 3\) must have one shape"
    ):
        local_cost_volume(one, zero[:, :3], radius=1, similarity="dot")
    with pytest.raises(ValueError, match="radius is -1; expected 0 or more"):
        local_cost_volume(one, zero, radius=-1, similarity="dot")
    with pytest.raises(ValueError, match="similarity is 'l2'; expected one of dot, cosine"):
        inspect.unwrap(local_cost_volume)(one, zero, radius=1, similarity="l2")  # as without the type checker
    with pytest.raises(ValueError, match=r"features_1 \(2, 4, 19, 3\) and features_0 \(2, 3, 19, 3\)"):
        strided_cost_volume(one, zero[:, :3], radius=1, stride=2)
    with pytest.raises(ValueError, match="radius is -1; expected 0 or more"):
        strided_cost_volume(one, zero, radius=-1, stride=2)
    with pytest.raises(ValueError, match="stride is 0; expected 1 or more"):
        strided_cost_volume(one, zero, radius=1, stride=0)
    for channels in (8, 16):
        with pytest.raises(ValueError, match=rf"\(2 radius \+ 1\)\^2 channels, got {channels}"):
            best_displacement(np.zeros((1, 1, channels), np.float32))
