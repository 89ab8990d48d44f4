"""The cases of benchmarks/accelerator.py, and the process in which they run.

Every message is a line of JSON on stdout: {"machine": ...} once, and for a case {"begin": name, "part": ..., "number":
..., "deadline": ...}, then {"row": ...}.
"""

import argparse
import dataclasses
import functools
import importlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxdeblur.config as parts_of
from benchmarks import measure
from benchmarks.accelerator import KILLED, PARTS, ROOT, Row
from benchmarks.recurrence import BACKWARD_UNITS, FORWARD_UNITS, SCALES
from benchmarks.restoration import first_carry, frame_step
from jaxdeblur import create_model
from jaxdeblur.checkpoint import load_model, save_model
from jaxdeblur.compilation import jit
from jaxdeblur.data.image_io import read_image
from jaxdeblur.models import MODELS, example_inputs, initial_variables, is_flow_network
from jaxdeblur.objectives.reblur import ReblurObjective
from jaxdeblur.ops import correlation, spatial_rnn_kernel
from jaxdeblur.ops.filters import box_mean
from jaxdeblur.ops.interpolate import interpolate_frame
from jaxdeblur.ops.quality import ssim
from jaxdeblur.ops.reblur import reblur
from jaxdeblur.ops.resample import downsample_area, resize_bilinear
from jaxdeblur.ops.sharpness import temporal_sharpness_prior
from jaxdeblur.ops.spatial_rnn import FORMS, four_direction_recurrence
from jaxdeblur.ops.warp import warp_backward, warp_blocks
from jaxdeblur.restoration.clip import restore
from jaxdeblur.restoration.export import export_model
from jaxdeblur.restoration.memory import free_bytes, plan
from jaxdeblur.restoration.steps import Tiling
from jaxdeblur.training.sharding import make_mesh, replicate
from jaxdeblur.training.state import init_state
from jaxdeblur.training.step import make_train_step
from jaxdeblur.types import Variables
from jaxdeblur.variables import load_weights

TOLERANCE = 1e-4
"""Of the mean value: float32 sums in another order. A device that rounds products to TF32 or bfloat16 misses it."""

DEFAULT = "default"
"""The package's own network with its weights; others have random ones."""

PRECISIONS = {
    "float32": {},
    "tf32": {"matmul": "tensorfloat32"},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "float16": {"compute_dtype": "float16"},
}


class Case(NamedTuple):
    part: str
    name: str
    run: Callable[[], Row]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """In pixels; frames are (height, width)."""

    frames: tuple[tuple[int, int], ...] = ((720, 1280), (1080, 1920))
    values: tuple[int, int] = (128, 192)
    features: tuple[int, int] = (180, 320)
    recurrence: tuple[int, int] = (768, 1280)
    copied_bytes: int = 2**30
    product: int = 8192
    least_s: float = 0.3  # of a measurement


TINY = Sizes(((64, 96),), (64, 64), (20, 24), (64, 64), 2**20, 64, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parts", required=True)
    parser.add_argument("--cases", default="")
    parser.add_argument("--end", type=float, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--references", action="store_true", help="write what the values are to be")
    parser.add_argument("--runs-on", default="", help="JAX_PLATFORMS of the runs that are killed")
    arguments = parser.parse_args()
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no message
    parts = arguments.parts.split(",")
    cases = [
        case
        for case in all_cases(
            TINY if arguments.tiny else Sizes(), arguments.folder, arguments.references, arguments.runs_on
        )
        if case.part in parts and arguments.cases in case.name
    ]

    def send(**message: Any) -> None:
        messages.write(json.dumps(message) + "\n")

    if not arguments.references and KILLED not in parts:
        stats = jax.devices()[0].memory_stats() or {}
        memory = f", {stats['bytes_limit'] / 2**30:.0f} GiB" if "bytes_limit" in stats else ""
        send(machine=f"{measure.machine()}{memory}")
    deadline, current = 0.0, ""
    for number, case in enumerate(cases):
        if number < arguments.first:
            continue
        if case.part != current:
            current = case.part
            left = sum(PARTS[part] for part in parts[parts.index(current) :])
            deadline = time.time() + max(0.0, arguments.end - time.time()) * PARTS[current] / left
        if time.time() >= deadline:
            send(row=dataclasses.asdict(Row(case.part, case.name, "not run")))
            continue
        send(begin=case.name, part=case.part, number=number, deadline=deadline)
        try:
            row = case.run()
        except Exception as error:  # whatever it is, the other cases go on
            said = " ".join(str(error).split())[:200]
            row = Row(case.part, case.name, f"FAILED: {type(error).__name__}: {said}")
        send(row=dataclasses.asdict(row))


def all_cases(sizes: Sizes, folder: Path, references: bool, runs_on: str) -> list[Case]:
    """All there are, those of a part one after another in the order of PARTS."""
    return [
        Case("memory", "what a plan allows", functools.partial(_planned_memory, sizes)),
        Case("device", "copying", functools.partial(_copying, sizes)),
        *(
            Case("device", f"matrix product, {precision}", functools.partial(_product, sizes, precision))
            for precision in ("float32", "tf32", "bfloat16")
        ),
        *_value_cases(sizes, folder, references),
        *_op_cases(sizes),
        Case("restoring", "tiles against whole frames", functools.partial(_tiles, sizes)),
        *(
            Case("restoring", f"exported, {name}", functools.partial(_exported, name, folder))
            for name in (DEFAULT, "mtu2", "svrnn", "cdvd_tsp")
        ),
        *(
            Case("restoring", f"{precision} on real frames", functools.partial(_half_precision, precision))
            for precision in ("tf32", "bfloat16", "float16")
        ),
        *(
            Case("training", f"configs/{recipe}", functools.partial(_recipe, recipe, sizes, folder))
            for recipe in RECIPES
        ),
        *_step_cases(sizes),
        Case(KILLED, "a killed run ends in the same numbers", functools.partial(_killed, folder, runs_on)),
    ]


# What the device does at best.


def _milliseconds(call: Callable[[], Any], least_s: float) -> float:
    """Median of a call that is compiled, over at least so many seconds and 5 calls."""
    jax.block_until_ready(call())
    times: list[float] = []
    while len(times) < 5 or (sum(times) < least_s and len(times) < 100):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def _copying(sizes: Sizes) -> Row:
    ms = 1e3 * 2 * sizes.copied_bytes / _bytes_a_second(sizes)
    return Row("device", "copying", ms=ms, rate=f"{_bytes_a_second(sizes) / 1e9:.0f} GB/s")


@functools.cache
def _bytes_a_second(sizes: Sizes) -> float:
    """Read and written by the plainest program."""
    x = jnp.zeros(sizes.copied_bytes // 4, jnp.float32)
    ms = _milliseconds(functools.partial(jit(lambda x: x + 1), x), sizes.least_s)
    return 2 * x.nbytes / (1e-3 * ms)


def _product(sizes: Sizes, precision: str) -> Row:
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    asked = jax.lax.Precision.HIGHEST if precision == "float32" else None
    x = jnp.ones((sizes.product, sizes.product), dtype)
    with _arithmetic(precision):
        product = jit(lambda a, b: jnp.matmul(a, b, precision=asked)).lower(x, x).compile()
    ms = _milliseconds(functools.partial(product, x, x), sizes.least_s)
    rate = f"{measure.gflops(sizes.product**3, ms) / 1e3:.1f} TFLOP/s"
    return Row("device", f"matrix product, {precision}", ms=ms, rate=rate)


@contextmanager
def _arithmetic(precision: str) -> Iterator[None]:
    """What is traced in it multiplies float32 values so."""
    matmul = PRECISIONS[precision].get("matmul")
    if matmul is None:
        yield
    else:
        with jax.default_matmul_precision(matmul):
            yield


# Memory.


def _planned_memory(sizes: Sizes) -> Row:
    """First of all, since devices tell only the peak since the process began."""
    model, variables = load_weights()
    height, width = sizes.frames[-1]
    frames = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), np.uint8)
    planned = plan(model, variables, frames[:5], budget_bytes=free_bytes())
    restore(frames, model, variables, tiling=planned.tiling)
    stats = jax.devices()[0].memory_stats() or {}
    taken = stats.get("peak_bytes_in_use")
    case = f"{width}x{height}, {planned}"
    if taken is None:
        return Row("memory", case, gib=planned.peak_bytes / 2**30, difference="the device does not tell what it took")
    result = "ok" if taken <= planned.peak_bytes else "FAILED: took more than planned"
    return Row("memory", case, result, gib=taken / 2**30, difference=f"{taken / planned.peak_bytes - 1:+.0%} of plan")


# Values against a CPU's.


def _value_cases(sizes: Sizes, folder: Path, references: bool) -> Iterator[Case]:
    height, width = sizes.values
    made = {
        **{name: functools.partial(_op_values, *op) for name, op in _ops(height, width).items()},
        **{f"network {name}": functools.partial(_network_values, name, height, width) for name in (DEFAULT, *MODELS)},
    }
    for name, values in made.items():
        # By number, since names hold what file names must not.
        file = folder / f"{zlib.crc32(name.encode()):08x}.npz"
        run = functools.partial(_write_reference if references else _compare_values, name, values, file)
        yield Case("values", name, run)


def _write_reference(name: str, values: Callable[[], list[Any]], file: Path) -> Row:
    partial = file.with_suffix(".tmp.npz")
    np.savez(partial, *(np.asarray(array) for array in values()))
    partial.replace(file)
    return Row("values", name)


def _compare_values(name: str, values: Callable[[], list[Any]], file: Path) -> Row:
    found = [np.asarray(array) for array in values()]
    while not file.exists():
        time.sleep(0.1)
    with np.load(file) as stored:
        expected = [stored[key] for key in stored.files]
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if not np.isfinite(one).all():
            return Row("values", name, "FAILED: not finite")
        worst = max(worst, float(np.abs(one - other).mean() / max(np.abs(other).mean(), 1e-12)))
    return Row(
        "values", name, "ok" if worst <= TOLERANCE else f"FAILED: more than {TOLERANCE:g}", difference=f"{worst:.1e}"
    )


def _ops(height: int, width: int) -> dict[str, tuple[Callable, tuple[np.ndarray, ...]]]:
    """Name -> op, and what it is differentiated to. Displacements are odd halves of halves: nowhere do two pixels
    meet."""
    rng = np.random.default_rng(0)

    def normal(channels: int) -> np.ndarray:
        return rng.standard_normal((2, height, width, channels), np.float32)

    image, other, third = normal(3), normal(3), normal(3)
    flow = (np.rint(8 * normal(2)) / 4 + np.float32(0.125)).astype(np.float32)
    features, features_0 = normal(24), normal(24)
    weights = np.tanh(normal(4 * 24))
    blocks = rng.integers(-3, 4, (2, height // 4, width // 4, 2)).astype(np.int32)
    valid = np.ones((2, height, width), bool)
    forms = [form for form in (None, *FORMS) if form != "kernel" or spatial_rnn_kernel.fits(weights)]
    return {
        "warp, zeros beyond": (lambda x, f: warp_backward(x, f, border="zeros")[0], (image, flow)),
        "warp, edge beyond": (lambda x, f: warp_backward(x, f, border="edge")[0], (image, flow)),
        "block warp": (lambda x: warp_blocks(x, blocks, block=4), (features,)),
        "cost volume, radius 4": (
            functools.partial(correlation.local_cost_volume, radius=4, similarity="dot"),
            (features, features_0),
        ),
        "cost volume, radius 10, cosine": (
            functools.partial(correlation.local_cost_volume, radius=10, similarity="cosine"),
            (features, features_0),
        ),
        "cost volume, radius 10, stride 2": (
            functools.partial(correlation.strided_cost_volume, radius=10, stride=2),
            (features, features_0),
        ),
        **{
            f"recurrence, {form or 'as chosen'}": (
                functools.partial(four_direction_recurrence, form=form),
                (features, weights),
            )
            for form in forms
        },
        "interpolated frame": (lambda a, b, f: interpolate_frame(a, b, f, -f, 0.4), (image, other, flow)),
        "reblur, path": (reblur, (image, flow, -flow)),
        "reblur, taps": (functools.partial(reblur, form="taps"), (image, flow, -flow)),
        "resize to double": (
            lambda x: resize_bilinear(x, 2 * height, 2 * width, align_corners=False),
            (features,),
        ),
        "area mean": (lambda x: downsample_area(x, 4), (features,)),
        "box mean": (lambda x: box_mean(x, 5), (features,)),
        "SSIM": (lambda x, y: ssim(x, y), (image, other)),
        "sharpness prior": (
            lambda x, y, z: temporal_sharpness_prior(x, y, z, valid, valid),
            (image, other, third),
        ),
    }


def _op_values(op: Callable, arrays: tuple[np.ndarray, ...]) -> list[Any]:
    """Values and gradients."""

    def both(*arrays: Any) -> list[Any]:
        value, transpose = jax.vjp(op, *arrays)
        cotangent = jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape).astype(value.dtype)
        return [value, *transpose(cotangent)]

    return jit(both)(*arrays)


def _network_values(name: str, height: int, width: int) -> list[Any]:
    """Of the second frame, which has a memory of the first."""
    model, variables = drawn_network(name)
    rng = np.random.default_rng(1)
    if is_flow_network(model):
        images = _smooth(rng, 2, height, width)
        return [jit(model.apply)(variables, images[None, 0], images[None, 1])]
    window = _smooth(rng, model.past_frames + 1 + model.future_frames, height, width)[None]
    step = jit(frame_step(model, variables))
    carry, first = step(jit(functools.partial(first_carry, model, variables))(window), window)
    return [first, step(carry, np.roll(window, 1, axis=3))[1]]


def drawn_network(name: str, **options: Any) -> tuple[Any, Variables]:
    """The package's own with its weights; else random ones that let values through, whatever the depth."""
    if name == DEFAULT:
        return load_weights(**options)
    model = create_model(name, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))

    def drawn(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        kind = path[-1].key
        if kind == "kernel":
            rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
            deviation = (1 / np.prod(leaf.shape[:-1])) ** 0.5
            return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)
        return np.full(leaf.shape, float(kind in ("scale", "var", "beta", "gamma")), np.float32)

    return model, jax.device_put(jax.tree_util.tree_map_with_path(drawn, shapes))


def _smooth(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Frames in [0, 1] of soft blobs that move."""
    coarse = rng.random((height // 8 + 2, width // 8 + 2, 3), np.float32)
    rows, columns = np.linspace(0, height // 8, height), np.linspace(0, width // 8, width)
    top, left = rows.astype(int), columns.astype(int)
    down, across = (rows - top)[:, None, None], (columns - left)[None, :, None]
    picture = (1 - down) * ((1 - across) * coarse[top][:, left] + across * coarse[top][:, left + 1]) + down * (
        (1 - across) * coarse[top + 1][:, left] + across * coarse[top + 1][:, left + 1]
    )
    return np.stack([np.roll(picture, 2 * number, axis=1) for number in range(count)]).astype(np.float32)


# Times of the ops.


def _op_cases(sizes: Sizes) -> Iterator[Case]:
    height, width = sizes.features
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def timed(name: str, op: Callable, *shapes: tuple[int, ...], macs: int | None = None) -> Iterator[Case]:
        for with_gradient in (False, True):
            full = f"{name}, {'and gradient' if with_gradient else 'forward'}"
            yield Case("ops", full, functools.partial(_op_time, full, op, shapes, with_gradient, macs, sizes))

    for radius, channels, scale in ((4, 64, 1), (10, 52, 2)):
        shape = (1, height // scale, width // scale, channels)
        macs = measure.cost_volume_macs(*shape, radius)
        for form, dot in (
            ("as chosen", functools.partial(correlation.local_cost_volume, similarity="dot")),
            ("by rows", correlation._dot_by_rows),
            ("by displacements", correlation._dot_by_row_displacements),
        ):
            name = f"cost volume {shape[2]}x{shape[1]}x{channels} radius {radius}, {form}"
            yield from timed(name, functools.partial(dot, radius=radius), shape, shape, macs=macs)
    for channels, rows, columns in ((3, *sizes.frames[0]), (64, height, width)):
        flow = 3 * normal(1, rows, columns, 2)
        yield from timed(
            f"warp {columns}x{rows}x{channels}",
            lambda x, flow=flow: warp_backward(x, flow, border="zeros")[0],
            (1, rows, columns, channels),
        )
    whole = rng.integers(-8, 9, (1, height // 4, width // 4, 2)).astype(np.int32)
    blocks = (1, height // 4 * 4, width // 4 * 4, 26)
    yield from timed(f"block warp {blocks[2]}x{blocks[1]}x26", lambda x: warp_blocks(x, whole, block=4), blocks)
    yield from timed(
        f"resize {width}x{height}x64 to double",
        lambda x: resize_bilinear(x, 2 * height, 2 * width, align_corners=False),
        (1, height, width, 64),
    )
    for coarser, channels in SCALES:
        shape = (1, sizes.recurrence[0] // coarser, sizes.recurrence[1] // coarser, channels)
        for recurrence in (None, *FORMS):
            for with_gradient in (False, True):
                name = (
                    f"recurrence {shape[2]}x{shape[1]}x{channels}, {recurrence or 'as chosen'}, "
                    f"{'and gradient' if with_gradient else 'forward'}"
                )
                run = functools.partial(_recurrence_time, name, recurrence, shape, with_gradient, sizes)
                yield Case("ops", name, run)


def _op_time(
    name: str,
    op: Callable,
    shapes: tuple[tuple[int, ...], ...],
    with_gradient: bool,
    macs: int | None,
    sizes: Sizes,
) -> Row:
    arrays = [jax.random.normal(jax.random.key(number), shape) for number, shape in enumerate(shapes)]
    both = jax.grad(lambda *x: jnp.sum(jnp.square(op(*x))), argnums=tuple(range(len(arrays))))
    compiled = jit(both if with_gradient else op).lower(*arrays).compile()
    ms = _milliseconds(functools.partial(compiled, *arrays), sizes.least_s)
    rate = "" if macs is None or with_gradient else f"{measure.gflops(macs, ms):.0f} GFLOP/s"
    return Row("ops", name, ms=ms, rate=rate, gib=measure.held_bytes(compiled) / 2**30)


def _recurrence_time(name: str, form: Any, shape: tuple[int, ...], with_gradient: bool, sizes: Sizes) -> Row:
    if form == "kernel" and jax.default_backend() != "gpu":
        return Row("ops", name, "skipped", difference="for NVIDIA GPUs")
    features = jax.random.normal(jax.random.key(0), shape)
    weights = jnp.tanh(jax.random.normal(jax.random.key(1), (*shape[:-1], 4 * shape[-1])))
    op = functools.partial(four_direction_recurrence, form=form)

    def both(features: Any, weights: Any) -> Any:
        value, transpose = jax.vjp(op, features, weights)
        return value, *transpose(value)

    compiled = jit(both if with_gradient else op).lower(features, weights).compile()
    ms = _milliseconds(functools.partial(compiled, features, weights), sizes.least_s)
    units = FORWARD_UNITS + with_gradient * BACKWARD_UNITS
    floor_ms = 1e3 * units * features.nbytes / _bytes_a_second(sizes)
    return Row(
        "ops", name, ms=ms, rate=f"{ms / floor_ms:.1f} x bandwidth floor", gib=measure.held_bytes(compiled) / 2**30
    )


# Restoring.


def _real_frames() -> np.ndarray:
    return np.stack([read_image(file).rgb for file in sorted((ROOT / "demo" / "reds" / "blur").rglob("*.*g"))[:4]])


def _tiles(sizes: Sizes) -> Row:
    del sizes
    model, variables = load_weights()
    frames = _real_frames()[:, :256, :384]
    whole = restore(frames, model, variables).astype(np.int32)
    tiled = restore(frames, model, variables, tiling=Tiling(256, 192, 32)).astype(np.int32)
    worst = int(np.abs(whole - tiled).max())
    return Row(
        "restoring",
        "tiles against whole frames",
        "ok" if worst <= 1 else "FAILED: more than one level of 255",
        difference=f"{worst} of 255",
    )


def _exported(name: str, folder: Path) -> Row:
    model, variables = drawn_network(name)
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    difference = export_model(folder / "exported.zip", model, variables, platforms=[platform])
    return Row("restoring", f"exported, {name}", difference=f"{difference:.1e}")


def _half_precision(precision: str) -> Row:
    frames = _real_frames()
    restored = []
    for each in ("float32", precision):
        options = {key: value for key, value in PRECISIONS[each].items() if key != "matmul"}
        model, variables = load_weights(**options)
        jax.clear_caches()  # the precision of products is no part of what a program is known by
        try:
            with _arithmetic(each):
                restored.append(restore(frames, model, variables).astype(np.float64))
        except ValueError as refusal:  # docs/precision.md: these weights' values end beyond what float16 holds
            if each != "float16" or "not finite" not in str(refusal):
                raise
            return Row("restoring", f"{precision} on real frames", "refused: values are not finite in float16")
    error = np.square(restored[0] - restored[1]).mean()
    decibel = np.inf if error == 0 else 10 * np.log10(255**2 / error)
    result = "ok" if decibel > 45 else "FAILED: less than 45 dB"
    return Row("restoring", f"{precision} on real frames", result, difference=f"{decibel:.1f} dB")


# A training step of every recipe.

RECIPES = (
    "mtu.py:scenes",
    "pretrained.py",
    "cdvd.py:scenes",
    "svrnn.py:scenes",
    "vdflow.py:scenes",
    "reblur.py:scenes",
    "pwcnet.py",
    "maxim.py:scenes",
    "nafnet.py:scenes",
    "estrnn.py:scenes",
)


def _recipe(recipe: str, sizes: Sizes, folder: Path) -> Row:
    """As train.py runs it, on rendered scenes."""
    file, _, variant = recipe.partition(":")
    if sizes is TINY and file in ("maxim.py", "nafnet.py", "estrnn.py"):
        variant = "smoke"  # which is small enough
    config = _get_config(file, variant).copy_and_resolve_references().unlock()
    config.training.steps = max(config.training.steps, 10)
    if sizes is TINY:
        _shrink(config)
    if file == "reblur.py":
        config.initial.checkpoint = "default"
        config.initial.flow_checkpoint = str(_flow_checkpoint(folder, 0.125 if sizes is TINY else 1.0))
    config = parts_of.resolve(config)
    mesh = make_mesh()
    model = parts_of.build_model(config)
    turns = parts_of.build_turns(config, model)
    optimizers: dict[str, Any] = {}
    for objective in turns.objectives:
        optimizers |= parts_of.build_optimizers(config, objective)
    plateau, loss_scale = parts_of.build_plateau(config), parts_of.build_loss_scale(config)
    is_tuned = isinstance(turns.objectives[0], ReblurObjective)
    variables = parts_of.tuned_variables(config) if is_tuned else initial_variables(jax.random.key(0), model)
    plateaus = plateau.init(optimizers) if plateau is not None else None
    state = init_state(jax.random.key(1), variables, optimizers, ema=False, plateaus=plateaus)
    state = replicate(state, mesh)
    batch = next(parts_of.training_batches(config, turns, mesh)(0))
    objective = turns.objectives[0]
    step = make_train_step(
        objective,
        optimizers,
        microbatches=config.training.microbatches,
        loss_scale=loss_scale,
        plateau=plateau,
        mesh=mesh,
    )
    times, losses = [], []
    for _ in range(3):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch, {}))
        times.append((time.perf_counter() - start) / objective.updates_per_batch)
        losses += [np.asarray(value) for key, value in metrics.items() if key.startswith("loss_")]
    result = "ok" if all(np.isfinite(loss).all() for loss in losses) else "FAILED: a loss is not finite"
    ms = 1e3 * min(times[1:])
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return Row(
        "training",
        f"configs/{recipe}, {config.data.batch_size} x {config.data.crop_px} px",
        result,
        ms=ms,
        rate=f"{1e3 / ms:.2f} updates/s",
        gib=None if peak is None else peak / 2**30,
        difference="peak so far",
    )


def _get_config(file: str, variant: str) -> Any:
    return importlib.import_module(f"configs.{Path(file).stem}").get_config(variant)


def _shrink(config: Any) -> None:
    """Of a recipe, what a CPU makes in seconds."""
    small = {"channels": 4, "residual_blocks": 1, "width": 0.125, "flow_width": 0.125, "units": 2}
    for name, value in small.items():
        if name in config.model:
            config.model[name] = value
    config.data.batch_size = 2
    config.data.crop_px = 64
    config.data.scenes.sub_frames = 4
    config.data.scenes.max_speed_px = 4.0
    config.data.scenes.distinct_clips = 0
    if "unlabelled" in config.data:
        config.data.unlabelled.batch_size = 2
    config.evaluation.clips = 1
    config.evaluation.frames = 3


def _flow_checkpoint(folder: Path, width: float) -> Path:
    path = folder / "flow"
    if not path.exists():
        _, variables = drawn_network("flownets", width=width)
        save_model(path, name="flownets", options={"width": width}, variables=variables)
    return path


# A frame through every network.


def _step_cases(sizes: Sizes) -> Iterator[Case]:
    restoring = [DEFAULT, *(name for name in MODELS if not is_flow_network(create_model(name)))]
    flow = [name for name in MODELS if is_flow_network(create_model(name))]
    precisions = ("float32", "tf32", "bfloat16")
    for (height, width), names in itertools.product(sizes.frames, (restoring, flow)):
        for name, precision in itertools.product(names, precisions):
            case = f"{name} {width}x{height} {precision}"
            yield Case("steps", case, functools.partial(_step_time, case, name, precision, (height, width), sizes))


_in_float32: dict[tuple[str, int, int], np.ndarray] = {}


def _step_time(case: str, name: str, precision: str, size: tuple[int, int], sizes: Sizes) -> Row:
    options = {key: value for key, value in PRECISIONS[precision].items() if key != "matmul"}
    try:
        model, variables = drawn_network(name, **options)
    except ValueError as error:
        if "has no option" not in str(error):
            raise
        return Row("steps", case, "skipped", difference="float32 only")
    rng = np.random.default_rng(2)
    with _arithmetic(precision):
        if is_flow_network(model):
            images = jax.device_put(_smooth(rng, 2, *size))
            flow = jit(lambda variables, one, zero: model.apply(variables, one, zero))
            compiled = flow.lower(variables, images[None, 0], images[None, 1]).compile()
            call: Callable[[], Any] = functools.partial(compiled, variables, images[None, 0], images[None, 1])
        else:
            window = _smooth(rng, model.past_frames + 1 + model.future_frames, *size)[None]
            window = jax.device_put(window)
            carry = jit(functools.partial(first_carry, model, variables))(window)
            step = jit(lambda variables, carry, window: frame_step(model, variables)(carry, window))
            compiled = step.lower(variables, carry, window).compile()
            carry, _ = compiled(variables, carry, window)
            call = lambda: compiled(variables, carry, window)[1]  # noqa: E731
        result = np.asarray(call(), np.float32)
    ms = _milliseconds(call, sizes.least_s)
    difference = ""
    if precision == "float32":
        _in_float32.clear()  # one is enough: precisions follow one another
        _in_float32[(name, *size)] = result
    elif (name, *size) in _in_float32:
        expected = _in_float32[(name, *size)]
        difference = f"{np.abs(result - expected).mean() / np.abs(expected).mean():.1e}"
    verdict = "ok" if np.isfinite(result).all() else "FAILED: not finite"
    held = measure.held_bytes(compiled) / 2**30
    return Row("steps", case, verdict, ms=ms, rate=f"{1e3 / ms:.1f} frames/s", gib=held, difference=difference)


# A run that is killed. The process that runs this case is on the CPU: the device belongs to the runs.


def _killed(folder: Path, runs_on: str) -> Row:
    case = "a killed run ends in the same numbers"
    environment = {**os.environ, "JAX_PLATFORMS": runs_on}  # "": whatever there is

    def command(workdir: Path) -> list[str]:
        options = {
            "training.steps": 24,
            "training.checkpoint_every": 8,
            "training.evaluate_every": 24,
            "training.log_every": 8,
            "data.scenes.distinct_clips": 0,
            "data.scenes.sub_frames": 4,
            "evaluation.clips": 1,
            "evaluation.frames": 3,
        }
        given = [f"--config.{name}={value}" for name, value in options.items()]
        return [sys.executable, "train.py", "--config=configs/mtu.py:smoke", f"--workdir={workdir}", *given]

    def run(workdir: Path) -> None:
        done = subprocess.run(command(workdir), cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"train.py ended with code {done.returncode}: {done.stderr.strip()[-300:]}")

    start = time.perf_counter()
    run(folder / "whole")
    seconds = time.perf_counter() - start
    process = subprocess.Popen(
        command(folder / "killed"), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not any((folder / "killed").glob("checkpoints/[0-9]*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(folder / "killed")
    one, other = (jax.tree.leaves(load_model(folder / name)[1]) for name in ("whole", "killed"))
    worst = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(one, other, strict=True))
    result = "ok" if worst == 0 else "FAILED: other parameters"
    return Row(KILLED, case, result, ms=1e3 * seconds, difference=f"{worst:.1e}", rate="of a run of 24 updates")


if __name__ == "__main__":
    main()
