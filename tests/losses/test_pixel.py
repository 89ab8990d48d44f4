import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from parity import load_case

from jaxdeblur.losses.pixel import (
    charbonnier_colour,
    mean_absolute_error,
    mean_squared_error,
    negative_psnr,
    psnr_loss,
    summed_squared_error,
)


@pytest.mark.parametrize(
    ("loss", "of_difference"), [(mean_squared_error, lambda d: d * d), (mean_absolute_error, abs)], ids=["mse", "l1"]
)
def test_each_example_has_the_mean_over_its_pixels(loss, of_difference):
    rng = np.random.default_rng(0)
    image, target = rng.uniform(0, 1, (2, 3, 4, 5, 3)).astype(np.float32)
    expected = np.zeros(3)
    for b, y, x, c in np.ndindex(image.shape):
        expected[b] += of_difference(float(image[b, y, x, c]) - float(target[b, y, x, c])) / (4 * 5 * 3)
    np.testing.assert_allclose(loss(image, target), expected, rtol=1e-5)
    each = [loss(image[b : b + 1], target[b : b + 1])[0] for b in range(3)]
    np.testing.assert_allclose(loss(image, target), each, rtol=1e-6)
    # Clips of an example count as its pixels.
    np.testing.assert_allclose(loss(image[None], target[None]), [expected.mean()], rtol=1e-5)


def test_by_hand():
    image = np.array([[[[0.5]], [[-1.0]]]], np.float32)
    target = np.zeros_like(image)
    np.testing.assert_allclose(mean_squared_error(image, target), [(0.25 + 1) / 2])
    np.testing.assert_allclose(mean_absolute_error(image, target), [0.75])
    np.testing.assert_allclose(summed_squared_error(image, target), [1.25])
    np.testing.assert_allclose(summed_squared_error(np.stack([image] * 2), target[None]), [1.25, 1.25])
    np.testing.assert_allclose(negative_psnr(image, target), np.log10([0.6251]), rtol=1e-5)
    np.testing.assert_allclose(negative_psnr(image, image, unseen_mse=1e-3), [-3.0], rtol=1e-6)
    np.testing.assert_allclose(negative_psnr(image[[0, 0]], np.stack([target[0], image[0]])), [-0.20405, -4], rtol=1e-4)


def test_the_loss_of_nafnet_matches_the_reference():
    arrays, provenance = load_case("nafnet", "psnr_loss")
    loss, gradient = jax.value_and_grad(lambda x: psnr_loss(x, arrays["target"]).mean())(arrays["prediction"])
    np.testing.assert_allclose(loss, provenance["loss"], rtol=1e-6)
    np.testing.assert_allclose(gradient, arrays["gradient"], rtol=0, atol=1e-6 * np.abs(arrays["gradient"]).max())
    # The logarithm comes before the mean over images, and equal images have a bound.
    each = psnr_loss(arrays["prediction"], arrays["target"])
    errors = np.square(np.float64(arrays["prediction"]) - arrays["target"]).mean((1, 2, 3))
    np.testing.assert_allclose(each, 10 * np.log10(errors), rtol=1e-6)
    np.testing.assert_allclose(psnr_loss(arrays["target"], arrays["target"]), -80, rtol=1e-6)


def test_the_charbonnier_loss_of_colours_is_the_released_one():
    arrays, provenance = load_case("estrnn", "charbonnier_colour_loss")
    prediction, target = arrays["prediction"], arrays["target"]
    loss, gradient = jax.value_and_grad(lambda image: charbonnier_colour(image, target).mean())(prediction)
    np.testing.assert_allclose(loss, provenance["loss"], rtol=1e-6)
    largest = np.abs(arrays["gradient"]).max()
    np.testing.assert_allclose(gradient, arrays["gradient"], rtol=0, atol=1e-6 * largest)


def test_the_charbonnier_loss_of_colours_by_hand():
    images = np.zeros((2, 1, 2, 3), np.float32)
    images[0, 0, 0] = [0.3, 0, 0.4]
    images[1] = 0.5
    expected = [(np.sqrt(0.25 / 3 + 1e-6) + 1e-3) / 2, np.sqrt(0.25 + 1e-6)]
    np.testing.assert_allclose(charbonnier_colour(images, np.zeros_like(images)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [mean_squared_error, mean_absolute_error, summed_squared_error, negative_psnr, psnr_loss, charbonnier_colour],
)
def test_gradients_and_dtype(loss):
    rng = np.random.default_rng(1)
    image = rng.uniform(0, 1, (2, 2, 3, 1)).astype(np.float32)
    target = image + np.where(rng.uniform(size=image.shape) < 0.5, -0.3, 0.3).astype(np.float32)
    jax.test_util.check_grads(jax.jit(loss), (image, target), order=1, modes=("fwd", "rev"), eps=1e-2, atol=1e-3)
    assert np.all(np.isfinite(jax.grad(lambda x: loss(x, image).sum())(image)))
    assert loss(image.astype(jnp.bfloat16), target.astype(jnp.bfloat16)).dtype == jnp.bfloat16
