"""Tests of jaxdeblur.losses.flow."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.scipy.ndimage import map_coordinates
from parity import load_case

from jaxdeblur.losses.flow import (
    displacement_class,
    displacement_cross_entropy,
    end_point_error,
    mean_end_point_error,
    motion_loss,
    multi_scale_end_point_error,
    multi_scale_warping_error,
)
from jaxdeblur.ops.resample import resize_bilinear

CASES = ("motion_loss_a", "motion_loss_b_two_units")
FLOW_NET_CASES = ("case_a", "case_b_odd_size")
PAPER_WEIGHTS = (0.005, 0.01, 0.02, 0.08, 0.32)


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


def multi_scale_oracle(levels, target, valid, weights, flow_scale):
    """One example, one position at a time, in float64; None stands for a position without target."""
    total = 0.0
    for level, weight in zip(levels, weights):
        for y, x in np.ndindex(level.shape[:2]):
            rows, columns = (
                slice(int(np.floor(i * size / n)), int(np.ceil((i + 1) * size / n)))
                for i, size, n in zip((y, x), target.shape, level.shape)
            )
            known = target[rows, columns][valid[rows, columns]].astype(np.float64)
            if len(known):
                total += weight * np.linalg.norm(level[y, x] - known.mean(0) / flow_scale)
    return total


def random_levels(rng, sizes, batch=2):
    return [rng.standard_normal((batch, *size, 2)).astype(np.float32) for size in sizes]


@pytest.mark.parametrize("case", FLOW_NET_CASES)
def test_multi_scale_error_matches_the_released_one(case):
    arrays, provenance = load_case("flownets", case)
    losses = provenance["losses"]
    levels = [arrays[f"flow{n}"] for n in range(2, 7)]
    target_px = 20 * arrays["target_flow_div20"]
    valid = np.ones(target_px.shape[:-1], bool)
    assert tuple(losses["weights"].values()) == PAPER_WEIGHTS
    # One weight at a time, then the papers'.
    all_weights = [*np.eye(5).tolist(), PAPER_WEIGHTS]

    @jax.jit
    def total_for_each(levels, target_px):
        return [multi_scale_end_point_error(levels, target_px, valid, weights=weights) for weights in all_weights]

    expected = [*losses["epe_sum_over_pixels_per_batch_item"].values(), losses["multiscale_epe"]]
    np.testing.assert_allclose(np.ravel(total_for_each(levels, target_px)), expected, rtol=2e-6)


@pytest.mark.parametrize("case", FLOW_NET_CASES)
def test_mean_error_matches_the_released_one(case):
    arrays, provenance = load_case("flownets", case)
    target_px = 20 * arrays["target_flow_div20"]
    flow_px = 20 * resize_bilinear(jnp.asarray(arrays["flow2"]), *target_px.shape[1:3], align_corners=False)
    valid = np.ones(target_px.shape[:-1], bool)
    expected = provenance["losses"]["real_epe_px"]
    np.testing.assert_allclose(mean_end_point_error(flow_px, target_px, valid), [expected], rtol=2e-6)


multi_scale = jax.jit(functools.partial(multi_scale_end_point_error, weights=(0.5, 2.0, 1.0), flow_scale=4.0))


@given(seed=st.integers(0, 2**32 - 1))
def test_multi_scale_error_equals_the_oracle(seed):
    rng = np.random.default_rng(seed)
    levels = random_levels(rng, [(8, 10), (5, 4), (2, 3)])  # by 1, by fractions, by 4 and fractions
    target = (10 * rng.standard_normal((2, 8, 10, 2))).astype(np.float32)
    valid = rng.uniform(size=(2, 8, 10)) < rng.choice([0.0, 0.1, 0.7, 1.0], (2, 1, 1))
    out = multi_scale(levels, np.where(valid[..., None], target, np.nan), valid)
    expected = [
        multi_scale_oracle([level[b] for level in levels], target[b], valid[b], (0.5, 2.0, 1.0), 4.0) for b in range(2)
    ]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_multi_scale_error_is_zero_at_its_target_and_without_any():
    rng = np.random.default_rng(3)
    levels = [np.full((1, n, n, 2), 0.25, np.float32) for n in (4, 2)]
    target = np.full((1, 8, 8, 2), 5.0, np.float32)
    valid = np.ones((1, 8, 8), bool)

    @jax.jit
    @jax.value_and_grad
    def loss(levels, valid):
        return multi_scale_end_point_error(levels, target, valid, weights=(1.0, 2.0)).sum()

    for value, gradients in (loss(levels, valid), loss(random_levels(rng, [(4, 4), (2, 2)], batch=1), ~valid)):
        assert value == 0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)
    # One known pixel: only the position above it counts, with the full target.
    one = np.zeros((1, 8, 8), bool)
    one[0, 3, 6] = True
    shifted = [level + np.array([0.3, 0.4], np.float32) for level in levels]
    value, gradients = loss(shifted, one)
    np.testing.assert_allclose(value, 0.5 + 2 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(gradients[0][0, 1, 3], [0.6, 0.8], rtol=1e-6)
    assert np.count_nonzero(gradients[0]) == np.count_nonzero(gradients[1]) == 2


def test_end_point_error_and_its_mean():
    flow = np.zeros((2, 2, 3, 2), np.float32)
    target = flow.copy()
    target[0, 0, 1], target[1, 1, 2], target[1, 0, 0] = (3, -4), (0, 2), np.nan
    error = np.asarray(end_point_error(flow, target))
    expected = np.zeros((2, 2, 3), np.float32)
    expected[0, 0, 1], expected[1, 1, 2] = 5, 2
    expected[1, 0, 0] = error[1, 0, 0]
    np.testing.assert_array_equal(error, expected)
    valid = np.isfinite(target[..., 0])
    mean = jax.jit(mean_end_point_error)
    np.testing.assert_allclose(mean(flow, target, valid), [5 / 6, 2 / 5], rtol=1e-6)
    np.testing.assert_array_equal(mean(flow, target, np.zeros_like(valid)), [0, 0])
    gradient = jax.jit(jax.grad(lambda flow: mean_end_point_error(flow, target, valid).sum()))(flow)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(gradient[0, 0, 1], np.array([-0.6, 0.8]) / 6, rtol=1e-6)
    np.testing.assert_array_equal(gradient[1, 0], 0)


def test_end_point_errors_have_the_gradients_of_their_values():
    rng = np.random.default_rng(4)
    levels = random_levels(rng, [(8, 10), (5, 4), (2, 3)])
    target = rng.standard_normal((2, 8, 10, 2)).astype(np.float32)
    valid = rng.uniform(size=(2, 8, 10)) < 0.7
    check = functools.partial(jax.test_util.check_grads, order=1, modes=("fwd", "rev"), eps=1e-2, atol=1e-2, rtol=1e-2)
    check(lambda *levels: multi_scale(levels, target, valid), tuple(levels))
    flow = rng.standard_normal((2, 8, 10, 2)).astype(np.float32)
    check(jax.jit(lambda flow: mean_end_point_error(flow, target, valid)), (flow,))


def test_end_point_errors_in_half_precision_are_summed_in_float32():
    rng = np.random.default_rng(5)
    levels = [level.astype(jnp.bfloat16) for level in random_levels(rng, [(8, 10), (5, 4), (2, 3)])]
    target, valid = np.zeros((2, 8, 10, 2), np.float32), np.ones((2, 8, 10), bool)
    wide = multi_scale([level.astype(np.float32) for level in levels], target, valid)
    half = multi_scale(levels, target, valid)
    assert half.dtype == end_point_error(levels[0], levels[0]).dtype == jnp.float32
    np.testing.assert_allclose(half, wide, rtol=1e-6)


def test_what_does_not_fit_together_is_refused():
    flow, valid = np.zeros((1, 8, 8, 2), np.float32), np.ones((1, 8, 8), bool)
    half = flow[:, ::2, ::2]
    with pytest.raises(ValueError, match=r"flow has shape \(1, 4, 4, 2\) but target has \(1, 8, 8, 2\)"):
        end_point_error(half, flow)
    with pytest.raises(ValueError, match=r"valid has shape \(1, 8, 7\) but target has"):
        mean_end_point_error(flow, flow, valid[..., :7])
    with pytest.raises(ValueError, match="1 weights for 2 levels"):
        multi_scale_end_point_error([flow, half], flow, valid, weights=[1.0])
    with pytest.raises(ValueError, match="levels finest first"):
        multi_scale_end_point_error([half, flow], flow, valid, weights=[1.0, 1.0])
    with pytest.raises(ValueError, match="level of size 8 cannot be compared with a target of size 4"):
        multi_scale_end_point_error([flow], half, valid[:, ::2, ::2], weights=[1.0])


def warping_oracle(levels, image_1, image_0, weights, flow_scale, outside):
    """Position by position, in float64; one example."""
    total = 0.0
    for flow, weight in zip(levels, weights, strict=True):
        height, width, _ = flow.shape
        f = image_1.shape[1] // width
        one, zero = (
            image.astype(np.float64).reshape(height, f, width, f, -1).mean((1, 3)) for image in (image_1, image_0)
        )
        for y, x in np.ndindex(height, width):
            px, py = np.array([x, y]) + flow[y, x].astype(np.float64) * flow_scale / f
            if outside == "masked" and not (0 <= px <= width - 1 and 0 <= py <= height - 1):
                continue
            px, py = np.clip(px, 0, width - 1), np.clip(py, 0, height - 1)
            left, top = min(int(px), width - 2), min(int(py), height - 2)
            a, b = px - left, py - top
            warped = (1 - b) * ((1 - a) * zero[top, left] + a * zero[top, left + 1]) + b * (
                (1 - a) * zero[top + 1, left] + a * zero[top + 1, left + 1]
            )
            total += weight * np.sum(((warped - one[y, x]) ** 2 + 1e-6) ** 0.45)
    return total


@given(st.integers(0, 2**32 - 1))
def test_warping_error_equals_the_oracle(seed):
    rng = np.random.default_rng(seed)
    images = rng.random((2, 2, 16, 24, 3), np.float32)
    levels = [rng.normal(0, 0.2, (2, 16 // f, 24 // f, 2)).astype(np.float32) for f in (4, 8)]
    found = {
        outside: multi_scale_warping_error(levels, *images, weights=(0.3, 2.0), flow_scale=20.0, outside=outside)
        for outside in ("clamped", "masked")
    }
    assert np.all(found["clamped"] > found["masked"])
    for example in range(2):
        flows = [level[example] for level in levels]
        for outside, errors in found.items():
            expected = warping_oracle(flows, images[0, example], images[1, example], (0.3, 2.0), 20.0, outside)
            np.testing.assert_allclose(errors[example], expected, rtol=2e-4, atol=1e-4)


def test_warping_error_is_least_at_the_true_flow_and_has_its_gradient():
    x = np.arange(64) / 6.0
    waves = np.sin(x)[None, :, None] + np.cos(x / 1.7)[:, None, None] * np.ones(3)
    image_0 = waves[None].astype(np.float32)
    image_1 = np.roll(image_0, -4, axis=2)  # image_1(x) = image_0(x + 4)

    def error(u):
        level = jnp.broadcast_to(jnp.stack([u, jnp.zeros(())]) / 20, (1, 16, 16, 2))
        return multi_scale_warping_error([level], image_1, image_0, weights=(1.0,))[0]

    errors = [float(error(jnp.float32(u))) for u in (0, 2, 4, 6, 8)]
    assert min(errors) == errors[2]
    assert float(jax.grad(error)(jnp.float32(3.0))) < 0 < float(jax.grad(error)(jnp.float32(5.0)))
    assert np.isfinite(jax.grad(error)(jnp.float32(4.0)))


@pytest.mark.parametrize("direction", [(1, 0), (-1, 0), (0, 1), (0.6, -0.8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_warping_error_is_least_at_the_true_flow_on_the_way_out_of_the_frame(direction, seed):
    """Five levels, as VDFlow has them, of a textured picture with noise that moves by 6 px."""
    rng = np.random.default_rng(seed)
    texture = jax.image.resize(rng.random((40, 40, 3)), (320, 320, 3), "cubic")
    across, down = (6 * x for x in direction)
    rows, columns = (jnp.arange(128.0) + start for start in (96, 96))

    def cut(across, down):
        grid = jnp.meshgrid(rows + down, columns + across, indexing="ij")
        picture = jnp.stack([map_coordinates(texture[..., c], grid, order=1) for c in range(3)], axis=-1)
        return picture[None] + 0.02 * rng.standard_normal((1, 128, 128, 3))

    image_1, image_0 = cut(0, 0), cut(-across, -down)  # image_1(x) = image_0(x + flow)

    def error(length, **options):
        flow = length * np.array(direction) / 20
        levels = [jnp.broadcast_to(jnp.float32(flow), (1, 128 // f, 128 // f, 2)) for f in (4, 8, 16, 32, 64)]
        weights = (0.005, 0.01, 0.02, 0.08, 0.32)
        return float(multi_scale_warping_error(levels, image_1, image_0, weights=weights, **options)[0])

    lengths = (0, 3, 6, 9, 20, 50, 100, 130, 300, 1000)
    errors = [error(length) for length in lengths]
    assert min(errors) == errors[lengths.index(6)], dict(zip(lengths, errors, strict=True))
    assert error(300, outside="masked") == 0


def test_every_level_has_a_weight():
    images = np.random.default_rng(0).random((2, 1, 16, 16, 3), np.float32)
    level = np.full((1, 4, 4, 2), 100.0, np.float32)
    with pytest.raises(ValueError, match="2 weights for 1 levels"):
        multi_scale_warping_error([level], *images, weights=(1.0, 1.0))
