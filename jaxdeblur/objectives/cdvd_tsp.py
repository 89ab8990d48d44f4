"""Training of CDVD-TSP (Pan, Bai, Tang, CVPR 2020): all stages of a window supervised at once, hard pixels twice over.

The restored images of all stages lie side by side in the channels; loss = mean absolute error + 2 x the same over the
hard half of the pixels and a tenth drawn at random (`losses.hard_example`). The encoder-decoder and the flow network
have one optimiser with a learning rate each.

Differs from the paper's text, and follows the released code, in: the paper's Algorithm 1 minimises stage after stage,
and its equation 13 has no hard-example term. Differs from the released code in: the random pixels come from the run's
key, so that runs can be repeated.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdeblur.losses.hard_example import hard_example_loss, random_pixels
from jaxdeblur.losses.pixel import mean_absolute_error
from jaxdeblur.models.cdvd_tsp import CDVDTSP
from jaxdeblur.types import Batch, Image, Mask, PyTree


@dataclasses.dataclass(frozen=True)
class CDVDTSPObjective:
    """The objective of a model of S stages, over 2 S - 1 sharp and 2 S + 1 blurred frames; one update a batch.

    Attributes:
        hard_weight: of the hard-example term against the mean absolute error.
        hard_share, random_share: of the pixels, in the hard-example term.
    """

    model: CDVDTSP
    hard_weight: float = 2.0
    hard_share: float = 0.5
    random_share: float = 0.1

    groups = ("total",)
    updates_per_batch = 1
    past_frames = 1
    future_frames = 1

    def __post_init__(self) -> None:
        for field in ("hard_share", "random_share"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"objective.{field} is {getattr(self, field)}; expected a share from 0 to below 1")

    def learning_rate_name(self, group: str, path: tuple[str, ...]) -> str:
        del group  # there is one
        return "flow" if path[0] == "flow_net" else "restoration"

    def prepare(self, batch: Batch, frozen: PyTree) -> dict[str, jax.Array]:
        """Blurred (B, 2 S + 1, H, W, 3) and sharp (B, 2 S - 1, H, W, 3) frames."""
        del frozen
        sharp_frames = 2 * self.model.config.stages - 1
        blurred, sharp = jnp.asarray(batch["blurred"]), jnp.asarray(batch["sharp"])
        if sharp.shape[1] != sharp_frames or blurred.shape[1] != sharp_frames + 2:
            raise ValueError(
                f"{self.model.config.stages} stages are trained on {sharp_frames} sharp and {sharp_frames + 2} blurred "
                f"frames; the batch has {sharp.shape[1]} and {blurred.shape[1]}: set data.frames to {sharp_frames}"
            )
        return {"blurred": blurred, "sharp": sharp}

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
        sharp = prepared["sharp"]
        model: Any = self.model
        stages = [stage.restored for stage in model.apply({"params": params}, prepared["blurred"], method="cascade")]
        batch, _, height, width, _ = sharp.shape
        drawn = random_pixels(key, (batch, height, width), share=self.random_share)
        terms = self.terms(stages, sharp, drawn)
        return {"total": terms["l1"] + self.hard_weight * terms["hard"]}, statistics, carry, terms

    def terms(self, stages: list[Image], sharp: Image, drawn: Mask) -> dict[str, jax.Array]:
        """Both terms, means over the batch, and the mean absolute error of the last stage.

        Args:
            stages: (B, n, H, W, 3) of each stage.
            sharp: (B, T, H, W, 3); the middle n of them belong to a stage.
            drawn: (B, H, W), pixels of the hard-example term whatever their residual.
        """
        time = sharp.shape[1]
        targets = [sharp[:, (time - n) // 2 : (time + n) // 2] for n in (stage.shape[1] for stage in stages)]
        image, target = (
            jnp.concatenate([frames[:, i] for frames in group for i in range(frames.shape[1])], axis=-1)
            for group in (stages, targets)
        )
        return {
            "l1": mean_absolute_error(image, target).mean(),
            "hard": hard_example_loss(image, target, drawn, hard_share=self.hard_share).mean(),
            "l1_last_stage": mean_absolute_error(stages[-1], targets[-1]).mean(),
        }
