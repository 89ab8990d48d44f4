"""Reblur2Deblur: a network is tuned on blurry videos of which no sharp ones exist, by blurring what it restores again.

Chen et al. (ICCP 2018). The network restores three frames in a row; a flow network estimates the motion between them;
the middle one, blurred along that motion, must equal the blurred frame it came from. Without the supervised half of
every batch the network would learn to return its input, with no motion at all.

The paper tunes networks of single frames or windows; ones with a memory run through `model.memory_frames` frames
first, and their memory hands on no gradient. Its kernels are tabulated; the default here, the segment itself, is what
the table approximates (`ops.reblur`).
"""

import dataclasses
import math
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.losses.pixel import mean_squared_error
from jaxdeblur.models import is_flow_network
from jaxdeblur.models.windows import memory_frames, restore_consecutive
from jaxdeblur.objectives import scaled_bytes
from jaxdeblur.ops.colour import linear_to_srgb, srgb_to_linear
from jaxdeblur.ops.reblur import Form, check_options, reblur
from jaxdeblur.types import Batch, Clip, Flow, Image, PyTree, Variables

FRAMES = 3
"""That are restored of an unlabelled clip: the middle one and those whose motion to it is estimated."""
REBLUR_METRIC = "reblur_psnr_db"
"""The name of `to_psnr_db` among the metrics of a validation."""


@flax.struct.dataclass
class TunedParams:
    """What is tuned together."""

    model: PyTree
    """Parameters of the network that restores; its running statistics are the training state's."""
    flow_net: Variables
    """Of the flow network beside it. If it has running statistics, they stay as they are."""


@flax.struct.dataclass
class Estimated:
    """What the networks make of an unlabelled clip."""

    blurred: Image  # (B, H, W, 3), the middle frame as it was given
    restored: Clip  # (B, 3, H, W, 3)
    flow_next_to_cur: Flow  # (B, H, W, 2), between restored frames
    flow_prev_to_cur: Flow


@dataclasses.dataclass(frozen=True)
class ReblurObjective:
    """L_S + alpha L_U, mean squared errors: of restored against sharp frames, and of reblurred against blurred ones.

    Attributes:
        model: any network that restores frames.
        flow_net: any flow network.
        alpha: the weight of the self-supervised term.
        exposure, form, samples: as for `ops.reblur.reblur`.
        light: what is averaged along a segment: "encoded" values as they are (the paper), or "linear" light, as in a
            camera; ours.
        uses: "both" neighbours, or "next" alone, whose flow then serves for both (the paper's two-frame variant).
        flow_gradient: whether the error also tells the network how to change the flow between its frames, as published.
            It then learns to mislead the flow network, the more the worse that is; False, ours: how to change the
            middle frame alone. The flow network's own gradient is not affected.
        tune_model, tune_flow: False leaves a network's parameters as they are, though gradients pass through it.
        batch_statistics: batch normalisation by each half's own statistics, which move the running ones; False: by the
            running ones, which stay as they are.
        rim_px: so many pixels at each border are left out of L_U, since kernels read beyond the border there.
    """

    model: Any
    flow_net: Any
    alpha: float = 0.1
    exposure: float = 1.0
    form: Form = "path"
    samples: int = 16
    light: Literal["encoded", "linear"] = "encoded"
    uses: Literal["both", "next"] = "both"
    flow_gradient: bool = True
    tune_model: bool = True
    tune_flow: bool = True
    batch_statistics: bool = True
    rim_px: int = 0

    groups = ("total",)
    updates_per_batch = 1

    def __post_init__(self) -> None:
        if is_flow_network(self.model):
            raise ValueError(f"{type(self.model).__name__} restores no frames; tune a deblurring network")
        if not is_flow_network(self.flow_net):
            raise ValueError(f"{type(self.flow_net).__name__} is no flow network; expected one such as pwcnet")
        for field, choices in (
            ("light", ("encoded", "linear")),
            ("uses", ("both", "next")),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(f"objective.{field} is {getattr(self, field)!r}; expected one of {', '.join(choices)}")
        check_options(self.form, self.exposure, self.samples)
        if not (self.tune_model or self.tune_flow):
            raise ValueError("objective.tune_model and tune_flow are both False, so that there is nothing to tune")
        if not self.alpha >= 0 or self.rim_px < 0:
            raise ValueError(f"alpha and rim_px are {self.alpha} and {self.rim_px}; expected 0 or more")

    @property
    def past_frames(self) -> int:
        return self.model.past_frames

    @property
    def future_frames(self) -> int:
        return self.model.future_frames

    @property
    def frames_before(self) -> int:
        """How many frames of an unlabelled clip come before its middle one."""
        return self.model.past_frames + FRAMES // 2 + memory_frames(self.model)

    @property
    def frames_after(self) -> int:
        return self.model.future_frames + FRAMES // 2

    def learning_rate_name(self, group: str, path: tuple[str, ...]) -> str | None:
        del group  # there is one
        if path[0] == "model":
            return "model" if self.tune_model else None
        return "flow_net" if self.tune_flow and path[1] == "params" else None

    def prepare(self, batch: Batch, frozen: PyTree) -> dict[str, jax.Array]:
        """blurred (B, past + T + future, H, W, 3) with sharp (B, T, H, W, 3), and unlabelled
        (N, frames_before + 1 + frames_after, H', W', 3). Bytes are scaled."""
        del frozen
        arrays: dict[str, Any] = dict(batch)
        prepared = {name: scaled_bytes(arrays[name]) for name in ("blurred", "sharp", "unlabelled")}
        expected = self.frames_before + 1 + self.frames_after
        if prepared["unlabelled"].shape[1] != expected:
            raise ValueError(f"unlabelled clips have {prepared['unlabelled'].shape[1]} frames; expected {expected}")
        return prepared

    def init_carry(self, prepared: PyTree) -> PyTree:
        return ()

    def losses(
        self,
        params: TunedParams,
        statistics: PyTree,
        prepared: dict[str, jax.Array],
        carry: PyTree,
        t: jax.Array,
        key: jax.Array,
    ) -> tuple[dict[str, jax.Array], PyTree, PyTree, dict[str, jax.Array]]:
        del t, key  # one update a batch, nothing random
        train, sharp = self.batch_statistics, prepared["sharp"]
        variables = _variables(params.model, statistics)
        restored, statistics = restore_consecutive(
            self.model, variables, prepared["blurred"], count=sharp.shape[1], train=train
        )
        supervised = jnp.mean(mean_squared_error(restored, sharp))
        found, statistics = self.estimate(params, statistics, prepared["unlabelled"], train=train)
        self_supervised = jnp.mean(self.reblur_error(found))
        total = supervised + self.alpha * self_supervised
        return {"total": total}, statistics, carry, {"supervised": supervised, "self_supervised": self_supervised}

    def estimate(
        self, params: TunedParams, statistics: PyTree, unlabelled: Clip, *, train: bool
    ) -> tuple[Estimated, PyTree]:
        """Restores three frames of unlabelled clips, see `prepare`, and the flows to the middle one; the statistics."""
        if not self.tune_model:  # spares a backward pass
            params = dataclasses.replace(params, model=jax.lax.stop_gradient(params.model))
        if not self.tune_flow:
            params = dataclasses.replace(params, flow_net=jax.lax.stop_gradient(params.flow_net))
        variables = _variables(params.model, statistics)
        restored, statistics = restore_consecutive(self.model, variables, unlabelled, count=FRAMES, train=train)
        previous, current, following = (restored[:, i] for i in range(FRAMES))
        # On the neighbours' grids, pointing into the middle frame, as the paper has them.
        neighbours = jnp.stack([following, previous] if self.uses == "both" else [following], axis=1)
        pairs = (neighbours, jnp.broadcast_to(current[:, None], neighbours.shape))
        pairs = pairs if self.flow_gradient else jax.lax.stop_gradient(pairs)
        flow_net = {**jax.lax.stop_gradient(params.flow_net), "params": params.flow_net["params"]}
        flows = self.flow_net.apply(flow_net, *(frames.reshape(-1, *current.shape[1:]) for frames in pairs))
        flows = flows.reshape(len(current), -1, *flows.shape[1:])
        flow_next_to_cur = flows[:, 0]
        flow_prev_to_cur = flows[:, 1] if self.uses == "both" else -flow_next_to_cur
        return Estimated(unlabelled[:, self.frames_before], restored, flow_next_to_cur, flow_prev_to_cur), statistics

    def reblurred(self, found: Estimated) -> Image:
        """The restored middle frame, blurred again: (B, H, W, 3)."""
        current = found.restored[:, FRAMES // 2]
        reblurred = reblur(
            srgb_to_linear(current) if self.light == "linear" else current,
            found.flow_next_to_cur,
            found.flow_prev_to_cur,
            exposure=self.exposure,
            form=self.form,
            samples=self.samples,
        )
        return linear_to_srgb(reblurred) if self.light == "linear" else reblurred

    def reblur_error(self, found: Estimated) -> jax.Array:
        """The mean squared difference between reblurred and blurred frames inside the rim, (B,)."""
        height, width = found.blurred.shape[1:3]
        rim = self.rim_px
        if 2 * rim >= min(height, width):
            raise ValueError(f"a rim of {rim} px leaves nothing of {width}x{height} frames; use larger crops")
        inside = (slice(None), slice(rim, height - rim), slice(rim, width - rim))
        return mean_squared_error(self.reblurred(found)[inside], found.blurred[inside])


def to_psnr_db(errors: Any) -> float:
    """The mean of reblur errors as a PSNR, which is cut at 120 dB."""
    return -10 * math.log10(max(float(np.mean(errors)), 1e-12))


def _variables(params: PyTree, statistics: PyTree) -> dict[str, PyTree]:
    return {"params": params, "batch_stats": statistics} if statistics else {"params": params}
