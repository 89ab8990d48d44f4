"""Time of a train step, against the convolutions of its forward and backward pass called alone.

    python -m benchmarks.train_step [--model mtu2] [--crop 96] [--batch 2] [--dtype float32] [--runs 5]

One optimiser update of the released recipe (both gradients, both Adams) on a frame of a batch.
"""

import argparse
import functools

import jax
import jax.numpy as jnp

from benchmarks import measure
from jaxdeblur import create_model
from jaxdeblur.models import initial_variables
from jaxdeblur.objectives.multi_task_unit import MultiTaskUnitObjective
from jaxdeblur.training.optimizers import make_optimizer, make_schedule
from jaxdeblur.training.state import init_state
from jaxdeblur.training.step import make_train_step
from jaxdeblur.types import Batch

FRAMES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mtu2")
    parser.add_argument("--crop", type=int, default=96, help="pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    size, batch_size = arguments.crop, arguments.batch

    model = create_model(arguments.model, compute_dtype=arguments.dtype)
    params = initial_variables(jax.random.key(0), model)["params"]
    objective = MultiTaskUnitObjective(model, updates_per_batch=FRAMES)
    optimizers = {
        group: make_optimizer(
            {group: make_schedule(1e-4, kind="constant", steps=1)},
            functools.partial(objective.learning_rate_name, group),
            adam={"b1": 0.9, "b2": 0.999, "eps": 1e-8},
            clip_norm=1.0,
        )
        for group in objective.groups
    }
    keys = jax.random.split(jax.random.key(1), 2)
    batch: Batch = {
        "blurred": jax.random.uniform(keys[0], (batch_size, FRAMES + 4, size, size, 3)),
        "sharp": jax.random.uniform(keys[1], (batch_size, FRAMES, size, size, 3)),
        "flow_cur_to_prev": jnp.ones((batch_size, FRAMES, size, size, 2)),
    }
    train_step = make_train_step(objective, optimizers)
    state = init_state(jax.random.key(2), {"params": params}, optimizers, ema=False)

    def step():
        nonlocal state
        state, metrics = train_step(state, batch, {})
        return metrics

    def gradients(params):
        prepared = objective.prepare(batch, {})
        carry = objective.init_carry(prepared)

        def losses(params):
            return objective.losses(params, {}, prepared, carry, jnp.int32(0), keys[0])[0]

        values, tangent = jax.linearize(losses, params)
        return [
            jax.linear_transpose(lambda p, group=group: tangent(p)[group], params)(jnp.ones_like(values[group]))
            for group in objective.groups
        ]

    found = measure.convolutions(gradients, params)
    macs = sum(convolution.macs for convolution in found)
    ratio = measure.against_convolutions(step, found, runs=arguments.runs)
    step_ms, alone_ms = ratio.whole_ms / FRAMES, ratio.alone_ms

    name = f"{arguments.model} {arguments.dtype} {batch_size} x {size}x{size}"
    print(f"{name} on {measure.machine()}, median of {arguments.runs}")
    print(f"multiply-accumulates an update  {macs / 1e9:8.1f} G, all in convolutions")
    print(f"update                          {step_ms:8.1f} ms  {measure.gflops(macs, step_ms):7.1f} GFLOP/s")
    print(f"its {len(found):3d} convolutions alone      {alone_ms:8.1f} ms")
    print(f"update over convolutions alone  {step_ms / alone_ms:8.2f}")
    print(f"frames a second                 {1e3 * batch_size / step_ms:8.2f}")


if __name__ == "__main__":
    main()
