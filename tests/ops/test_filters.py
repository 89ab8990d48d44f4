import jax
import jax.export
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdeblur.ops.filters import box_mean, correlate_axis, gaussian_taps, sliding_mean

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


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 11, 12, 13])
@pytest.mark.parametrize("axis", [-3, -2, 1])
def test_sliding_mean_is_of_the_windows_inside(size, axis):
    image = np.random.default_rng(0).standard_normal((2, 12, 11, 3)).astype(np.float32)
    out = sliding_mean(image, size, axis)
    length = min(size, image.shape[axis])
    expected = np.lib.stride_tricks.sliding_window_view(image.astype(np.float64), length, axis).mean(-1)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_sliding_mean_of_any_length():
    """Whether an axis is longer than the windows is not known while a function is exported."""
    (height,) = jax.export.symbolic_shape("2*h")
    shape = jax.ShapeDtypeStruct((1, height, 5, 2), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: sliding_mean(x, 6, -3)))(shape)
    for size in (2, 4, 6, 8, 20):
        image = np.random.default_rng(size).standard_normal((1, size, 5, 2)).astype(np.float32)
        np.testing.assert_allclose(exported.call(image), sliding_mean(image, 6, -3), atol=1e-6)


def test_sliding_mean_loses_no_digits_far_from_large_values_and_keeps_what_is_no_number():
    line = np.random.default_rng(0).random((1, 2000, 1, 1)).astype(np.float32)
    line[0, :1000] *= 1e6
    expected = np.lib.stride_tricks.sliding_window_view(line.astype(np.float64), 48, 1).mean(-1)
    np.testing.assert_allclose(sliding_mean(line, 48, -3), expected, rtol=1e-6)
    line[0, 500] = np.nan
    touched = np.nonzero(np.isnan(sliding_mean(line, 48, -3))[0, :, 0, 0])[0]
    np.testing.assert_array_equal(touched, np.arange(500 - 47, 501))


def test_sliding_mean_is_float32_differentiable_and_refuses_no_size():
    image = np.random.default_rng(0).standard_normal((1, 6, 5, 1)).astype(np.float32)
    jax.test_util.check_grads(lambda x: sliding_mean(x, 3, -3), (image,), order=1, atol=1e-2, rtol=1e-2)
    narrow = jnp.asarray(image, jnp.bfloat16)
    out = sliding_mean(narrow, 3, -2)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, sliding_mean(narrow.astype(jnp.float32), 3, -2))
    with pytest.raises(ValueError, match="size is 0; expected 1 value or more"):
        sliding_mean(image, 0, -2)
