import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdeblur.ops.resample import BORDERS
from jaxdeblur.ops.warp import (
    inside_weight,
    points_inside,
    visible_in_next,
    warp_backward,
    warp_bicubic,
    warp_blocks,
)

SEEDS = st.integers(0, 2**32 - 1)


def warp_oracle(image_0, flow_1to0, border):
    """(H, W, C), (H, W, 2): a weighted mean of four taps, each looked up on its own."""
    height, width, channels = image_0.shape
    out, valid = np.zeros((height, width, channels)), np.ones((height, width), bool)
    for y in range(height):
        for x in range(width):
            u, v = np.float32(flow_1to0[y, x])
            at_x, at_y = float(np.float32(x) + u), float(np.float32(y) + v)
            for row in (np.floor(at_y), np.floor(at_y) + 1):
                for column in (np.floor(at_x), np.floor(at_x) + 1):
                    weight = (1 - abs(at_x - column)) * (1 - abs(at_y - row))
                    inside = 0 <= row < height and 0 <= column < width
                    valid[y, x] &= inside or weight == 0
                    if inside or border == "edge":
                        row_in, column_in = int(np.clip(row, 0, height - 1)), int(np.clip(column, 0, width - 1))
                        out[y, x] += weight * image_0[row_in, column_in]
    return out, valid


def warp_blocks_oracle(features_0, displacement_1to0, block):
    batch, height, width, _ = features_0.shape
    out = np.zeros_like(features_0)
    for b, y, x in np.ndindex(batch, height, width):
        dx, dy = displacement_1to0[b, y // block, x // block]
        row, column = y + block * dy, x + block * dx
        if 0 <= row < height and 0 <= column < width:
            out[b, y, x] = features_0[b, row, column]
    return out


warp = jax.jit(warp_backward, static_argnames="border")
move = jax.jit(warp_blocks, static_argnames="block")


def random_case(seed, *, reach_px=3.0):
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((5, 6, 2)).astype(np.float32)
    return image, rng.uniform(-reach_px, reach_px, (5, 6, 2)).astype(np.float32)


@pytest.mark.parametrize("border", BORDERS)
@given(seed=SEEDS)
def test_warp_equals_the_oracle(border, seed):
    image, flow = random_case(seed)
    out, valid = warp(image, flow, border=border)
    expected, expected_valid = warp_oracle(image, flow, border)
    np.testing.assert_allclose(out, expected, atol=5e-6)
    np.testing.assert_array_equal(valid, expected_valid)


@pytest.mark.parametrize("border", BORDERS)
@given(seed=SEEDS)
def test_zero_flow_is_the_identity(border, seed):
    image, flow = random_case(seed)
    out, valid = warp(image, 0 * flow, border=border)
    np.testing.assert_array_equal(out, image)
    assert np.all(valid)


@given(seed=SEEDS, u=st.integers(-6, 6), v=st.integers(-6, 6))
def test_whole_flow_is_an_index_shift(seed, u, v):
    image, flow = random_case(seed)
    flow[...] = u, v
    rows, columns = np.arange(5) + v, np.arange(6) + u
    nearest = image[np.clip(rows, 0, 4)][:, np.clip(columns, 0, 5)]
    inside = ((rows >= 0) & (rows < 5))[:, None] & ((columns >= 0) & (columns < 6))
    out, valid = warp(image, flow, border="edge")
    np.testing.assert_array_equal(out, nearest)
    np.testing.assert_array_equal(valid, inside)
    out, valid = warp(image, flow, border="zeros")
    np.testing.assert_array_equal(out, np.where(inside[..., None], nearest, 0))
    np.testing.assert_array_equal(valid, inside)


def test_half_a_pixel_outside_reads_half_or_the_nearest():
    image, flow = np.ones((2, 3, 1), np.float32), np.zeros((2, 3, 2), np.float32)
    flow[..., 0] = 0.5
    np.testing.assert_allclose(warp(image, flow, border="zeros")[0][0, :, 0], [1, 1, 0.5])
    np.testing.assert_allclose(warp(image, flow, border="edge")[0][0, :, 0], [1, 1, 1])
    np.testing.assert_array_equal(warp(image, flow, border="edge")[1][0], [True, True, False])


def test_vmap_is_a_loop():
    cases = [random_case(seed) for seed in range(3)]
    images, flows = (np.stack([case[k] for case in cases]) for k in (0, 1))
    for batched in (warp, jax.vmap(lambda image, flow, border: warp(image, flow, border=border), (0, 0, None))):
        out, valid = batched(images, flows, border="edge") if batched is warp else batched(images, flows, "edge")
        for i, case in enumerate(cases):
            one, one_valid = warp(*case, border="edge")
            np.testing.assert_allclose(out[i], one, atol=1e-6)
            np.testing.assert_array_equal(valid[i], one_valid)


@pytest.mark.parametrize("border", BORDERS)
def test_warp_gradients(border):
    image, flow = random_case(4)
    flow = np.floor(flow) + np.clip(flow - np.floor(flow), 0.2, 0.8)  # away from the creases at whole pixels
    value = jax.jit(lambda image, flow: warp_backward(image, flow, border=border)[0])
    jax.test_util.check_grads(value, (image, flow), order=1, modes=("fwd", "rev"), eps=1e-2, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("border", BORDERS)
def test_gradients_at_zero_flow_are_one_sided_and_finite(border):
    image = np.array([[0.0, 1.0, 3.0, 2.0]], np.float32)[..., None]
    flow = np.zeros((1, 4, 2), np.float32)
    gradient = jax.grad(lambda flow: warp(image, flow, border=border)[0].sum())(flow)
    assert np.all(np.isfinite(gradient))
    # Interior pixels take the slope to the right.
    np.testing.assert_allclose(gradient[0, 1:3, 0], [2.0, -1.0])
    far = jax.grad(lambda flow: warp(image, flow, border=border)[0].sum())(flow + 1e9)
    np.testing.assert_array_equal(far, np.zeros_like(flow))


def test_dtypes():
    image, flow = random_case(5)
    out, valid = warp(image.astype(jnp.bfloat16), flow.astype(jnp.bfloat16), border="edge")
    assert out.dtype == jnp.bfloat16
    assert valid.dtype == bool
    # The flow is added to coordinates in float32: bfloat16 could not tell column 256 from 257.
    wide = np.arange(300, dtype=np.float32).reshape(1, 300, 1)
    flow = np.full((1, 300, 2), (1.0, 0.0), jnp.bfloat16)
    np.testing.assert_array_equal(warp(wide, flow, border="edge")[0][0, :-1, 0], np.arange(1, 300))


def test_sizes_that_differ_are_refused():
    image, flow = random_case(6)
    with pytest.raises(ValueError, match=r"width \(4, 6\) but image_0 has \(5, 6\); resize the flow with resize_flow"):
        warp_backward(image, flow[:4], border="zeros")


# --- inside weight ---

weigh = jax.jit(inside_weight)


def inside_weight_oracle(flow_1to0):
    height, width, _ = flow_1to0.shape
    out = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        u, v = np.float32(flow_1to0[y, x])
        at_x, at_y = float(np.float32(x) + u), float(np.float32(y) + v)
        for row, column in np.ndindex(height, width):
            out[y, x] += max(0, 1 - abs(at_x - column)) * max(0, 1 - abs(at_y - row))
    return out


@pytest.mark.parametrize("size", [(5, 6), (1, 4), (1, 1)])
@given(seed=SEEDS)
def test_inside_weight_is_the_sum_over_the_taps_inside(size, seed):
    flow = np.random.default_rng(seed).uniform(-3, 3, (*size, 2)).astype(np.float32)
    out = weigh(flow)
    np.testing.assert_allclose(out, inside_weight_oracle(flow), atol=2e-6)
    np.testing.assert_array_equal(out, inside_weight(flow))
    ones = np.ones((*size, 1), np.float32)
    np.testing.assert_allclose(out, warp(ones, flow, border="zeros")[0][..., 0], atol=2e-6)


@given(seed=SEEDS)
def test_inside_weight_is_exactly_one_inside(seed):
    flow = np.random.default_rng(seed).uniform(0, 1, (5, 6, 2)).astype(np.float32)
    np.testing.assert_array_equal(weigh(flow)[:-1, :-1], 1)
    assert np.all(np.asarray(weigh(flow)[-1]) < 1)


def test_inside_weight_of_what_is_far_or_not_a_number_is_zero():
    flow = np.zeros((2, 6, 2), np.float32)
    flow[0, :, 0] = flow[1, :, 1] = [np.nan, np.inf, -np.inf, 1e30, -1e30, 7.0]
    np.testing.assert_array_equal(weigh(flow), 0)


def test_inside_weight_is_float32_takes_leading_axes_and_has_no_gradient():
    flows = np.stack([random_case(seed)[1] for seed in range(2)])
    out = weigh(flows)
    assert weigh(flows.astype(jnp.bfloat16)).dtype == out.dtype == jnp.float32
    for one, flow in zip(out, flows):
        np.testing.assert_array_equal(one, weigh(flow))
    np.testing.assert_array_equal(jax.grad(lambda flow: weigh(flow).sum())(flows), 0)


# --- blocks ---


def random_blocks(seed, radius=3):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((2, 12, 20, 3)).astype(np.float32)
    return features, rng.integers(-radius, radius + 1, (2, 3, 5, 2)).astype(np.int32)


@given(seed=SEEDS)
def test_blocks_equal_the_oracle_and_a_warp_by_the_repeated_displacement(seed):
    features, displacement = random_blocks(seed)
    out = move(features, displacement, block=4)
    np.testing.assert_array_equal(out, warp_blocks_oracle(features, displacement, 4))
    flow = 4 * np.repeat(np.repeat(displacement, 4, axis=1), 4, axis=2).astype(np.float32)
    np.testing.assert_array_equal(out, warp(features, flow, border="zeros")[0])


def test_blocks_far_outside_are_zero():
    features, displacement = random_blocks(0)
    for value in (-(10**6), 10**6):
        displacement[...] = value
        assert not np.any(move(features, displacement, block=4))


def test_blocks_keep_dtype_and_have_the_gradient_of_a_gather():
    features, displacement = random_blocks(1)
    half = features.astype(jnp.float16)
    out = move(half, displacement, block=4)
    assert out.dtype == jnp.float16
    np.testing.assert_array_equal(out, warp_blocks_oracle(half, displacement, 4))
    cotangent = np.random.default_rng(2).standard_normal(features.shape).astype(np.float32)
    gradient = jax.grad(lambda x: jnp.sum(move(x, displacement, block=4) * cotangent))(features)
    expected = np.zeros(features.shape)
    for b, y, x in np.ndindex(features.shape[:3]):
        dx, dy = displacement[b, y // 4, x // 4]
        if 0 <= y + 4 * dy < 12 and 0 <= x + 4 * dx < 20:
            expected[b, y + 4 * dy, x + 4 * dx] += cotangent[b, y, x]
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_blocks_refuse_sizes_that_do_not_fit():
    features, displacement = random_blocks(2)
    with pytest.raises(
        ValueError, match=r"\(2, 2, 5, 2\) but features_0 \(2, 12, 20, 3\) with block 4 needs \(2, 3, 5"
    ):
        warp_blocks(features, displacement[:, :2], block=4)
    with pytest.raises(ValueError, match="multiples of 4"):
        warp_blocks(features[:, :, :18], displacement[:, :, :4], block=4)


def test_points_inside_is_half_open():
    flow = np.zeros((2, 3, 2), np.float32)
    flow[0, 0], flow[0, 1], flow[0, 2] = (-0.01, 0), (1.99, 0), (1, 0)
    flow[1, 0], flow[1, 1], flow[1, 2] = (0, 0.99), (0, 1), (np.nan, 0)
    np.testing.assert_array_equal(points_inside(flow), [[False, True, False], [True, False, False]])


def test_bicubic_warping_reads_where_the_flow_points():
    """A quadratic surface, which cubic convolution reproduces away from the border."""
    y, x = np.mgrid[:12.0, :14.0].astype(np.float32)

    def surface(x, y):
        return np.stack([0.1 * x * x - 0.2 * x * y + y, 3 + x - 0.05 * y * y], axis=-1)

    flow = np.broadcast_to(np.float32([1.3, -0.6]), (12, 14, 2))
    out = np.asarray(warp_bicubic(surface(x, y), flow))
    np.testing.assert_allclose(out[3:-3, 3:-3], surface(x + 1.3, y - 0.6)[3:-3, 3:-3], atol=2e-5)
    with pytest.raises(ValueError, match="resize the flow"):
        warp_bicubic(surface(x, y), flow[:-1])


def visible_oracle(flow, back):
    """Lai et al.'s conditions pixel by pixel; bilinear reading of the way back, borders repeated."""
    height, width, _ = flow.shape
    visible = np.zeros((height, width), bool)

    def read(y, x):
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
        top, left = int(np.floor(y)), int(np.floor(x))
        down, right = min(top + 1, height - 1), min(left + 1, width - 1)
        a, b = y - top, x - left
        upper = (1 - b) * back[top, left] + b * back[top, right]
        return (1 - a) * upper + a * ((1 - b) * back[down, left] + b * back[down, right])

    for y, x in np.ndindex(height, width):
        u, v = flow[y, x]
        there = read(y + v, x + u)
        length = u * u + v * v
        covered = np.sum((flow[y, x] + there) ** 2) > 0.01 * (length + np.sum(there**2)) + 0.5
        to_right = flow[y, min(x + 1, width - 1)] - flow[y, x]
        to_below = flow[min(y + 1, height - 1), x] - flow[y, x]
        edge = np.sum(to_right**2) + np.sum(to_below**2) > 0.01 * length + 0.002
        visible[y, x] = not covered and not edge and 0 <= x + u < width and 0 <= y + v < height
    return visible


@pytest.mark.parametrize("seed", range(4))
def test_what_is_visible_equals_the_oracle(seed):
    rng = np.random.default_rng(seed)
    flow = np.repeat(np.repeat(rng.uniform(-3, 3, (3, 4, 2)), 4, 0), 4, 1) + 0.01 * rng.standard_normal((12, 16, 2))
    back = -flow + rng.choice([0.0, 0.4, 1.5], (12, 16, 1)) * rng.standard_normal((12, 16, 2))
    flow, back = flow.astype(np.float32), back.astype(np.float32)
    found = np.asarray(visible_in_next(flow, back))
    expected = visible_oracle(flow.astype(np.float64), back.astype(np.float64))
    assert 0.1 < expected.mean() < 0.9
    # A comparison may fall the other way where its sides are equal but for rounding.
    assert np.mean(found != expected) < 0.01


@pytest.mark.parametrize(("apart_px", "visible"), [(1.4, True), (1.6, False)])
def test_how_far_the_ways_may_be_apart_grows_with_the_length_of_both(apart_px, visible):
    """Ten pixels there, a little less back: the bound lies above what the way there alone would allow."""
    assert 0.01 * 100 + 0.5 < 1.4**2 < 0.01 * (100 + 8.6**2) + 0.5 < 1.6**2
    flow = np.broadcast_to(np.float32([10, 0]), (4, 30, 2))
    back = np.broadcast_to(np.float32([apart_px - 10, 0]), (4, 30, 2))
    assert np.all(np.asarray(visible_in_next(flow, back))[:, :20] == visible)
