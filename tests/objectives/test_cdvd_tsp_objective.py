"""Training of CDVD-TSP against one released step, and its learning rates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur import create_model
from jaxdeblur.interop import TABLES, from_torch
from jaxdeblur.interop.layout import Table
from jaxdeblur.models import initial_variables
from jaxdeblur.objectives import Objective
from jaxdeblur.objectives.cdvd_tsp import CDVDTSPObjective
from jaxdeblur.training.optimizers import make_optimizer, make_schedule
from jaxdeblur.training.state import init_state
from jaxdeblur.training.step import make_train_step

SMALL = {"channels": 4, "residual_blocks": 1, "weight_init": "he", "flow": "zero"}
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}


def at(tree, path):
    for name in path:
        tree = tree[name]
    return np.asarray(tree)


@functools.cache
def released_step():
    """(expected arrays, JSON, terms, our table, gradients) of one sample."""
    expected, provenance = load_case("cdvd_tsp", "train_step")
    state_dict = seeded_state_dict(provenance)
    params = from_torch("cdvd_tsp", state_dict)["params"]
    objective = CDVDTSPObjective(create_model("cdvd_tsp"))
    drawn = expected["random_mask"][..., 0] > 0

    def loss(params):
        stages = [
            stage.restored for stage in objective.model.apply({"params": params}, expected["frames"], method="cascade")
        ]
        terms = objective.terms(stages, jnp.asarray(expected["gt"][:, 1:4]), drawn)
        return terms["l1"] + objective.hard_weight * terms["hard"], terms

    (total, terms), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    table: Table = TABLES["cdvd_tsp"](state_dict)
    return expected, provenance, {**terms, "total": total}, table, gradients


@pytest.mark.slow
def test_the_loss_matches_the_released_step():
    _, provenance, terms, _, _ = released_step()
    for ours, official in (("l1", "l1"), ("hard", "hem"), ("total", "total")):
        np.testing.assert_allclose(terms[ours], provenance["values"][official], rtol=1e-5)


@pytest.mark.slow
def test_every_gradient_matches_the_released_step():
    expected, provenance, _, table, gradients = released_step()
    norms = provenance["grad_l2_norm"]
    assert len(norms) == len(table) == 210
    for name, norm in norms.items():
        # The released code's own float32 run is off by 1.3e-3 at worst.
        np.testing.assert_allclose(np.linalg.norm(at(gradients, table[name].path)), norm, rtol=2e-3, err_msg=name)
    full = [name for name in expected if name.startswith("grad:")]
    assert len(full) == 7
    for name in full:
        tensor = table[name.removeprefix("grad:")]
        ours, official = at(gradients, tensor.path), tensor.convert(expected[name])
        np.testing.assert_allclose(ours, official, rtol=0, atol=1e-4 * np.abs(official).max(), err_msg=name)


@functools.cache
def small_run():
    """(objective, parameters, batch) on two tiny clips."""
    model = create_model("cdvd_tsp", **SMALL)
    params = initial_variables(jax.random.key(0), model)["params"]
    sharp = np.random.default_rng(0).random((2, 5, 16, 16, 3), np.float32)
    sharp = (sharp + np.roll(sharp, 1, axis=2) + np.roll(sharp, 1, axis=3)) / 3
    blurred = (sharp + np.roll(sharp, 1, axis=3) + np.roll(sharp, 2, axis=3)) / 3
    return CDVDTSPObjective(model), params, {"blurred": blurred, "sharp": sharp[:, 1:4]}


def test_it_is_an_objective_of_two_learning_rates():
    objective, params, _ = small_run()
    assert isinstance(objective, Objective)
    assert set(params) == {"restoration"}
    assert objective.learning_rate_name("total", ("restoration", "in_conv", "kernel")) == "restoration"
    assert objective.learning_rate_name("total", ("flow_net", "context", "kernel")) == "flow"


@pytest.mark.slow
def test_the_loss_falls_and_pixels_are_drawn_anew():
    objective, params, batch = small_run()
    schedules = {
        name: make_schedule(rate, kind="constant", steps=1) for name, rate in (("restoration", 3e-3), ("flow", 1e-5))
    }
    optimizers = {
        "total": make_optimizer(schedules, functools.partial(objective.learning_rate_name, "total"), adam=ADAM)
    }
    step = make_train_step(objective, optimizers)
    state = init_state(jax.random.key(0), {"params": jax.tree.map(jnp.copy, params)}, optimizers, ema=False)
    history = []
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(20):
            state, metrics = step(state, batch, {})
            history.append({name: float(value[0]) for name, value in metrics.items()})
    assert history[-1]["l1"] < 0.7 * history[0]["l1"]
    assert history[-1]["l1_last_stage"] < 0.7 * history[0]["l1_last_stage"]
    assert history[0]["loss_total"] == pytest.approx(history[0]["l1"] + 2 * history[0]["hard"], rel=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_batch_of_another_length_says_what_to_set():
    objective, _, batch = small_run()
    with pytest.raises(ValueError, match=r"2 stages are trained on 3 sharp and 5 blurred frames.*set data.frames to 3"):
        objective.prepare({name: images[:, :-1] for name, images in batch.items()}, {})
    with pytest.raises(ValueError, match=r"random_share is 1\.5; expected a share"):
        CDVDTSPObjective(objective.model, random_share=1.5)
