"""Optimisers and schedules from a configuration, and the mask that says which parameters one moves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdeblur.types import PyTree

SCHEDULES = ("constant", "step", "cosine")


def make_schedule(
    learning_rate: float,
    *,
    kind: str,
    steps: int,
    boundaries: Sequence[int] = (),
    factor: float = 1.0,
    final_fraction: float = 0.0,
    warmup_steps: int = 0,
) -> optax.Schedule:
    """Learning rate as a function of the number of updates made before.

    kind "constant"; "step": times `factor` once more than `boundaries[i]` updates have been made; "cosine": half a
    cosine from learning_rate to final_fraction of it over `steps` updates.
    Before all of them the first warmup_steps updates rise linearly from zero (the released recipe has none).
    """
    if kind == "constant":
        schedule = optax.constant_schedule(learning_rate)
    elif kind == "step":
        schedule = optax.piecewise_constant_schedule(learning_rate, {int(b): factor for b in boundaries})
    elif kind == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, steps, alpha=final_fraction)
    else:
        raise ValueError(f"optimizer.schedule is {kind!r}; expected one of {', '.join(SCHEDULES)}")
    if not warmup_steps:
        return schedule
    return lambda made: schedule(made) * jnp.minimum(1.0, (made + 1) / warmup_steps)


def make_optimizer(
    schedule: optax.Schedule,
    is_trained: Callable[[tuple[str, ...]], bool],
    *,
    adam: Mapping[str, float],
    clip_norm: float | None,
) -> optax.GradientTransformation:
    """Adam over the parameters a predicate on their path picks; all others get no update and hold no moments.

    Args:
        adam: b1, b2, eps.
        clip_norm: global L2 norm, over the picked parameters, that the gradient is clipped to; None leaves it.
    """
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    trained = optax.chain(clip, optax.adam(schedule, **adam))

    def labels(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "trained" if is_trained(_names(path)) else "frozen", params
        )

    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(entry.key) for entry in path)
