"""PSNR and SSIM on arrays (..., H, W, C). What is rounded, cropped or averaged is a protocol's choice, not made here."""

from collections.abc import Sequence

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


def ssim_map(
    image: Image,
    reference: Image,
    *,
    taps: Sequence[float] | np.ndarray = GAUSSIAN_11,
    peak: float = 1.0,
    sample_covariance: bool = False,
) -> Image:
    """Structural similarity, Wang et al. 2004, equation 13, at every position whose window lies inside the frame.

    ((2 mx my + C1)(2 sxy + C2)) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2)), C1 = (0.01 peak)^2, C2 = (0.03 peak)^2, per channel.

    Args:
        image, reference: (..., H, W, C), float32, H and W at least len(taps).
        taps: the separable window, sums to one.
        sample_covariance: multiply (co)variances by n / (n - 1), n = len(taps)^2.
    Returns:
        (..., H - len(taps) + 1, W - len(taps) + 1, C).
    """
    x, y = jnp.asarray(image), jnp.asarray(reference)

    def mean(z: jnp.ndarray) -> jnp.ndarray:
        return correlate_axis(correlate_axis(z, taps, -3), taps, -2)

    mean_x, mean_y = mean(x), mean(y)
    scale = len(taps) ** 2 / (len(taps) ** 2 - 1) if sample_covariance else 1.0
    variance_x = scale * (mean(x * x) - mean_x * mean_x)
    variance_y = scale * (mean(y * y) - mean_y * mean_y)
    covariance = scale * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )


def ssim(image: Image, reference: Image, *, peak: float = 1.0) -> Scalars:
    """Mean of ssim_map with the 11 x 11 Gaussian window over positions and channels; frames smaller than 11 px take a
    window as large as they allow."""
    size = min(11, *image.shape[-3:-1])
    taps = GAUSSIAN_11 if size == 11 else gaussian_taps(size, 1.5)
    return jnp.mean(ssim_map(image, reference, taps=taps, peak=peak), axis=(-3, -2, -1))
