import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case

from jaxdeblur.ops.sharpness import temporal_sharpness_prior


def prior_oracle(previous, current, following, valid_previous, valid_following, size):
    """Pixel by pixel, (H, W, C) -> (H, W)."""
    height, width, _ = current.shape
    half = size // 2

    def mean(image, y, x):
        total = np.zeros(3)
        for row in range(max(0, y - half), min(height, y + half + 1)):
            for column in range(max(0, x - half), min(width, x + half + 1)):
                total += image[row, column]
        return total / size**2

    prior = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        if valid_previous[y, x] and valid_following[y, x]:
            here = mean(current, y, x)
            squares = sum(np.sum((mean(image, y, x) - here) ** 2) for image in (previous, following))
            prior[y, x] = np.exp(-np.sqrt(squares / 2))
    return prior


def golden():
    arrays, _ = load_case("cdvd_tsp", "sharpness_prior")
    frames = [arrays[name] for name in ("warped_prev", "center", "warped_next")]
    return frames, [arrays[name][..., 0] > 0 for name in ("mask_prev", "mask_next")], arrays


@pytest.mark.parametrize(("box_px", "name"), [(5, "prior"), (1, "prior_no_mean_filter")])
def test_matches_the_released_code(box_px, name):
    frames, valid, arrays = golden()
    prior = jax.jit(temporal_sharpness_prior, static_argnames="box_px")(*frames, *valid, box_px=box_px)
    np.testing.assert_allclose(prior, arrays[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("box_px", [1, 3, 5])
def test_equals_the_oracle(box_px):
    rng = np.random.default_rng(0)
    frames = rng.random((3, 7, 9, 3), np.float32)
    valid = rng.random((2, 7, 9)) > 0.2
    expected = prior_oracle(*frames.astype(np.float64), *valid, box_px)
    np.testing.assert_allclose(temporal_sharpness_prior(*frames, *valid, box_px=box_px)[..., 0], expected, atol=1e-6)


def test_one_where_all_agree_zero_where_one_is_not_valid_and_no_gradient():
    frame = np.random.default_rng(1).random((2, 6, 6, 3), np.float32)
    valid = np.ones((2, 6, 6), bool)
    np.testing.assert_array_equal(temporal_sharpness_prior(frame, frame, frame, valid, valid), 1.0)
    np.testing.assert_array_equal(temporal_sharpness_prior(frame, frame, frame, valid, ~valid), 0.0)

    def total(frame):
        return jnp.sum(temporal_sharpness_prior(frame, frame, 1.1 * frame, valid, valid))

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(frame)), 0.0)
