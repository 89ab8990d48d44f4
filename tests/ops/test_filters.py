import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdeblur.ops.filters import box_mean, correlate_axis, gaussian_taps

SEEDS = st.integers(0, 2**32 - 1)


def box_oracle(image, size):
    """One image (H, W, C): always divided by size^2."""
    height, width, _ = image.shape
    out = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            for row in range(max(0, y - size // 2), min(height, y + size // 2 + 1)):
                for column in range(max(0, x - size // 2), min(width, x + size // 2 + 1)):
                    out[y, x] += image[row, column] / size**2
    return out


box = jax.jit(box_mean, static_argnames="size")


@pytest.mark.parametrize("size", [1, 3, 5])
def test_box_mean_equals_the_oracle(size):
    images = np.random.default_rng(0).standard_normal((2, 4, 7, 3)).astype(np.float32)
    out = box(images, size=size)
    for image, one in zip(images, out, strict=True):
        np.testing.assert_allclose(one, box_oracle(image, size), atol=1e-6)


@given(value=st.floats(-10, 10, width=32))
def test_a_constant_stays_where_the_window_fits_and_falls_off_at_the_border(value):
    out = box(np.full((8, 9, 1), value, np.float32), size=5)
    np.testing.assert_allclose(out[2:-2, 2:-2], np.full((4, 5, 1), value), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(out[0, 0, 0], value * 9 / 25, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(out[1, 4, 0], value * 4 / 5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axis", [-3, -2, -1])
def test_correlate_axis_equals_numpy(axis):
    image = np.random.default_rng(1).standard_normal((2, 6, 7, 5)).astype(np.float32)
    taps = np.array([0.5, -1.0, 2.0])
    out = correlate_axis(image, taps, axis)
    expected = np.apply_along_axis(lambda line: np.correlate(line, taps, "valid"), axis, image)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_gaussian_taps():
    taps = gaussian_taps(11, 1.5)
    assert len(taps) == 11
    np.testing.assert_allclose(taps.sum(), 1.0)
    np.testing.assert_allclose(taps[3] / taps[5], np.exp(-(2**2) / (2 * 1.5**2)))
    np.testing.assert_allclose(gaussian_taps(4, 1.0), gaussian_taps(4, 1.0)[::-1])


def test_dtypes_gradients_and_vmap():
    images = np.random.default_rng(2).standard_normal((3, 4, 5, 2)).astype(np.float32)
    assert box(images.astype(jnp.bfloat16), size=3).dtype == jnp.bfloat16
    smooth = jax.jit(lambda image: box_mean(image, 3))
    np.testing.assert_allclose(jax.vmap(smooth)(images), np.stack([smooth(image) for image in images]), atol=1e-6)
    jax.test_util.check_grads(smooth, (images[0],), order=1, modes=("fwd", "rev"), eps=1e-1, atol=2e-3, rtol=2e-3)


def test_errors():
    image = np.zeros((4, 5, 1), np.float32)
    with pytest.raises(ValueError, match="axis of 4 is shorter than the filter's 5 taps"):
        correlate_axis(image, np.ones(5), -3)
    with pytest.raises(ValueError, match="size is 4; expected an odd number of pixels"):
        box_mean(image, 4)
