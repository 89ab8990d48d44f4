"""Gamma-encoded values and linear light, in which exposures add up."""

import jax.numpy as jnp

from jaxdeblur.types import Scalars


def srgb_to_linear(image: Scalars) -> Scalars:
    """Gamma-encoded to linear light, the piecewise curve of IEC 61966-2-1."""
    return jnp.where(image <= 0.04045, image / 12.92, ((jnp.maximum(image, 0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(image_linear: Scalars) -> Scalars:
    """Linear light to gamma-encoded, the piecewise curve of IEC 61966-2-1."""
    # The power's argument is kept off zero, where its gradient is infinite.
    power = jnp.maximum(image_linear, 0.0031308) ** (1 / 2.4)
    return jnp.where(image_linear <= 0.0031308, 12.92 * image_linear, 1.055 * power - 0.055)
