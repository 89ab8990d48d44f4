"""Optimisers and schedules from a configuration: which parameters one moves, and at which learning rate."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jaxdeblur.types import PyTree

SCHEDULES = ("constant", "step", "cosine", "quadratic")


def make_schedule(
    learning_rate: float,
    *,
    kind: str,
    steps: int,
    boundaries: Sequence[int] = (),
    factor: float = 1.0,
    final_fraction: float = 0.0,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
) -> optax.Schedule:
    """Learning rate as a function of the number of updates made before.

    kind "constant"; "step": times `factor` once more than `boundaries[i]` updates have been made; "cosine": half a
    cosine from learning_rate to final_fraction of it over `steps` updates; "quadratic": times (1 - i / decay_steps)^2
    after i updates, down to zero (decay_steps None: steps).
    Before all of them the first warmup_steps updates rise linearly from zero (the released recipe has none).
    """
    if kind == "constant":
        schedule = optax.constant_schedule(learning_rate)
    elif kind == "step":
        schedule = optax.piecewise_constant_schedule(learning_rate, {int(b): factor for b in boundaries})
    elif kind == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, steps, alpha=final_fraction)
    elif kind == "quadratic":
        schedule = optax.polynomial_schedule(learning_rate, 0.0, power=2, transition_steps=decay_steps or steps)
    else:
        raise ValueError(f"optimizer.schedule is {kind!r}; expected one of {', '.join(SCHEDULES)}")
    if not warmup_steps:
        return schedule
    return lambda made: schedule(made) * jnp.minimum(1.0, (made + 1) / warmup_steps)


def make_optimizer(
    schedules: Mapping[str, optax.Schedule],
    schedule_of: Callable[[tuple[str, ...]], str | None],
    *,
    adam: Mapping[str, float],
    clip_norm: float | None = None,
    weight_decay: float = 0.0,
    undecayed: Sequence[str] = (),
    decoupled_decay: float = 0.0,
    muon_scale: float = 0.0,
    muon_without: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Adam, each parameter at the learning rate named for its path; those without a name get no update and hold no
    moments.

    Args:
        schedule_of: path of a parameter -> key of `schedules`, or None.
        adam: b1, b2, eps.
        clip_norm: global L2 norm, over all parameters that are moved, that the gradient is clipped to; None leaves it.
        weight_decay: times the parameter, added to the gradient of kernels (L2 regularisation; biases go without).
        undecayed: kernels of layers with one of these in their path go without, too.
        decoupled_decay: times the parameter and the learning rate, taken off every parameter (AdamW).
        muon_scale: if not 0, kernels of convolutions are moved by Muon (Jordan et al. 2024: momentum, made orthogonal)
            at so many times the learning rate, and only the rest by Adam (with Nesterov's momentum).
        muon_without: kernels of layers with one of these in their path are moved by Adam, too.

    Raises:
        ValueError: muon_scale is negative, or decoupled_decay is given beside it.
    """
    if muon_scale and decoupled_decay:
        raise ValueError(f"optimizer.decoupled_decay is {decoupled_decay}; expected 0 where muon_scale is set")
    if muon_scale < 0:
        raise ValueError(f"optimizer.muon_scale is {muon_scale}; expected 0 or more")

    def muon_dimensions(params: PyTree) -> PyTree:
        def dimensions(path: Any, leaf: Any) -> MuonDimensionNumbers | None:
            is_out = any(part in name for part in muon_without for name in _names(path))
            return None if leaf.ndim != 4 or is_out else MuonDimensionNumbers((0, 1, 2), (3,))

        return jax.tree_util.tree_map_with_path(dimensions, params)

    def one(schedule: optax.Schedule) -> optax.GradientTransformation:
        if decoupled_decay:
            return optax.adamw(schedule, **adam, weight_decay=decoupled_decay)
        if not muon_scale:
            return optax.adam(schedule, **adam)
        return muon(
            lambda made: muon_scale * schedule(made),
            adam_learning_rate=schedule,
            adam_b1=adam["b1"],
            adam_b2=adam["b2"],
            eps=adam["eps"],
            muon_weight_dimension_numbers=muon_dimensions,
        )

    def labels(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, _: schedule_of(_names(path)) or "frozen", params)

    def kernels(params: PyTree) -> PyTree:
        def decays(path: Any, _: Any) -> bool:
            names = _names(path)
            return names[-1] == "kernel" and not any(part in name for part in undecayed for name in names)

        return jax.tree_util.tree_map_with_path(decays, params)

    moved = {name: one(schedule) for name, schedule in schedules.items()}
    steps = [optax.partition({**moved, "frozen": optax.set_to_zero()}, labels)]
    if weight_decay:
        steps.insert(0, optax.add_decayed_weights(weight_decay, mask=kernels))
    if clip_norm is not None:  # frozen parameters must not count in the norm
        frozen = optax.partition(
            {**{name: optax.identity() for name in schedules}, "frozen": optax.set_to_zero()}, labels
        )
        steps = [frozen, optax.clip_by_global_norm(clip_norm), *steps]
    return optax.chain(*steps)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(entry.key if isinstance(entry, jax.tree_util.DictKey) else entry.name) for entry in path)
