"""What is minimised, one file a paper."""

from typing import Protocol, runtime_checkable

import jax

from jaxdeblur.types import Batch, PyTree


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
        self, params: PyTree, prepared: PyTree, carry: PyTree, t: jax.Array, key: jax.Array
    ) -> tuple[dict[str, jax.Array], PyTree, dict[str, jax.Array]]:
        """Losses by group (scalars, means over the batch), the next carry, and scalars to report."""
        ...

    def learning_rate_name(self, group: str, path: tuple[str, ...]) -> str | None:
        """Which of the configured learning rates a group's optimiser moves the parameter at this path with; None leaves
        it where it is."""
        ...
