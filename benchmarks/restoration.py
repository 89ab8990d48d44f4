"""Time to restore a frame, against the network's own convolutions called alone.

    python -m benchmarks.restoration [--model mtu2] [--size 640x360] [--dtype float32] [--runs 7]

"alone" sums the median times of the frame's convolutions, each compiled and called by itself in the same process: what
is above it is matching, warping, activations and memory traffic.
"""

import argparse

import jax
import jax.numpy as jnp

from benchmarks import measure
from jaxdeblur import create_model
from jaxdeblur.models import initial_variables
from jaxdeblur.models.multi_task_unit import MultiTaskUnits


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
    first = jax.jit(lambda window: model.apply(variables, window, method="start"))(window)

    def step(carry, window):
        carry, outputs = model.apply(variables, carry, window, method="step")
        return carry, outputs.restored

    found = measure.convolutions(step, first, window)
    macs = sum(convolution.macs for convolution in found)
    if isinstance(model, MultiTaskUnits):
        config = model.config
        macs += measure.cost_volume_macs(1, height // 4, width // 4, 2 * config.channels, config.match_radius)

    compiled = jax.jit(step)
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
