"""Schedules at their corners and the mask."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdeblur.training.optimizers import make_optimizer, make_schedule


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}


def test_the_papers_steps():
    schedule = make_schedule(1e-4, kind="step", steps=1_300_000, boundaries=(1_000_000, 1_250_000), factor=0.25)
    # Update number k + 1 uses schedule(k): factor 1 for updates up to 1,000,000, 1/4 up to 1,250,000, then 1/16.
    for made_before, expected in (
        (0, 1e-4),
        (999_999, 1e-4),
        (1_000_000, 2.5e-5),
        (1_249_999, 2.5e-5),
        (1_250_000, 6.25e-6),
        (1_299_999, 6.25e-6),
    ):
        assert float(schedule(made_before)) == pytest.approx(expected, rel=1e-6), made_before


def test_cosine_ends_where_it_should():
    schedule = make_schedule(1e-4, kind="cosine", steps=1000, final_fraction=0.01)
    assert float(schedule(0)) == pytest.approx(1e-4)
    assert float(schedule(500)) == pytest.approx(1e-4 * (0.01 + 0.99 * 0.5))
    assert float(schedule(1000)) == pytest.approx(1e-6)


def test_unknown_schedule_lists_the_known():
    with pytest.raises(ValueError, match="'linear'; expected one of constant, step, cosine"):
        make_schedule(1e-4, kind="linear", steps=1)


def test_only_picked_parameters_move_and_the_norm_is_theirs():
    params = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.ones(3)}}
    grads = {"a": {"kernel": jnp.array([3.0, 0.0, 4.0])}, "b": {"kernel": jnp.full(3, 1e6)}}
    schedule = make_schedule(0.1, kind="constant", steps=1)
    picked = make_optimizer(
        {"slow": schedule}, lambda path: "slow" if path == ("a", "kernel") else None, adam=ADAM, clip_norm=1.0
    )
    updates, state = picked.update(grads, picked.init(params), params)
    np.testing.assert_array_equal(updates["b"]["kernel"], 0.0)
    # Clipped by the norm of a alone, 5: b's huge gradient does not count.
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (3,)]
    assert len(moments) == 2, "no moments for frozen parameters"
    np.testing.assert_allclose(moments[0], 0.1 * np.array([0.6, 0.0, 0.8]), rtol=1e-5)
    # Adam's first step is the learning rate against the gradient's sign.
    np.testing.assert_allclose(updates["a"]["kernel"], [-0.1, 0.0, -0.1], atol=1e-6)


def test_without_clipping_it_is_optax_adam():
    params = {"a": jnp.ones(3)}
    grads = {"a": jnp.array([30.0, -2.0, 0.5])}
    ours = make_optimizer({"all": make_schedule(0.01, kind="constant", steps=1)}, lambda path: "all", adam=ADAM)
    reference = optax.adam(0.01, **ADAM)
    for _ in range(2):
        got, _ = ours.update(grads, ours.init(params), params)
        expected, _ = reference.update(grads, reference.init(params), params)
        np.testing.assert_allclose(got["a"], expected["a"], rtol=1e-6)


def test_each_parameter_moves_at_its_own_rate_and_one_norm_spans_them():
    params = {"a": {"kernel": jnp.ones(1)}, "b": {"kernel": jnp.ones(1)}}
    grads = {"a": {"kernel": jnp.array([3.0])}, "b": {"kernel": jnp.array([4.0])}}
    schedules = {name: make_schedule(rate, kind="constant", steps=1) for name, rate in (("a", 0.1), ("b", 0.001))}
    both = make_optimizer(schedules, lambda path: path[0], adam={**ADAM, "b1": 0.0}, clip_norm=1.0)
    updates, state = both.update(grads, both.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["b"]["kernel"], -0.001, rtol=1e-5)
    means = sorted(float(leaf[0]) for leaf in jax.tree.leaves(state) if leaf.shape == (1,))
    np.testing.assert_allclose(means, [0.001 * 0.6**2, 0.001 * 0.8**2, 0.6, 0.8], rtol=1e-4)


def test_weight_decay_is_in_the_gradient_of_kernels():
    params = {"kernel": jnp.full(2, 3.0), "bias": jnp.full(2, 3.0)}
    decayed = make_optimizer(
        {"all": make_schedule(1.0, kind="constant", steps=1)}, lambda path: "all", adam=ADAM, weight_decay=0.01
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, state = decayed.update(zero, decayed.init(params), params)
    np.testing.assert_array_equal(updates["bias"], 0.0)
    np.testing.assert_allclose(updates["kernel"], -1.0, rtol=1e-5)
    assert any(np.allclose(leaf, 0.1 * 0.03) for leaf in jax.tree.leaves(state) if leaf.shape == (2,))


def test_decoupled_decay_takes_off_every_parameter_by_its_rate():
    params = {"kernel": jnp.full(2, 3.0), "bias": jnp.full(2, -5.0)}
    schedules = {"all": make_schedule(0.5, kind="constant", steps=1)}
    decayed = make_optimizer(schedules, lambda path: "all", adam=ADAM, decoupled_decay=0.01)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = decayed.update(zero, decayed.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * 0.01 * 3, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], 0.5 * 0.01 * 5, rtol=1e-6)
    with pytest.raises(ValueError, match=r"decoupled_decay is 0\.01; expected 0 where muon_scale is set"):
        make_optimizer(schedules, lambda path: "all", adam=ADAM, decoupled_decay=0.01, muon_scale=1.0)


def test_quadratic_falls_to_zero_at_its_own_end():
    schedule = make_schedule(1e-4, kind="quadratic", steps=1_060_000, decay_steps=5_000_000)
    for made_before in (0, 1, 500_000, 1_060_000, 5_000_000, 6_000_000):
        expected = 1e-4 * max(0.0, 1 - made_before / 5_000_000) ** 2
        assert float(schedule(made_before)) == pytest.approx(expected, rel=1e-5), made_before
    assert float(make_schedule(1.0, kind="quadratic", steps=10)(5)) == pytest.approx(0.25)


def test_some_layers_can_go_without_weight_decay():
    layer = {"kernel": jnp.full(2, 3.0), "bias": jnp.full(2, 3.0)}
    params = {"conv1": layer, "d_deconv1": layer, "net": {"upsampled_flow6_to_5": layer}}
    optimizer = make_optimizer(
        {"all": make_schedule(1.0, kind="constant", steps=1)},
        lambda path: "all",
        adam=ADAM,
        weight_decay=0.01,
        undecayed=("deconv", "upsampled_flow"),
    )
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    moved = [jax.tree_util.keystr(path) for path, x in jax.tree_util.tree_leaves_with_path(updates) if np.any(x)]
    assert moved == ["['conv1']['kernel']"]


def test_muon_moves_kernels_by_orthogonal_steps_and_the_rest_as_adam_does():
    params = {
        "conv": {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)},
        "output_conv": {"kernel": jnp.zeros((3, 3, 8, 3))},
        "frozen": {"kernel": jnp.zeros((1, 1, 4, 4))},
    }
    keys = jax.random.split(jax.random.key(0), 4)
    leaves, structure = jax.tree.flatten(params)
    gradient = structure.unflatten(
        [1e-3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )
    schedules = {"all": optax.constant_schedule(1e-3)}

    def update(**options):
        optimizer = make_optimizer(schedules, lambda path: None if path[0] == "frozen" else "all", adam=ADAM, **options)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    nadam = optax.nadam(1e-3, **ADAM)
    adam, _ = nadam.update(gradient, nadam.init(params), params)
    found = update(muon_scale=20.0, muon_without=("output",))
    assert not np.any(found["frozen"]["kernel"])
    for path in (("conv", "bias"), ("output_conv", "kernel")):
        np.testing.assert_allclose(found[path[0]][path[1]], adam[path[0]][path[1]], rtol=1e-6)
    step = np.asarray(found["conv"]["kernel"], np.float64).reshape(36, 8) / -20e-3
    strengths = np.linalg.svd(step, compute_uv=False)
    assert strengths.max() < 2 * strengths.min()  # of the gradient itself they differ more
    assert 0.5 < strengths.min() < strengths.max() < 1.5
    along = np.linalg.svd(np.asarray(gradient["conv"]["kernel"], np.float64).reshape(36, 8), compute_uv=False)
    assert along.max() / along.min() > strengths.max() / strengths.min()
    assert np.sum(step * np.asarray(gradient["conv"]["kernel"]).reshape(36, 8)) > 0
    with pytest.raises(ValueError, match=r"muon_scale is -1\.0; expected 0 or more"):
        update(muon_scale=-1.0)
    everything = update(muon_scale=20.0)
    assert not np.allclose(everything["output_conv"]["kernel"], adam["output_conv"]["kernel"])
