"""FlowNetS as FlowNetPytorch has it, against the golden vectors and in its contracts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur import create_model
from jaxdeblur.interop import from_torch
from jaxdeblur.losses.flow import mean_end_point_error, multi_scale_end_point_error
from jaxdeblur.models import example_inputs

TOLERANCE = 8e-6  # of an array's largest value; measured 3e-6 at most
TRAINING_TOLERANCE = 1.5e-5  # statistics of a batch's few coarsest pixels amplify rounding; measured 9e-6 at most
CASES = [
    ("flownets", "case_a"),
    ("flownets", "case_b_odd_size"),
    ("flownets_bn", "case_a"),
    ("flownets_bn", "case_b_batch2"),
]


@functools.cache
def released(name):
    return jax.device_put(from_torch(name, seeded_state_dict(load_case(name, "case_a")[1])))


@functools.cache
def golden(name, case):
    """(golden arrays, JSON, our five flows)."""
    arrays, provenance = load_case(name, case)
    levels = jax.jit(functools.partial(create_model(name).apply, method="levels"))
    return arrays, provenance, levels(released(name), arrays["image1"], arrays["image2"])


def check(value, expected, name, tolerance=TOLERANCE):
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_level_and_the_full_flow_match_the_reference(name, case):
    arrays, _, levels = golden(name, case)
    for level, flow in enumerate(levels, start=2):
        check(flow, arrays[f"flow{level}"], f"flow{level}")
    full = jax.jit(create_model(name).apply)(released(name), arrays["image1"], arrays["image2"])
    assert full.shape == (*arrays["image1"].shape[:-1], 2)
    check(full[:, ::4, ::4], arrays["flow_full_every4"], "flow_full")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_multi_scale_loss_matches_the_reference(name, case):
    arrays, provenance, levels = golden(name, case)
    target = 20 * arrays["target_flow_div20"]
    valid = np.ones(target.shape[:-1], bool)
    weights = (0.005, 0.01, 0.02, 0.08, 0.32)
    loss = multi_scale_end_point_error(levels, target, valid, weights=weights).mean()
    np.testing.assert_allclose(loss, provenance["losses"]["multiscale_epe"], rtol=1e-5)
    full = jax.jit(create_model(name).apply)(released(name), arrays["image1"], arrays["image2"])
    error_px = mean_end_point_error(full, target, valid).mean()
    np.testing.assert_allclose(error_px, provenance["losses"]["real_epe_px"], rtol=1e-5)


@pytest.mark.slow
def test_batch_statistics_match_the_reference():
    arrays, _ = load_case("flownets_bn", "case_b_batch2")
    train = functools.partial(create_model("flownets_bn").apply, train=True, method="levels", mutable=["batch_stats"])
    levels, after = jax.jit(train)(released("flownets_bn"), arrays["image1"], arrays["image2"])
    for level, flow in enumerate(levels, start=2):
        check(flow, arrays[f"train_flow{level}"], f"flow{level}", TRAINING_TOLERANCE)
    names = {"running_mean": "mean", "running_var": "var"}
    compared = 0
    for name in arrays:
        layer, _, statistic = name.removeprefix("train_").partition(".1.")
        if statistic:
            check(after["batch_stats"][f"{layer}_bn"][names[statistic]], arrays[name], name, TRAINING_TOLERANCE)
            compared += 1
    assert compared == 3


@pytest.mark.parametrize(("name", "count"), [("flownets", 38_675_536), ("flownets_bn", 38_680_336)])
def test_parameter_counts(name, count):
    model = create_model(name)
    params = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("name", ["flownets", "flownets_bn"])
@pytest.mark.parametrize("size", [(64, 64), (1, 1), (37, 65)])
def test_any_size_comes_out_as_it_went_in(name, size):
    model = create_model(name, width=1 / 16)
    images = np.random.default_rng(0).random((2, 1, *size, 3), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), *images)
    assert model.apply(variables, *images).shape == (1, *size, 2)
    levels = model.apply(variables, *images, method="levels")
    assert [level.shape[1:3] for level in levels] == [tuple(-(-s // 2**n) for s in size) for n in range(2, 7)]


def test_images_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        create_model("flownets").apply({}, jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 9, 3)))
