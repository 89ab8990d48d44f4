"""Training of MAXIM (Tu et al., CVPR 2022): every stage supervised at three scales, one update a batch.

loss = sum over stages and scales of the Charbonnier distance of the output and the sharp frame at that scale
       + frequency_weight x the mean absolute difference of their Fourier transforms (paper, equations 4 to 6).

Before that, a share of the examples is mixed with another of the batch, inputs and targets alike. No training code is
released: the frequency term's scale (over real and imaginary parts, orthonormal transform) and the mix's weight, from
Beta(1.2, 1.2), are ours. Sharp frames are resized as the network resizes its inputs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdeblur.losses.pixel import generalized_charbonnier
from jaxdeblur.models.maxim import MAXIM, resized_inputs
from jaxdeblur.types import Batch, Image, PyTree, Scalars

_MIX = 1.2


@dataclasses.dataclass(frozen=True)
class MAXIMObjective:
    """The objective over clips of any length, whose frames are examples by themselves.

    Attributes:
        frequency_weight: of the difference in Fourier space.
        mixed_share: of the examples, to be mixed with another.
    """

    model: MAXIM
    frequency_weight: float = 0.1
    mixed_share: float = 0.5

    groups = ("all",)
    updates_per_batch = 1
    past_frames = 0
    future_frames = 0

    def __post_init__(self) -> None:
        if not 0 <= self.mixed_share <= 1:
            raise ValueError(f"objective.mixed_share is {self.mixed_share}; expected a share from 0 to 1")

    def learning_rate_name(self, group: str, path: tuple[str, ...]) -> str:
        del path  # all are moved alike
        return group

    def prepare(self, batch: Batch, frozen: PyTree) -> dict[str, jax.Array]:
        """Blurred and sharp frames, (B, T, H, W, 3), H and W multiples of 64."""
        del frozen
        return {"blurred": jnp.asarray(batch["blurred"]), "sharp": jnp.asarray(batch["sharp"])}

    def init_carry(self, prepared: PyTree) -> PyTree:
        return ()

    def losses(
        self,
        params: PyTree,
        statistics: PyTree,
        prepared: dict[str, jax.Array],
        carry: PyTree,
        t: jax.Array,
        key: jax.Array,
    ) -> tuple[dict[str, jax.Array], PyTree, PyTree, dict[str, jax.Array]]:
        del t  # there is one update a batch
        blurred, sharp = (x.reshape(-1, *x.shape[2:]) for x in (prepared["blurred"], prepared["sharp"]))
        if self.mixed_share:
            blurred, sharp = self._mixed(key, blurred, sharp)
        model: Any = self.model
        stages = model.apply({"params": params}, blurred[:, None], method="restore_scales")
        targets = resized_inputs(sharp)[::-1]
        pairs = [(image, target) for outputs in stages for image, target in zip(outputs, targets, strict=True)]
        charbonnier = sum(_charbonnier(image, target).mean() for image, target in pairs)
        frequency = sum(_frequency(image, target).mean() for image, target in pairs)
        loss = jnp.asarray(charbonnier + self.frequency_weight * frequency)
        return {"all": loss}, statistics, carry, {"charbonnier": jnp.asarray(charbonnier)}

    def _mixed(self, key: jax.Array, *images: Image) -> tuple[Image, ...]:
        """Each example with the one before it in the batch."""
        draw_any, draw_weight = jax.random.split(key)
        shape = (len(images[0]), 1, 1, 1)
        own = jax.random.beta(draw_weight, _MIX, _MIX, shape)
        own = jnp.where(jax.random.uniform(draw_any, shape) < self.mixed_share, own, 1.0)
        return tuple(own * image + (1 - own) * jnp.roll(image, 1, axis=0) for image in images)


def _charbonnier(image: Image, target: Image) -> Scalars:
    return jnp.mean(generalized_charbonnier(image - target, eps=1e-3, alpha=0.5), axis=(1, 2, 3))


def _frequency(image: Image, target: Image) -> Scalars:
    """Mean absolute difference of real and of imaginary parts: (B,)."""
    difference = jnp.fft.rfft2(image - target, axes=(1, 2), norm="ortho")
    return jnp.mean(jnp.abs(difference.real) + jnp.abs(difference.imag), axis=(1, 2, 3)) / 2
