"""Image losses, one value an example."""

import jax.numpy as jnp

from jaxdeblur.types import Image, Scalars


def summed_squared_error(image: Image, target: Image) -> Scalars:
    """Sum of (image - target)^2 over all axes but the first: (B,)."""
    return jnp.sum(jnp.square(image - target), axis=tuple(range(1, image.ndim)))


def mean_squared_error(image: Image, target: Image) -> Scalars:
    """Mean of (image - target)^2 over all axes but the first: (B,)."""
    return jnp.mean(jnp.square(image - target), axis=tuple(range(1, image.ndim)))


def mean_absolute_error(image: Image, target: Image) -> Scalars:
    """Mean of |image - target| over all axes but the first: (B,)."""
    return jnp.mean(jnp.abs(image - target), axis=tuple(range(1, image.ndim)))
