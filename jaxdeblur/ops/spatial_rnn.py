"""Spatially variant recurrences: every pixel's own weights say how far what was seen before travels through it.

One operation, `four_direction_recurrence`, in five forms that give the same numbers. What is fastest differs: a CPU
wants few passes over memory, a GPU thousands of lines at once and no pause between positions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from jaxdeblur.ops import spatial_rnn_kernel
from jaxdeblur.types import Array, Features

Form: TypeAlias = Literal["sequential", "blocked", "associative", "chunked", "kernel"]
FORMS: tuple[Form, ...] = get_args(Form)

DIRECTIONS = ("left to right", "right to left", "top to bottom", "bottom to top")
"""In the order of the blocks of weights and of the result."""

_AXES = (2, 2, 1, 1)  # of (B, H, W, C), by direction
_BACKWARDS = (False, True, False, True)  # whether a direction goes from high to low numbers

_UNROLL = 8  # positions that an iteration of "sequential" takes
_BLOCK = 8  # positions that an iteration of "blocked" takes; 4 to 16 measured alike on CPU
_CHUNK = 32  # positions of a chunk


def four_direction_recurrence(features: Features, weights: Features, *, form: Form | None = None) -> Features:
    """Runs a linear recurrence over every row and column, in both senses.

    Along each direction, at the line's position i counted in the direction of travel, every channel by itself:

        h_i = (1 - w_i) f_i + w_i h_{i-1},  h_{-1} = 0                            Zhang et al. (TCSVT 2021)

    Its gradient is the same recurrence run back (lambda_i = g_i + w_{i+1} lambda_{i+1}, df_i = (1 - w_i) lambda_i,
    dw_i = lambda_i (h_{i-1} - f_i)), from f, w and h alone: nothing else is kept of the forward pass.

    Args:
        features: f, (B, H, W, C), any range.
        weights: w, (B, H, W, 4 C): a block of C channels a direction, in the order of DIRECTIONS. Between -1 and 1 the
            recurrence is stable, whatever the length.
        form: None takes what measured fastest on CPU ("blocked", see benchmarks/recurrence.py), "kernel" on an NVIDIA
            GPU as far as its indices reach, and "chunked" elsewhere; the last two are not yet timed. Of symbolic sizes
            (jax.export), multiples of 8, the kernel takes none.
            "sequential": one position after the other, the scanned axis first in memory.
            "blocked": likewise, both senses at once, blocks of positions in place, so that nothing is transposed.
            "associative": a tree of compositions of affine maps.
            "chunked": chunks of 32 positions side by side, then the chunks' ends one after the other.
            "kernel": for NVIDIA GPUs, in Pallas: a lane walks its line from both ends at once.
    Returns:
        h, (B, H, W, 4 C), the directions as in `weights`, in the features' dtype; the state is float32 in any case.
        There is no forward-mode derivative. Under jit a batch that is split over devices stays split; jax.shard_map
        has to be given check_vma=False.
    Raises:
        ValueError: shapes that do not fit, numbers that are not floating, an unknown form, or with "kernel" arrays
            beyond its reach.
    """
    if features.ndim != 4 or weights.shape != (*features.shape[:-1], 4 * features.shape[-1]) or 0 in features.shape:
        raise ValueError(
            f"features {features.shape} and weights {weights.shape} must be (B, H, W, C) and (B, H, W, 4 C), not empty"
        )
    features, weights = jnp.asarray(features), jnp.asarray(weights)
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (features, weights)):
        raise ValueError(f"features are {features.dtype} and weights {weights.dtype}; expected floating numbers")
    if form is None:
        return jax.lax.platform_dependent(
            features,
            weights,
            cpu=functools.partial(_recurrence, "blocked"),
            cuda=functools.partial(_recurrence, "kernel" if spatial_rnn_kernel.fits(weights) else "chunked"),
            default=functools.partial(_recurrence, "chunked"),
        )
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(FORMS)}")
    return _recurrence(form, features, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(form: Form, features: Features, weights: Features) -> Features:
    forward, _ = _FORMS[form]
    return forward(features, weights)


def _recurrence_forward(
    form: Form, features: Features, weights: Features
) -> tuple[Features, tuple[Features, Features, Features]]:
    h = _recurrence(form, features, weights)
    return h, (features, weights, h)


def _recurrence_backward(
    form: Form, kept: tuple[Features, Features, Features], gradient: Features
) -> tuple[Features, Features]:
    features, weights, h = kept
    _, backward = _FORMS[form]
    d_features, d_weights = backward(features, weights, h, gradient)
    return d_features.astype(features.dtype), d_weights.astype(weights.dtype)


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)


# The forms that only know how to run an affine recurrence along one axis.

AffineScan: TypeAlias = Callable[[Array, Array, int, bool], jax.Array]
"""(a, b, axis, backwards) -> h of h_i = a_i h_{i-1} + b_i, h_{-1} = 0, float32."""


def _forward_by_scans(scan: AffineScan, features: Features, weights: Features) -> Features:
    f = features.astype(jnp.float32)
    directions = []
    for block, axis, backwards in zip(jnp.split(weights, 4, axis=-1), _AXES, _BACKWARDS):
        w = block.astype(jnp.float32)
        directions.append(scan(w, (1 - w) * f, axis, backwards).astype(features.dtype))
    return jnp.concatenate(directions, axis=-1)


def _backward_by_scans(
    scan: AffineScan, features: Features, weights: Features, h: Features, gradient: Features
) -> tuple[Features, Features]:
    adjoints = []
    blocks = (jnp.split(x, 4, axis=-1) for x in (weights, gradient))
    for w, g, axis, backwards in zip(*blocks, _AXES, _BACKWARDS):
        w, g = (x.astype(jnp.float32) for x in (w, g))
        adjoints.append(scan(_earlier(w, axis, not backwards), g, axis, not backwards))
    return _gradients(features, weights, h, adjoints)


def _gradients(
    features: Features, weights: Features, h: Features, adjoints: Sequence[jax.Array]
) -> tuple[Features, Features]:
    """df and dw from what the recurrence run back gives, lambda of every direction."""
    f = features.astype(jnp.float32)
    d_features, d_weights = jnp.zeros_like(f), []
    blocks = (jnp.split(x, 4, axis=-1) for x in (weights, h))
    for w, h_i, lam, axis, backwards in zip(*blocks, adjoints, _AXES, _BACKWARDS):
        h_before = _earlier(h_i, axis, backwards).astype(jnp.float32)
        d_features = d_features + (1 - w.astype(jnp.float32)) * lam
        d_weights.append((lam * (h_before - f)).astype(weights.dtype))
    return d_features, jnp.concatenate(d_weights, axis=-1)


def _earlier(x: jax.Array, axis: int, backwards: bool) -> jax.Array:
    """At each position what stands at the position before it in the direction of travel; zero at the first."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, 1) if backwards else (1, 0)
    start = 1 if backwards else 0
    return jax.lax.slice_in_dim(jnp.pad(x, pad), start, start + x.shape[axis], axis=axis)


def _sequential(a: Array, b: Array, axis: int, backwards: bool) -> jax.Array:
    def step(h: jax.Array, position: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h = position[0] * h + position[1]
        return h, h

    lines = (jnp.moveaxis(a, axis, 0), jnp.moveaxis(b, axis, 0))
    _, h = jax.lax.scan(step, jnp.zeros_like(lines[1][0]), lines, reverse=backwards, unroll=_UNROLL)
    return jnp.moveaxis(h, 0, axis)


def _compose(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
    """Of affine maps h -> a h + b. Products of weights only shrink, so that nothing overflows."""
    return earlier[0] * later[0], later[0] * earlier[1] + later[1]


def _associative(a: Array, b: Array, axis: int, backwards: bool) -> jax.Array:
    return jax.lax.associative_scan(_compose, (a, b), axis=axis, reverse=backwards)[1]


def _chunked(a: Array, b: Array, axis: int, backwards: bool) -> jax.Array:
    length = b.shape[axis]
    chunks = -(-length // _CHUNK)
    missing = chunks * _CHUNK - length

    def cut(x: Array) -> jax.Array:
        """Lines -> (position in its chunk, chunk, ...). What is missing goes to the end of travel."""
        x = jnp.moveaxis(x, axis, 0)
        x = jnp.pad(x, [(missing, 0) if backwards else (0, missing)] + [(0, 0)] * (x.ndim - 1))
        return jnp.swapaxes(x.reshape(chunks, _CHUNK, *x.shape[1:]), 0, 1)

    def within(
        state: tuple[jax.Array, jax.Array], position: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        state = _compose(state, position)
        return state, state

    def across(h: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return chunk[0] * h + chunk[1], h

    a_cut, b_cut = cut(a), cut(b)
    identity = (jnp.ones_like(b_cut[0]), jnp.zeros_like(b_cut[0]))
    ends, (products, own) = jax.lax.scan(within, identity, (a_cut, b_cut), reverse=backwards, unroll=_UNROLL)
    _, incoming = jax.lax.scan(across, jnp.zeros_like(b_cut[0, 0]), ends, reverse=backwards)
    h = jnp.swapaxes(own + products * incoming[None], 0, 1).reshape(chunks * _CHUNK, *b_cut.shape[2:])
    return jnp.moveaxis(jax.lax.slice_in_dim(h, missing if backwards else 0, None if backwards else length), 0, axis)


# "blocked": loops over the arrays as they lie.


def _forward_blocked(features: Features, weights: Features) -> Features:
    def position(h: jax.Array, f_i: jax.Array, w_i: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = f_i + w_i * (h - f_i)
        return h, h

    return _walk(position, features, weights, _BACKWARDS, features.dtype)


def _backward_blocked(
    features: Features, weights: Features, h: Features, gradient: Features
) -> tuple[Features, Features]:
    def position(message: jax.Array, g_i: jax.Array, w_i: jax.Array) -> tuple[jax.Array, jax.Array]:
        lam = g_i + message
        return w_i * lam, lam  # the message is w_{i+1} lambda_{i+1}

    back = tuple(not backwards for backwards in _BACKWARDS)
    adjoints = _walk(position, gradient, weights, back, jnp.float32)
    return _gradients(features, weights, h, jnp.split(adjoints, 4, axis=-1))


def _walk(
    position: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    inputs: Features,
    weights: Features,
    backwards: tuple[bool, ...],
    dtype: Any,
) -> jax.Array:
    """Carries a state along every direction.

    Args:
        position: (state, input, weight) -> (state, result), at one position of all lines.
        inputs: (B, H, W, C), seen by all directions, or (B, H, W, 4 C), a block a direction.
        backwards: which directions go from high to low numbers.
    """
    channels = weights.shape[-1] // 4
    own_input = inputs.shape[-1] == weights.shape[-1]

    def block(
        states: tuple[jax.Array, ...], out: jax.Array, direction: int, start: Any, size: int
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """Positions start .. start + size - 1 of an axis, in one direction."""
        axis, own, sense = _AXES[direction], direction * channels, direction % 2
        x = _read(inputs, axis, start, size, own if own_input else 0, channels)
        w = _read(weights, axis, start, size, own, channels)
        state, results = states[sense], {}
        for i in reversed(range(size)) if backwards[direction] else range(size):
            state, results[i] = position(state, _at(x, axis, i), _at(w, axis, i))
        out = _write(out, [results[i] for i in range(size)], axis, start, own)
        return (state, states[1]) if sense == 0 else (states[0], state), out

    out = jnp.empty(weights.shape, dtype)
    for axis, directions in ((2, (0, 1)), (1, (2, 3))):
        length = weights.shape[axis]
        whole, rest = divmod(length, _BLOCK)

        def both(
            index: jax.Array | int, carry: tuple, size: int, directions: Any = directions, length: int = length
        ) -> tuple:
            done = index * _BLOCK
            for direction in directions:
                carry = block(
                    carry[0], carry[1], direction, length - done - size if backwards[direction] else done, size
                )
            return carry

        zeros = jnp.zeros_like(_at(weights[..., :channels], axis, 0), jnp.float32)
        carry = ((zeros, zeros), out)
        if whole:
            carry = jax.lax.fori_loop(0, whole, functools.partial(both, size=_BLOCK), carry)
        _, out = both(whole, carry, rest) if rest else carry
    return out


def _read(x: Array, axis: int, start: Any, size: int, first_channel: int, channels: int) -> jax.Array:
    """Positions start .. start + size - 1 of an axis, float32."""
    starts, sizes = [0, 0, 0, first_channel], [*x.shape[:-1], channels]
    starts[axis], sizes[axis] = start, size
    return jax.lax.dynamic_slice(x, starts, sizes).astype(jnp.float32)


def _write(x: jax.Array, positions: list[jax.Array], axis: int, start: Any, first_channel: int) -> jax.Array:
    starts = [0, 0, 0, first_channel]
    starts[axis] = start
    return jax.lax.dynamic_update_slice(x, jnp.concatenate(positions, axis=axis).astype(x.dtype), starts)


def _at(x: Array, axis: int, position: int) -> jax.Array:
    """One position of an axis, which is kept."""
    return jax.lax.slice_in_dim(x, position, position + 1, axis=axis)


def _by_scans(scan: AffineScan) -> tuple[Callable, Callable]:
    return functools.partial(_forward_by_scans, scan), functools.partial(_backward_by_scans, scan)


_FORMS: dict[Form, tuple[Callable, Callable]] = {
    "sequential": _by_scans(_sequential),
    "blocked": (_forward_blocked, _backward_blocked),
    "associative": _by_scans(_associative),
    "chunked": _by_scans(_chunked),
    "kernel": (spatial_rnn_kernel.forward, spatial_rnn_kernel.backward),
}
"""(features, weights) -> h; (features, weights, h, gradient) -> gradients to features and weights."""
