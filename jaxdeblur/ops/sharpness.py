"""The temporal sharpness prior of CDVD-TSP: where a frame agrees with its aligned neighbours, it is likely sharp."""

import jax
import jax.numpy as jnp

from jaxdeblur.ops.filters import box_mean
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
