"""What a training run carries from update to update, and hence what a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxdeblur.types import PyTree


@flax.struct.dataclass
class TrainState:
    """step counts optimiser updates. key_data are the raw words of the run's key: an update's key is that key folded
    with its number, so nothing random needs to be remembered. ema is None where no average is kept. Fields are arrays,
    trees of arrays, or what JAX puts in their place: shapes, shardings."""

    step: Any
    params: PyTree
    optimizer: dict[str, PyTree]
    ema: PyTree | None
    key_data: Any


def init_state(key: jax.Array, params: PyTree, optimizers: dict, *, ema: bool) -> TrainState:
    """State before the first update; optimizers maps loss groups to optax transformations."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer={group: tx.init(params) for group, tx in optimizers.items()},
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        key_data=jax.random.key_data(key),
    )


def to_items(state: TrainState) -> dict[str, PyTree]:
    """The state as the trees a checkpoint stores separately, so that parameters can be read alone."""
    items = {
        "params": state.params,
        "training": {"step": state.step, "optimizer": state.optimizer, "key_data": state.key_data},
    }
    return items if state.ema is None else {**items, "ema": state.ema}


def from_items(items: dict[str, PyTree]) -> TrainState:
    """The inverse of to_items."""
    return TrainState(params=items["params"], ema=items.get("ema"), **items["training"])
