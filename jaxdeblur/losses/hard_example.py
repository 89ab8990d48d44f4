"""Hard-example mining of CDVD-TSP: the pixels restored worst count again, and with them some drawn at random."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdeblur.types import Array, Image, Mask, Scalars


def hard_pixels(residual: Float[Array, "_b _h _w"], *, share: float) -> Mask:
    """Pixels of each example whose residual is greater than that at rank floor(share H W), counted from zero in
    descending order: at most that many, fewer where residuals tie. (B, H, W)."""
    batch, height, width = residual.shape
    rank = math.floor(share * height * width)
    descending = -jnp.sort(-residual.reshape(batch, -1), axis=1)
    return residual > descending[:, rank][:, None, None]


def random_pixels(key: jax.Array, shape: tuple[int, int, int], *, share: float) -> Mask:
    """floor(share H W) pixels of each example, drawn without replacement. (B, H, W)."""
    batch, height, width = shape
    count = math.floor(share * height * width)

    def draw(key: jax.Array) -> jax.Array:
        chosen = jax.random.permutation(key, height * width)[:count]
        return jnp.zeros(height * width, bool).at[chosen].set(True)

    return jax.vmap(draw)(jax.random.split(key, batch)).reshape(shape)


def hard_example_loss(image: Image, target: Image, drawn: Mask, *, hard_share: float = 0.5) -> Scalars:
    """Mean over height, width and channels of mask |image - target|, one value an example: (B,).

    The mask is shared by all channels: the hard pixels by the residual summed over channels, or those drawn. The mean
    is over all pixels, not over those in the mask. No gradient passes through the mask.

    Args:
        image, target: (B, H, W, C); several images may lie side by side in the channels.
        drawn: (B, H, W), see random_pixels.
    """
    residual = jnp.abs(image - target)
    hard = hard_pixels(jax.lax.stop_gradient(residual.sum(axis=-1)), share=hard_share)
    mask = (hard | drawn)[..., None].astype(residual.dtype)
    return jnp.mean(mask * residual, axis=tuple(range(1, residual.ndim)))
