import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdeblur.ops.flow import flow_to_colour, resize_flow

resize = jax.jit(resize_flow, static_argnames=("height", "width", "align_corners"))
colour = jax.jit(flow_to_colour, static_argnames="max_px")


@pytest.mark.parametrize("align_corners", [False, True])
@given(u=st.floats(-50, 50, width=32), v=st.floats(-50, 50, width=32))
def test_a_constant_flow_scales_with_the_frame(align_corners, u, v):
    flow = np.broadcast_to(np.array([u, v], np.float32), (1, 4, 6, 2))
    out = resize(flow, height=10, width=9, align_corners=align_corners)
    expected = np.broadcast_to([u * 9 / 6, v * 10 / 4], (1, 10, 9, 2))
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
def test_a_linear_flow_stays_linear(seed):
    a, b, c, d = np.random.default_rng(seed).uniform(-2, 2, 4)

    def zoom(height, width, scale_x, scale_y):
        rows, columns = np.mgrid[0:height, 0:width]
        return np.stack([(a * columns / scale_x + b) * 1.5, (c * rows / scale_y + d) * 2.5], -1)

    flow = zoom(4, 6, 1.0, 1.0) / np.array([1.5, 2.5])
    out = resize(flow.astype(np.float32), height=10, width=9, align_corners=True)
    np.testing.assert_allclose(out, zoom(10, 9, 8 / 5, 9 / 3), atol=2e-5)


def test_equals_the_oracle():
    flow = np.random.default_rng(0).standard_normal((2, 3, 4, 2)).astype(np.float32)
    out = resize(flow, height=6, width=8, align_corners=False)
    for b, y, x in np.ndindex(2, 6, 8):
        row, column = np.clip((y - 0.5) / 2, 0, 2), np.clip((x - 0.5) / 2, 0, 3)
        top, left = min(int(row), 1), min(int(column), 2)
        weight_y, weight_x = row - top, column - left
        block = flow[b, top : top + 2, left : left + 2]
        value = np.einsum("y,x,yxc->c", [1 - weight_y, weight_y], [1 - weight_x, weight_x], block)
        np.testing.assert_allclose(out[b, y, x], 2 * value, atol=2e-6)


def test_same_size_changes_nothing_and_dtype_stays():
    flow = np.random.default_rng(1).standard_normal((3, 4, 2)).astype(np.float32)
    np.testing.assert_array_equal(resize(flow, height=3, width=4, align_corners=False), flow)
    assert resize(flow.astype(jnp.bfloat16), height=6, width=4, align_corners=False).dtype == jnp.bfloat16


def test_vmap_is_a_loop_and_gradients():
    flows = np.random.default_rng(2).standard_normal((3, 3, 4, 2)).astype(np.float32)
    call = functools.partial(resize, height=5, width=7, align_corners=True)
    np.testing.assert_allclose(jax.vmap(call)(flows), np.stack([call(flow) for flow in flows]), atol=1e-6)
    jax.test_util.check_grads(call, (flows[0],), order=1, modes=("fwd", "rev"), eps=1e-1, atol=2e-3, rtol=2e-3)


def wheel_oracle(u, v, max_px):
    """One vector, through the list of 55 hues written out one by one."""
    length = np.hypot(u, v)
    if not np.isfinite(length):
        return np.zeros(3)
    hues = []
    for steps, start, end in (
        (15, (1, 0, 0), (1, 1, 0)),
        (6, (1, 1, 0), (0, 1, 0)),
        (4, (0, 1, 0), (0, 1, 1)),
        (11, (0, 1, 1), (0, 0, 1)),
        (13, (0, 0, 1), (1, 0, 1)),
        (6, (1, 0, 1), (1, 0, 0)),
    ):
        hues += [np.array(start) + (np.array(end) - start) * i / steps for i in range(steps)]
    assert len(hues) == 55
    place = np.arctan2(v, u) % (2 * np.pi) / (2 * np.pi) * 55
    before = int(place) % 55
    hue = hues[before] + (place - int(place)) * (hues[(before + 1) % 55] - hues[before])
    return 0.75 * hue if length > max_px else 1 - length / max_px * (1 - hue)


def one_vector(u, v, max_px=1.0):
    return np.asarray(colour(np.array([[[u, v]]], np.float32), max_px=max_px))[0, 0]


@pytest.mark.parametrize(
    ("u", "v", "expected"),
    [
        (0, 0, (1, 1, 1)),
        (1, 0, (1, 0, 0)),  # right: red
        (0, 1, (1, 13.75 / 15, 0)),  # down: yellow, nearly
        (-1, 0, (0, 1 - 2.5 / 11, 1)),  # left: from cyan towards blue
        (0, -1, (5.25 / 13, 0, 1)),  # up: from blue towards magenta
        (0.5, 0, (1, 0.5, 0.5)),
        (2, 0, (0.75, 0, 0)),  # too long to show
        (np.nan, 0, (0, 0, 0)),
        (0, np.inf, (0, 0, 0)),
    ],
)
def test_known_colours(u, v, expected):
    np.testing.assert_allclose(one_vector(u, v), expected, atol=1e-5)


def test_hues_go_round_without_a_jump_and_opposite_ones_differ():
    angle = np.linspace(-np.pi, np.pi, 1000, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)[None]
    hues = np.asarray(colour(circle, max_px=2.0))[0]
    assert np.abs(hues - np.roll(hues, 1, 0)).max() < 0.01
    assert np.abs(hues - np.roll(hues, 500, 0)).max(-1).min() > 0.25
    np.testing.assert_array_equal(one_vector(1.0, -0.0), one_vector(1.0, 0.0))


@given(seed=st.integers(0, 2**32 - 1))
def test_colours_equal_the_oracle(seed):
    flow = np.random.default_rng(seed).standard_normal((3, 4, 2)).astype(np.float32)
    flow[0, 0] = 0
    for max_px in (2.5, 0.5):
        out = np.asarray(colour(flow, max_px=max_px))
        assert out.dtype == np.float32
        assert out.min() >= 0
        assert out.max() <= 1
        for y, x in np.ndindex(3, 4):
            np.testing.assert_allclose(out[y, x], wheel_oracle(*flow[y, x].astype(float), max_px), atol=2e-5)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100))
def test_only_the_length_relative_to_the_largest_counts(seed, scale):
    flow = np.random.default_rng(seed).standard_normal((2, 3, 4, 2)).astype(np.float32)
    flow *= 5 / np.sqrt(np.square(flow).sum(-1)).max()
    free = colour(flow)
    np.testing.assert_allclose(colour(np.float32(scale) * flow), free, atol=1e-4)
    # A hair above, lest rounding make the longest vector too long to show.
    np.testing.assert_allclose(colour(flow, max_px=5.00001), free, atol=1e-4)
    assert np.asarray(free).min() < 0.3


def test_colours_of_no_motion_of_half_precision_and_of_an_impossible_length():
    zero = np.zeros((2, 3, 2), np.float32)
    np.testing.assert_array_equal(colour(zero), np.ones((2, 3, 3)))
    np.testing.assert_array_equal(colour(zero, max_px=3.0), np.ones((2, 3, 3)))
    assert colour(zero.astype(jnp.bfloat16)).dtype == jnp.float32
    flow = np.random.default_rng(3).standard_normal((2, 3, 4, 2)).astype(np.float32)
    eager = flow_to_colour(flow, max_px=3.0)
    np.testing.assert_allclose(colour(flow, max_px=3.0), eager, atol=1e-6)
    one_by_one = jax.jit(jax.vmap(functools.partial(flow_to_colour, max_px=3.0)))
    np.testing.assert_allclose(one_by_one(flow), eager, atol=1e-6)
    for max_px in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="max_px is a length above 0"):
            flow_to_colour(zero, max_px=max_px)
