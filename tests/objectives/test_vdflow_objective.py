"""VDFlow's losses by their formulas, and what stands still in a branch's turn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdeblur import create_model
from jaxdeblur.losses.flow import multi_scale_end_point_error, multi_scale_warping_error
from jaxdeblur.models import initial_variables
from jaxdeblur.objectives import Objective
from jaxdeblur.objectives.vdflow import FLOW_WEIGHTS, VDFlowObjective, branches
from jaxdeblur.training.optimizers import make_optimizer
from jaxdeblur.training.plateau import Plateau
from jaxdeblur.training.state import init_state
from jaxdeblur.training.step import make_train_step

SIZE = 64


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def model(name="vdflow"):
    return create_model(name, width=1 / 32)


@functools.cache
def variables(name="vdflow"):
    return initial_variables(jax.random.key(0), model(name))


def a_batch(batch=2, around=2, **leave_out):
    rng = np.random.default_rng(0)
    made = {
        "blurred": rng.random((batch, 2 * around + 1, SIZE, SIZE, 3), np.float32),
        "sharp": rng.random((batch, 1, SIZE, SIZE, 3), np.float32),
    }
    for side in ("prev", "next"):
        made[f"flow_cur_to_{side}"] = rng.normal(0, 3, (batch, 1, SIZE, SIZE, 2)).astype(np.float32)
        made[f"valid_cur_to_{side}"] = rng.random((batch, 1, SIZE, SIZE)) < 0.8
    return {name: values for name, values in made.items() if name not in leave_out}


def losses(objective, batch, name="vdflow"):
    given = variables(name)
    prepared = objective.prepare(batch, {})
    run = jax.jit(objective.losses)
    found = run(given["params"], given.get("batch_stats", {}), prepared, (), jnp.int32(0), jax.random.key(0))
    return found[0], found[1], found[3]


def outputs(batch, **options):
    apply = jax.jit(functools.partial(model().apply, method="restore_window", **options))
    return apply(variables(), batch["blurred"])


def test_the_deblurring_loss_is_a_sum_over_pixels_by_the_batchs_statistics():
    objective, batch = VDFlowObjective(model(), "deblur"), a_batch()
    assert isinstance(objective, Objective)
    found, statistics, terms = losses(objective, batch)
    out, moved = outputs(batch, train=True, mutable=["batch_stats"])
    error = (np.asarray(out.restored, np.float64) - batch["sharp"][:, 0]) ** 2
    np.testing.assert_allclose(found["deblur"], error.sum() / 2, rtol=1e-5)
    np.testing.assert_allclose(terms["mean_squared_error"], error.mean(), rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), statistics, moved["batch_stats"])
    # Held-out data are scored as the network is used: by running statistics.
    held_out = objective.held_out_loss(variables()["params"], variables()["batch_stats"], batch)
    error = (np.asarray(outputs(batch).restored, np.float64) - batch["sharp"][:, 0]) ** 2
    np.testing.assert_allclose(held_out, error.sum() / 2, rtol=1e-5)


LABELLED = ["flow_cur_to_prev", "valid_cur_to_prev", "flow_cur_to_next", "valid_cur_to_next"]


@pytest.mark.parametrize(
    "without", [[], ["sharp"], LABELLED[:2], LABELLED], ids=["both ways", "no sharp", "forward", "unlabelled"]
)
def test_the_flow_loss_is_of_true_flow_where_there_is_one_and_of_warping_elsewhere(without):
    batch = a_batch(**dict.fromkeys(without))
    found, statistics, terms = losses(VDFlowObjective(model(), "flow", flow_weight=0.5), batch)
    out, expected = outputs(batch), 0.0
    current = batch["blurred"][:, 2]
    for side, levels, other in (("prev", out.levels_cur_to_prev, 1), ("next", out.levels_cur_to_next, 3)):
        if f"flow_cur_to_{side}" in batch:
            truth = batch[f"flow_cur_to_{side}"][:, 0], batch[f"valid_cur_to_{side}"][:, 0]
            errors = multi_scale_end_point_error(levels, *truth, weights=FLOW_WEIGHTS)
        else:
            errors = multi_scale_warping_error(levels, current, batch["blurred"][:, other], weights=FLOW_WEIGHTS)
        expected += 0.5 * float(np.mean(errors))
    np.testing.assert_allclose(found["flow"], expected, rtol=1e-4)
    assert np.isfinite(list(terms.values())).all()
    # The other branch's statistics are read and left alone.
    jax.tree.map(np.testing.assert_array_equal, statistics, variables()["batch_stats"])


def test_branches_alone_have_the_same_losses():
    batch = a_batch(around=1, **dict.fromkeys(LABELLED[:2]))
    objective = VDFlowObjective(model("flownets"), "flow")
    assert (objective.past_frames, objective.future_frames) == (1, 1)
    found, statistics, _ = losses(objective, batch, "flownets")
    assert statistics == {}
    levels = functools.partial(model("flownets").apply, variables("flownets"), method="levels")
    frames = batch["blurred"]
    expected = np.mean(
        multi_scale_end_point_error(
            levels(frames[:, 1], frames[:, 2]),
            batch["flow_cur_to_next"][:, 0],
            batch["valid_cur_to_next"][:, 0],
            weights=FLOW_WEIGHTS,
        )
    ) + np.mean(
        multi_scale_warping_error(levels(frames[:, 1], frames[:, 0]), frames[:, 1], frames[:, 0], weights=FLOW_WEIGHTS)
    )
    np.testing.assert_allclose(found["flow"], expected, rtol=1e-4)
    alone, _, _ = losses(VDFlowObjective(model("dbn"), "deblur"), a_batch(), "dbn")
    assert np.isfinite(alone["deblur"])


def test_what_leads_out_of_the_frame_is_compared_unless_it_is_masked():
    batch = a_batch(**dict.fromkeys(LABELLED))
    clamped, masked = (
        losses(VDFlowObjective(model(), "flow", outside=outside), batch)[0]["flow"] for outside in ("clamped", "masked")
    )
    assert clamped > masked
    assert losses(VDFlowObjective(model(), "flow"), batch)[0]["flow"] == clamped


def test_bytes_are_scaled():
    batch = {"blurred": np.full((1, 5, 8, 8, 3), 51, np.uint8)}
    np.testing.assert_allclose(VDFlowObjective(model(), "flow").prepare(batch, {})["windows"], 0.2, rtol=1e-6)


def run_a_turn(branch, updates=2):
    """State before and after; every parameter has a moment that is not zero before, weight decay and a plateau."""
    plateau = Plateau()
    optimizers = {}
    for group in ("deblur", "flow"):
        name = functools.partial(VDFlowObjective(model(), group).learning_rate_name, group)
        optimizers[group] = make_optimizer(
            {group: optax.constant_schedule(1e-3)}, name, adam={"b1": 0.9, "b2": 0.999, "eps": 1e-8}, weight_decay=0.1
        )
    steps = {
        group: make_train_step(VDFlowObjective(model(), group), optimizers, plateau=plateau) for group in optimizers
    }
    given = jax.tree.map(jnp.copy, variables())
    state = init_state(jax.random.key(1), given, optimizers, ema=False, plateaus=plateau.init(optimizers))
    for group in ("deblur", "flow"):
        state, _ = steps[group](state, a_batch(), {})
    before = jax.device_get(state)
    for _ in range(updates):
        state, metrics = steps[branch](state, a_batch(), {})
    return before, jax.device_get(state), metrics


@pytest.mark.parametrize("branch", ["deblur", "flow"])
def test_in_a_turn_the_other_branch_stands_still_bit_for_bit(branch):
    other = "flow" if branch == "deblur" else "deblur"
    part = {"deblur": "deblur", "flow": "flow_net"}
    before, after, metrics = run_a_turn(branch)
    jax.tree.map(np.testing.assert_array_equal, after.params[part[other]], before.params[part[other]])
    jax.tree.map(np.testing.assert_array_equal, after.optimizer[other], before.optimizer[other])
    if branch == "flow":
        jax.tree.map(np.testing.assert_array_equal, after.statistics, before.statistics)
    assert set(metrics) >= {f"loss_{branch}", f"gradient_norm_{branch}"}
    assert not any(name.endswith(other) for name in metrics)

    def changed(a, b):
        return bool(np.any(a != b))

    moved = jax.tree.map(changed, after.params[part[branch]], before.params[part[branch]])
    assert all(jax.tree.leaves(moved))
    assert any(jax.tree.leaves(jax.tree.map(changed, after.optimizer[branch], before.optimizer[branch])))
    if branch == "deblur":
        assert all(jax.tree.leaves(jax.tree.map(changed, after.statistics, before.statistics)))


def test_a_plateau_scales_what_an_update_moves():
    objective = VDFlowObjective(model(), "deblur")
    plateau = Plateau(patience=1)
    optimizers = {"deblur": optax.sgd(1.0), "flow": optax.sgd(1.0)}
    moved = []
    for checks in (0, 2):  # the second finds no less a loss: half the rate
        plateaus = plateau.init(optimizers)
        for _ in range(checks):
            plateaus = plateau.check(plateaus, "flow", 1.0)
        given = jax.tree.map(jnp.copy, variables())
        state = init_state(jax.random.key(1), given, optimizers, ema=False, plateaus=plateaus)
        state, metrics = make_train_step(objective, optimizers, plateau=plateau)(state, a_batch(), {})
        assert float(metrics["learning_rate_scale"][0]) == (0.5 if checks else 1.0)
        moved.append(state.params["deblur"]["F15"]["bn"]["bias"] - variables()["params"]["deblur"]["F15"]["bn"]["bias"])
    np.testing.assert_allclose(moved[1], 0.5 * moved[0], rtol=1e-4)


def test_every_parameter_has_one_owner():
    for name, owners in (("vdflow", {"deblur", "flow"}), ("dbn", {"deblur"}), ("flownets", {"flow"})):
        found = set()
        assert set(branches(model(name))) == owners
        for path, _ in jax.tree_util.tree_leaves_with_path(variables(name)["params"]):
            names = tuple(str(entry.key) for entry in path)
            rates = [VDFlowObjective(model(name), b).learning_rate_name(b, names) for b in branches(model(name))]
            (owner,) = [rate for rate in rates if rate is not None]
            found.add(owner)
        assert found == owners


def test_what_a_model_does_not_have_is_not_trained():
    for name, branch in (("dbn", "flow"), ("flownets", "deblur")):
        with pytest.raises(ValueError, match=f"has no {branch} branch to train"):
            VDFlowObjective(model(name), branch)
    with pytest.raises(ValueError, match="flownets, not flownets_bn"):
        VDFlowObjective(model("flownets_bn"), "flow")
