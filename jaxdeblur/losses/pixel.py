"""Image losses, one value an example."""

import jax.numpy as jnp

from jaxdeblur.types import Features, Image, Scalars


def summed_squared_error(image: Image, target: Image) -> Scalars:
    """Sum of (image - target)^2 over all axes but the first: (B,)."""
    return jnp.sum(jnp.square(image - target), axis=tuple(range(1, image.ndim)))


def mean_squared_error(image: Image, target: Image) -> Scalars:
    """Mean of (image - target)^2 over all axes but the first: (B,)."""
    return jnp.mean(jnp.square(image - target), axis=tuple(range(1, image.ndim)))


def mean_absolute_error(image: Image, target: Image) -> Scalars:
    """Mean of |image - target| over all axes but the first: (B,)."""
    return jnp.mean(jnp.abs(image - target), axis=tuple(range(1, image.ndim)))


def negative_psnr(image: Image, target: Image, *, unseen_mse: float = 1e-4) -> Scalars:
    """log10 of the mean squared error + unseen_mse, in bels, of values in [0, 1]: (B,).

    The mean of it over images is, but for its scale, what tables of PSNR report: a tenth off a small error counts as
    much as a tenth off a large one.

    Args:
        unseen_mse: of about 40 dB, which no viewer sees: where there is less, hardly anything is gained.
    """
    return jnp.log10(mean_squared_error(image, target) + unseen_mse)


def psnr_loss(image: Image, target: Image) -> Scalars:
    """Minus the PSNR of values in [0, 1], in decibel; 80 dB, not infinity, where they are equal: (B,).

    The loss of NAFNet (Chen et al. 2022), the mean of it over images.
    """
    return 10 * negative_psnr(image, target, unseen_mse=1e-8)


def generalized_charbonnier(x: Features, *, eps: float = 1e-3, alpha: float = 0.45) -> Features:
    """(x^2 + eps^2)^alpha of every value: a penalty that large errors cannot dominate."""
    return jnp.power(jnp.square(x) + eps**2, alpha)


def charbonnier_colour(image: Image, target: Image, *, eps: float = 1e-3) -> Scalars:
    """Mean over pixels of sqrt(mean over colours of (image - target)^2, + eps^2): (B,).

    The loss that ESTRNN is released with: a pixel's distance, not a colour's, and of small ones nearly the square.
    """
    distance = jnp.sqrt(jnp.mean(jnp.square(image - target), axis=-1) + eps**2)
    return jnp.mean(distance, axis=tuple(range(1, distance.ndim)))
