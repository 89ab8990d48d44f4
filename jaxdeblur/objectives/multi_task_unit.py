"""Training of the multi-task units (Son et al., Pacific Graphics 2022), frame by frame.

One optimiser update a frame: a clip of T frames gives T consecutive updates, the state carried on without gradient.
Image and intermediate losses form the group "deblur", the motion loss the group "motion"; the released code gives each
its own Adam over its own parameters. With `optimizers="one"` a single group "total" is the paper's text, deblurring
plus 0.01 motion.

Differs from the released code in: where a batch holds true flow it is the motion target (the released code always asks
LiteFlowNet), and the target of a clip's first frame, matched with itself, is then no motion.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdeblur.flow_nets.lite_flow_net import LiteFlowNet
from jaxdeblur.losses.flow import displacement_class, motion_loss
from jaxdeblur.losses.pixel import mean_absolute_error, mean_squared_error, negative_psnr
from jaxdeblur.models.multi_task_unit import QUARTER, MultiTaskUnitOutputs, MultiTaskUnits
from jaxdeblur.types import Batch, Flow, Image, PyTree, Scalars

PAPER_MOTION_WEIGHT = 0.01


@dataclasses.dataclass(frozen=True)
class MultiTaskUnitObjective:
    """The objective of a model over clips of `updates_per_batch` frames.

    Attributes:
        image_loss: "mse+l1" (released), "l1" (paper) or "psnr" (ours: what is reported, each frame's by itself).
        intermediate_weight: of the units before the last: of their mean loss (released; the paper sums over them). With
            more than one scale the frame as the coarser one leaves it counts as one of them.
        motion_loss: train the motion layer; without, it keeps its initial values.
        optimizers: "two" (released) or "one" (paper).
        teacher: what LiteFlowNet is fed where the data has no true flow: "released": the bare network on RGB;
            "wrapped": with the mean subtraction its weights were trained with, likely the better target.
    """

    model: MultiTaskUnits
    updates_per_batch: int
    image_loss: Literal["mse+l1", "l1", "psnr"] = "mse+l1"
    intermediate_weight: float = 0.1
    motion_loss: bool = True
    optimizers: Literal["two", "one"] = "two"
    teacher: Literal["released", "wrapped"] = "released"

    def __post_init__(self) -> None:
        for field, choices in (
            ("image_loss", ("mse+l1", "l1", "psnr")),
            ("optimizers", ("two", "one")),
            ("teacher", ("released", "wrapped")),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(f"objective.{field} is {getattr(self, field)!r}; expected one of {', '.join(choices)}")

    @property
    def groups(self) -> tuple[str, ...]:
        if self.optimizers == "one":
            return ("total",)
        return ("deblur", "motion") if self.motion_loss else ("deblur",)

    @property
    def past_frames(self) -> int:
        return self.model.past_frames

    @property
    def future_frames(self) -> int:
        return self.model.future_frames

    def learning_rate_name(self, group: str, path: tuple[str, ...]) -> str | None:
        """Released parameter lists: the deblurring Adam has all but the motion layer; the motion Adam all but the last
        unit, the output layer and the intermediate output layers."""
        if group == "deblur":
            trained = path[0] != "motion_conv"
        elif group == "motion":
            # With a single unit that one is the last: the motion loss then trains the heads and the motion layer only.
            last = f"unit_{self.model.config.units}"
            trained = path[0] not in (last, "output_conv") and not path[0].startswith("deblur_")
        else:
            trained = self.motion_loss or path[0] != "motion_conv"
        return group if trained else None

    def prepare(self, batch: Batch, frozen: PyTree) -> dict[str, jax.Array]:
        """Blurred frames with their neighbours, sharp frames, and the class of each frame's true motion.

        Args:
            batch: blurred (B, T + 4, H, W, 3), sharp (B, T, H, W, 3), and flow_cur_to_prev (B, T, H, W, 2) where known.
            frozen: {"liteflownet": variables}; read only without flow_cur_to_prev.
        """
        blurred, sharp = jnp.asarray(batch["blurred"]), jnp.asarray(batch["sharp"])
        time = self.updates_per_batch
        if sharp.shape[1] != time or blurred.shape[1] != time + 4:
            raise ValueError(
                f"the objective takes {time} sharp and {time + 4} blurred frames; the batch has {sharp.shape[1]} and "
                f"{blurred.shape[1]}"
            )
        prepared = {"blurred": blurred, "sharp": sharp}
        if not self.motion_loss:
            return prepared
        radius = self.model.config.match_radius
        if "flow_cur_to_prev" in batch:
            flow = jnp.asarray(batch["flow_cur_to_prev"])
            flow = flow.at[:, 0].set(0.0)
            prepared["motion_class"] = displacement_class(flow, radius=radius, block=QUARTER)
        else:
            flow = self._teacher_flow(sharp, frozen)
            prepared["motion_class"] = displacement_class(flow, radius=radius, block=QUARTER // 2)
        return prepared

    def _teacher_flow(self, sharp: Image, frozen: PyTree) -> Flow:
        """LiteFlowNet from each sharp frame to the one before, (B, T, H/2, W/2, 2) in half-resolution pixels."""
        if "liteflownet" not in frozen:
            raise ValueError(
                "the data has no true flow and no LiteFlowNet weights are given: set objective.teacher_checkpoint, or "
                "objective.motion_loss=False to train without the motion loss"
            )
        previous = jnp.concatenate([sharp[:, :1], sharp[:, :-1]], axis=1)
        network: Any = LiteFlowNet()

        def flow(pair: tuple[Image, Image]) -> Flow:
            if self.teacher == "released":
                full = network.apply(frozen["liteflownet"], *pair, method="half_resolution")
                return full / 2
            flow_full = network.apply(frozen["liteflownet"], *pair)
            batch, height, width, _ = flow_full.shape
            return flow_full.reshape(batch, height // 2, 2, width // 2, 2, 2).mean(axis=(2, 4)) / 2

        # Frame by frame: all at once would hold the feature pyramids of the whole clip.
        flows = jax.lax.map(flow, (sharp.swapaxes(0, 1), previous.swapaxes(0, 1)))
        return flows.swapaxes(0, 1)

    def init_carry(self, prepared: dict[str, jax.Array]) -> PyTree:
        batch, _, height, width, _ = prepared["sharp"].shape
        return self.model.init_carry(batch, height, width)

    def losses(
        self,
        params: PyTree,
        statistics: PyTree,
        prepared: dict[str, jax.Array],
        carry: PyTree,
        t: jax.Array,
        key: jax.Array,
    ) -> tuple[dict[str, jax.Array], PyTree, PyTree, dict[str, jax.Array]]:
        del key  # nothing here is random
        window = jax.lax.dynamic_slice_in_dim(prepared["blurred"], t, 5, axis=1)
        sharp = jax.lax.dynamic_index_in_dim(prepared["sharp"], t, axis=1, keepdims=False)
        model: Any = self.model
        carry, outputs = model.apply({"params": params}, carry, window, train=True, method="step")
        terms = {"image": self._image_term(outputs.restored, sharp).mean()}
        deblur = terms["image"]
        if outputs.intermediate:
            terms["intermediate"] = self._intermediate_term(outputs, sharp).mean()
            deblur = deblur + terms["intermediate"]
        if self.motion_loss:
            target = jax.lax.dynamic_index_in_dim(prepared["motion_class"], t, axis=1, keepdims=False)
            terms["motion"] = motion_loss(outputs.cost, target).mean()
        losses: dict[str, Any] = {"deblur": deblur}
        if self.motion_loss:
            losses["motion"] = terms["motion"]
        if self.optimizers == "one":
            losses = {"total": deblur + PAPER_MOTION_WEIGHT * terms["motion"] if self.motion_loss else deblur}
        return losses, statistics, carry, terms

    def _image_term(self, image: Image, sharp: Image) -> Scalars:
        if self.image_loss == "psnr":
            return negative_psnr(image, sharp)
        loss = mean_absolute_error(image, sharp)
        return loss + mean_squared_error(image, sharp) if self.image_loss == "mse+l1" else loss

    def _intermediate_term(self, outputs: MultiTaskUnitOutputs, sharp: Image) -> Scalars:
        each = [self._image_term(image, sharp) for image in outputs.intermediate]
        return self.intermediate_weight * sum(each) / len(each)
