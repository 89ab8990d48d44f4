"""Reblur2Deblur's losses by their formulas, with every network that restores frames."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import create_model
from jaxdeblur.models import initial_variables
from jaxdeblur.models.windows import restore_consecutive
from jaxdeblur.objectives import Objective
from jaxdeblur.objectives.reblur import ReblurObjective, TunedParams
from jaxdeblur.ops.colour import linear_to_srgb, srgb_to_linear
from jaxdeblur.ops.reblur import reblur
from jaxdeblur.training.optimizers import make_optimizer, make_schedule
from jaxdeblur.training.sharding import make_mesh, replicate, shard_batch
from jaxdeblur.training.state import from_items, init_state, to_items
from jaxdeblur.training.step import make_train_step

SIZE = 64
MODELS = {
    "mtu2": {"channels": 4, "residual_blocks": 1, "match_radius": 2},
    "cdvd_tsp": {"channels": 4, "residual_blocks": 1, "flow_width": 1 / 16},
    "svrnn": {"width": 1 / 16},
    "vdflow": {"width": 1 / 32},
    "dbn": {"width": 1 / 32},
    "deblurgan": {"width": 1 / 32, "blocks": 1},
    "nafnet32": {"width": 4, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1), "training_px": 32},
    "maxim": {"stages": 1, "features": 16, "groups": 1, "bottleneck_blocks": 1},
    "estrnn": {"features": 4, "blocks": 1},
}


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def quickly_compiled():
    """For steps of whole networks, which take far longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def model(name):
    return create_model(name, **MODELS[name])


STILL = ("deblur_", "motion_conv", "predict_flow2", "output_1", "output_2")
"""What restored frames do not depend on, or not with a gradient: heads that are read in training only, what motion is
matched by, the finest flow of VDFlow's own, MAXIM's coarser pictures."""
FLOW_NET = create_model("flownets", width=1 / 32)


@functools.cache
def variables(name, seed=0):
    """The flow network's flow is made as large as flows are, some pixels; fresh, it is tens on noise."""
    flow = initial_variables(jax.random.key(seed + 1), FLOW_NET)
    flow = jax.tree.map(lambda x: 0.8 * x, flow)
    given = initial_variables(jax.random.key(seed), model(name))
    return {**given, "params": TunedParams(given["params"], flow)}


def objective_of(name, **options):
    return ReblurObjective(model(name), FLOW_NET, **options)


def a_batch(objective, supervised=2, unlabelled=2, frames=1, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    around = objective.past_frames + objective.future_frames
    before, after = objective.frames_before, objective.frames_after
    return {
        "blurred": rng.random((supervised, around + frames, size, size, 3), np.float32),
        "sharp": rng.random((supervised, frames, size, size, 3), np.float32),
        "unlabelled": rng.random((unlabelled, before + 1 + after, size, size, 3), np.float32),
    }


def losses(objective, name, batch):
    given = variables(name)
    prepared = objective.prepare(batch, {})
    run = jax.jit(objective.losses)
    found = run(given["params"], given.get("batch_stats", {}), prepared, (), jnp.int32(0), jax.random.key(0))
    return found[0]["total"], found[1], found[3]


def mse(x, y):
    return np.mean((np.asarray(x, np.float64) - np.asarray(y, np.float64)) ** 2)


@pytest.mark.parametrize("light", ["encoded", "linear"])
def test_the_loss_is_both_squared_errors_with_alpha_between_them(light):
    objective = objective_of("deblurgan", alpha=0.3, exposure=0.5, light=light)
    assert isinstance(objective, Objective)
    batch = a_batch(objective)
    total, _, terms = losses(objective, "deblurgan", batch)

    given = variables("deblurgan")
    network = functools.partial(jax.jit(model("deblurgan").apply), {"params": given["params"].model})
    supervised = mse(network(batch["blurred"]), batch["sharp"])
    previous, current, following = np.moveaxis(np.asarray(network(batch["unlabelled"])), 1, 0)
    flow = functools.partial(jax.jit(FLOW_NET.apply), given["params"].flow_net)
    # The neighbour first: its grid, and into the middle frame.
    next_to_cur, prev_to_cur = flow(following, current), flow(previous, current)
    assert np.abs(next_to_cur).mean() > 0.05  # there is motion to blur along
    image = srgb_to_linear(jnp.asarray(current)) if light == "linear" else current
    reblurred = reblur(image, next_to_cur, prev_to_cur, exposure=0.5)
    reblurred = linear_to_srgb(reblurred) if light == "linear" else reblurred
    self_supervised = mse(reblurred, batch["unlabelled"][:, 1])
    np.testing.assert_allclose(terms["supervised"], supervised, rtol=1e-5)
    np.testing.assert_allclose(terms["self_supervised"], self_supervised, rtol=1e-5)
    np.testing.assert_allclose(total, supervised + 0.3 * self_supervised, rtol=1e-5)


def test_with_one_neighbour_its_flow_serves_for_both():
    objective = objective_of("deblurgan", uses="next")
    given, batch = variables("deblurgan"), a_batch(objective)
    estimate = jax.jit(functools.partial(objective.estimate, train=False))
    found, _ = estimate(given["params"], {}, batch["unlabelled"])
    both, _ = jax.jit(functools.partial(objective_of("deblurgan").estimate, train=False))(
        given["params"], {}, batch["unlabelled"]
    )
    np.testing.assert_allclose(found.flow_prev_to_cur, -found.flow_next_to_cur, atol=1e-5)
    np.testing.assert_allclose(found.flow_next_to_cur, both.flow_next_to_cur, atol=1e-5)
    # What lies before the middle frame is not looked at.
    changed = batch["unlabelled"].copy()
    changed[:, 0] = 0
    again, _ = estimate(given["params"], {}, changed)
    np.testing.assert_array_equal(objective.reblurred(again), objective.reblurred(found))


def test_the_rim_is_left_out():
    objective = objective_of("deblurgan", rim_px=5)
    given, batch = variables("deblurgan"), a_batch(objective)
    found, _ = jax.jit(functools.partial(objective.estimate, train=False))(given["params"], {}, batch["unlabelled"])
    inside = np.s_[:, 5:-5, 5:-5]
    expected = mse(np.asarray(objective.reblurred(found))[inside], np.asarray(found.blurred)[inside])
    np.testing.assert_allclose(np.mean(objective.reblur_error(found)), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="a rim of 32 px leaves nothing of 64x64"):
        objective_of("deblurgan", rim_px=32).reblur_error(found)


def trained(objective, name, steps=2, mesh=None, **sizes):
    schedules = {part: make_schedule(1e-3, kind="constant", steps=steps) for part in ("model", "flow_net")}
    optimizer = make_optimizer(
        schedules,
        functools.partial(objective.learning_rate_name, "total"),
        adam={"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    )
    optimizers = {"total": optimizer}
    # The step donates its state.
    state = init_state(jax.random.key(3), jax.tree.map(jnp.array, variables(name)), optimizers, ema=False)
    state = state if mesh is None else replicate(state, mesh)
    step = make_train_step(objective, optimizers, mesh=mesh)
    found = []
    for number in range(steps):
        batch = a_batch(objective, seed=number, **sizes)
        state, metrics = step(state, batch if mesh is None else shard_batch(batch, mesh), {})
        found.append(metrics)
    return state, found


def moved(before, after):
    return {
        jax.tree_util.keystr(path): not np.array_equal(old, new)
        for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == "deblurgan" else pytest.param(name, marks=pytest.mark.exhaustive) for name in MODELS]
)
def test_two_steps_of_every_model_move_both_networks(name, quickly_compiled):
    objective = objective_of(name)
    state, metrics = trained(objective, name, frames=2 if name == "mtu2" else 1)
    assert all(np.isfinite(value).all() for values in metrics for value in values.values())
    before, after = variables(name)["params"], state.params
    assert any(moved(before.model, after.model).values())
    assert any(moved(before.flow_net, after.flow_net).values())
    still = [path for path, has in moved(before.model, after.model).items() if not has]
    assert all(any(part in path for part in STILL) for path in still), still


@pytest.mark.parametrize("frozen", ["tune_model", "tune_flow"])
def test_a_frozen_network_stays_bit_for_bit(frozen):
    state, _ = trained(objective_of("deblurgan", **{frozen: False}), "deblurgan")
    before = variables("deblurgan")["params"]
    assert any(moved(before.model, state.params.model).values()) == (frozen != "tune_model")
    assert any(moved(before.flow_net, state.params.flow_net).values()) == (frozen != "tune_flow")


@pytest.mark.parametrize("through", [True, False])
def test_whether_the_gradient_reaches_the_network_through_the_flow(through):
    objective = objective_of("deblurgan", tune_flow=False, flow_gradient=through)
    given, batch = variables("deblurgan"), a_batch(objective)

    def error(params):
        found, _ = objective.estimate(params, {}, batch["unlabelled"], train=False)
        return jnp.mean(objective.reblur_error(found)), found

    def error_with_fixed_flows(params, fixed):
        found, _ = objective.estimate(params, {}, batch["unlabelled"], train=False)
        return jnp.mean(objective.reblur_error(dataclasses.replace(fixed, restored=found.restored)))

    ours, fixed = jax.jit(jax.grad(error, has_aux=True))(given["params"])
    expected = jax.jit(jax.grad(error_with_fixed_flows))(given["params"], fixed).model
    ours = ours.model
    distance = sum(jnp.sum(jnp.square(a - b)) for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True))
    size = sum(jnp.sum(jnp.square(b)) for b in jax.tree.leaves(expected))
    assert (distance / size > 1e-3) == through


@pytest.mark.parametrize("moves", [True, False])
def test_statistics_move_in_both_halves_or_not_at_all(moves):
    objective = objective_of("dbn", batch_statistics=moves)
    given = variables("dbn")
    batch = a_batch(objective, frames=1)
    _, statistics, _ = losses(objective, "dbn", batch)
    network = {"params": given["params"].model, "batch_stats": given["batch_stats"]}
    if moves:

        @functools.partial(jax.jit, static_argnames="count")
        def statistics_after(given, clips, count):
            return restore_consecutive(model("dbn"), given, clips, count=count, train=True)[1]

        once = statistics_after(network, batch["blurred"], count=1)
        twice = statistics_after({**network, "batch_stats": once}, batch["unlabelled"], count=3)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5), statistics, twice)
    else:
        jax.tree.map(np.testing.assert_array_equal, statistics, given["batch_stats"])


@pytest.mark.parametrize("name", ["dbn", pytest.param("svrnn", marks=pytest.mark.exhaustive), "deblurgan"])
def test_frames_of_a_clip_are_those_the_model_restores_by_itself(name):
    network, given = model(name), variables(name)
    given = {**given, "params": given["params"].model}
    clip = np.random.default_rng(5).random((2, 7, SIZE, SIZE, 3), np.float32)
    whole = network.apply(given, clip)
    last = 7 - network.future_frames
    found, _ = restore_consecutive(network, given, clip, count=2)
    np.testing.assert_allclose(found, whole[:, last - 2 : last], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mtu2", pytest.param("cdvd_tsp", marks=pytest.mark.exhaustive)])
def test_networks_that_carry_something_on_start_where_the_clip_does(name):
    network, given = model(name), variables(name)
    given = {**given, "params": given["params"].model}
    clip = np.random.default_rng(5).random((1, 4, SIZE, SIZE, 3), np.float32)
    whole = jax.jit(network.apply)(given, clip)
    if name == "mtu2":  # beyond its ends stand copies
        clip = np.concatenate([clip[:, :1]] * 2 + [clip] + [clip[:, -1:]] * 2, axis=1)
    else:  # neighbours and end frames in turn
        clip = clip[:, [0, 1, 0, 1, 2, 3, 2, 3]]
    found, _ = jax.jit(functools.partial(restore_consecutive, network, count=3))(given, clip)
    np.testing.assert_allclose(found, whole[:, 1:], atol=2e-5)


def test_too_short_a_clip_is_refused():
    clip = np.zeros((1, 1, SIZE, SIZE, 3), np.float32)
    with pytest.raises(ValueError, match="1 frames hold 1 whole windows of 1; expected 2 or more"):
        restore_consecutive(model("deblurgan"), {"params": {}}, clip, count=2)


@pytest.mark.slow
def test_devices_share_both_halves():
    objective = objective_of("deblurgan")
    _, alone = trained(objective, "deblurgan", steps=1)
    _, shared = trained(objective, "deblurgan", steps=1, mesh=make_mesh(jax.devices()[:2]))
    # Losses and the gradient's norm, not the parameters: biases in front of instance normalisation have a gradient of
    # rounding errors alone, and Adam moves them as far as any other.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), alone, shared)


def test_a_checkpoint_holds_the_network_and_the_flow_network_apart():
    given = variables("dbn")
    state = init_state(jax.random.key(0), given, {}, ema=False)
    items = to_items(state)
    assert items["params"] is given["params"].model
    assert items["flow_net"] is given["params"].flow_net
    assert state.variables["params"] is given["params"].model
    back = from_items(items)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(back), jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exposure": 0.0}, "exposure is 0.0"),
        ({"tune_model": False, "tune_flow": False}, "nothing to tune"),
        ({"alpha": -1.0}, "alpha and rim_px are -1.0 and 0"),
        ({"model": FLOW_NET}, "FlowNetSimple restores no frames"),
        ({"flow_net": create_model("dbn")}, "DBN is no flow network"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(objective_of("dbn"), **options)


def test_unlabelled_clips_of_another_length_are_refused():
    objective = objective_of("dbn")
    batch = a_batch(objective)
    with pytest.raises(ValueError, match="unlabelled clips have 6 frames; expected 7"):
        objective.prepare({**batch, "unlabelled": batch["unlabelled"][:, 1:]}, {})
