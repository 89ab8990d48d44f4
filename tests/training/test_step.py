import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdeblur.training.state import init_state
from jaxdeblur.training.step import make_train_step


class Draws:
    """An objective whose loss is what it draws."""

    groups = ("total",)
    updates_per_batch = 1
    past_frames = future_frames = 0

    def learning_rate_name(self, group, path):
        return group

    def prepare(self, batch, frozen):
        return batch

    def init_carry(self, prepared):
        return ()

    def losses(self, params, statistics, prepared, carry, t, key):
        drawn = jax.random.uniform(key)
        return {"total": drawn * params["a"]}, statistics, carry, {"drawn": drawn}


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_every_part_of_a_batch_draws_anew(microbatches):
    optimizers = {"total": optax.sgd(1.0)}
    step = make_train_step(Draws(), optimizers, microbatches=microbatches)
    with jax.numpy_dtype_promotion("standard"):
        state, metrics = step(
            init_state(jax.random.key(3), {"params": {"a": jnp.ones(())}}, optimizers, ema=False),
            {"sharp": jnp.zeros((4, 1))},
            {},
        )
    key = jax.random.fold_in(jax.random.key(3), 0)
    keys = [key] if microbatches == 1 else jax.random.split(key, microbatches)
    drawn = [float(jax.random.uniform(one)) for one in keys]
    assert len(set(drawn)) == microbatches
    np.testing.assert_allclose(metrics["drawn"], [np.mean(drawn)], rtol=1e-6)
    np.testing.assert_allclose(state.params["a"], 1 - np.mean(drawn), rtol=1e-5)


def test_the_moving_average_keeps_the_decays_share_of_what_it_was():
    optimizers = {"total": optax.sgd(1.0)}
    step = make_train_step(Draws(), optimizers, ema_decay=0.9)
    state = init_state(jax.random.key(3), {"params": {"a": jnp.ones(())}}, optimizers, ema=True)
    with jax.numpy_dtype_promotion("standard"):
        state, metrics = step(state, {"sharp": jnp.zeros((4, 1))}, {})
    np.testing.assert_allclose(state.params["a"], 1 - metrics["drawn"][0], rtol=1e-6)
    np.testing.assert_allclose(state.ema["a"], 0.9 + 0.1 * (1 - metrics["drawn"][0]), rtol=1e-6)
