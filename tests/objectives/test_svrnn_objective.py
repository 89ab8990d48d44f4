"""SVRNN's loss and its gradients against the golden vectors, and against plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur import create_model
from jaxdeblur.interop import from_torch
from jaxdeblur.interop.svrnn import table
from jaxdeblur.models import example_inputs, initial_variables
from jaxdeblur.objectives.svrnn import SVRNNObjective, warp_or_black
from jaxdeblur.training.optimizers import make_optimizer, make_schedule
from jaxdeblur.training.state import init_state
from jaxdeblur.training.step import make_train_step

CASES = ["case_a", "case_b_batch2"]
KINKS = {"case_a": {"d_deconv2": (15, -1e-5), "d_deconv2_1": (12, 1e-5), "d_deconv1_1": (4, -1e-5)}}
"""Channels with a value so near to LeakyReLU's kink (under 3e-6 of the layer's spread) that rounding puts it on the
other side, where the slope is ten times another. Moving their biases so little puts it on the reference's side."""


@functools.cache
def golden(case):
    """Terms, and gradients to parameters and windows, of the reference's weights and images."""
    arrays, facts = load_case("svrnn_flow", case)
    objective = SVRNNObjective(create_model("svrnn"))
    params = from_torch("svrnn", seeded_state_dict(facts))["params"]
    for layer, (channel, shift) in KINKS.get(case, {}).items():
        params[layer]["bias"][channel] += shift
    windows = np.stack([arrays["image1"], arrays["image2"]], axis=1)

    def loss(params, windows):
        prepared = {"windows": windows, "sharp": arrays["target"]}
        losses, _, _, terms = objective.losses(params, {}, prepared, (), jnp.int32(0), jax.random.key(0))
        return losses["total"], terms

    (total, terms), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, windows)
    return arrays, facts, total, terms, *gradients


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_all_six_terms_match_the_reference(case):
    _, facts, total, terms, _, _ = golden(case)
    np.testing.assert_allclose(total, facts["loss_total"], rtol=2e-5)
    assert set(terms) == {"deblur", "flow_2", "flow_3", "flow_4", "flow_5", "flow_6"}
    for name, term in terms.items():
        np.testing.assert_allclose(term, facts["loss_terms"][name.replace("_", "")], rtol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_match_the_reference(case):
    arrays, facts, _, _, to_params, to_windows = golden(case)
    expected = arrays["grad_image1_every4"]
    found = to_windows[:, 0, ::4, ::4]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    norms = facts["grad_l2_norm_per_parameter"]
    rows = table({})
    assert set(norms) == set(rows)
    for name, tensor in rows.items():
        gradient = functools.reduce(lambda tree, key: tree[key], tensor.path, to_params)
        np.testing.assert_allclose(np.linalg.norm(gradient), norms[name], rtol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_warped_images_match_the_reference(case):
    arrays, _ = load_case("svrnn_flow", case)
    for level in range(2, 7):
        size = 2**level
        image = arrays["image2"]
        batch, height, width, _ = image.shape
        coarse = image.reshape(batch, height // size, size, width // size, size, 3).mean(axis=(2, 4))
        expected = arrays[f"warped2_{level}"]
        np.testing.assert_allclose(warp_or_black(coarse, arrays[f"flow{level}"]), expected, rtol=0, atol=2e-6)


def warp_oracle(image, flow):
    """Pixel by pixel: black outside [0, W) x [0, H), the last pixel beyond its centre."""
    height, width, _ = image.shape
    warped = np.zeros(image.shape)
    for y, x in np.ndindex(height, width):
        u, v = x + flow[y, x, 0], y + flow[y, x, 1]
        if not (0 <= u < width and 0 <= v < height):
            continue
        left, top = int(u), int(v)
        right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
        a, b = u - left, v - top
        upper = (1 - a) * image[top, left] + a * image[top, right]
        lower = (1 - a) * image[bottom, left] + a * image[bottom, right]
        warped[y, x] = (1 - b) * upper + b * lower
    return warped


def test_the_warp_equals_the_oracle():
    rng = np.random.default_rng(0)
    image = rng.random((6, 7, 3))
    flow = rng.normal(scale=3, size=(6, 7, 2))
    flow[0, 0], flow[2, 6], flow[5, 3] = 0, (0.5, 0), (0, 0.999)  # a corner; beyond the last centres, but inside
    assert np.any(warp_oracle(image, flow)[2, 6])
    found = warp_or_black(image[None].astype(np.float32), flow[None].astype(np.float32))[0]
    np.testing.assert_allclose(found, warp_oracle(image, flow), atol=2e-6)
    # Nothing pulls on a vector that points out of the frame.
    out = jnp.full((1, 6, 7, 2), 50.0)
    gradient = jax.grad(lambda flow: jnp.sum(warp_or_black(image[None].astype(np.float32), flow)))(out)
    assert not np.any(gradient)


SIZE = {"width": 0.1}


def random_batch(past, future, frames=1):
    rng = np.random.default_rng(0)
    return {
        "blurred": rng.random((2, past + frames + future, 64, 64, 3), np.float32),
        "sharp": rng.random((2, frames, 64, 64, 3), np.float32),
    }


@pytest.mark.parametrize(
    "options",
    [
        {"recurrence": "none"},  # test_twenty_steps_lower_the_loss has the rest switched as it is
        *(
            pytest.param(options, marks=pytest.mark.exhaustive)
            for options in ({}, {"sees": "both"}, {"sees": "current"})
        ),
    ],
    ids=str,
)
def test_every_variant_is_trained(options):
    model = create_model("svrnn", **SIZE, **options)
    has_flow = options not in ({"sees": "current"}, {"recurrence": "none"})
    objective = SVRNNObjective(model, flow_loss=has_flow)
    params = initial_variables(jax.random.key(0), model)["params"]
    batch = random_batch(objective.past_frames, objective.future_frames, frames=2)
    prepared = objective.prepare(batch, {})
    assert prepared["windows"].shape == (4, objective.past_frames + 1 + objective.future_frames, 64, 64, 3)
    np.testing.assert_array_equal(
        prepared["windows"][1], batch["blurred"][0, 1 : 2 + objective.past_frames + objective.future_frames]
    )
    np.testing.assert_array_equal(prepared["sharp"][2], batch["sharp"][1, 0])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        losses, _, _, terms = objective.losses(params, {}, prepared, (), jnp.int32(0), jax.random.key(0))
        return losses["total"], terms

    (total, terms), gradients = loss(params)
    assert (len(terms) == 6) == has_flow
    np.testing.assert_allclose(total, sum(terms.values()), rtol=1e-6)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        # Without a flow loss nothing comes from the flows but what the features they are joined to ask for.
        name = path[-2].key if len(path) > 1 else ""
        if has_flow or name != "predict_flow2" or options.get("recurrence") == "none":
            assert np.any(gradient), jax.tree_util.keystr(path)


def zero_params(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)


def test_the_two_directions_share_a_term():
    """A network that sees both neighbours is charged for both; here nothing moves and nothing differs but one."""
    model = create_model("svrnn", **SIZE, sees="both")
    objective = SVRNNObjective(model)
    params = zero_params(model)
    windows = np.zeros((1, 3, 64, 64, 3), np.float32)
    windows[:, 0] = 0.5
    prepared = {"windows": jnp.asarray(windows), "sharp": jnp.zeros((1, 64, 64, 3))}
    terms = jax.jit(objective.terms)(params, prepared)
    for level in range(2, 7):
        np.testing.assert_allclose(terms[f"flow_{level}"], 0.25 * 3 * (64 / 2**level) ** 2 / 2, rtol=1e-6)


def test_released_down_sampling_shifts_the_grids():
    model = create_model("svrnn", **SIZE)
    params = zero_params(model)
    ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32)[None, None, None, :, None], (1, 2, 64, 64, 3))
    prepared = {"windows": jnp.asarray(ramp), "sharp": jnp.asarray(ramp[:, 0])}
    area, released = (
        jax.jit(SVRNNObjective(model, downsampling=kind).terms)(params, prepared) for kind in ("area", "released")
    )
    for level in range(2, 7):
        assert area[f"flow_{level}"] < 1e-6
    # At a quarter: tents sit at 63 / 15 j, means at 4 j + 1.5, in sixty-thirds of the ramp's range.
    j = np.arange(2, 14)
    difference = (63 / 15 * j - (4 * j + 1.5)) / 63
    assert released["flow_2"] > 3 * 16 * np.sum(difference**2) / 2


def test_biases_of_the_decoder_can_be_frozen():
    objective = SVRNNObjective(create_model("svrnn"), frozen_biases=True)
    params = jax.eval_shape(objective.model.init, jax.random.key(0), jnp.zeros((1, 1, 64, 64, 3)))["params"]
    frozen = [
        "/".join(names)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
        if objective.learning_rate_name("total", names := tuple(entry.key for entry in path)) is None
    ]
    flow_net = [f"flow_net/deconv{level}/bias" for level in range(1, 6)]
    flow_net += [f"flow_net/upsampled_flow{level}_to_{level - 1}/bias" for level in range(2, 7)]
    decoder = [f"d_deconv{level}{part}/bias" for level in (1, 2, 3) for part in ("", "_1")]
    assert sorted(frozen) == sorted(flow_net + decoder)
    default = SVRNNObjective(create_model("svrnn"))
    assert default.learning_rate_name("total", ("d_deconv1", "bias")) == "all"


def test_twenty_steps_lower_the_loss_and_leave_frozen_biases_alone():
    model = create_model("svrnn", width=0.1, weight_init="pass")
    objective = SVRNNObjective(model, frozen_biases=True)
    params = initial_variables(jax.random.key(0), model)["params"]
    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        optimizer = make_optimizer(
            {"all": make_schedule(2e-3, kind="constant", steps=20)},
            functools.partial(objective.learning_rate_name, "total"),
            adam={"b1": 0.9, "b2": 0.999, "eps": 1e-8},
            weight_decay=1e-6,
        )
        state = init_state(jax.random.key(1), {"params": params}, {"total": optimizer}, ema=False)
        step = make_train_step(objective, {"total": optimizer})
        batch = random_batch(0, 1)
        batch["sharp"] = batch["blurred"][:, :1] + 0.1  # which a bias can give
        losses = []
        before = jax.tree.map(np.array, params)
        for _ in range(20):
            state, metrics = step(state, batch, {})
            losses.append(float(metrics["deblur"][0]))
    assert losses[-1] < 0.5 * losses[0]
    for path, old in jax.tree_util.tree_leaves_with_path(before):
        names = tuple(entry.key for entry in path)
        new = functools.reduce(lambda tree, name: tree[name], names, state.params)
        assert np.array_equal(old, new) == (objective.learning_rate_name("total", names) is None), names


def test_faults():
    with pytest.raises(ValueError, match=r"set objective\.flow_loss=False"):
        SVRNNObjective(create_model("svrnn", sees="current"))
    with pytest.raises(ValueError, match=r"set objective\.flow_loss=False"):
        SVRNNObjective(create_model("svrnn", recurrence="none"))
