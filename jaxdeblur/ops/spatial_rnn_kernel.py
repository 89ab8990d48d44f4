"""The four-directional recurrence as a Pallas kernel for NVIDIA GPUs (lowered by Triton).

A lane is one channel of one row or column. It walks its line from both ends at once and reads several positions before
it computes any, since there is little arithmetic and many reads have to be under way. Rows and columns run side by side
in one launch, which has twice the lanes of either. Of what is moved, only the features are read twice an axis, once for
each sense; whether the second read finds them in a cache is for the machine to show. Not yet timed on a GPU.

Backwards the two senses of a line follow each other in the same lane, so that they add up their gradients to the
features without atomic operations; rows and columns add theirs to arrays of their own, which are summed.

On a machine without a GPU the kernels are interpreted, slowly: for tests.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton as plgpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdeblur.types import Features

_LANES = 128  # of a program
_AHEAD = 8  # positions whose reads are under way at once

Ref = Any


@dataclasses.dataclass(frozen=True)
class _Lines:
    """The lines of a program's lanes: where their numbers lie in the flat arrays."""

    first_pixel: jax.Array  # (lanes,)
    channel: jax.Array  # (lanes,)
    exists: jax.Array  # (lanes,); the last program of an axis has lanes too many
    pixel_step: jax.Array  # from a position to the next
    length: jax.Array
    column: jax.Array  # 1 of columns, 0 of rows
    channels: int

    @property
    def blocks(self) -> jax.Array:
        """Of positions that are read at once."""
        return jax.lax.div(self.length + (_AHEAD - 1), np.int32(_AHEAD))

    def feature(self, position: jax.Array) -> jax.Array:
        return (self.first_pixel + position * self.pixel_step) * self.channels + self.channel

    def weight(self, position: jax.Array, sense: int) -> jax.Array:
        pixel = self.first_pixel + position * self.pixel_step
        return (pixel * 4 + 2 * self.column + sense) * self.channels + self.channel


def _programs(batch: int, height: int, width: int, channels: int) -> tuple[int, int]:
    """For rows and for columns."""
    return pl.cdiv(batch * height * channels, _LANES), pl.cdiv(batch * width * channels, _LANES)


def _lines(batch: int, height: int, width: int, channels: int) -> _Lines:
    row_programs, _ = _programs(batch, height, width, channels)
    program = pl.program_id(0)
    column = (program >= row_programs).astype(jnp.int32)

    # Arithmetic instead of jnp.where: Triton's lowering mistakes the types of two whole numbers to choose from.
    def choose(of_rows: Any, of_columns: Any) -> Any:
        return of_rows + column * (of_columns - of_rows)

    lane = (program - column * row_programs) * _LANES + jnp.arange(_LANES, dtype=jnp.int32)
    # Not // and %, which take care of signs that there are none of.
    line, channel = jax.lax.div(lane, np.int32(channels)), jax.lax.rem(lane, np.int32(channels))
    image, x = jax.lax.div(line, np.int32(width)), jax.lax.rem(line, np.int32(width))
    return _Lines(
        first_pixel=choose(line * width, image * (height * width) + x),
        channel=channel,
        exists=lane < channels * batch * choose(height, width),
        pixel_step=choose(1, width),
        length=choose(width, height),
        column=column,
        channels=channels,
    )


def _forward_kernel(f_ref: Ref, w_ref: Ref, h_ref: Ref, *, shape: tuple[int, int, int, int]) -> None:
    lines = _lines(*shape)

    def body(block: jax.Array, states: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        read = []
        for ahead in range(_AHEAD):
            travelled = block * _AHEAD + ahead
            exists = lines.exists & (travelled < lines.length)
            for sense, position in enumerate((travelled, lines.length - 1 - travelled)):
                f = _load(f_ref, lines.feature(position), exists)
                w = _load(w_ref, lines.weight(position, sense), exists)
                read.append((sense, position, exists, f, w))
        new = list(states)
        for sense, position, exists, f, w in read:
            new[sense] = f + w * (new[sense] - f)
            _store(h_ref, lines.weight(position, sense), new[sense], exists)
        return new[0], new[1]

    zeros = jnp.zeros(_LANES, jnp.float32)
    jax.lax.fori_loop(np.int32(0), lines.blocks, body, (zeros, zeros))


def _backward_kernel(
    f_ref: Ref,
    w_ref: Ref,
    h_ref: Ref,
    g_ref: Ref,
    df_ref: Ref,
    dw_ref: Ref,
    *,
    shape: tuple[int, int, int, int],
    interpret: bool,
) -> None:
    lines = _lines(*shape)
    # Rows' gradients to the features, then columns'.
    df_start = lines.column * math.prod(shape)

    for sense in (0, 1):

        def body(block: jax.Array, message: jax.Array, sense: int = sense) -> jax.Array:
            read = []
            for ahead in range(_AHEAD):
                travelled = block * _AHEAD + ahead
                exists = lines.exists & (travelled < lines.length)
                # Back along the direction; `before` is what the forward pass saw before.
                position = lines.length - 1 - travelled if sense == 0 else travelled
                before = position - 1 if sense == 0 else position + 1
                f = _load(f_ref, lines.feature(position), exists)
                w, g = (_load(ref, lines.weight(position, sense), exists) for ref in (w_ref, g_ref))
                h = _load(h_ref, lines.weight(before, sense), exists & (before >= 0) & (before < lines.length))
                at = df_start + lines.feature(position)
                df = 0.0 if sense == 0 else _load(df_ref, at, exists)
                read.append((position, at, exists, f, w, g, h, df))
            for position, at, exists, f, w, g, h, df in read:
                lam = g + message
                message = w * lam
                _store(df_ref, at, df + (lam - message), exists)
                _store(dw_ref, lines.weight(position, sense), lam * (h - f), exists)
            return message

        jax.lax.fori_loop(np.int32(0), lines.blocks, body, jnp.zeros(_LANES, jnp.float32))
        if sense == 0 and not interpret:
            plgpu.debug_barrier()  # the other sense reads what this one wrote


def _load(ref: Ref, index: jax.Array, exists: jax.Array) -> jax.Array:
    return plgpu.load(ref.at[index], mask=exists, other=0.0).astype(jnp.float32)


def _store(ref: Ref, index: jax.Array, value: jax.Array, exists: jax.Array) -> None:
    plgpu.store(ref.at[index], value.astype(ref.dtype), mask=exists)


def _launch(
    kernel: Callable[..., None], shape: tuple[int, int, int, int], out_shape: Any, *inputs: Features, interpret: bool
) -> Any:
    return pl.pallas_call(
        functools.partial(kernel, shape=shape),
        out_shape=out_shape,
        grid=(sum(_programs(*shape)),),
        compiler_params=plgpu.CompilerParams(num_warps=_LANES // 32),
        interpret=interpret,
    )(*(x.reshape(-1) for x in inputs))


def fits(weights: Features) -> bool:
    """Whether the kernels' 32-bit indices reach all of a device's share; not known of symbolic sizes (jax.export), of
    which Triton could not lower them, either."""
    return not any(map(export.is_symbolic_dim, weights.shape)) and weights.size < 2**31


def _check_reach(weights: Features) -> None:
    if not fits(weights):
        raise ValueError(f"the kernel reaches less than 2^31 weights a device, not {weights.size}; use form='chunked'")


def _forward(features: Features, weights: Features, *, interpret: bool) -> Features:
    _check_reach(weights)
    out = jax.ShapeDtypeStruct((weights.size,), features.dtype)
    h = _launch(_forward_kernel, features.shape, out, features, weights, interpret=interpret)
    return h.reshape(weights.shape)


def _backward(
    features: Features, weights: Features, h: Features, gradient: Features, *, interpret: bool
) -> tuple[Features, Features]:
    _check_reach(weights)
    out = (
        jax.ShapeDtypeStruct((2 * features.size,), jnp.float32),
        jax.ShapeDtypeStruct((weights.size,), weights.dtype),
    )
    kernel = functools.partial(_backward_kernel, interpret=interpret)
    d_features, d_weights = _launch(kernel, features.shape, out, features, weights, h, gradient, interpret=interpret)
    return d_features.reshape(2, *features.shape).sum(axis=0), d_weights.reshape(weights.shape)


def _split_over_devices(function: Callable[..., Any], inputs: int, outputs: int, interpret: bool) -> Callable[..., Any]:
    """A kernel that each device runs on the examples it holds: left to itself the compiler would gather the batch."""

    def run(*arrays: Features) -> Any:
        return function(*arrays, interpret=interpret)

    split = custom_partitioning(run)

    def partition(mesh: Any, arg_shapes: Any, result_shape: Any) -> tuple:
        del result_shape
        batch = (*arg_shapes[0].sharding.spec, None)[0]
        sharding = NamedSharding(mesh, P(batch))
        results = sharding if outputs == 1 else (sharding,) * outputs
        return mesh, run, results, (sharding,) * inputs

    arrays = [f"batch height width {name}" for name in "pqrstu"[: inputs + outputs]]
    split.def_partition(partition, sharding_rule=f"{', '.join(arrays[:inputs])} -> {', '.join(arrays[inputs:])}")
    return split


def _by_platform(function: Callable[..., Any], inputs: int, outputs: int) -> Callable[..., Any]:
    compiled, interpreted = (_split_over_devices(function, inputs, outputs, interpret) for interpret in (False, True))

    @custom_vmap
    def call(*arrays: Features) -> Any:
        return jax.lax.platform_dependent(*arrays, cuda=compiled, default=interpreted)

    @call.def_vmap
    def mapped(size: int, is_mapped: list[bool], *arrays: Features) -> tuple[Any, Any]:
        """The mapped axis becomes part of the batch."""
        whole = [x if one else jnp.broadcast_to(x, (size, *x.shape)) for x, one in zip(arrays, is_mapped)]
        results = call(*(x.reshape(-1, *x.shape[2:]) for x in whole))
        results = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), results)
        return results, jax.tree.map(lambda _: True, results)

    return call


forward = _by_platform(_forward, inputs=2, outputs=1)
backward = _by_platform(_backward, inputs=4, outputs=2)
