import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdeblur.ops.flow import resize_flow

resize = jax.jit(resize_flow, static_argnames=("height", "width", "align_corners"))


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
