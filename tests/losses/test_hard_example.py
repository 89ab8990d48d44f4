import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case

from jaxdeblur.losses.hard_example import hard_example_loss, hard_pixels, random_pixels
from jaxdeblur.losses.pixel import mean_absolute_error


def golden():
    arrays, provenance = load_case("cdvd_tsp", "hem_loss")
    return arrays, provenance["values"]


def residual(image, target):
    return np.abs(image - target).sum(-1)


def test_masks_match_the_released_code():
    arrays, _ = golden()
    for image, target, mask in (("pred", "gt", "hard_mask"), ("tie_pred", "tie_gt", "tie_mask")):
        hard = hard_pixels(residual(arrays[image], arrays[target]), share=0.5)
        np.testing.assert_array_equal(hard[..., None], arrays[mask] > 0)


def test_losses_match_the_released_code():
    arrays, values = golden()
    image, target, drawn = arrays["pred"], arrays["gt"], arrays["random_mask"][..., 0] > 0
    l1 = mean_absolute_error(image, target).mean()
    np.testing.assert_allclose(l1, values["l1"], rtol=1e-6)
    for mask, name in ((np.zeros_like(drawn), "hard_only"), (drawn, "with_random_mask")):
        loss = hard_example_loss(image, target, mask).mean()
        np.testing.assert_allclose(loss, values[f"hem_{name}"], rtol=1e-6)
        np.testing.assert_allclose(l1 + 2 * loss, values[f"total_1xL1_2xHEM_{name}"], rtol=1e-6)
    tied = hard_example_loss(arrays["tie_pred"], arrays["tie_gt"], np.zeros((1, *drawn.shape[1:]), bool))
    np.testing.assert_allclose(tied[0], values["tie_hem_hard_only"], rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_as_many_pixels_as_were_asked_for(share):
    values = np.random.default_rng(0).permutation(2 * 5 * 7).reshape(2, 5, 7).astype(np.float32)
    hard = np.asarray(hard_pixels(values, share=share))
    drawn = np.asarray(random_pixels(jax.random.key(0), (2, 5, 7), share=share))
    count = int(share * 35)
    for mask in (hard, drawn):
        np.testing.assert_array_equal(mask.sum(axis=(1, 2)), [count, count])
    for one, mask in zip(values, hard, strict=True):
        assert count == 0 or one[mask].min() > one[~mask].max()
    if count:
        assert np.any(drawn[0] != drawn[1])


def test_pixels_are_drawn_evenly():
    draws = jax.jit(lambda key: random_pixels(key, (2000, 3, 4), share=0.25))(jax.random.key(1))
    np.testing.assert_allclose(np.mean(draws, axis=0), 0.25, atol=0.04)


def test_the_gradient_is_that_of_the_masked_sum():
    rng = np.random.default_rng(2)
    image, target = rng.random((2, 1, 4, 6, 3), np.float32)
    drawn = random_pixels(jax.random.key(0), (1, 4, 6), share=0.1)
    gradient = jax.grad(lambda image: hard_example_loss(image, target, drawn)[0])(jnp.asarray(image))
    mask = hard_pixels(residual(image, target), share=0.5) | drawn
    np.testing.assert_allclose(gradient, np.sign(image - target) * np.asarray(mask)[..., None] / 72, rtol=1e-6)
