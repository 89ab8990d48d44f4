"""What a training run carries from update to update, and hence what a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxdeblur.objectives.reblur import TunedParams
from jaxdeblur.types import PyTree, Variables


@flax.struct.dataclass
class TrainState:
    """step counts optimiser updates. key_data are the raw words of the run's key: an update's key is that key folded
    with its number, so nothing random needs to be remembered. ema is None where no average is kept. statistics are the
    running ones of batch normalisation, plateaus what `training.plateau` remembers and loss_scale what
    `training.loss_scale` does, {} where there are none. Fields are arrays, trees of arrays, or what JAX puts in their
    place: shapes, shardings."""

    step: Any
    params: PyTree
    optimizer: dict[str, PyTree]
    ema: PyTree | None
    key_data: Any
    statistics: PyTree = flax.struct.field(default_factory=dict)
    plateaus: dict[str, PyTree] = flax.struct.field(default_factory=dict)
    loss_scale: dict[str, PyTree] = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> Variables:
        """The network as it is to be evaluated: with the average of the parameters where one is kept."""
        params = self.params.model if isinstance(self.params, TunedParams) else self.params
        variables = {"params": params if self.ema is None else self.ema}
        return {**variables, "batch_stats": self.statistics} if self.statistics else variables


def init_state(
    key: jax.Array,
    variables: Variables,
    optimizers: dict,
    *,
    ema: bool,
    plateaus: PyTree | None = None,
    loss_scale: PyTree | None = None,
) -> TrainState:
    """State before the first update; optimizers maps loss groups to optax transformations."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer={group: tx.init(params) for group, tx in optimizers.items()},
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        key_data=jax.random.key_data(key),
        statistics=variables.get("batch_stats", {}),
        plateaus=plateaus or {},
        loss_scale=loss_scale or {},
    )


def to_items(state: TrainState) -> dict[str, PyTree]:
    """The state as the trees a checkpoint stores separately, so that the network can be read alone."""
    training = {"step": state.step, "optimizer": state.optimizer, "key_data": state.key_data}
    if state.plateaus:
        training["plateaus"] = state.plateaus
    items = {"params": state.params, "training": training}
    if state.ema is not None:
        items["ema"] = state.ema
    if isinstance(state.params, TunedParams):
        items["params"], items["flow_net"] = state.params.model, state.params.flow_net
    if state.loss_scale:  # apart, so that runs from before it was kept can go on
        items["loss_scale"] = state.loss_scale
    if state.statistics:
        items["batch_stats"] = state.statistics
    return items


def from_items(items: dict[str, PyTree]) -> TrainState:
    """The inverse of to_items."""
    params = TunedParams(items["params"], items["flow_net"]) if "flow_net" in items else items["params"]
    statistics = items.get("batch_stats", {})
    return TrainState(
        params=params,
        ema=items.get("ema"),
        statistics=statistics,
        loss_scale=items.get("loss_scale", {}),
        **items["training"],
    )
