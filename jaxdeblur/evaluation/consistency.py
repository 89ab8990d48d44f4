"""Flicker: how much a restored video changes along its own motion, where what is seen stays in sight."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.compilation import jit
from jaxdeblur.ops.warp import visible_in_next, warp_backward
from jaxdeblur.types import Flow, Image, Mask, Scalars, Variables


def warping_error(current: Image, following: Image, flow_cur_to_next: Flow, visible: Mask) -> Scalars:
    """Mean over visible pixels and channels of (current - following, brought to its grid)^2; NaN if none is visible.

    Differs from the released code: a pair of frames without visible pixels counts as 0 there.

    Args:
        current, following: (..., H, W, C) in [0, 1].
        visible: (..., H, W)
    """
    moved, _ = warp_backward(following, flow_cur_to_next, border="edge")
    square = jnp.mean(jnp.square(current - moved), axis=-1)
    count = jnp.sum(visible, axis=(-2, -1), dtype=jnp.float32)
    return jnp.sum(jnp.where(visible, square, 0.0), axis=(-2, -1)) / count


@dataclasses.dataclass(frozen=True)
class ConsistencyScore:
    """Warping errors of a clip (or the mean of clips, "mean"): means over its pairs of frames, times 1000."""

    clip: str
    pairs: int
    blurred: float
    restored: float
    sharp: float


@dataclasses.dataclass
class Consistency:
    """Takes the frames of a clip one after the other and gives its warping errors.

    The flow is that of the sharp frames, for all three alike: the paper takes the input's, but a blurred input has no
    flow that could be relied on. So the sharp frames' own error is what no restoration can be held to go below.
    """

    flow_net: nn.Module
    variables: Variables

    def __post_init__(self) -> None:
        self._previous: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._errors: list[np.ndarray] = []

    def see(self, blurred: np.ndarray, restored: np.ndarray, sharp: np.ndarray) -> None:
        """The next frame of the clip, each (H, W, 3) float32 in [0, 1]."""
        now = blurred, np.clip(restored, 0, 1), sharp
        if self._previous is not None:
            errors = _errors_of_pair(self.flow_net, self.variables, np.stack(self._previous), np.stack(now))
            self._errors.append(np.asarray(errors))
        self._previous = now

    def end(self, clip: str) -> ConsistencyScore | None:
        """Of what was seen since the last call; None if there was no pair of frames with visible pixels."""
        errors = [errors for errors in self._errors if np.all(np.isfinite(errors))]
        self._previous, self._errors = None, []
        if not errors:
            return None
        return ConsistencyScore(clip, len(errors), *(1000 * float(mean) for mean in np.mean(errors, axis=0)))


def mean_consistency(scores: list[ConsistencyScore]) -> ConsistencyScore:
    """The mean of clips."""
    means = (float(np.mean([getattr(score, name) for score in scores])) for name in ("blurred", "restored", "sharp"))
    return ConsistencyScore("mean", sum(score.pairs for score in scores), *means)


@jit(static_argnames="flow_net")
def _errors_of_pair(flow_net: Any, variables: Variables, current: jax.Array, following: jax.Array) -> jax.Array:
    """(3,) for images (3, H, W, 3): blurred, restored, sharp."""
    sharp = current[2:], following[2:]
    to_next, to_current = flow_net.apply(variables, *sharp), flow_net.apply(variables, *sharp[::-1])
    visible = visible_in_next(to_next, to_current)
    shared = jnp.broadcast_to(to_next, (len(current), *to_next.shape[1:]))
    return warping_error(current, following, shared, jnp.broadcast_to(visible, (len(current), *visible.shape[1:])))
