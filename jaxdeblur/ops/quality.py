"""PSNR and SSIM on arrays (..., H, W, C). What is rounded, cropped or averaged is a protocol's choice, not made
here."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.ops.filters import correlate_axis, gaussian_taps
from jaxdeblur.types import Image, Scalars

GAUSSIAN_11 = gaussian_taps(11, 1.5)
"""The window of Wang et al. (2004)."""


def psnr_db(image: Image, reference: Image, *, peak: float = 1.0) -> Scalars:
    """10 log10(peak^2 / mean squared error over height, width and channels), in decibel; infinite for equal images."""
    error = jnp.mean(jnp.square(jnp.asarray(image) - jnp.asarray(reference)), axis=(-3, -2, -1))
    return 10 * jnp.log10(peak**2 / error)


def structural_similarity(
    image: Image,
    reference: Image,
    mean: Callable[[jax.Array], jax.Array],
    *,
    peak: float = 1.0,
    covariance_scale: float = 1.0,
) -> jax.Array:
    """Wang et al. 2004, equation 13, for any local mean.

    ((2 mx my + C1)(2 sxy + C2)) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2)), C1 = (0.01 peak)^2, C2 = (0.03 peak)^2; and
    no more than 1, which rounding alone can exceed.

    Args:
        mean: weighted mean over a window around each position.
        covariance_scale: multiplies (co)variances; n / (n - 1) makes them sample covariances over n equal weights.
    """
    x, y = jnp.asarray(image), jnp.asarray(reference)
    mean_x, mean_y = mean(x), mean(y)
    variance_x = covariance_scale * (mean(x * x) - mean_x * mean_x)
    variance_y = covariance_scale * (mean(y * y) - mean_y * mean_y)
    covariance = covariance_scale * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return jnp.minimum(similarity, 1.0)


def window_mean(taps: Sequence[float] | np.ndarray, axes: Sequence[int] = (-3, -2)) -> Callable[[jax.Array], jax.Array]:
    """A separable local mean along some axes, where the whole window lies inside; for structural_similarity."""

    def mean(image: jax.Array) -> jax.Array:
        for axis in axes:
            image = correlate_axis(image, taps, axis)
        return image

    return mean


def ssim(image: Image, reference: Image, *, peak: float = 1.0) -> Scalars:
    """SSIM with the 11 x 11 Gaussian window (sigma 1.5 px) per channel, mean over channels and the positions whose
    window lies inside. Frames smaller than 11 px take a window as large as they allow."""
    size = min(11, *image.shape[-3:-1])
    taps = GAUSSIAN_11 if size == 11 else gaussian_taps(size, 1.5)
    return jnp.mean(structural_similarity(image, reference, window_mean(taps), peak=peak), axis=(-3, -2, -1))
