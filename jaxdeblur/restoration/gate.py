"""Do no harm: what is sharp already is left as it is.

A network that was trained on blurred frames sharpens sharp ones as well, which only takes them away from the truth. How
sharp a frame is shows without a truth: in a sharp picture the finest detail is about half as strong as detail of twice
its size, or stronger; in a blurred one it is far weaker, at least in the direction of the blur.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.compilation import jit
from jaxdeblur.ops.sharpness import detail_strengths
from jaxdeblur.types import Array

BLURRED, SHARP = 0.46, 0.52
"""A frame's fine detail up to where it is restored wholly, and from where not at all.

Set on clips of REDS and GoPro; `python -m benchmarks.video gate` prints how sharp their frames are.
"""

_BLOCK_PX = 64
_MOST_PIXELS = 2**20
"""Of larger frames some rows of blocks are looked at."""
_LEAST_TEXTURE = 20.0 / 255**2
"""A block with less has nothing to be judged by."""
_QUANTILE = 0.25
"""Of a sharp frame's blocks fewer are as blurred as it is said to be: what moves in front of a sharp background is
restored, if it is not too small."""
_LEAST_GAIN = 0.02
"""Of a network that adds less sharpness too little comes to be worth a change; one that takes of it does harm."""


class Gate:
    """Lets restored frames pass, wholly, in part or not at all, each by itself; counts what it did."""

    def __init__(self) -> None:
        self.kept_back = 0
        self.in_part = 0

    def __call__(self, blurred: np.ndarray, restored: np.ndarray) -> np.ndarray:
        """The frame to show.

        Args:
            blurred, restored: (H, W, 3) of one type, uint8 or uint16.
        """
        share = passing_share(blurred, restored)
        if share >= 1:
            return restored
        if share <= 0:
            self.kept_back += 1
            return blurred
        self.in_part += 1
        mixed = blurred + np.float32(share) * (restored.astype(np.float32) - blurred)
        return np.rint(mixed).astype(blurred.dtype)

    def report(self) -> str | None:
        """A line about it, if there is anything to say."""
        if not self.kept_back and not self.in_part:
            return None
        return f"left as they were, being sharp: {self.kept_back} frames; restored in part: {self.in_part}"


def passing_share(blurred: np.ndarray, restored: np.ndarray) -> float:
    """How much of its restoration a frame should get, 0 to 1, by how sharp it is and becomes.

    Args:
        blurred, restored: (H, W, 3) of one type, uint8 or uint16.
    """
    if min(blurred.shape[:2]) < _BLOCK_PX:
        return 1.0  # too small to be judged
    return float(_share(_blocks(blurred), _blocks(restored), int(np.iinfo(blurred.dtype).max)))


def sharpness(frame: np.ndarray) -> float:
    """Strength of a frame's finest detail, relative to that of detail twice its size; see BLURRED and SHARP.

    Args:
        frame: (H, W, 3), uint8 or uint16, at least 64 x 64.
    """
    return float(_sharpness(*_strengths(_blocks(frame), int(np.iinfo(frame.dtype).max))))


def _blocks(frame: np.ndarray) -> np.ndarray:
    """(N, 64, 64, 3): all of a frame's, or of a large frame's every so many rows of them."""
    rows, columns = (side // _BLOCK_PX for side in frame.shape[:2])
    cut = frame[: rows * _BLOCK_PX, : columns * _BLOCK_PX].reshape(rows, _BLOCK_PX, columns, _BLOCK_PX, 3)
    some = cut[:: -(-frame.shape[0] * frame.shape[1] // _MOST_PIXELS)]
    return some.swapaxes(1, 2).reshape(-1, _BLOCK_PX, _BLOCK_PX, 3)


@jit(static_argnames=("largest",))
def _share(blurred: Array, restored: Array, largest: int) -> jax.Array:
    fine, coarse = _strengths(blurred, largest)
    fine_after, _ = _strengths(restored, largest)
    gain = jnp.sum(fine_after) / jnp.maximum(jnp.sum(fine), 1e-12) - 1
    is_blurred = (SHARP - _sharpness(fine, coarse)) / (SHARP - BLURRED)
    return jnp.clip(is_blurred, 0, 1) * jnp.clip(gain / _LEAST_GAIN, 0, 1)


def _strengths(blocks: Array, largest: int) -> tuple[jax.Array, jax.Array]:
    return detail_strengths(jnp.asarray(blocks, jnp.float32) / largest)


def _sharpness(fine: jax.Array, coarse: jax.Array) -> jax.Array:
    textured = jnp.sum(coarse, axis=-1) > _LEAST_TEXTURE
    ratio = jnp.min(fine / jnp.maximum(coarse, _LEAST_TEXTURE / 20), axis=-1)
    # Without texture there is nothing to be judged, and hardly anything that a network could do.
    of_textured = jnp.nanquantile(jnp.where(textured, ratio, jnp.nan), _QUANTILE)
    return jnp.where(jnp.any(textured), of_textured, 0.0)
