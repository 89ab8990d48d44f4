"""Training of ESTRNN (Zhong et al., ECCV 2020, IJCV 2023): whole clips from the zero state, one update a batch.

The clip goes through the cell once, and gradients through its state; the frames that have all their neighbours are
supervised (`losses.pixel.charbonnier_colour`, as released; the first paper has the mean squared error).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdeblur.losses.pixel import charbonnier_colour
from jaxdeblur.models.estrnn import ESTRNN
from jaxdeblur.types import Batch, PyTree


@dataclasses.dataclass(frozen=True)
class ESTRNNObjective:
    """The objective over clips of as many sharp frames as a batch has, and the model's neighbours around them.

    Attributes:
        remat: compute in the backward pass anew what a frame needs: much less memory, a third more work.
    """

    model: ESTRNN
    remat: bool = False

    groups = ("all",)
    updates_per_batch = 1

    @property
    def past_frames(self) -> int:
        return self.model.past_frames

    @property
    def future_frames(self) -> int:
        return self.model.future_frames

    def learning_rate_name(self, group: str, path: tuple[str, ...]) -> str:
        del path  # all are moved alike
        return group

    def prepare(self, batch: Batch, frozen: PyTree) -> dict[str, jax.Array]:
        """Blurred (B, past + T + future, H, W, 3) and sharp (B, T, H, W, 3) frames."""
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
        del t, key  # there is one update a batch, and nothing is random
        model: Any = self.model
        restored = model.apply({"params": params}, prepared["blurred"], remat=self.remat, method="unroll")
        loss = charbonnier_colour(restored, prepared["sharp"]).mean()
        return {"all": loss}, statistics, carry, {}
