"""How much memory a network takes for frames of a size, and into which tiles they are cut to take no more than allowed.

What a network takes is not guessed: its step is compiled for two small sizes, the compiler says what each needs, and
between them lies a straight line, since all of it is images. How far a network looks is measured too, see `reach_px`.
"""

import contextlib
import ctypes
import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from jaxdeblur.compilation import jit
from jaxdeblur.models.windows import tile_multiple
from jaxdeblur.restoration.steps import BLEND_PX, Tiling, home, start, step, step_tile, tile_spans, to_model
from jaxdeblur.types import Array, Variables

TOLERANCE = 1e-3
"""As much may a pixel of a tile differ from that of the whole frame, in units of [0, 1]."""

_MOST_WORK = 2.0
"""Halos that make a frame more than this times the work are cut back to where the tolerance is measured to hold."""

_CONVOLUTION_BYTES = 64 * 2**20
"""Convolutions take some memory beside what the compiler plans, on a CPU: 50 MB were seen, at 640x360 and 1920x1080."""

_ACCELERATOR_ERROR = 1.12
"""On an accelerator a program may take so much of what the compiler plans. No accelerator was measured."""

_REACH_STRIP_PX = 64, 1024
_PROBES_PX = 128, 256

_HOLES = 1.25
"""So many times what it holds may a process take on a CPU, see `_give_memory_back_at_once`."""

_M_MMAP_THRESHOLD = -3
"""Of mallopt, in glibc's malloc.h."""

_SHARE_OF_FREE = 0.8
"""Of what is free so much is taken unasked."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How frames of one size are restored.

    Attributes:
        tiling: None for whole frames.
        precision: "bfloat16" where the model's own would make more than twice the work of whole frames, and that much
            less; None for the model's own.
        peak_bytes: what it will take at most: on a CPU the process, otherwise the device.
        reach_px: how far the network looks; None for farther than 512 pixels.
        deviation: largest difference that was measured to the whole frame in the model's own precision, in units of
            [0, 1]; 0 where the halo is as wide as the reach.
    """

    tiling: Tiling | None
    precision: str | None
    peak_bytes: int
    reach_px: int | None = None
    deviation: float = 0.0

    def __str__(self) -> str:
        peak = f"at most {self.peak_bytes / 2**30:.2f} GiB"
        if self.tiling is None:
            return f"whole frames, {peak}"
        halo, precision = self.tiling.halo, f", {self.precision}" if self.precision else ""
        tiles = f"tiles of {self.tiling.width}x{self.tiling.height} with a halo of {halo} pixels{precision}, {peak}"
        if not self.deviation:
            return f"{tiles}; as whole frames"
        reach = "more than 512" if self.reach_px is None else self.reach_px
        beyond = f"pixels differ from whole frames by up to {self.deviation:.1e}"
        return f"{tiles}; the network looks {reach} pixels far, and {beyond}"


def plan(
    model: Any,
    variables: Variables,
    window: np.ndarray,
    *,
    budget_bytes: int | None = None,
    beside_bytes: int = 0,
    may_narrow: bool = True,
) -> Plan:
    """Chooses whole frames if they fit, otherwise the tiles that make the least work.

    Args:
        model: a deblurring model.
        variables: its Flax variables.
        window: (past + 1 + future, H, W, 3) frames of the video, uint8 or uint16; on these the deviation is measured.
        budget_bytes: what may be taken: on a CPU by the process, otherwise of the device. None: what is free.
        beside_bytes: what an encoder and the like will take, on a CPU.
        may_narrow: bfloat16 may be chosen.

    Raises:
        ValueError: not even the smallest tiles fit.
    """
    budget = free_bytes() if budget_bytes is None else budget_bytes
    if budget is None:
        return Plan(None, None, 0)
    height, width = window.shape[1:3]
    look = len(window)
    if _on_cpu():
        # Each frame as it was read and as windows hold it, and restored ones.
        beside = beside_bytes + (2 * look + 3) * window[0].nbytes
    else:
        beside = (look + 3) * window[0].nbytes
    whole = beside + _footprint(step, model, variables, look, height, width, window.dtype) + taken_bytes()
    if _on_cpu() and _HOLES * whole > budget:
        _give_memory_back_at_once()
    if whole <= budget:
        return Plan(None, None, whole)

    def work(tiles: Plan | None) -> float:
        return math.inf if tiles is None or tiles.tiling is None else _work(tiles.tiling, window, model)

    found = _plan_tiles(model, variables, window, budget, beside)
    if may_narrow and hasattr(model, "config") and work(found) > _MOST_WORK:  # an exported model has none
        narrow = _plan_tiles(with_precision(model, "bfloat16"), variables, window, budget, beside)
        if narrow is not None and 1.5 * work(narrow) < work(found):
            rounding = _rounding(model, with_precision(model, "bfloat16"), variables, window)
            found = dataclasses.replace(narrow, precision="bfloat16", deviation=narrow.deviation + rounding)
    if found is None:
        raise ValueError(
            f"{budget / 2**30:.2f} GiB of memory are too little for frames of {width}x{height}, of which "
            f"{(beside + taken_bytes()) / 2**30:.2f} GiB are needed for all but the network's tiles; allow more, or "
            "scale the video down"
        )
    return found


def _plan_tiles(model: Any, variables: Variables, window: np.ndarray, budget: int, beside: int) -> Plan | None:
    look, height, width, _ = window.shape
    multiple = tile_multiple(model)
    if _on_cpu():
        # The whole memory, and what of it waits to take its place; the restored frame, in float32.
        beside += round(1.3 * _carry_bytes(model, variables, window)) + 12 * height * width
    small, large = (_ceil(side, multiple) for side in _PROBES_PX)
    at_small, at_large = (
        _footprint(step_tile, model, variables, look, side, side, window.dtype) for side in (small, large)
    )
    reach = reach_px(model, variables)
    beside += taken_bytes()  # what was compiled until here takes some, too
    bytes_a_pixel = (at_large - at_small) / (large**2 - small**2)
    at_nothing = max(0.0, at_small - bytes_a_pixel * small**2)
    most_pixels = int((budget - beside - at_nothing) / bytes_a_pixel)

    def planned(tiling: Tiling, deviation: float) -> Plan:
        of_tile = at_nothing + bytes_a_pixel * tiling.height * tiling.width
        return Plan(tiling, None, beside + round(of_tile), reach, deviation)

    if reach is not None:
        exact = best_tiling(height, width, reach, multiple, most_pixels)
        if exact is not None and _work(exact, window, model) <= _MOST_WORK:
            return planned(exact, 0.0)
    side = min(math.isqrt(max(0, most_pixels)), 3 * min(height, width) // 4) // multiple * multiple
    if side < max(4 * multiple, 4 * BLEND_PX):
        return None
    deviations = _deviations(model, variables, window, side)
    allowed = [halo for halo, deviation in enumerate(deviations) if deviation <= TOLERANCE / 4]
    for halo in [*allowed[:1], *range(len(deviations) - 1, 0, -multiple)]:
        tiling = best_tiling(height, width, halo, multiple, most_pixels)
        if tiling is not None and (_work(tiling, window, model) <= _MOST_WORK or halo in allowed[:1]):
            return planned(tiling, float(deviations[halo]))
    return None


def best_tiling(height: int, width: int, halo: int, multiple: int, most_pixels: int) -> Tiling | None:
    """The tiles of no more than so many pixels that make the least work, or None where halos leave nothing."""
    margin = _ceil(halo + BLEND_PX, multiple)
    best: tuple[int, Tiling] | None = None
    sides = []
    for size in (_ceil(height, multiple), _ceil(width, multiple)):
        cuts = {_ceil(-(-(size + 2 * margin * (count - 1)) // count), multiple) for count in range(1, 129)}
        laid = []
        for tile in cuts:
            with contextlib.suppress(ValueError):
                laid.append((tile, len(tile_spans(size, tile, halo, multiple))))
        sides.append(laid)
    for (tile_height, rows), (tile_width, columns) in itertools.product(*sides):
        if tile_height * tile_width <= most_pixels:
            work = rows * columns * tile_height * tile_width
            if best is None or work < best[0]:
                best = work, Tiling(tile_height, tile_width, halo)
    return None if best is None else best[1]


def _work(tiling: Tiling, window: np.ndarray, model: Any) -> float:
    """Pixels computed for one of the frame."""
    height, width = window.shape[1:3]
    multiple = tile_multiple(model)
    rows = len(tile_spans(_ceil(height, multiple), tiling.height, tiling.halo, multiple))
    columns = len(tile_spans(_ceil(width, multiple), tiling.width, tiling.halo, multiple))
    return rows * columns * tiling.height * tiling.width / (height * width)


def reach_px(model: Any, variables: Variables) -> int | None:
    """How far from a pixel lies what its restored value depends on, in one step; None for farther than 512 pixels.

    Found by poisoning: a column of values that are no numbers, in the frames and in the memory, spreads as far as it is
    looked at. What lies farther cannot matter, whatever the values.
    """
    height, width = (_ceil(side, model.size_multiple) for side in _REACH_STRIP_PX)
    frames = model.past_frames + 1 + model.future_frames
    values = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)
    # A coarse memory's column is as wide as the multiple.
    poisoned = width // 2 // model.size_multiple * model.size_multiple
    touched = np.nonzero(np.asarray(_touched(model, variables, tuple(values), poisoned)))[0]
    first, last = int(touched.min()), int(touched.max())
    return None if first == 0 or last == width - 1 else max(poisoned - first, last - poisoned + 1)


@jit(static_argnames=("model", "column"))
def _touched(model: Any, variables: Variables, window: tuple[Array, ...], column: int) -> jax.Array:
    """Which columns are no numbers after a step, if one column before it is none."""
    clip, _ = to_model(model, window)
    width = clip.shape[-2]

    def poison(array: jax.Array) -> jax.Array:
        if array.ndim < 3 or not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        return array.at[..., column * array.shape[-2] // width, :].set(jnp.nan)

    carry, _ = model.apply(variables, model.apply(variables, clip, method="start"), clip, method="step")
    _, outputs = model.apply(variables, jax.tree.map(poison, carry), poison(clip), method="step")
    return jnp.isnan(outputs.restored).any(axis=(0, 1, 3))


def _deviations(model: Any, variables: Variables, window: np.ndarray, side: int) -> np.ndarray:
    """By how much, on the given frames, restored pixels depend on what lies d pixels away or farther; for d = 0, 1, ...

    Two tiles of that side, one moved by a quarter against the other, differ where they overlap, most along the edge
    that only one of them has there. Largest over rows and columns, and not rising with d.
    """
    multiple = tile_multiple(model)
    shift = _ceil(side // 4, multiple)
    height, width = window.shape[1:3]
    top, left = ((size - side - shift) // 2 // multiple * multiple for size in (height, width))

    def restored(y: int, x: int) -> np.ndarray:
        tile = tuple(np.ascontiguousarray(frame[y : y + side, x : x + side]) for frame in window)
        carry = start(model, variables, tile)
        return np.asarray(step_tile(model, variables, carry, tile)[1])

    still, right, down = restored(top, left), restored(top, left + shift), restored(top + shift, left)
    reach = 3 * side // 8
    across = np.abs(still[:, shift:] - right[:, : side - shift]).max(axis=(0, 2))[:reach]
    along = np.abs(still[shift:] - down[: side - shift]).max(axis=(1, 2))[:reach]
    return np.maximum.accumulate(np.maximum(across, along)[::-1])[::-1]


def _rounding(model: Any, narrow: Any, variables: Variables, window: np.ndarray) -> float:
    """By how much a narrower network's pixels differ, on a tile from the middle of the given frames."""
    side = _ceil(_PROBES_PX[1], model.size_multiple)
    top, left = (max(0, size - side) // 2 for size in window.shape[1:3])
    tile = tuple(np.ascontiguousarray(frame[top : top + side, left : left + side]) for frame in window)
    restored = [
        np.asarray(step_tile(each, variables, start(each, variables, tile), tile)[1]) for each in (model, narrow)
    ]
    return float(np.abs(restored[0] - restored[1]).max())


def _footprint(
    function: Any, model: Any, variables: Variables, frames: int, height: int, width: int, dtype: np.dtype
) -> int:
    """Bytes that one call takes beside the variables."""
    window = (jax.ShapeDtypeStruct((height, width, 3), dtype),) * frames
    carry = jax.tree.map(
        # Placed as carries are, so that JAX takes what is compiled here when the step is called.
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home(variables)),
        jax.eval_shape(functools.partial(start, model), variables, window),
    )
    analysis = function.lower(model, variables, carry, window).compile().memory_analysis()
    of_variables = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    arguments = analysis.argument_size_in_bytes - of_variables
    planned = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes + arguments
    return planned + _CONVOLUTION_BYTES if _on_cpu() else round(_ACCELERATOR_ERROR * planned)


def _carry_bytes(model: Any, variables: Variables, window: np.ndarray) -> int:
    shapes = jax.eval_shape(functools.partial(start, model), variables, tuple(window))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def with_precision(model: Any, precision: str) -> Any:
    """The same network with arithmetic of another width."""
    return model.clone(config=dataclasses.replace(model.config, compute_dtype=precision))


def _give_memory_back_at_once() -> None:
    """Lets large arrays have memory of their own, which goes back to the system with them.

    Otherwise the C library keeps what up to 32 MB have left, in holes that later ones do not fit into: a process took a
    fifth more than all that it held at any time. It costs time, since the system clears memory before it hands it out:
    only where memory is short.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 2**20)


def _ceil(size: int, multiple: int) -> int:
    return size + -size % multiple


def _on_cpu() -> bool:
    return jax.devices()[0].platform == "cpu"


def taken_bytes() -> int:
    """What is taken already: on a CPU by this process, otherwise of the device. 0 where nobody tells."""
    if not _on_cpu():
        return int((jax.devices()[0].memory_stats() or {}).get("bytes_in_use", 0))
    return psutil.Process().memory_info().rss


def free_bytes() -> int | None:
    """What this process may take in all, on a CPU, or of the device; None where nobody tells."""
    if not _on_cpu():
        stats = jax.devices()[0].memory_stats() or {}
        return int(_SHARE_OF_FREE * stats["bytes_limit"]) if "bytes_limit" in stats else None
    free = psutil.virtual_memory().available
    for group in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            free = min(free, int(Path(group).read_text()) - taken_bytes())
    return taken_bytes() + int(_SHARE_OF_FREE * free)
