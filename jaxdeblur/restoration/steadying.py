"""Steady in time: each restored frame averaged with its neighbours along their motion.

Networks that see single frames, or guess each anew, err in each frame in another way: edges waver and fine texture
flickers. Where the frames before and after, brought to this one's grid, show the same, the mean of three guesses is
nearer to the truth than one, and changes less from frame to frame.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdeblur.models.windows import memory_frames, tile_multiple
from jaxdeblur.ops.filters import box_mean
from jaxdeblur.ops.lucas_kanade import lucas_kanade_flow
from jaxdeblur.ops.warp import visible_in_next, warp_bicubic
from jaxdeblur.types import BeyondEnds, Border, Clip, Features, Flow, Image, PyTree, Restorer, Variables

TOLERANCE = 0.1
"""A neighbour that differs by so much, root mean square, counts 0.6 of the frame itself; by twice as much, 0.14."""

_COMPARED_PX = 5


class Outputs(NamedTuple):
    restored: Image  # (B, H, W, 3) in [0, 1]


@dataclasses.dataclass(frozen=True)
class Steadied:
    """A deblurring model whose frames are steadied: again a deblurring model, which looks one frame further ahead.

    It takes the model's own variables. The frame after is restored ahead of its turn, so that no frame is restored
    twice. Before the first frame and after the last stand what the model makes of the frames that `beyond_ends` has
    there.
    """

    model: Restorer

    @property
    def past_frames(self) -> int:
        return self.model.past_frames

    @property
    def future_frames(self) -> int:
        return self.model.future_frames + 1

    @property
    def beyond_ends(self) -> BeyondEnds:
        return self.model.beyond_ends

    @property
    def size_multiple(self) -> int:
        return self.model.size_multiple

    @property
    def tile_multiple(self) -> int:
        return tile_multiple(self.model)

    @property
    def padding(self) -> Border:
        return self.model.padding

    @property
    def memory_frames(self) -> int:
        return memory_frames(self.model) + 1

    @property
    def config(self) -> Any:
        """The model's, if it has one."""
        return self.model.config

    def clone(self, **changes: Any) -> "Steadied":
        """As of a Flax module: the same with a model that is changed."""
        return Steadied(self.model.clone(**changes))

    def apply(self, variables: Variables, *arguments: Any, method: str) -> Any:
        """Calls `start` or `step`, as a Flax module's `apply` does."""
        return getattr(self, method)(variables, *arguments)

    def start(self, variables: Variables, window: Clip) -> PyTree:
        """The carry before the first frame: that frame is restored, and stands for the one before it, too."""
        first = window[:, :-1]
        carry = self.model.apply(variables, first, method="start")
        carry, outputs = self.model.apply(variables, carry, first, method="step")
        restored = _limited(outputs.restored)
        still = jnp.zeros((*restored.shape[:-1], 2), jnp.float32)
        return {"model": carry, "previous": restored, "current": restored, "to_current": still, "to_previous": still}

    def step(self, variables: Variables, carry: PyTree, window: Clip) -> tuple[PyTree, Outputs]:
        """Steadies the frame that the window is around, and restores the one after it."""
        model_carry, outputs = self.model.apply(variables, carry["model"], window[:, 1:], method="step")
        previous, current, following = carry["previous"], carry["current"], _limited(outputs.restored)
        to_next, to_current = lucas_kanade_flow(current, following), lucas_kanade_flow(following, current)
        restored = steadied(
            current, (previous, carry["to_previous"], carry["to_current"]), (following, to_next, to_current)
        )
        carry = {
            "model": model_carry,
            "previous": current,
            "current": following,
            "to_current": to_next,  # as seen from the frame that comes next
            "to_previous": to_current,
        }
        return carry, Outputs(restored)


def steadied(current: Image, *neighbours: tuple[Image, Flow, Flow]) -> Image:
    """The mean of a frame and its neighbours, brought to its grid, each pixel as far as they show the same.

    out = (current + sum over neighbours w m) / (1 + sum w); m is the neighbour warped (bicubic),
    w = v exp(-d / (2 TOLERANCE^2)), d the mean square difference of m and current over channels and 5 x 5 pixels, and v
    whether the pixel is seen there (`visible_in_next`).

    Args:
        current: (B, H, W, 3) in [0, 1].
        neighbours: of each the frame, the flow from current to it, and the flow back.
    """
    total, weights = current, jnp.ones((*current.shape[:-1], 1), jnp.float32)
    for frame, flow_cur_to_frame, flow_frame_to_cur in neighbours:
        moved = warp_bicubic(frame, flow_cur_to_frame)
        visible = visible_in_next(flow_cur_to_frame, flow_frame_to_cur)[..., None]
        weight = jnp.where(visible, _agreement(current, moved), 0.0)
        total, weights = total + weight * moved, weights + weight
    return _limited(total / weights)


def _agreement(current: Image, moved: Image) -> Features:
    difference = jnp.mean(jnp.square(moved - current), axis=-1, keepdims=True)
    return jnp.exp(-box_mean(difference, _COMPARED_PX) / (2 * TOLERANCE**2))


def _limited(restored: jax.Array) -> jax.Array:
    return jnp.clip(restored.astype(jnp.float32), 0, 1)
