"""How sharp an image is: by its detail, and by whether it agrees with its neighbours (CDVD-TSP's temporal prior)."""

import jax
import jax.numpy as jnp

from jaxdeblur.ops.filters import box_mean
from jaxdeblur.ops.resample import downsample_area
from jaxdeblur.types import Features, Image, Mask


def temporal_sharpness_prior(
    frame_prev_on_cur: Image,
    frame_cur: Image,
    frame_next_on_cur: Image,
    valid_prev_on_cur: Mask,
    valid_next_on_cur: Mask,
    *,
    box_px: int = 5,
) -> Features:
    """S = exp(-sqrt(1/2 sum over neighbours j and channels of (m(j) - m(cur))^2)), zero where a neighbour is not valid.

    m is the mean over box_px x box_px pixels, those outside counting as zero. Pan, Bai, Tang (2020), the released code.
    Differs from the paper's equations 10 and 11, which put the squared differences of single pixels, summed over a
    patch of unnamed size, in the exponent, without root and without masks. Carries no gradient.

    Args:
        frame_prev_on_cur, frame_next_on_cur: neighbours on the current frame's grid, zero where they are not valid.
            (..., H, W, C) in [0, 1].
        valid_prev_on_cur, valid_next_on_cur: (..., H, W).
        box_px: odd; 1 compares single pixels.
    Returns:
        (..., H, W, 1) in [0, 1].
    """
    frames = jax.lax.stop_gradient((frame_prev_on_cur, frame_cur, frame_next_on_cur))
    mean_prev, mean_cur, mean_next = (box_mean(frame, box_px) for frame in frames)
    squares = jnp.square(mean_prev - mean_cur) + jnp.square(mean_next - mean_cur)
    prior = jnp.exp(-jnp.sqrt(jnp.sum(squares, axis=-1, keepdims=True) / 2))
    valid = (valid_prev_on_cur & valid_next_on_cur)[..., None]
    return jnp.where(valid, prior, jnp.zeros((), prior.dtype))


def detail_strengths(image: Image) -> tuple[jax.Array, jax.Array]:
    """How strong detail is of the size of a pixel and of twice that size, along each of the two axes.

    Of a natural image, whose spectrum falls as 1 / f, both are about alike (half as much after a camera's optics, its
    colour filter and compression); blur takes of the fine more than of the coarse, along its own direction.

    Args:
        image: (..., H, W, C); H and W even and at least 4.
    Returns:
        (..., 2) fine and (..., 2) coarse: mean squares of differences between neighbours, down and across, of the mean
        over the channels as it is and of means of 2 x 2 pixels.
    """
    grey = jnp.mean(image, axis=-1, keepdims=True)

    def strengths(of: Image) -> jax.Array:
        down, across = jnp.diff(of, axis=-3), jnp.diff(of, axis=-2)
        return jnp.stack([jnp.mean(jnp.square(steps), axis=(-3, -2, -1)) for steps in (down, across)], axis=-1)

    return strengths(grey), strengths(downsample_area(grey, 2))
