"""Time to restore a frame, against the network's own convolutions called alone.

    python -m benchmarks.restoration [--model mtu2] [--size 640x360] [--dtype float32] [--runs 7]

"alone" sums the median times of the frame's convolutions, each compiled and called by itself in the same process: what
is above it is matching, warping, activations and memory traffic. Frames of a size that a network does not take are
filled up within the step, as restoring does; convolutions and multiply-accumulates are those of the filled-up size.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from jaxdeblur import create_model
from jaxdeblur.compilation import jit
from jaxdeblur.models import initial_variables
from jaxdeblur.models.multi_task_unit import QUARTER, MultiTaskUnits
from jaxdeblur.ops.resample import pad_to_multiple, unpad
from jaxdeblur.types import Clip, Image, PyTree, Variables


def frame_step(model: Any, variables: Variables) -> Callable[[PyTree, Clip], tuple[PyTree, Image]]:
    """(carry, window of any size) -> the next carry and the restored frame of that size."""

    def step(carry: PyTree, window: Clip) -> tuple[PyTree, Image]:
        filled, size = pad_to_multiple(window, model.size_multiple, model.padding)
        carry, outputs = model.apply(variables, carry, filled, method="step")
        return carry, unpad(outputs.restored, size)

    return step


def first_carry(model: Any, variables: Variables, window: Clip) -> PyTree:
    """Before the first frame of windows of a size."""
    filled, _ = pad_to_multiple(window, model.size_multiple, model.padding)
    return model.apply(variables, filled, method="start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mtu2")
    parser.add_argument("--size", default="640x360", help="width x height")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    width, height = (int(side) for side in arguments.size.split("x"))

    model = create_model(arguments.model, compute_dtype=arguments.dtype)
    variables = initial_variables(jax.random.key(0), model)
    frames = model.past_frames + 1 + model.future_frames
    window = jax.random.uniform(jax.random.key(1), (1, frames, height, width, 3))
    first = jit(functools.partial(first_carry, model, variables))(window)
    step = frame_step(model, variables)
    found = measure.convolutions(step, first, window)
    macs = sum(convolution.macs for convolution in found)
    if isinstance(model, MultiTaskUnits):
        config = model.config
        rows, columns = (-(-side // model.size_multiple) * model.size_multiple // QUARTER for side in (height, width))
        macs += measure.cost_volume_macs(1, rows, columns, 2 * config.channels, config.match_radius)

    compiled = jit(step)
    # The second frame: the first has no predecessor to match.
    carry, _ = compiled(first, window)
    ratio = measure.against_convolutions(lambda: compiled(carry, window), found, runs=arguments.runs)

    print(f"{arguments.model} {arguments.dtype} {width}x{height} on {measure.machine()}, median of {arguments.runs}")
    print(f"multiply-accumulates a frame    {macs / 1e9:8.1f} G")
    print(
        f"frame                           {ratio.whole_ms:8.1f} ms  {measure.gflops(macs, ratio.whole_ms):7.1f} GFLOP/s"
    )
    print(f"its {len(found):3d} convolutions alone      {ratio.alone_ms:8.1f} ms")
    print(f"frame over convolutions alone   {ratio.whole_ms / ratio.alone_ms:8.2f}")


if __name__ == "__main__":
    jnp.zeros(1)  # the backend starts before anything is timed
    main()
