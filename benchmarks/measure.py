"""Timing, multiply-accumulates, and what a network's convolutions cost when called alone."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.compilation import jit


def median_ms(call: Callable[[], Any], *, runs: int = 7, warm_up: int = 1) -> float:
    """Median wall time of a call whose result JAX may still be computing."""
    for _ in range(warm_up):
        jax.block_until_ready(call())
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


class Convolution(NamedTuple):
    """A convolution as it stands in a traced function."""

    input_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    dtype: Any
    parameters: dict[str, Any]
    macs: int

    def apply(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated_p.bind(x, kernel, **self.parameters)


def convolutions(function: Callable[..., Any], *arguments: Any) -> list[Convolution]:
    """Every convolution a call makes, in order."""
    closed = jax.make_jaxpr(function)(*arguments)
    return list(_walk(closed.jaxpr))


def _walk(jaxpr: Any) -> Iterator[Convolution]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            x, kernel = (variable.aval for variable in equation.invars)
            yield Convolution(x.shape, kernel.shape, x.dtype, dict(equation.params), _convolution_macs(equation))
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        if equation.primitive.name == "cond":  # also what depends on the platform: one branch is run
            yield from max(([*_walk(branch.jaxpr)] for branch in equation.params["branches"]), key=_macs)
            continue
        for inner in _inner(equation.params):
            for _ in range(repeats):
                yield from _walk(inner)


def _convolution_macs(equation: Any) -> int:
    """Each output value sums over the kernel's window and input channels."""
    kernel = equation.invars[1].aval
    channels_out = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return int(equation.outvars[0].aval.size * kernel.size // channels_out)


def _macs(found: list[Convolution]) -> int:
    return sum(convolution.macs for convolution in found)


def write_table(table: str, path: Path, marks: tuple[str, str]) -> None:
    """To a Markdown file; where that has both marks, between them."""
    text = path.read_text() if path.exists() else ""
    if all(mark in text for mark in marks):
        before, _, rest = text.partition(marks[0])
        _, _, after = rest.partition(marks[1])
        table = f"{before}{marks[0]}\n{table}\n{marks[1]}{after.rstrip()}"
    path.write_text(table + "\n")


def multiply_accumulates(function: Callable[..., Any], *arguments: Any) -> int:
    """Of all convolutions and matrix products that a call makes."""
    return _products(jax.make_jaxpr(function)(*arguments).jaxpr)


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            total += _convolution_macs(equation)
        elif name == "dot_general":
            (summed, _), _ = parameters["dimension_numbers"]
            total += equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[axis] for axis in summed)
        elif name == "cond":  # also what depends on the platform: one branch is run
            total += max(_products(branch.jaxpr) for branch in parameters["branches"])
        else:
            repeats = parameters.get("length", 1) if name == "scan" else 1
            total += repeats * sum(_products(inner) for inner in _inner(parameters))
    return total


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(part, "jaxpr", part)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


class Ratio(NamedTuple):
    """Median milliseconds of a call, and the sum over its convolutions of the median of each when called alone."""

    whole_ms: float
    alone_ms: float


def against_convolutions(call: Callable[[], Any], found: list[Convolution], *, runs: int = 7) -> Ratio:
    """Times a call and, each compiled and called alone, its convolutions: in turns, so that other load meets both."""
    alone: dict[str, Callable[[], Any]] = {}
    for convolution in found:
        generator = np.random.default_rng(0)
        x = jnp.asarray(generator.standard_normal(convolution.input_shape), convolution.dtype)
        kernel = jnp.asarray(generator.standard_normal(convolution.kernel_shape), convolution.dtype)
        alone.setdefault(repr(convolution), functools.partial(jit(convolution.apply), x, kernel))
    calls = {"": call, **alone}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(runs + 1):
        for name, one in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(one())
            if turn > 0:  # the first compiles
                times[name].append(time.perf_counter() - start)
    medians_ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    return Ratio(medians_ms[""], sum(medians_ms[repr(convolution)] for convolution in found))


def cost_volume_macs(batch: int, height: int, width: int, channels: int, radius: int) -> int:
    """What a local cost volume needs; blocked products compute more and throw it away."""
    return batch * height * width * channels * (2 * radius + 1) ** 2


def gflops(macs: float, ms: float) -> float:
    """Achieved 10^9 floating-point operations a second, two a multiply-accumulate."""
    return 2 * macs / ms / 1e6


def machine() -> str:
    """The device the figures are from."""
    device = jax.devices()[0]
    return f"{jax.device_count()} x {device.device_kind}, jax {jax.__version__}"


def held_bytes(compiled: jax.stages.Compiled) -> int:
    """What a compiled program holds at once: arguments, results, and what lies between."""
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
