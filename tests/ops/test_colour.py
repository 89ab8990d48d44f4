"""The sRGB curve against its definition, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.ops.colour import linear_to_srgb, srgb_to_linear


def linear(x):
    """IEC 61966-2-1."""
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def test_the_curve_and_its_inverse():
    x = jnp.linspace(0, 1, 1001)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(x)), x, atol=2e-6)
    np.testing.assert_allclose(srgb_to_linear(x), linear(np.asarray(x)), atol=1e-6)
    assert float(srgb_to_linear(jnp.float32(0.5))) == pytest.approx(0.2140411, abs=1e-6)


@pytest.mark.parametrize("curve", [srgb_to_linear, linear_to_srgb])
def test_gradients_are_finite_and_positive_beyond_the_range_too(curve):
    slopes = jax.vmap(jax.grad(curve))(jnp.linspace(-0.2, 1.2, 281))
    assert bool(jnp.all(jnp.isfinite(slopes) & (slopes > 0)))
