"""Loss scaling for float16, as mixed-precision training has it: an update that overflows is left out, not fatal."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdeblur.types import PyTree

FIRST = 1024.0
"""Where a scale begins unless told otherwise."""
LEAST = 1.0
"""A scale begins no lower: it is there to make gradients larger."""
HOPELESS = 2.0**-4
"""Below this it is not the scale that overflows, nor a bad batch or two met at the least scale."""


@dataclasses.dataclass(frozen=True)
class LossScale:
    """A loss is multiplied by the scale before the backward pass, and gradients divided by it after.

    The scale halves at every update that is not finite and doubles after `growth_updates` in a row that are.

    Attributes:
        initial: the scale of the first update.
    """

    initial: float
    growth_updates: int = 2_000

    def __post_init__(self) -> None:
        if not self.initial >= LEAST:
            raise ValueError(f"training.loss_scale is {self.initial}; expected 1 or more in float16, such as 1024")
        if self.growth_updates < 1:
            raise ValueError(f"growth_updates is {self.growth_updates}; expected 1 or more")

    def init(self) -> dict[str, jax.Array]:
        """What it remembers before the first update: the scale, and how many updates in a row were finite."""
        return {"scale": jnp.float32(self.initial), "finite_updates": jnp.int32(0)}

    def after(self, memory: PyTree, finite: jax.Array) -> dict[str, jax.Array]:
        """What it remembers after an update that was finite, or was not: () bool."""
        scale, count = memory["scale"], memory["finite_updates"] + 1
        grows = count >= self.growth_updates
        # Where twice as much is no number any more, it stays.
        grown = jnp.where(grows & jnp.isfinite(2 * scale), 2 * scale, scale)
        return {
            "scale": jnp.where(finite, grown, scale / 2),
            "finite_updates": jnp.where(finite & ~grows, count, 0).astype(jnp.int32),
        }


def loss_scale_of(*networks: Any) -> float | LossScale:
    """What networks need that are trained: 1, or where one computes in float16 a scale that follows."""
    kinds = {getattr(getattr(network, "config", None), "compute_dtype", "float32") for network in networks}
    return LossScale(FIRST) if "float16" in kinds else 1.0


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every value of every array of floats is a number: () bool."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in floats])) if floats else jnp.ones((), bool)
