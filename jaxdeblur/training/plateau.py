"""The learning rate falls when the error on held-out data no longer does."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax.contrib

from jaxdeblur.compilation import jit
from jaxdeblur.types import PyTree


@dataclasses.dataclass(frozen=True)
class Plateau:
    """Multiplies the learning rate by `factor` after `patience` checks in a row without a new least loss.

    Parts of a network that are trained in turns have losses that cannot be compared, so that each has a memory of its
    own; the learning rate is all's, the product of what their plateaus made of it.

    Attributes:
        tolerance: a loss is a new least one if it is less by more than this fraction.
        least_scale: of the learning rate, in all.
    """

    factor: float = 0.5
    patience: int = 3
    tolerance: float = 1e-3
    least_scale: float = 0.01

    def __post_init__(self) -> None:
        if not (0 < self.factor < 1 and self.patience >= 1 and 0 < self.tolerance < 1 and 0 < self.least_scale <= 1):
            raise ValueError(f"{self}: expected a factor, a tolerance and a least scale below 1, and 1 check or more")

    def init(self, groups: Iterable[str]) -> dict[str, PyTree]:
        """What is remembered of each loss group before the first check."""
        return {group: self._transformation.init(jnp.zeros(())) for group in groups}

    def check(self, plateaus: Mapping[str, PyTree], group: str, loss: float) -> dict[str, PyTree]:
        """Plateaus after a check of a group's loss on held-out data."""
        if not math.isfinite(loss):
            raise ValueError(
                f"the held-out loss of {group} is {loss}: lower the learning rate, clip gradients, or train in float32"
            )
        return {**plateaus, group: _after(self, plateaus[group], jnp.float32(loss))}

    def scale(self, plateaus: Mapping[str, PyTree]) -> jax.Array:
        """What to multiply the learning rate by."""
        product = functools.reduce(jnp.multiply, [state.scale for state in plateaus.values()])
        return jnp.maximum(product, self.least_scale)

    @property
    def _transformation(self) -> Any:
        return optax.contrib.reduce_on_plateau(
            self.factor, self.patience, self.tolerance, min_scale=self.least_scale, accumulation_size=1
        )


@jit(static_argnums=0)
def _after(plateau: Plateau, state: PyTree, loss: jax.Array) -> PyTree:
    return plateau._transformation.update(jnp.zeros(()), state, value=loss)[1]
