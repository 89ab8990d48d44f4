"""Any frames in, the same frames restored: arrays at once, iterators as a stream of constant memory."""

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.data.clips import frame_windows
from jaxdeblur.ops.resample import pad_to_multiple, unpad
from jaxdeblur.types import Array, PyTree, Variables

Explain = Callable[[int, dict[str, np.ndarray]], None]

# Results waiting on the device while the next step is prepared: enough to keep it busy, few enough to forget.
_FRAMES_IN_FLIGHT = 2


def restore(
    frames: Array | Iterable[Array],
    model: nn.Module,
    variables: Variables,
    *,
    progress: Callable[[int], None] | None = None,
    explain: Explain | None = None,
) -> Any:
    """Deblurs a clip frame by frame, the model's memory carried from each frame to the next.

    What the model looks at before the first and after the last frame is its own choice (`beyond_ends`, see
    `frame_windows`). Frames of any size from 1 x 1 are padded at the bottom and right to what the model needs, and cut
    back. Results are clamped to the range of the type; integers are rounded to nearest, halves to even.

    Args:
        frames: gamma-encoded RGB, (T, H, W, 3); or any iterable of (H, W, 3), of which no more than the
            model's window and a few frames are held at a time. uint8, uint16, or floating in [0, 1].
        model: a deblurring model of this package (`create_model`); `jaxdeblur.models` says what it must have.
        variables: its Flax variables.
        progress: called with the number of frames restored so far.
        explain: called with the number of each frame, from 0, and the model's pictures of how it came about, uint8
            (H, W, 3) by name.

    Returns:
        An array for an array, of the same shape and type (NumPy for NumPy); otherwise an iterator of NumPy
        arrays, as many as come in, computed as they are asked for.

    Raises:
        ValueError: not RGB frames; a frame whose size or type is not the first one's, or whose floating
            values are not in [0, 1]. From an iterator it comes when that frame is reached and names its
            number.
    """
    if not hasattr(model, "step"):
        raise ValueError(
            f"{type(model).__name__} is no deblurring model; expected one that restores frames, such as mtu2"
        )
    if explain is not None and not hasattr(model, "explain"):
        raise ValueError(f"{type(model).__name__} has no pictures to explain its frames with")
    if not isinstance(frames, jax.Array | np.ndarray):
        return _restore_stream(iter(frames), model, variables, progress, explain)
    if frames.ndim != 4:
        raise ValueError(
            f"frames has shape {frames.shape}; expected (time, height, width, 3); give a single frame as frame[None]"
        )
    if len(frames) == 0:
        return frames
    clip = np.asarray(frames)
    restored = np.empty_like(clip)
    for index, frame in enumerate(_restore_stream(iter(clip), model, variables, progress, explain)):
        restored[index] = frame
    return jnp.asarray(restored) if isinstance(frames, jax.Array) else restored


def _restore_stream(
    frames: Iterator[Array],
    model: Any,  # the contract is restore's
    variables: Variables,
    progress: Callable[[int], None] | None,
    explain: Explain | None,
) -> Iterator[np.ndarray]:
    first = next(frames, None)
    if first is None:
        return
    dtype = np.asarray(first).dtype
    variables = jax.tree.map(jnp.asarray, variables)
    carry: PyTree = None
    waiting: collections.deque[tuple[jax.Array, dict[str, jax.Array]]] = collections.deque()
    done = 0

    def finish_one() -> np.ndarray:
        nonlocal done
        on_device, pictures = waiting.popleft()
        restored = np.asarray(on_device).astype(dtype, copy=False)
        if explain is not None:
            explain(done, {name: np.asarray(picture) for name, picture in pictures.items()})
        done += 1
        if progress is not None:
            progress(done)
        return restored

    on_device = _put_on_device(itertools.chain([first], frames))
    for window in frame_windows(on_device, model.past_frames, model.future_frames, beyond_ends=model.beyond_ends):
        if carry is None:
            # The step gives its carry's memory away, hence a copy: a model may hand out one array twice.
            carry = jax.tree.map(jnp.copy, _start(model, variables, window))
        pictures = {} if explain is None else _pictures(model, variables, carry, window)
        carry, restored = _step(model, variables, carry, window)
        waiting.append((restored, pictures))
        if len(waiting) > _FRAMES_IN_FLIGHT:
            yield finish_one()
    while waiting:
        yield finish_one()


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("carry",))
def _step(model: Any, variables: Variables, carry: PyTree, window: tuple[jax.Array, ...]) -> tuple[PyTree, jax.Array]:
    """One frame: integers to [0, 1], padding, the model, and all of that back."""
    dtype = window[0].dtype
    padded, size = _to_model(model, window)
    carry, outputs = model.apply(variables, carry, padded, method="step")
    restored = jnp.clip(unpad(outputs.restored, size)[0].astype(jnp.float32), 0, 1)
    if jnp.issubdtype(dtype, jnp.integer):
        restored = jnp.rint(restored * _largest(dtype))
    return carry, restored.astype(dtype)


@functools.partial(jax.jit, static_argnames=("model",))
def _start(model: Any, variables: Variables, window: tuple[jax.Array, ...]) -> PyTree:
    return model.apply(variables, _to_model(model, window)[0], method="start")


@functools.partial(jax.jit, static_argnames=("model",))
def _pictures(model: Any, variables: Variables, carry: PyTree, window: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
    padded, size = _to_model(model, window)
    # Of a plain dictionary JAX would sort the names.
    pictures = collections.OrderedDict(model.apply(variables, carry, padded, method="explain"))
    return jax.tree.map(lambda x: jnp.rint(255 * jnp.clip(unpad(x, size)[0], 0, 1)).astype(jnp.uint8), pictures)


def _to_model(model: Any, window: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[int, int]]:
    """(1, frames, H, W, 3), float32 in [0, 1] and padded, and the size before padding."""
    stacked = jnp.stack(window)[None]
    floats = stacked.astype(jnp.float32) / jnp.float32(_largest(stacked.dtype))
    return pad_to_multiple(floats, model.size_multiple, model.padding)


def _largest(dtype: np.dtype) -> int:
    return jnp.iinfo(dtype).max if jnp.issubdtype(dtype, jnp.integer) else 1


def _put_on_device(frames: Iterable[Array]) -> Iterator[jax.Array]:
    """Checks each frame and starts its transfer; floating frames as float32."""
    shape: tuple[int, ...] = ()
    dtype = np.dtype(np.uint8)
    for number, frame in enumerate(frames):
        frame = np.asarray(frame)
        if number == 0:
            shape, dtype = frame.shape, frame.dtype
            if len(shape) != 3 or shape[-1] != 3 or 0 in shape:
                raise ValueError(f"frame 0 has shape {shape}; expected (height, width, 3), at least 1 x 1")
            if dtype not in (np.uint8, np.uint16) and not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(f"frame 0 is {dtype}; expected uint8, uint16 or floating in [0, 1]")
        elif frame.shape != shape or frame.dtype != dtype:
            raise ValueError(
                f"frame {number} is {frame.dtype} {frame.shape}, but frame 0 is {dtype} {shape}; "
                "all frames of a clip must be alike"
            )
        if jnp.issubdtype(dtype, jnp.floating):
            frame = frame.astype(np.float32, copy=False)
            lowest, highest = frame.min(), frame.max()
            if not (lowest >= 0 and highest <= 1):  # NaN fails this, too
                raise ValueError(
                    f"frame {number} has values in [{lowest:g}, {highest:g}]; floating frames are in [0, 1]: "
                    "divide by the largest value, or clip"
                )
        # NumPy's copy, since whoever makes the frames may reuse the memory before the step has run. JAX's own
        # (jnp.array) may take the memory over and copy it later.
        yield jax.device_put(np.array(frame))
