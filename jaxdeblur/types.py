"""Axis letters and array names used throughout; imports nothing of ours.

Layout is channels last: B batch, T time, H height, W width, C channels, K displacement or tap.
Images are gamma-encoded RGB in [0, 1] unless a name says otherwise (`_u8` for 8-bit, `_linear` for linear light).
A flow names both ends: `flow_1to0[y, x] = (u, v)` is in pixels of its own resolution (u to the right, v down), lies on
frame 1's grid and points at frame 0.

The names below are checked while tracing when a run-time checker is on (`pytest` turns it on); they fix rank, dtype and
the channel counts that never vary, so that a size that does not fit reaches our own error messages.
"""

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import jax
import numpy as np
from jax import export
from jaxtyping import Bool, Float, Integer

if TYPE_CHECKING:
    # Shapes and dtypes are checked at run time; for a static checker the union below would only forbid arithmetic.
    Array: TypeAlias = Any
    Pixels: TypeAlias = int
else:
    Array: TypeAlias = jax.Array | np.ndarray  # JAX's gradient checker and users both pass NumPy arrays
    Pixels: TypeAlias = int | type(export.symbolic_shape("h")[0])  # while a model is exported, a multiple of h, say

Image: TypeAlias = Float[Array, "... _h _w _c"]
Clip: TypeAlias = Float[Array, "... _t _h _w _c"]
Features: TypeAlias = Float[Array, "... _h _w _c"]
Flow: TypeAlias = Float[Array, "... _h _w 2"]
Displacement: TypeAlias = Integer[Array, "... _h _w 2"]
CostVolume: TypeAlias = Float[Array, "... _h _w _k"]
Mask: TypeAlias = Bool[Array, "... _h _w"]
Scalars: TypeAlias = Float[Array, "..."]

Border: TypeAlias = Literal["zeros", "edge"]
"""What a sample outside the frame reads: nothing, or the nearest pixel inside."""

BeyondEnds: TypeAlias = Literal["repeat", "alternate"]
"""What a model sees in the place of frames before the first and after the last; see `restoration.clip`."""

PyTree: TypeAlias = Any
Restorer: TypeAlias = Any
"""A deblurring model: a Flax module of this package, or what was read from an exported file."""
Variables: TypeAlias = dict[str, Any]
"""Flax variables: {"params": ..., other collections}."""


class Batch(TypedDict, total=False):
    """What data sources yield and objectives read: clips, or pairs of images with the flow between them.

    blurred has `past + T + future` frames, where past and future are what the model looks at beyond the clip (frames
    that do not exist are copies of the nearest one); everything else has the T frames of the clip itself.
    """

    blurred: Clip  # (B, past + T + future, H, W, 3), [0, 1]
    sharp: Clip  # (B, T, H, W, 3), [0, 1]
    flow_cur_to_prev: Flow  # (B, T, H, W, 2), pixels, between sharp frames; the clip's ends have one, too
    flow_cur_to_next: Flow  # likewise
    valid_cur_to_prev: Mask  # (B, T, H, W): the surface seen is seen in the previous frame too
    valid_cur_to_next: Mask

    unlabelled: Clip  # (N, frames, H', W', 3), [0, 1]: blurred frames of which there are no sharp ones

    image_1: Array  # (B, H, W, 3), [0, 1] or uint8
    image_0: Array  # likewise
    flow_1to0: Flow  # (B, H, W, 2), pixels; anything where it is not valid
    valid_1to0: Mask  # (B, H, W): the flow is known there
