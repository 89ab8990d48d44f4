"""Which input pixels a restored frame comes from: guided back-propagation (Springenberg et al., ICLR workshop 2015).

The gradient of the restored frame to the input, but that every ReLU hands back only gradients above zero. Chen et al.
(ICCP 2018) show it before and after tuning: spread out where the network knows how the scene moved, a point where it
hands its input through.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxdeblur.compilation import jit
from jaxdeblur.data.clips import frame_windows
from jaxdeblur.data.image_io import StrPath
from jaxdeblur.data.unlabelled import stacked
from jaxdeblur.data.video_folder import read_frames
from jaxdeblur.models.windows import memory_frames, restore_consecutive
from jaxdeblur.ops.resample import pad_to_multiple, unpad
from jaxdeblur.restoration.explanation import contact_sheet
from jaxdeblur.types import Array, Clip, Variables


def saliency(model: Any, variables: Variables, clip: Clip, *, region: Array | None = None) -> jax.Array:
    """How much each input pixel adds to the last frame a clip lets a model restore.

    The paper does not say what is differentiated; here it is the sum of the restored values. LeakyReLU is guided like
    ReLU, which the paper's networks do not have; GELU, sigmoid, tanh, gates and normalisation keep their own
    derivatives. Of networks without a ReLU, such as NAFNet and ESTRNN, this is the gradient itself.

    Args:
        clip: (B, past + n + future, H, W, 3) in [0, 1], of any size; a model with a memory runs through n - 1 frames.
        region: (H, W), True where restored pixels count; None: everywhere.
    Returns:
        (B, past + n + future, H, W), summed over colours.
    """

    def total(clip: Clip) -> jax.Array:
        padded, size = pad_to_multiple(clip, model.size_multiple, model.padding)
        restored, _ = restore_consecutive(model, variables, padded, count=1)
        values = unpad(restored, size)
        return jnp.sum(values if region is None else jnp.where(region[..., None], values, jnp.zeros((), values.dtype)))

    return jnp.sum(jax.grad(with_guided_relus(total))(jnp.asarray(clip, jnp.float32)), axis=-1)


def saliency_sheet(
    model: Any, each: Mapping[str, Variables], window: Array, *, region: Array | None = None
) -> np.ndarray:
    """A frame and its saliency by each of several variables, under their names and all on one scale: uint8.

    Args:
        window: (past + n + future, H, W, 3) around the frame, as `saliency` has it.
    """
    run = jit(functools.partial(saliency, model))
    at = len(window) - 1 - model.future_frames
    maps = {name: np.asarray(run(variables, window[None], region=region))[0, at] for name, variables in each.items()}
    scale = max(float(np.percentile(np.abs(np.stack(list(maps.values()))), 99.5)), 1e-12)
    frame_u8 = np.rint(255 * np.clip(window[at], 0, 1)).astype(np.uint8)
    pictures = {name: saliency_picture(values, scale=scale) for name, values in maps.items()}
    return contact_sheet({"blurred": frame_u8, **pictures})


def saliency_of_frame(
    source: StrPath,
    model: Any,
    each: Mapping[str, Variables],
    *,
    frame: int,
    region_px: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """`saliency_sheet` of a frame of a video, or of a folder of images.

    Args:
        frame: its number, from 0.
        region_px: left, top, width and height of the restored pixels that are asked about; None: all.
    Raises:
        ValueError, OSError: the source cannot be read or has no such frame; the region lies outside it.
    """
    before = model.past_frames + memory_frames(model)
    windows = frame_windows(read_frames(source), before, model.future_frames, beyond_ends=model.beyond_ends)
    window = next(itertools.islice(windows, frame, None), None) if frame >= 0 else None
    if window is None:
        raise ValueError(f"{source}: has no frame {frame}; frames are counted from 0")
    clip = stacked(window)
    region = None
    if region_px is not None:
        left, top, width, height = region_px
        region = np.zeros(clip.shape[1:3], bool)
        region[top : top + height, left : left + width] = True
        if min(left, top) < 0 or np.sum(region) != width * height or not width * height:
            raise ValueError(f"region {region_px} lies outside frames of {clip.shape[2]}x{clip.shape[1]}, or is empty")
    return saliency_sheet(model, each, clip, region=region)


def saliency_picture(saliency: Array, *, scale: float) -> np.ndarray:
    """(H, W) as (H, W, 3) uint8: red where positive, green where negative, brightest from `scale` on."""
    values = np.asarray(saliency, np.float64)
    picture = np.stack([np.maximum(values, 0), np.maximum(-values, 0), np.zeros_like(values)], axis=-1)
    return np.rint(255 * np.clip(picture / scale, 0, 1)).astype(np.uint8)


def with_guided_relus(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, of which every `jax.nn.relu` and `jax.nn.leaky_relu` hands back only gradients above zero,
    times its own slope.

    Networks are left as they are: the function is traced, and its operations are run anew one by one.

    Raises:
        ValueError: when called, if there is such an activation inside a branch or a loop without a fixed length, which
            are not looked into.
    """

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        traced, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = _run(traced.jaxpr, traced.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return run


def _run(jaxpr: core.Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        if _is_relu(equation):
            outputs = [_guided(functools.partial(_evaluate, equation), *inputs)]
        elif equation.primitive.name in _CALLS:
            inner = equation.params["jaxpr"]
            outputs = _run(inner.jaxpr, inner.consts, inputs)
        elif equation.primitive.name == "scan":
            outputs = _scan(equation, inputs)
        elif any(map(_count_relus, _inside(equation))):
            raise ValueError(f"there is a ReLU inside {equation.primitive}, which cannot be guided")
        else:
            outputs = _evaluate(equation, *inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _scan(equation: core.JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """A loop over a leading axis, of which each turn is run as above."""
    body = equation.params["jaxpr"]
    # A turn has constants, what is carried and one of each stack; the loop gives what is carried and stacks.
    carried = _count_alike(equation.outvars, body.jaxpr.outvars)
    constants = _count_alike(equation.invars, body.jaxpr.invars) - carried

    def turn(carry: list[Any], one: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = _run(body.jaxpr, body.consts, [*inputs[:constants], *carry, *one])
        return outputs[:carried], outputs[carried:]

    first, each = list(inputs[constants : constants + carried]), list(inputs[constants + carried :])
    how = {name: equation.params[name] for name in ("length", "reverse")}
    last, stacked_outputs = jax.lax.scan(turn, first, each, **how)
    return [*last, *stacked_outputs]


def _count_alike(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """How many variables have as many axes outside a loop as inside."""
    return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in zip(outside, inside, strict=True))


def _evaluate(equation: core.JaxprEqn, *inputs: Any) -> list[Any]:
    """One operation as it is."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, parameters = bound if isinstance(bound, tuple) else ((), bound)  # before jax 0.8; since
    outputs = equation.primitive.bind(*functions, *inputs, **parameters)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _guided(relu: Callable[..., list[Any]], *inputs: Any) -> jax.Array:
    return relu(*inputs)[0]


def _guided_forward(relu: Callable[..., list[Any]], *inputs: Any) -> tuple[jax.Array, tuple[Any, ...]]:
    return relu(*inputs)[0], inputs


def _guided_backward(relu: Callable[..., list[Any]], inputs: tuple[Any, ...], cotangent: jax.Array) -> tuple[Any, ...]:
    _, transpose = jax.vjp(lambda *inputs: relu(*inputs)[0], *inputs)
    return transpose(jnp.maximum(cotangent, jnp.zeros((), cotangent.dtype)))


_guided.defvjp(_guided_forward, _guided_backward)

_CALLS = ("jit", "pjit")
"""Operations that only call a function."""


def _is_relu(equation: core.JaxprEqn) -> bool:
    """jax.nn.leaky_relu is a compiled function; jax.nn.relu, too, in one with a derivative rule of its own."""
    if equation.primitive.name == "custom_jvp_call":
        inside = equation.params["call_jaxpr"].jaxpr.eqns
        return len(inside) == 1 and inside[0].primitive.name in _CALLS and inside[0].params["name"] == "relu"
    return equation.primitive.name in _CALLS and equation.params["name"] == "leaky_relu"


def _count_relus(jaxpr: core.Jaxpr) -> int:
    """How many there are, at any depth."""
    return sum(1 if _is_relu(equation) else sum(map(_count_relus, _inside(equation))) for equation in jaxpr.eqns)


def _inside(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    """What an operation runs: the function it calls, the body of a loop, the branches of a condition."""
    found = [getattr(leaf, "jaxpr", leaf) for leaf in jax.tree.leaves(list(equation.params.values()))]
    return [jaxpr for jaxpr in found if isinstance(jaxpr, core.Jaxpr)]
