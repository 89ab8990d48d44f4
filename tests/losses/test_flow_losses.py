"""Tests of jaxdeblur.losses.flow."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import load_case

from jaxdeblur.losses.flow import displacement_class, displacement_cross_entropy, motion_loss

CASES = ("motion_loss_a", "motion_loss_b_two_units")


def class_oracle(flow, radius, block):
    """(H, W, 2) -> (H / block, W / block), one coarse pixel at a time, in float64."""
    out = np.zeros((flow.shape[0] // block, flow.shape[1] // block), int)
    for y, x in np.ndindex(out.shape):
        mean = flow[block * y : block * (y + 1), block * x : block * (x + 1)].astype(np.float64).mean((0, 1)) / block
        # Python rounds half to even.
        dx, dy = (round(min(max(float(value), -radius), radius) + radius) for value in mean)
        out[y, x] = dy * (2 * radius + 1) + dx
    return out


def cross_entropy_oracle(logits, target):
    logits = logits.astype(np.float64)
    return np.log(np.sum(np.exp(logits))) - logits[target]


def golden(case):
    """Arrays, JSON, and the target classes with their unit axis."""
    arrays, provenance = load_case("rt_mtu2", case)
    units = arrays["cost"].shape[3]
    target = np.repeat(arrays["target_class"].astype(np.int32)[..., None], units, axis=-1)
    return arrays, provenance, target


@pytest.mark.parametrize("case", CASES)
def test_target_classes_match_the_released_ones(case):
    arrays, provenance, _ = golden(case)
    # Half resolution in full-resolution pixels -> half-resolution pixels; quarter resolution is coarser by 2.
    made = displacement_class(arrays["flow_half"] / 2, radius=provenance["D"], block=2)
    clamped = arrays["flow_quarter_clamped"]
    tie_distance = np.abs(np.abs(clamped - np.floor(clamped)) - 0.5).min(-1)
    safe = tie_distance > 1e-3
    assert np.mean(safe) > 0.95
    np.testing.assert_array_equal(np.asarray(made)[safe], arrays["target_class"][safe])


@pytest.mark.parametrize("case", CASES)
def test_cross_entropy_matches_the_released_one(case):
    arrays, provenance, target = golden(case)
    # Float32 logits summed over 441 channels: a few units in the last place of 6.
    np.testing.assert_allclose(
        displacement_cross_entropy(arrays["cost"], target), arrays["cross_entropy"], rtol=0, atol=3e-6
    )
    loss, gradient = jax.value_and_grad(lambda cost: motion_loss(cost, target).mean())(arrays["cost"])
    np.testing.assert_allclose(loss, provenance["motion_loss_released_mean"], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(gradient), provenance["gradient_l2_norm_wrt_cost"], rtol=1e-5)
    np.testing.assert_allclose(np.abs(gradient).max(), provenance["gradient_max_abs_wrt_cost"], rtol=1e-5)


classes = jax.jit(displacement_class, static_argnames=("radius", "block"))


@given(seed=st.integers(0, 2**32 - 1))
def test_classes_equal_the_oracle(seed):
    # Eighths of a pixel are exact in float32, so that ties are ties in both.
    flow = np.random.default_rng(seed).integers(-150, 151, (8, 12, 2)).astype(np.float32) / 8
    flow[:4, :4] = flow[0, 0]
    np.testing.assert_array_equal(classes(flow, radius=3, block=4), class_oracle(flow, 3, 4))


@pytest.mark.parametrize(
    ("u", "v", "dx", "dy"), [(2, 0, 0, 0), (6, 0, 2, 0), (0, -2, 0, 0), (0, 10, 0, 2), (99, -99, 3, -3)]
)
def test_halves_round_to_even_and_large_motion_is_clamped(u, v, dx, dy):
    # Half a coarse pixel: 0.5 -> 0 and 1.5 -> 2 when the radius that is added first is even.
    radius = 4 if abs(u) < 50 else 3
    flow = np.broadcast_to(np.array([u, v], np.float32), (4, 4, 2))
    assert displacement_class(flow, radius=radius, block=4)[0, 0] == (dy + radius) * (2 * radius + 1) + dx + radius


def test_leading_axes_are_a_loop_and_no_gradient_passes():
    flow = np.random.default_rng(0).uniform(-20, 20, (2, 3, 8, 8, 2)).astype(np.float32)
    out = displacement_class(flow, radius=5, block=4)
    assert out.dtype == jnp.int32
    for i, j in np.ndindex(2, 3):
        np.testing.assert_array_equal(out[i, j], class_oracle(flow[i, j], 5, 4))
    cost = jnp.zeros((2, 3, 2, 2, 121))
    gradient = jax.grad(lambda flow: motion_loss(cost, displacement_class(flow, radius=5, block=4)).sum())(flow)
    assert not np.any(gradient)
    with pytest.raises(ValueError, match="size 8x8 is no multiple of 3"):
        displacement_class(flow, radius=5, block=3)


def test_cross_entropy_equals_the_oracle_and_its_bounds():
    rng = np.random.default_rng(1)
    cost, target = rng.uniform(0, 1, (2, 3, 4, 25)).astype(np.float32), rng.integers(0, 25, (2, 3, 4))
    out = np.asarray(displacement_cross_entropy(cost, target))
    for index in np.ndindex(2, 3, 4):
        np.testing.assert_allclose(out[index], cross_entropy_oracle(cost[index], target[index]), rtol=1e-5)
    loss = motion_loss(cost, target)
    assert loss.shape == (2,)
    np.testing.assert_allclose(loss, out.mean((1, 2)), rtol=1e-6)
    best = motion_loss(np.eye(25, dtype=np.float32)[target], target)
    worst = motion_loss(1 - np.eye(25, dtype=np.float32)[target], target)
    np.testing.assert_allclose(best, np.full(2, np.log(np.e + 24) - 1), rtol=1e-5)
    np.testing.assert_allclose(worst, np.full(2, np.log(1 + 24 * np.e)), rtol=1e-5)


def test_gradients_and_half_precision():
    rng = np.random.default_rng(2)
    cost, target = rng.uniform(0, 1, (2, 2, 3, 9)).astype(np.float32), rng.integers(0, 9, (2, 2, 3))
    value = jax.jit(functools.partial(motion_loss, target=target))
    jax.test_util.check_grads(value, (cost,), order=1, modes=("fwd", "rev"), eps=1e-2, atol=2e-3, rtol=2e-3)
    assert motion_loss(cost.astype(jnp.bfloat16), target).dtype == jnp.float32
