"""Training of NAFNet (Chen et al., ECCV 2022): minus the PSNR of each frame, one update a batch.

Differs from the released code in nothing that is minimised; how examples are cut is in configs/nafnet.py.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdeblur.losses.pixel import psnr_loss
from jaxdeblur.models.nafnet import NAFNet
from jaxdeblur.types import Batch, PyTree


@dataclasses.dataclass(frozen=True)
class NAFNetObjective:
    """The objective over clips of any length, whose frames are examples by themselves."""

    model: NAFNet

    groups = ("all",)
    updates_per_batch = 1
    past_frames = 0
    future_frames = 0

    def learning_rate_name(self, group: str, path: tuple[str, ...]) -> str:
        del path  # all are moved alike
        return group

    def prepare(self, batch: Batch, frozen: PyTree) -> dict[str, jax.Array]:
        """Blurred and sharp frames, (B, T, H, W, 3)."""
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
        blurred, sharp = (x.reshape(-1, 1, *x.shape[2:]) for x in (prepared["blurred"], prepared["sharp"]))
        model: Any = self.model
        restored = model.apply({"params": params}, blurred, method="restore_window").restored
        loss = psnr_loss(restored, sharp[:, 0]).mean()
        return {"all": loss}, statistics, carry, {"psnr_db": -loss}
