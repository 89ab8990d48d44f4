"""What VDFlow's branches are trained on, each in its turns: a squared error; end-point and warping errors.

Yan et al. (CVPR workshops 2020). Sums over pixels and channels: weight decay is added to the gradient, so its strength
depends on that. The paper writes the end-point error for one scale and does not say what is fixed in a fixed branch;
scales and weights are FlowNet's, and fixed are parameters, optimiser state and running statistics.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxdeblur.flow_nets.flownet_s import FLOW_UNIT_PX, Levels
from jaxdeblur.flow_nets.flownet_simple import FlowNetSimple
from jaxdeblur.losses.flow import (
    Outside,
    mean_end_point_error,
    multi_scale_end_point_error,
    multi_scale_warping_error,
)
from jaxdeblur.losses.pixel import mean_squared_error, summed_squared_error
from jaxdeblur.models.dbn import DBN
from jaxdeblur.models.vdflow import VDFlow, both_ways, each_way
from jaxdeblur.objectives import scaled_bytes
from jaxdeblur.types import Array, Batch, PyTree

FLOW_WEIGHTS = (0.005, 0.01, 0.02, 0.08, 0.32)
"""Of the levels, finest first."""

Branch = Literal["deblur", "flow"]
_SIDES = ("prev", "next")


@dataclasses.dataclass(frozen=True)
class VDFlowObjective:
    """The loss of one branch; the other one's parameters and statistics are left as they are, though gradients pass
    through it.

    deblur: |restored - sharp|^2.
    flow: of both directions, the multi-scale end-point error where the batch has the true flow, else the multi-scale
        warping error between blurred frames.

    Attributes:
        model: VDFlow; or a branch alone: DBN, or FlowNetS.
        branch: whose turn it is.
        flow_weight: lambda_f, of the flow branch's losses.
        outside: of the warping error, where a flow leads out of the frame: "clamped" (the nearest pixel inside is
            compared) or "masked" (nothing is, as in the usual form of the loss, which flows that lead out make least).
    """

    model: VDFlow | DBN | FlowNetSimple
    branch: Branch
    flow_weight: float = 1.0
    outside: Outside = "clamped"

    updates_per_batch = 1

    def __post_init__(self) -> None:
        if self.branch not in branches(self.model):
            raise ValueError(f"{type(self.model).__name__} has no {self.branch} branch to train")
        if self.outside not in get_args(Outside):
            raise ValueError(f"objective.outside is {self.outside!r}; expected one of {', '.join(get_args(Outside))}")
        if isinstance(self.model, FlowNetSimple) and self.model.batch_norm:
            raise ValueError("the flow branch is FlowNetS without batch normalisation: flownets, not flownets_bn")

    @property
    def groups(self) -> tuple[str, ...]:
        return (self.branch,)

    @property
    def past_frames(self) -> int:
        return 1 if isinstance(self.model, FlowNetSimple) else self.model.past_frames

    @property
    def future_frames(self) -> int:
        return 1 if isinstance(self.model, FlowNetSimple) else self.model.future_frames

    def learning_rate_name(self, group: str, path: tuple[str, ...]) -> str | None:
        return group if self._owner(path[0]) == group else None

    def prepare(self, batch: Batch, frozen: PyTree) -> dict[str, jax.Array]:
        """windows (N, past + 1 + future, H, W, 3), N = B T, and what else this branch's loss reads: sharp (N, H, W, 3);
        or flow_cur_to_prev, flow_cur_to_next (N, H, W, 2) and their valid (N, H, W), as far as the batch has them.

        Bytes are scaled. What this branch does not read, such as a sharp frame in its flow's turn, may be missing.
        """
        del frozen
        arrays: dict[str, Any] = dict(batch)
        blurred = scaled_bytes(arrays["blurred"])
        frames = self.past_frames + 1 + self.future_frames
        count = blurred.shape[1] - frames + 1
        windows = jnp.stack([blurred[:, i : i + count] for i in range(frames)], axis=2)
        prepared = {"windows": windows.reshape(-1, *windows.shape[2:])}
        if self.branch == "deblur":
            names = ["sharp"]
        else:
            names = [f"{kind}_cur_to_{side}" for side in _SIDES for kind in ("flow", "valid")]
        for name in names:
            if name in arrays:
                values = scaled_bytes(arrays[name])
                prepared[name] = values.reshape(-1, *values.shape[2:])
        return prepared

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
        params = {
            name: part if self._owner(name) == self.branch else jax.lax.stop_gradient(part)
            for name, part in params.items()
        }
        loss, moved, terms = self._loss(params, statistics, prepared, train=True)
        return {self.branch: loss}, moved, carry, terms

    def held_out_loss(self, params: PyTree, statistics: PyTree, batch: Batch) -> jax.Array:
        """The branch's loss as it is evaluated, by running statistics: mean over a batch."""
        return self._loss(params, statistics, self.prepare(batch, {}), train=False)[0]

    def _loss(
        self, params: PyTree, statistics: PyTree, prepared: dict[str, jax.Array], *, train: bool
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        windows = prepared["windows"]
        if self.branch == "deblur":
            outputs, statistics = self._restore(params, statistics, windows, train=train)
            sharp = prepared["sharp"]
            loss = jnp.mean(summed_squared_error(outputs.restored, sharp))
            return loss, statistics, {"mean_squared_error": jnp.mean(mean_squared_error(outputs.restored, sharp))}
        current = windows[:, self.past_frames]
        total, terms = jnp.zeros(()), dict[str, jax.Array]()
        for side, neighbour, levels in zip(_SIDES, (-1, 1), self._levels(params, statistics, windows), strict=True):
            target = prepared.get(f"flow_cur_to_{side}")
            if target is None:
                other = windows[:, self.past_frames + neighbour]
                error = jnp.mean(
                    multi_scale_warping_error(
                        levels, current, other, weights=FLOW_WEIGHTS, flow_scale=FLOW_UNIT_PX, outside=self.outside
                    )
                )
                terms["warping_error"] = terms.get("warping_error", jnp.zeros(())) + error
            else:
                valid = prepared[f"valid_cur_to_{side}"]
                error = jnp.mean(multi_scale_end_point_error(levels, target, valid, weights=FLOW_WEIGHTS))
                # For people: in pixels, of the finest level against every fourth pixel of the truth.
                finest = FLOW_UNIT_PX * levels[0]
                sparse = tuple(x[:, :: target.shape[1] // finest.shape[1]] for x in (target, valid))
                sparse = tuple(x[:, :, :: target.shape[2] // finest.shape[2]] for x in sparse)
                terms[f"end_point_error_{side}_px"] = jnp.mean(mean_end_point_error(finest, *sparse))
            total = total + self.flow_weight * error
        return total, statistics, terms

    def _restore(self, params: PyTree, statistics: PyTree, windows: Array, *, train: bool) -> tuple[Any, PyTree]:
        model: Any = self.model
        outputs, moved = model.apply(
            {"params": params, "batch_stats": statistics},
            windows,
            method="restore_window",
            mutable=["batch_stats"],
            train=train,
        )
        return outputs, moved["batch_stats"]

    def _levels(self, params: PyTree, statistics: PyTree, windows: Array) -> tuple[Levels, Levels]:
        """Of the flows to the frame before and the frame after, the deblurring branch by its running statistics."""
        model: Any = self.model
        if isinstance(model, FlowNetSimple):
            previous, current, following = (windows[:, i] for i in range(3))
            pairs = both_ways(current, current), both_ways(previous, following)
            both: Any = model.apply({"params": params}, *pairs, method="levels")
            to_prev, to_next = zip(*(each_way(level) for level in both), strict=True)
            return to_prev, to_next
        variables = {"params": params, "batch_stats": statistics}
        outputs = model.apply(variables, windows, method="restore_window")
        return outputs.levels_cur_to_prev, outputs.levels_cur_to_next

    def _owner(self, layer: str) -> Branch:
        """Which branch a parameter belongs to, by the first part of its path."""
        if isinstance(self.model, FlowNetSimple):
            return "flow"
        return "deblur" if layer == "deblur" else "flow"


def branches(model: Any) -> tuple[Branch, ...]:
    """What there is to train in a model, in the order of its turns."""
    if isinstance(model, VDFlow):
        return ("deblur", "flow")
    return ("flow",) if isinstance(model, FlowNetSimple) else ("deblur",)
