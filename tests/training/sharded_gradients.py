"""What the sharding tests run on each arrangement of devices; as a script, one of two processes of two devices each."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax


def keep_gradients():
    """An optimiser that moves nothing and whose state is the last gradient."""

    def update(gradients, state, params=None):
        return jax.tree.map(jnp.zeros_like, gradients), gradients

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def gradients_and_metrics(mesh, microbatches=1, updates=1):
    """Gradients and metrics of a small model on a seeded batch of 8."""
    from jaxdeblur.models import create_model, example_inputs
    from jaxdeblur.objectives.multi_task_unit import MultiTaskUnitObjective
    from jaxdeblur.training.sharding import replicate, shard_batch
    from jaxdeblur.training.state import init_state
    from jaxdeblur.training.step import make_train_step

    model = create_model("mtu2", channels=4, residual_blocks=1, match_radius=2, weight_init="he")
    params = model.init(jax.random.key(0), *example_inputs(model))["params"]
    objective = MultiTaskUnitObjective(model, updates_per_batch=updates)
    optimizers = {group: keep_gradients() for group in objective.groups}
    generator = np.random.default_rng(0)
    batch = {
        "blurred": generator.random((8, updates + 4, 16, 16, 3), np.float32),
        "sharp": generator.random((8, updates, 16, 16, 3), np.float32),
        "flow_cur_to_prev": np.zeros((8, updates, 16, 16, 2), np.float32),
    }
    share = 8 // jax.process_count()
    mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    sharded = shard_batch({name: value[mine] for name, value in batch.items()}, mesh)
    state = replicate(init_state(jax.random.key(1), {"params": params}, optimizers, ema=False), mesh)
    state, metrics = make_train_step(objective, optimizers, microbatches=microbatches, mesh=mesh)(state, sharded, {})
    local = jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), (state.optimizer, metrics))
    return {"gradients": local[0], "metrics": local[1]}


def main():
    port, rank, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    from jaxdeblur.training.sharding import make_mesh

    assert jax.device_count() == 4
    result = gradients_and_metrics(make_mesh())
    if rank == 0:
        named = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(result)}
        np.savez(out, **named)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
