"""One frame through a network: in one piece, or in tiles where it does not fit the device's memory in one."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.compilation import jit
from jaxdeblur.ops.resample import pad_to_multiple, unpad
from jaxdeblur.types import Array, Border, PyTree, Variables

BLEND_PX = 16
"""On either side of where two tiles meet, one goes over into the other."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tiles of one size that overlap.

    Args:
        height, width: of a tile, in pixels; multiples of the model's size_multiple. One that is larger than the frame
            is as large as the frame.
        halo: pixels along those sides of a tile that are not the frame's own, which are computed for the sake of what
            lies further in, and dropped. With at least the model's reach the result is that of the whole frame.
    """

    height: int
    width: int
    halo: int


class WholeFrames:
    """What a stream of frames needs of a network: frames and memory on the device, a frame in one piece."""

    def __init__(self, model: Any, variables: Variables) -> None:
        self._model = model
        self._variables = variables

    def put(self, frame: np.ndarray) -> jax.Array:
        """A frame as windows hold it."""
        # NumPy's copy, since whoever makes the frames may reuse the memory before the step has run. JAX's own
        # (jnp.array) may take the memory over and copy it later.
        return jax.device_put(np.array(frame))

    def start(self, window: tuple[jax.Array, ...]) -> PyTree:
        """The carry before the first frame."""
        # The step gives its carry's memory away, hence a copy: a model may hand out one array twice. Put where the
        # variables are, as later carries will be, or JAX would compile the step a second time.
        carry = jax.tree.map(jnp.copy, start(self._model, self._variables, window))
        return jax.device_put(carry, home(self._variables))

    def put_back(self, carry: PyTree, leaves: list[np.ndarray]) -> PyTree:
        """The carry with the values that its leaves had earlier."""
        return _put_back(carry, leaves, jnp.array)

    def step(self, carry: PyTree, window: tuple[jax.Array, ...]) -> tuple[PyTree, jax.Array, jax.Array]:
        """The carry after a frame, the frame restored, of the type that came in, and whether its values are finite."""
        return step(self._model, self._variables, carry, window)


class TiledFrames:
    """As WholeFrames, tile by tile; frames and memory are whole, and on the host.

    The memory is cut like the frames, and put together again after every frame, so that nothing is forgotten where
    tiles meet. Whatever of it has another shape for the frame than for a tile belongs to pixels; the rest says the same
    of every tile, such as whether there was a frame before.
    """

    def __init__(self, model: Any, variables: Variables, tiling: Tiling) -> None:
        multiple = model.size_multiple
        if tiling.height % multiple or tiling.width % multiple or tiling.halo < 0:
            raise ValueError(
                f"tiles of {tiling.width}x{tiling.height} with a halo of {tiling.halo}; expected multiples of the "
                f"model's {multiple}, and a halo of 0 or more"
            )
        self._model = model
        self._variables = variables
        self._tiling = tiling
        self._size = (0, 0)
        self._tiles: list[_Tile] = []
        self._scales: PyTree = None

    def put(self, frame: np.ndarray) -> np.ndarray:
        """A copy, padded as a whole to the model's multiples."""
        if not self._tiles:
            self._size = height, width = frame.shape[:2]
            multiple = self._model.size_multiple
            rows = tile_spans(height + -height % multiple, self._tiling.height, self._tiling.halo, multiple)
            columns = tile_spans(width + -width % multiple, self._tiling.width, self._tiling.halo, multiple)
            self._tiles = [
                _Tile(of_rows, of_columns, (down[:, None] * across)[..., None])
                for of_rows, down in zip(rows, span_weights(rows), strict=True)
                for of_columns, across in zip(columns, span_weights(columns), strict=True)
            ]
        last = self._tiles[-1]
        return pad_frame(frame, last.rows.end, last.columns.end, self._model.padding)

    def start(self, window: tuple[np.ndarray, ...]) -> PyTree:
        """The carry before the first frame."""
        whole = jax.eval_shape(functools.partial(start, self._model), self._variables, window)
        part = jax.eval_shape(functools.partial(start, self._model), self._variables, self._tiles[0].of_window(window))
        height = window[0].shape[0]
        self._scales = jax.tree.map(
            lambda leaf, of_tile: 0 if leaf.shape == of_tile.shape else height // leaf.shape[-3], whole, part
        )
        carry = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), whole)
        for tile in self._tiles:
            fresh = start(self._model, self._variables, tile.of_window(window))
            carry = self._stored(carry, self._inside(fresh, tile), tile)
        return carry

    def put_back(self, carry: PyTree, leaves: list[np.ndarray]) -> PyTree:
        """The carry with the values that its leaves had earlier."""
        return _put_back(carry, leaves, np.array)

    def step(self, carry: PyTree, window: tuple[np.ndarray, ...]) -> tuple[PyTree, np.ndarray, bool]:
        """The carry after a frame, in the memory of the one before, the frame restored, and whether its values are
        finite."""
        restored = np.zeros(window[0].shape, np.float32)
        before = carry
        # What a tile remembers takes the place of the old memory once no tile to come looks there.
        finished: collections.deque[tuple[_Tile, PyTree]] = collections.deque()
        for number, tile in enumerate(self._tiles):
            cut = jax.tree.map(lambda leaf, scale, tile=tile: leaf[tile.at(scale)], before, self._scales)
            memory, pixels = step_tile(self._model, self._variables, cut, tile.of_window(window))
            restored[tile.rows.slice(), tile.columns.slice()] += np.asarray(pixels) * tile.weights
            finished.append((tile, self._inside(memory, tile)))
            while finished and not any(finished[0][0].is_seen_by(other) for other in self._tiles[number + 1 :]):
                done, inside = finished.popleft()
                carry = self._stored(carry, inside, done)
        height, width = self._size
        restored = restored[:height, :width]
        is_finite = bool(np.isfinite(restored).all())
        return carry, _quantised(restored, window[0].dtype), is_finite

    def _inside(self, memory: PyTree, tile: "_Tile") -> PyTree:
        """What is the tile's own; copied, or a part that is kept would hold on to all of it."""
        return jax.tree.map(lambda leaf, scale: np.array(leaf[tile.inside(scale)]), memory, self._scales)

    def _stored(self, carry: PyTree, inside: PyTree, tile: "_Tile") -> PyTree:

        def store(whole: np.ndarray, part: np.ndarray, scale: int) -> np.ndarray:
            if not scale:
                return part
            whole[tile.inside_of_frame(scale)] = part
            return whole

        return jax.tree.map(store, carry, inside, self._scales)


@dataclasses.dataclass(frozen=True)
class Span:
    """What one tile has of one side of the frame, in pixels: from begin to end, and as its own from first to last."""

    begin: int
    end: int
    first: int
    last: int

    def slice(self, scale: int = 1) -> slice:
        return slice(self.begin // scale, self.end // scale)


@dataclasses.dataclass(frozen=True)
class _Tile:
    rows: Span
    columns: Span
    weights: np.ndarray  # (height, width, 1)

    def of_window(self, window: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(frame[self.rows.slice(), self.columns.slice()] for frame in window)

    def at(self, scale: int) -> Any:
        """Index of the tile in an array of the frame, scale pixels of the frame to one of the array's."""
        return (..., self.rows.slice(scale), self.columns.slice(scale), slice(None)) if scale else ...

    def inside_of_frame(self, scale: int) -> Any:
        """Index of what is the tile's own, in an array of the frame."""
        rows, columns = self.rows, self.columns
        return (
            ...,
            slice(rows.first // scale, rows.last // scale),
            slice(columns.first // scale, columns.last // scale),
            slice(None),
        )

    def inside(self, scale: int) -> Any:
        """The same in an array of the tile."""
        if not scale:
            return ...
        rows, columns = self.rows, self.columns
        return (
            ...,
            slice((rows.first - rows.begin) // scale, (rows.last - rows.begin) // scale),
            slice((columns.first - columns.begin) // scale, (columns.last - columns.begin) // scale),
            slice(None),
        )

    def is_seen_by(self, other: "_Tile") -> bool:
        """Whether the other tile needs what was where this one has its own."""
        return all(
            mine.first < theirs.end and theirs.begin < mine.last
            for mine, theirs in ((self.rows, other.rows), (self.columns, other.columns))
        )


def tile_spans(size: int, tile: int, halo: int, multiple: int) -> list[Span]:
    """How tiles are laid along one side of a frame, as few as will do, evenly.

    Args:
        size: of the frame, a multiple.
        tile: of a tile, a multiple.
        halo: see Tiling.
        multiple: of which all ends are multiples.
    Raises:
        ValueError: the halos leave a tile too little of its own.
    """
    if tile >= size:
        return [Span(0, size, 0, size)]
    margin = halo + BLEND_PX + -(halo + BLEND_PX) % multiple
    stride = (tile - 2 * margin) // multiple * multiple
    if stride < 2 * BLEND_PX:
        raise ValueError(
            f"tiles of {tile} pixels with a halo of {halo} have too little of their own; choose larger tiles or a "
            "smaller halo"
        )
    count = -(-(size - tile) // stride) + 1
    begins = [number * (size - tile) // (count - 1) // multiple * multiple for number in range(count)]
    # Half-way between where the next tile begins and this one ends.
    meets = [
        begin + (before + tile - begin) // 2 // multiple * multiple for before, begin in itertools.pairwise(begins)
    ]
    ends = [begin + tile for begin in begins]
    return [Span(*span) for span in zip(begins, ends, [0, *meets], [*meets, size], strict=True)]


def span_weights(spans: list[Span]) -> list[np.ndarray]:
    """How much each tile counts along a side, in sum one everywhere: where two meet one rises as the other falls."""
    weights = []
    total = np.zeros(spans[-1].end)
    for span in spans:
        centre = np.arange(span.begin, span.end) + 0.5
        rise = (centre - span.first) / (2 * BLEND_PX) + 0.5 if span.begin else 1.0
        fall = (span.last - centre) / (2 * BLEND_PX) + 0.5 if span.end < spans[-1].end else 1.0
        weights.append(np.clip(np.minimum(rise, fall) * np.ones_like(centre), 0, 1))
        total[span.begin : span.end] += weights[-1]
    return [
        (weight / total[span.begin : span.end]).astype(np.float32) for span, weight in zip(spans, weights, strict=True)
    ]


def pad_frame(frame: np.ndarray, height: int, width: int, border: Border) -> np.ndarray:
    """As `ops.resample.pad_to_multiple`, on the host and to a given size; always a copy."""
    pad = [(0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)]
    return np.pad(frame, pad, mode="edge" if border == "edge" else "constant")


def home(variables: Variables) -> Any:
    """The sharding of carries: where the variables are."""
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return next((leaf.sharding for leaf in jax.tree.leaves(variables) if isinstance(leaf, jax.Array)), alone)


@jit(static_argnames=("model",), donate_argnames=("carry",))
def step(
    model: Any, variables: Variables, carry: PyTree, window: tuple[jax.Array, ...]
) -> tuple[PyTree, jax.Array, jax.Array]:
    """One frame: integers to [0, 1], padding, the model, and all of that back. The last result says whether the values
    were finite, which integers no longer show."""
    dtype = window[0].dtype
    padded, size = to_model(model, window)
    carry, outputs = model.apply(variables, carry, padded, method="step")
    values = unpad(outputs.restored, size)[0].astype(jnp.float32)
    is_finite = jnp.isfinite(values).all()
    restored = jnp.clip(values, 0, 1)
    if jnp.issubdtype(dtype, jnp.integer):
        restored = jnp.rint(restored * _largest(dtype))
    return carry, restored.astype(dtype), is_finite


@jit(static_argnames=("model",))
def step_tile(model: Any, variables: Variables, carry: PyTree, window: tuple[Array, ...]) -> tuple[PyTree, jax.Array]:
    """One tile: as `step`, but in float32 and not limited to [0, 1] yet, since tiles are blended."""
    carry, outputs = model.apply(variables, carry, to_model(model, window)[0], method="step")
    return carry, outputs.restored[0].astype(jnp.float32)


@jit(static_argnames=("model",))
def start(model: Any, variables: Variables, window: tuple[Array, ...]) -> PyTree:
    """The model's carry before the first frame."""
    return model.apply(variables, to_model(model, window)[0], method="start")


def to_model(model: Any, window: tuple[Array, ...]) -> tuple[jax.Array, tuple[int, int]]:
    """(1, frames, H, W, 3), float32 in [0, 1] and padded, and the size before padding."""
    stacked = jnp.stack(window)[None]
    floats = stacked.astype(jnp.float32) / jnp.float32(_largest(stacked.dtype))
    return pad_to_multiple(floats, model.size_multiple, model.padding)


def _quantised(unit: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """What `step` does in the end, in place."""
    np.clip(unit, 0, 1, out=unit)
    if np.issubdtype(dtype, np.integer):
        unit *= np.float32(_largest(dtype))
        np.rint(unit, out=unit)
    with np.errstate(invalid="ignore"):  # a frame that is not finite is refused by whoever asked for it
        return unit.astype(dtype)


def _largest(dtype: np.dtype) -> int:
    return jnp.iinfo(dtype).max if jnp.issubdtype(dtype, jnp.integer) else 1


def _put_back(carry: PyTree, leaves: list[np.ndarray], put: Callable[[np.ndarray], Array]) -> PyTree:
    fresh, structure = jax.tree.flatten(carry)
    return jax.tree.unflatten(
        structure,
        [
            put(np.asarray(leaf).reshape(-1).view(np.uint8).view(like.dtype).reshape(like.shape))
            for leaf, like in zip(leaves, fresh, strict=True)
        ],
    )
