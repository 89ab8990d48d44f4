"""What is minimised, one file a paper."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdeblur.types import Array, Batch, PyTree


@runtime_checkable  # for the type checker of the tests
class Objective(Protocol):
    """A paper's training rule, as the train step sees it.

    A batch gives `updates_per_batch` optimiser updates, t = 0, 1, ..., between which a carry is handed on. Each loss
    group has an optimiser of its own; all gradients of an update are taken at the same parameters and the updates are
    added. `past_frames` and `future_frames` are how many blurred frames a batch holds before and after the sharp ones.
    """

    @property
    def groups(self) -> tuple[str, ...]: ...

    @property
    def updates_per_batch(self) -> int: ...

    @property
    def past_frames(self) -> int: ...

    @property
    def future_frames(self) -> int: ...

    def prepare(self, batch: Batch, frozen: PyTree) -> PyTree:
        """What the losses need of a batch, made once: batch axis first in every leaf. `frozen` are variables of
        networks that are not trained."""
        ...

    def init_carry(self, prepared: PyTree) -> PyTree:
        """The carry before the batch's first update: batch axis first in every leaf of one or more axes."""
        ...

    def losses(
        self, params: PyTree, statistics: PyTree, prepared: PyTree, carry: PyTree, t: jax.Array, key: jax.Array
    ) -> tuple[dict[str, jax.Array], PyTree, PyTree, dict[str, jax.Array]]:
        """Losses by group (scalars, means over the batch), the statistics and the carry for the next update, and
        scalars to report. `statistics` are the running ones of batch normalisation, {} for networks without."""
        ...

    def learning_rate_name(self, group: str, path: tuple[str, ...]) -> str | None:
        """Which of the configured learning rates a group's optimiser moves the parameter at this path with; None leaves
        it where it is."""
        ...


def scaled_bytes(values: Array) -> jax.Array:
    """Bytes as floats in [0, 1]; anything else as it is."""
    values = jnp.asarray(values)
    return values.astype(jnp.float32) / jnp.float32(255) if values.dtype == jnp.uint8 else values
