"""Training in float16: what overflows is left out, and the scale of the loss follows."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdeblur.checkpoint import Checkpoints
from jaxdeblur.models import create_model
from jaxdeblur.training import loop
from jaxdeblur.training.loss_scale import LossScale, all_finite, loss_scale_of
from jaxdeblur.training.sharding import make_mesh, replicate, shard_batch
from jaxdeblur.training.state import from_items, init_state, to_items
from jaxdeblur.training.step import make_train_step

LARGEST = 65_504  # in float16


class Half:
    """loss = mean of a x, by way of float16: its gradient overflows where scale times x does. The carry counts."""

    groups = ("total",)
    past_frames = future_frames = 0

    def __init__(self, updates_per_batch=1):
        self.updates_per_batch = updates_per_batch
        self.traces = 0

    def learning_rate_name(self, group, path):
        return group

    def prepare(self, batch, frozen):
        return batch

    def init_carry(self, prepared):
        return {"count": jnp.zeros_like(prepared["sharp"])}

    def losses(self, params, statistics, prepared, carry, t, key):
        self.traces += 1
        x = prepared["sharp"].astype(jnp.float16)
        loss = jnp.mean((params["a"].astype(jnp.float16) * x).astype(jnp.float32))
        carry = {"count": carry["count"] + 1}
        return {"total": loss}, {"seen": statistics["seen"] + 1}, carry, {"count": jnp.mean(carry["count"])}


def started(optimizers, scale, mesh=None):
    variables = {"params": {"a": jnp.float32(3)}, "batch_stats": {"seen": jnp.float32(0)}}
    state = init_state(jax.random.key(0), variables, optimizers, ema=True, loss_scale=scale.init())
    return state if mesh is None else replicate(state, mesh)


def plain(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("microbatches", [1, 2])
def test_what_overflows_changes_nothing_and_halves_the_scale_which_grows_again(microbatches):
    objective, scale = Half(updates_per_batch=4), LossScale(2.0**19, growth_updates=3)
    optimizers = {"total": optax.adam(0.1)}
    step = make_train_step(objective, optimizers, loss_scale=scale, ema_decay=0.5, microbatches=microbatches)
    state = started(optimizers, scale)
    before = plain(state)
    batch = {"sharp": jnp.full((4, 1), 1.0)}
    # 2**19 to 2**16 are too large.
    state, metrics = step(state, batch, {})
    np.testing.assert_array_equal(metrics["skipped"], [1, 1, 1, 1])
    np.testing.assert_array_equal(metrics["loss_scale"], [2.0**18, 2.0**17, 2.0**16, 2.0**15])
    for field in ("params", "optimizer", "ema", "statistics", "key_data"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, field), plain(getattr(state, field)))
    np.testing.assert_array_equal(metrics["count"], [1, 1, 1, 1])  # handed on is what was before the update
    assert int(state.step) == 4
    state, metrics = step(state, batch, {})
    np.testing.assert_array_equal(metrics["skipped"], [0, 0, 0, 1])
    np.testing.assert_array_equal(metrics["loss_scale"], [2.0**15, 2.0**15, 2.0**16, 2.0**15])
    np.testing.assert_array_equal(metrics["count"], [1, 2, 3, 4])
    np.testing.assert_allclose(metrics["gradient_norm_total"][:3], 1.0, rtol=1e-6)
    np.testing.assert_allclose(state.params["a"], 3 - 0.3, rtol=1e-5)  # Adam's steps
    assert float(state.statistics["seen"]) == 3 * microbatches
    np.testing.assert_allclose(state.ema["a"], 2.7875, rtol=1e-5)  # of 3, 2.9, 2.8 and 2.7, by halves
    traces = objective.traces
    for _ in range(3):
        state, _ = step(state, batch, {})
    assert objective.traces == traces, "traced anew"


def test_all_devices_leave_out_what_overflows_on_one():
    mesh, scale = make_mesh(jax.devices()[:2]), LossScale(1024.0)
    optimizers = {"total": optax.sgd(1.0)}
    step = make_train_step(Half(), optimizers, loss_scale=scale, mesh=mesh)
    state = started(optimizers, scale, mesh)
    one_too_large = np.array([[1.0], [1.0], [1.0], [60_000.0]], np.float32)
    state, metrics = step(state, shard_batch({"sharp": one_too_large}, mesh), {})
    assert float(metrics["skipped"][0]) == 1
    for shard in state.params["a"].addressable_shards:
        assert float(shard.data) == 3
    for shard in state.loss_scale["scale"].addressable_shards:
        assert float(shard.data) == 512


def test_a_fixed_scale_leaves_out_nothing():
    optimizers = {"total": optax.sgd(1.0)}
    step = make_train_step(Half(), optimizers, loss_scale=2.0**17)
    state = init_state(
        jax.random.key(0),
        {"params": {"a": jnp.float32(3)}, "batch_stats": {"seen": jnp.float32(0)}},
        optimizers,
        ema=False,
    )
    state, metrics = step(state, {"sharp": jnp.full((4, 1), 1.0)}, {})
    assert set(metrics) == {"count", "loss_total", "gradient_norm_total"}
    assert not np.isfinite(metrics["gradient_norm_total"][0])
    with pytest.raises(loop.NonFiniteLossError, match=r"gradient_norm_total is not finite at step 1; the last"):
        loop._finite_rows([metrics], 1, 1)


def run(workdir, *, steps, initial=2.0**18, updates=2, value=1.0, stop_at=None):
    """A run on batches of one value. Returns its final state."""
    objective, scale = Half(updates), LossScale(initial, growth_updates=3)
    optimizers = {"total": optax.sgd(0.01)}
    step = make_train_step(objective, optimizers, loss_scale=scale, ema_decay=0.5)

    def batches(first):
        while True:
            yield {"sharp": jnp.full((2, 1), value)}

    return loop.train(
        started(optimizers, scale),
        lambda _: step,
        batches,
        frozen={},
        workdir=workdir,
        config={"model": {"name": "mtu1"}},
        steps=steps,
        updates_per_batch=updates,
        log_every=2 * updates,
        checkpoint_every=2 * updates,
        evaluate_every=1000,
        evaluate=lambda state: ({"psnr_db": 1.0}, np.zeros((4, 4, 3), np.uint8)),
        show_picture=lambda path, picture: None,
        enough=lambda made: stop_at is not None and made >= stop_at,
    )


def test_a_run_logs_what_it_leaves_out_and_goes_on_with_its_scale(tmp_path, capsys):
    whole = plain(to_items(run(tmp_path / "whole", steps=12)))
    lines = (tmp_path / "whole" / "losses.csv").read_text().splitlines()
    header = lines[0].split(",")
    first, second, third = (dict(zip(header, line.split(","), strict=True)) for line in lines[1:4])
    assert (first["skipped"], first["loss_scale"], first["loss_total"]) == ("2.0", str(2.0**16), "")
    assert (second["skipped"], second["loss_scale"]) == ("1.0", str(2.0**15))
    assert math.isfinite(float(second["loss_total"]))
    assert third["skipped"] == "0.0"
    assert "skipped 3  loss_scale 32768" in capsys.readouterr().out
    run(tmp_path / "parts", steps=4)
    parts = plain(to_items(run(tmp_path / "parts", steps=12)))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert (tmp_path / "parts" / "losses.csv").read_text() == (tmp_path / "whole" / "losses.csv").read_text()


def test_a_run_that_overflows_at_any_scale_ends_by_name_and_step(tmp_path):
    with pytest.raises(
        loop.NonFiniteLossError,
        match=r"^gradient_norm_total, loss_total is not finite at step 8, down to a loss scale of 0.0625; the last",
    ):
        run(tmp_path, steps=20, initial=8.0, value=math.inf)
    assert not (tmp_path / "checkpoints" / "8").exists()


def test_a_run_from_before_the_scale_was_kept_goes_on(tmp_path):
    scale, optimizers = LossScale(64.0), {"total": optax.sgd(0.01)}
    items = to_items(started(optimizers, scale))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, {name: tree for name, tree in items.items() if name != "loss_scale"}, {"model": {"name": "x"}})
    checkpoints.wait()
    restored = from_items(checkpoints.restore(items))
    checkpoints.close()
    assert float(restored.loss_scale["scale"]) == 64
    assert float(restored.params["a"]) == 3
    assert json.loads((tmp_path / "checkpoints" / "7" / "config" / "metadata").read_text())


def test_what_a_scale_can_be():
    for options in ({"initial": 0.5}, {"initial": float("nan")}, {"initial": 2.0, "growth_updates": 0}):
        with pytest.raises(ValueError, match=r"(training\.loss_scale|growth_updates) is .*expected 1 or more"):
            LossScale(**options)
    scale = LossScale(2.0**127, growth_updates=1)
    assert float(scale.after(scale.init(), jnp.bool(True))["scale"]) == 2.0**127
    networks = [create_model("mtu1", compute_dtype=kind) for kind in ("float32", "bfloat16", "float16")]
    assert loss_scale_of(*networks[:2], create_model("liteflownet")) == 1.0
    assert loss_scale_of(*networks) == LossScale(1024.0)
    assert bool(all_finite({"count": jnp.int32(3)}))
