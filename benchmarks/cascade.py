"""CDVD-TSP over a video: every window on its own, as released, against the stream that computes nothing twice.

    python -m benchmarks.cascade [--size 256x192] [--dtype float32] [--runs 5]

On its own a window of five frames takes 4 restorations and 8 flows, each with two feature pyramids; in the stream a
frame takes 2 and 4, and 2 pyramids. Multiply-accumulates are counted at the given size and at 1280x720. The windows'
time is flattered: a restoration here makes the middle frame's pyramid once for both of its flows.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from jaxdeblur import create_model
from jaxdeblur.compilation import jit
from jaxdeblur.models import example_inputs, initial_variables

Shape = jax.ShapeDtypeStruct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="256x192", help="width x height")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    width, height = (int(side) for side in arguments.size.split("x"))

    model = create_model("cdvd_tsp", compute_dtype=arguments.dtype)
    variables = initial_variables(jax.random.key(0), model)
    restore_middle = jit(lambda *frames: model.apply(variables, *frames, method="restore_middle").restored)
    window = jax.random.uniform(jax.random.key(1), (1, 5, height, width, 3))

    def on_its_own(window):
        first = [restore_middle(*(window[:, i + k] for k in range(3))) for i in range(3)]
        return restore_middle(*first)

    step = jit(lambda carry, window: model.apply(variables, carry, window, method="step"))
    carry = jit(lambda window: model.apply(variables, window, method="start"))(window)

    def in_stream():
        return step(carry, window)[1].restored

    difference = float(np.abs(on_its_own(window) - in_stream()).max())
    own_ms, stream_ms = [], []
    for _ in range(arguments.runs):  # in turns, so that other load meets both
        own_ms.append(measure.median_ms(lambda: on_its_own(window), runs=1, warm_up=0))
        stream_ms.append(measure.median_ms(in_stream, runs=1, warm_up=0))

    print(f"cdvd_tsp {arguments.dtype} on {measure.machine()}, median of {arguments.runs}")
    print(f"largest difference of a restored frame {difference:.1e}")
    print("                                windows on their own     stream      ratio")
    for size in ((height, width), (720, 1280)):
        own, stream = multiply_accumulates(model, *size)
        print(f"{size[1]:5d}x{size[0]:<5d}GMAC a frame      {own / 1e9:18.1f} {stream / 1e9:12.1f} {stream / own:9.3f}")
    medians = [float(np.median(times)) for times in (own_ms, stream_ms)]
    print(
        f"{width:5d}x{height:<5d}ms a frame        {medians[0]:18.1f} {medians[1]:12.1f} {medians[1] / medians[0]:9.3f}"
    )


def multiply_accumulates(model: Any, height: int, width: int) -> tuple[int, int]:
    """Of a frame restored in a window on its own, and in the stream."""
    rounded = [-(-side // 64) * 64 for side in (height, width)]
    frame = Shape((1, *rounded, 3), jnp.float32)
    flow_net = create_model("pwcnet_cdvd")
    weights = jax.eval_shape(flow_net.init, jax.random.key(0), *example_inputs(flow_net))

    def convolutions(method: str, *arguments) -> int:
        found = measure.convolutions(lambda w, *a: flow_net.apply(w, *a, method=method), weights, *arguments)
        return sum(convolution.macs for convolution in found)

    encoding = jax.eval_shape(lambda w, image: flow_net.apply(w, image, method="encode"), weights, frame)
    pyramid = convolutions("encode", frame)
    found = measure.convolutions(
        lambda w, a, b: flow_net.apply(w, a, b, *rounded, method="match"), weights, encoding, encoding
    )
    costs = 0
    for features in encoding.values():
        batch, rows, columns, channels = features.shape
        costs += measure.cost_volume_macs(batch, rows, columns, channels, 4)
    match = sum(convolution.macs for convolution in found) + costs

    every = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    stage = measure.convolutions(
        lambda w, *frames: model.apply(w, *frames, method="restore_middle").restored,
        every,
        *[Shape((1, height, width, 3), jnp.float32)] * 3,
    )
    # A stage as traced: three pyramids, two flows.
    restoration = sum(convolution.macs for convolution in stage) - 3 * pyramid - 2 * (match - costs)
    return 4 * restoration + 8 * (match + 2 * pyramid), 2 * restoration + 4 * match + 2 * pyramid


if __name__ == "__main__":
    main()
