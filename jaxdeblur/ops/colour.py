"""Gamma-encoded values and linear light, in which exposures add up."""

from typing import Literal

import jax.numpy as jnp

from jaxdeblur.types import Scalars

Gamma = float | Literal["srgb"]
"""What makes light of gamma-encoded values: the curve of sRGB, or a power; 1 leaves them as they are."""


def to_light(image: Scalars, gamma: Gamma) -> Scalars:
    """Gamma-encoded values in [0, 1] to linear light."""
    return srgb_to_linear(image) if gamma == "srgb" else image**gamma


def from_light(image_linear: Scalars, gamma: Gamma) -> Scalars:
    """The inverse of to_light."""
    return linear_to_srgb(image_linear) if gamma == "srgb" else image_linear ** (1 / gamma)


def srgb_to_linear(image: Scalars) -> Scalars:
    """Gamma-encoded to linear light, the piecewise curve of IEC 61966-2-1."""
    return jnp.where(image <= 0.04045, image / 12.92, ((jnp.maximum(image, 0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(image_linear: Scalars) -> Scalars:
    """Linear light to gamma-encoded, the piecewise curve of IEC 61966-2-1."""
    # The power's argument is kept off zero, where its gradient is infinite.
    power = jnp.maximum(image_linear, 0.0031308) ** (1 / 2.4)
    return jnp.where(image_linear <= 0.0031308, 12.92 * image_linear, 1.055 * power - 0.055)
