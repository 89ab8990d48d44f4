import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdeblur.ops.quality import psnr_db, ssim, structural_similarity, window_mean

SEEDS = st.integers(0, 2**32 - 1)


def ssim_oracle(x, y, weights, *, peak=1.0, covariance_scale=1.0):
    """Map over the positions whose window lies inside, per channel; weights (n, n) sum to one."""
    n = len(weights)
    height, width, channels = x.shape
    out = np.zeros((height - n + 1, width - n + 1, channels))
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    for row, column, channel in np.ndindex(out.shape):
        a, b = (image[row : row + n, column : column + n, channel].astype(np.float64) for image in (x, y))
        mean_a, mean_b = np.sum(weights * a), np.sum(weights * b)
        variance_a, variance_b = (
            covariance_scale * np.sum(weights * (image - mean) ** 2) for image, mean in ((a, mean_a), (b, mean_b))
        )
        covariance = covariance_scale * np.sum(weights * (a - mean_a) * (b - mean_b))
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        out[row, column, channel] = luminance * (2 * covariance + c2) / (variance_a + variance_b + c2)
    return out


def gaussian_window(size):
    offset = np.arange(size) - (size - 1) / 2
    window = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * 1.5**2))
    return window / window.sum()


def random_pair(seed, shape=(13, 15, 2)):
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 1, shape).astype(np.float32)
    return image, np.clip(image + 0.2 * rng.standard_normal(shape), 0, 1).astype(np.float32)


jitted_ssim = jax.jit(ssim, static_argnames="peak")
jitted_psnr = jax.jit(psnr_db, static_argnames="peak")


def test_psnr_by_hand():
    zero = np.zeros((2, 4, 5, 3), np.float32)
    other = zero.copy()
    other[0] = 0.1  # mean squared error 0.01
    other[1, 0, 0, 0] = 1.0  # 1 / 60
    np.testing.assert_allclose(psnr_db(other, zero), [20.0, 10 * np.log10(60)], rtol=1e-5)
    np.testing.assert_allclose(psnr_db(255 * other, zero, peak=255.0), [20.0, 10 * np.log10(60)], rtol=1e-5)
    assert np.all(np.isposinf(psnr_db(zero, zero)))


@given(seed=SEEDS)
def test_psnr_falls_by_six_decibel_when_the_error_doubles(seed):
    image, noise = random_pair(seed)
    noise = 0.1 * (noise - image) + 1e-3
    far, near = jitted_psnr(image + 2 * noise, image), jitted_psnr(image + noise, image)
    np.testing.assert_allclose(near - far, 20 * np.log10(2), atol=1e-2)


@pytest.mark.parametrize(("height", "width"), [(13, 15), (11, 11), (7, 12), (4, 5), (1, 1)])
def test_ssim_equals_the_oracle(height, width):
    image, other = random_pair(0, (height, width, 2))
    window = gaussian_window(min(11, height, width))
    np.testing.assert_allclose(ssim(image, other), ssim_oracle(image, other, window).mean(), atol=2e-5)
    scaled = ssim(255 * image, 255 * other, peak=255.0)
    np.testing.assert_allclose(scaled, ssim_oracle(image, other, window).mean(), atol=2e-5)


def test_structural_similarity_with_sample_covariance_equals_the_oracle():
    image, other = random_pair(1)
    out = structural_similarity(image, other, window_mean(np.full(7, 1 / 7)), covariance_scale=49 / 48)
    expected = ssim_oracle(image, other, np.full((7, 7), 1 / 49), covariance_scale=49 / 48)
    np.testing.assert_allclose(out, expected, atol=2e-5)


@given(seed=SEEDS)
def test_ssim_is_one_for_equal_images_symmetric_and_at_most_one(seed):
    image, other = random_pair(seed)
    np.testing.assert_allclose(jitted_ssim(image, image), 1.0, atol=1e-6)
    value = jitted_ssim(image, other)
    assert -1 <= value < 1
    np.testing.assert_allclose(value, jitted_ssim(other, image), atol=1e-6)


def test_ssim_of_constants_by_hand():
    a, b = np.full((12, 12, 1), 0.3, np.float32), np.full((12, 12, 1), 0.6, np.float32)
    expected = (2 * 0.3 * 0.6 + 1e-4) / (0.3**2 + 0.6**2 + 1e-4)
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-4)


def test_leading_axes_are_a_loop():
    image, other = random_pair(2, (3, 13, 15, 2))
    for score in (jitted_ssim, jitted_psnr):
        each = np.stack([score(*pair) for pair in zip(image, other, strict=True)])
        assert each.shape == (3,)
        np.testing.assert_allclose(score(image, other), each, rtol=1e-5)
        np.testing.assert_allclose(jax.vmap(score)(image, other), each, rtol=1e-5)


def test_gradients():
    image, other = random_pair(3, (6, 7, 1))
    for score in (jitted_ssim, jitted_psnr):
        jax.test_util.check_grads(score, (image, other), order=1, modes=("fwd", "rev"), eps=3e-3, atol=2e-2, rtol=2e-2)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(jitted_ssim(x, image)))(image)))
    flat = np.zeros((6, 7, 1), np.float32)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(jitted_ssim(x, flat)))(flat)))


@pytest.mark.parametrize("darkest", [0.0, 0.9, 1.0])
def test_similarity_is_at_most_one(darkest):
    """Bright and flat frames, equal to the last digit, would come to up to 1.00006 by rounding, when optimised."""
    example = jnp.zeros((24, 31, 3))
    optimised = {"xla_backend_optimization_level": "3"}  # tests are compiled without
    compiled = jax.jit(ssim).lower(example, example).compile(compiler_options=optimised)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image = (rng.uniform(darkest, 1, example.shape) * rng.uniform(0.2, 1)).astype(np.float32)
        for similarity in (ssim, compiled):
            assert 0.9999 < float(similarity(image, image)) <= 1
