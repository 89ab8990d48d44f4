"""Any frames in, the same frames restored: arrays at once, iterators as a stream of constant memory."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.compilation import jit
from jaxdeblur.data.clips import frame_windows
from jaxdeblur.ops.resample import unpad
from jaxdeblur.restoration.steps import TiledFrames, Tiling, WholeFrames, to_model
from jaxdeblur.types import Array, PyTree, Restorer, Variables
from jaxdeblur.variables import load_weights

Explain = Callable[[int, dict[str, np.ndarray]], None]


def restore(
    frames: Array | Iterable[Array],
    model: Restorer | None = None,
    variables: Variables | None = None,
    *,
    tiling: Tiling | None = None,
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
        model: a deblurring model of this package (`create_model`), or an exported one (`restoration.export`);
            `jaxdeblur.models` says what it must have. None: the package's own, with its own weights.
        variables: its Flax variables.
        tiling: restore each frame in parts, for frames too large for the device's memory; see `restoration.memory`.
        progress: called with the number of frames restored so far.
        explain: called with the number of each frame, from 0, and the model's pictures of how it came about, uint8
            (H, W, 3) by name.

    Returns:
        An array for an array, of the same shape and type (NumPy for NumPy); otherwise an iterator of NumPy
        arrays, as many as come in, computed as they are asked for.

    Raises:
        ValueError: a model without variables, or the other way round; not RGB frames; a frame whose size or type is
            not the first one's, or whose floating values are not in [0, 1]; values of the network that are not finite.
            From an iterator it comes when that frame is reached and names its number.
    """
    if model is None and variables is None:
        model, variables = _default()
    if model is None or variables is None:
        raise ValueError("model and variables go together; give both, or neither for the package's own")
    stream = functools.partial(
        restore_stream, model=model, variables=variables, tiling=tiling, progress=progress, explain=explain
    )
    if not isinstance(frames, jax.Array | np.ndarray):
        return stream(iter(frames))
    if frames.ndim != 4:
        raise ValueError(
            f"frames has shape {frames.shape}; expected (time, height, width, 3); give a single frame as frame[None]"
        )
    if len(frames) == 0:
        return frames
    clip = np.asarray(frames)
    restored = np.empty_like(clip)
    for index, frame in enumerate(stream(iter(clip))):
        restored[index] = frame
    return jnp.asarray(restored) if isinstance(frames, jax.Array) else restored


@functools.cache
def _default() -> tuple[Any, Variables]:
    return load_weights()


@dataclasses.dataclass(frozen=True)
class Halfway:
    """A restoration that was interrupted: how many frames are done, and the leaves of the carry after them."""

    frames_done: int
    carry: list[Array]

    def first_frame(self, model: Any) -> int:
        """The frame that the rest begins with: the model looks back at some that are done."""
        return max(0, self.frames_done - model.past_frames)


Save = Callable[[Halfway], None]


def restore_stream(
    frames: Iterator[Array],
    model: Any,  # the contract is restore's
    variables: Variables,
    *,
    tiling: Tiling | None = None,
    progress: Callable[[int], None] | None = None,
    explain: Explain | None = None,
    halfway: Halfway | None = None,
    save: Save | None = None,
    save_every: int = 0,
    in_flight: int = 2,
) -> Iterator[np.ndarray]:
    """As restore, of an iterator; and such that it can be gone on with.

    Args:
        halfway: begin there; the first of `frames` is then number `halfway.first_frame(model)`.
        in_flight: results that may wait on the device while the next step is prepared: two keep it busy, none wait for
            a frame more than the model needs.
        save: called after every `save_every` frames have been taken, with what `halfway` needs.
    """
    check_restorer(model)
    if explain is not None and not hasattr(model, "explain"):
        raise ValueError(f"{type(model).__name__} has no pictures to explain its frames with")
    if explain is not None and tiling is not None:
        raise ValueError("pictures that explain a frame are made of whole frames only; allow more memory")
    return _restore_stream(frames, model, variables, tiling, progress, explain, halfway, save, save_every, in_flight)


def _restore_stream(
    frames: Iterator[Array],
    model: Any,
    variables: Variables,
    tiling: Tiling | None,
    progress: Callable[[int], None] | None,
    explain: Explain | None,
    halfway: Halfway | None,
    save: Save | None,
    save_every: int,
    in_flight: int,
) -> Iterator[np.ndarray]:
    first = next(frames, None)
    if first is None:
        return
    dtype = np.asarray(first).dtype
    variables = jax.tree.map(jnp.asarray, variables)
    network = WholeFrames(model, variables) if tiling is None else TiledFrames(model, variables, tiling)
    carry: PyTree = None
    waiting: collections.deque[tuple[Array, Any, dict[str, jax.Array]]] = collections.deque()
    done = 0 if halfway is None else halfway.frames_done

    def finish_one() -> np.ndarray:
        nonlocal done
        on_device, is_finite, pictures = waiting.popleft()
        if not is_finite:
            raise ValueError(_not_finite(done, model))
        restored = np.asarray(on_device).astype(dtype, copy=False)
        if explain is not None:
            explain(done, {name: np.asarray(picture) for name, picture in pictures.items()})
        done += 1
        if progress is not None:
            progress(done)
        return restored

    windows = frame_windows(
        (network.put(frame) for frame in _checked(itertools.chain([first], frames))),
        model.past_frames,
        model.future_frames,
        beyond_ends=model.beyond_ends,
        continued=done > model.past_frames,
    )
    # Of the few frames before the model's whole past is there, the windows come anew, and are left out.
    for number, window in enumerate(itertools.islice(windows, 0 if done > model.past_frames else done, None), done):
        if carry is None:
            carry = network.start(window)
            if halfway is not None:
                carry = network.put_back(carry, halfway.carry)
        pictures = {} if explain is None else _pictures(model, variables, carry, window)
        carry, restored, is_finite = network.step(carry, window)
        waiting.append((restored, is_finite, pictures))
        if save is not None and (number + 1) % save_every == 0:
            now = Halfway(number + 1, jax.tree.leaves(carry))
            while waiting:
                yield finish_one()
            save(now)
        while len(waiting) > in_flight:
            yield finish_one()
    while waiting:
        yield finish_one()


def check_restorer(model: Any) -> None:
    """Raises ValueError for a network that restores no frames."""
    if not hasattr(model, "step"):
        raise ValueError(
            f"{type(model).__name__} is no deblurring model; expected one that restores frames, such as mtu2"
        )


def _not_finite(frame: int, model: Any) -> str:
    said = f"frame {frame} cannot be restored: the network's values are not finite"
    if getattr(getattr(model, "config", None), "compute_dtype", None) == "float16":
        return f"{said} in float16, which ends at 65504; take bfloat16 (--precision=bfloat16) or float32"
    return (
        f"{said}; its weights are damaged, or its training has diverged: take another checkpoint. A model that was "
        "exported in float16, which ends at 65504: export it in bfloat16 or float32"
    )


@jit(static_argnames=("model",))
def _pictures(model: Any, variables: Variables, carry: PyTree, window: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
    padded, size = to_model(model, window)
    # Of a plain dictionary JAX would sort the names.
    pictures = collections.OrderedDict(model.apply(variables, carry, padded, method="explain"))
    return jax.tree.map(lambda x: jnp.rint(255 * jnp.clip(unpad(x, size)[0], 0, 1)).astype(jnp.uint8), pictures)


def _checked(frames: Iterable[Array]) -> Iterator[np.ndarray]:
    """Each frame, floating ones as float32, if it is alright."""
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
        yield frame
