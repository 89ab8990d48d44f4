"""Supervised training of flow networks: the multi-scale end-point error of FlowNet (2015) and PWC-Net (2018)."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdeblur.losses.flow import mean_end_point_error, multi_scale_end_point_error
from jaxdeblur.objectives import scaled_bytes
from jaxdeblur.types import Array, Batch, PyTree


@dataclasses.dataclass(frozen=True)
class OpticalFlowObjective:
    """The objective of a flow network that has `levels`; one update a batch.

    Attributes:
        weights: of the network's levels, finest first, for sums over pixels and the papers' crop sizes.
        images: of rendered scenes, whose frames come in both kinds: "sharp", or "blurred", which is what a network
            inside a deblurring model sees. Data sets of flow have one kind.
    """

    model: nn.Module
    weights: tuple[float, ...] = (0.005, 0.01, 0.02, 0.08, 0.32)
    images: Literal["sharp", "blurred"] = "sharp"

    groups = ("total",)
    updates_per_batch = 1
    past_frames = 0
    future_frames = 0

    def __post_init__(self) -> None:
        if not hasattr(self.model, "levels"):
            raise ValueError(
                f"{type(self.model).__name__} gives no flow by levels, which the multi-scale loss needs; train one of "
                "pwcnet, pwcnet_cdvd, flownets, flownets_bn, flownet2c, flownet2s, flownet2s_small, flownet2sd"
            )
        if self.images not in ("sharp", "blurred"):
            raise ValueError(f"objective.images is {self.images!r}; expected 'sharp' or 'blurred'")

    def learning_rate_name(self, group: str, path: tuple[str, ...]) -> str:
        del group, path
        return "flow"

    def prepare(self, batch: Batch, frozen: PyTree) -> dict[str, jax.Array]:
        """image_1, image_0 (N, H, W, 3) in [0, 1], flow_1to0 (N, H, W, 2) and valid_1to0 (N, H, W).

        Args:
            batch: pairs as they are (uint8 images are scaled); or clips of T rendered frames, (B, T, ...), which give
                N = 2 B (T - 1) pairs of neighbours, forward and backward.
        """
        del frozen
        if "image_1" in batch:
            return {
                "image_1": scaled_bytes(batch["image_1"]),
                "image_0": scaled_bytes(batch["image_0"]),
                "flow_1to0": jnp.asarray(batch["flow_1to0"]),
                "valid_1to0": jnp.asarray(batch["valid_1to0"]),
            }
        frames = batch[self.images]
        if frames.shape[1] < 2:
            raise ValueError("flow is learned from neighbouring frames: set data.frames to 2 or more")

        def both(to_next: Array, to_previous: Array) -> jax.Array:
            pairs = jnp.concatenate([to_next[:, :-1], to_previous[:, 1:]], axis=1)
            return pairs.reshape(-1, *pairs.shape[2:])

        return {
            "image_1": both(frames, frames),
            "image_0": both(jnp.roll(frames, -1, axis=1), jnp.roll(frames, 1, axis=1)),
            "flow_1to0": both(batch["flow_cur_to_next"], batch["flow_cur_to_prev"]),
            "valid_1to0": both(batch["valid_cur_to_next"], batch["valid_cur_to_prev"]),
        }

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
        del t, key  # one update a batch, nothing random
        model: Any = self.model
        target, valid = prepared["flow_1to0"], prepared["valid_1to0"]
        images = prepared["image_1"], prepared["image_0"]
        if statistics:
            variables = {"params": params, "batch_stats": statistics}
            levels, moved = model.apply(variables, *images, train=True, method="levels", mutable=["batch_stats"])
            statistics = moved["batch_stats"]
        else:
            levels = model.apply({"params": params}, *images, method="levels")
        unit_px = model.flow_unit_px
        loss = multi_scale_end_point_error(levels, target, valid, weights=self.weights, flow_scale=unit_px).mean()
        # For people: in pixels, of the finest level against every fourth pixel of the truth.
        finest = unit_px * levels[0]
        step = target.shape[1] // finest.shape[1]
        error = mean_end_point_error(finest, target[:, ::step, ::step], valid[:, ::step, ::step]).mean()
        return {"total": loss}, statistics, carry, {"end_point_error_px": error}
