"""Models as ONNX graphs, for runtimes that do not know StableHLO. A graph is for frames of one size.

    OUT.onnx          window, memory_0, ... -> restored, memory_0_after, ...
    OUT-start.onnx    window -> memory_0, ...: before the first frame; only of models with a memory

A window is (1, frames, H, W, 3) float32 in [0, 1], restored is (1, H, W, 3), not clamped; see `jaxdeblur.models`. The
conversion is jax2onnx's, whose limits are these: it has no loop that runs backwards, as svrnn's recurrences do, and of
symbolic sizes it knows too little for most models. Half precision converts, but onnxruntime cannot run it on a CPU.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.data.clips import frame_windows
from jaxdeblur.data.image_io import StrPath
from jaxdeblur.data.own_files import replacing
from jaxdeblur.restoration.clip import restore
from jaxdeblur.restoration.export import check_difference, check_restorer
from jaxdeblur.types import Restorer, Variables

SUFFIX = ".onnx"
_COMPARED_FRAMES = 3
_MOST_TURNS = 8
"""Of a loop that is written out."""


def export_onnx(target: StrPath, model: Restorer, variables: Variables, *, size: tuple[int, int]) -> float:
    """Writes a model as ONNX. Before the files get their names they restore a clip of noise beside the model.

    Args:
        target: the name of the graph, which ends in .onnx; see the head of this file.
        model, variables: as for `restore`.
        size: height and width of the frames, multiples of what the model needs.
    Returns:
        The largest difference of a restored value, in [0, 1], from the model's.
    Raises:
        DifferentResultsError: that is more than `export.TOLERANCE`.
        ValueError: the name or the size is another, the model restores no frames, or it cannot be converted or run.
        ImportError: jax2onnx or onnxruntime is missing.
        OSError: target cannot be written.
    """
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f'writing {target} needs jax2onnx: pip install "jaxdeblur[onnx]" (only to do that)'
        ) from error
    target = Path(target)
    if target.suffix.lower() != SUFFIX:
        raise ValueError(f"{target}: expected a name that ends in {SUFFIX}")
    check_restorer(model)
    if min(size) < 1 or any(side % model.size_multiple for side in size):
        raise ValueError(f"the size is {size[1]}x{size[0]}; expected multiples of {model.size_multiple}")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # a line for every shape that it does not infer
    frames = model.past_frames + 1 + model.future_frames
    window = jax.ShapeDtypeStruct((1, frames, *size, 3), jnp.float32)
    carry, structure = jax.tree.flatten(jax.eval_shape(lambda x: model.apply(variables, x, method="start"), window))
    memory = [f"memory_{number}" for number in range(len(carry))]

    def start(window: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jax.tree.leaves(model.apply(variables, window, method="start")))

    def step(window: jax.Array, *carry: jax.Array) -> tuple[jax.Array, ...]:
        after, outputs = model.apply(variables, jax.tree.unflatten(structure, carry), window, method="step")
        # Copies, for what is handed on as it came would have two names.
        return outputs.restored, *map(jnp.copy, jax.tree.leaves(after))

    def converted(function: Callable[..., Any], inputs: list[Any], takes: list[str], gives: list[str]) -> bytes:
        try:
            with _as_the_converter_takes_it():
                graph = jax2onnx.to_onnx(function, inputs, input_names=takes, output_names=gives)
        except Exception as error:  # whatever it meets and does not know
            raise ValueError(f"{target}: jax2onnx cannot convert {type(model).__name__} ({error})") from error
        return graph.SerializeToString()

    after = [f"{name}_after" for name in memory]
    graphs = {target: converted(step, [window, *carry], ["window", *memory], ["restored", *after])}
    if memory:
        name = target.with_name(f"{target.stem}-start{target.suffix}")
        graphs[name] = converted(start, [window], ["window"], memory)
    with contextlib.ExitStack() as stack:
        for path, graph in graphs.items():
            stack.enter_context(replacing(path)).write_bytes(graph)
        clip = np.random.default_rng(0).random((_COMPARED_FRAMES, *size, 3), np.float32)
        try:
            sessions = [onnxruntime.InferenceSession(graph, _quiet(onnxruntime)) for graph in graphs.values()]
            restored = _restored(clip, model, *sessions)
        except Exception as error:  # of types of its own
            raise ValueError(f"{target}: onnxruntime cannot run what was converted ({error})") from error
        difference = float(np.max(np.abs(restored - restore(clip, model, variables))))
        check_difference(difference, target)
    return difference


def _restored(clip: np.ndarray, model: Restorer, step: Any, start: Any = None) -> np.ndarray:
    """What the graphs make of frames (T, H, W, 3), limited to [0, 1] as restored ones are."""
    memory: dict[str, np.ndarray] = {}
    restored = []
    windows = frame_windows(clip, model.past_frames, model.future_frames, beyond_ends=model.beyond_ends)
    for number, window in enumerate(windows):
        seen = np.stack(window)[None]
        if number == 0 and start is not None:
            memory = _run(start, {"window": seen})
        results = _run(step, {"window": seen, **memory})
        restored.append(np.clip(results.pop("restored")[0], 0, 1))
        memory = {name.removesuffix("_after"): value for name, value in results.items()}
    return np.stack(restored)


def _run(session: Any, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Results by name. What a graph does not look at it may not have among its inputs."""
    results = session.run(None, {one.name: values[one.name] for one in session.get_inputs()})
    return {one.name: result for one, result in zip(session.get_outputs(), results, strict=True)}


def _quiet(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; below these it tells of every constant that it folds
    return options


@contextlib.contextmanager
def _as_the_converter_takes_it() -> Iterator[None]:
    """While a function is traced, what depends on the platform takes the form for none in particular, of which alone
    ONNX knows, and short loops are written out: within a loop the converter takes reshapes for dynamic ones. It puts
    forms of its own in the place of JAX's functions in this way."""
    chooses, loops = jax.lax.platform_dependent, jax.lax.scan

    def default_of(*arguments: Any, default: Callable[..., Any], **_: Any) -> Any:
        return default(*arguments)

    def written_out(
        body: Callable[..., Any], carry: Any, xs: Any = None, length: int | None = None, **options: Any
    ) -> Any:
        turns = length if length is not None else len(jax.tree.leaves(xs)[0])
        if turns > _MOST_TURNS or options.get("reverse"):
            return loops(body, carry, xs, length, **options)
        ys = []
        for turn in range(turns):
            carry, y = body(carry, jax.tree.map(lambda x, turn=turn: x[turn], xs))
            ys.append(y)
        return carry, jax.tree.map(lambda *each: jnp.stack(each), *ys)

    jax.lax.platform_dependent, jax.lax.scan = default_of, written_out  # type: ignore[assignment]
    try:
        yield
    finally:
        jax.lax.platform_dependent, jax.lax.scan = chooses, loops
