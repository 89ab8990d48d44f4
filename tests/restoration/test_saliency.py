"""Guided back-propagation against a plain NumPy network, on every model, and as pictures."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from identity_model import IdentityModel
from PIL import Image

from jaxdeblur import create_model
from jaxdeblur.checkpoint import save_model
from jaxdeblur.cli import main
from jaxdeblur.models import initial_variables
from jaxdeblur.models.windows import restore_consecutive
from jaxdeblur.ops.resample import pad_to_multiple
from jaxdeblur.restoration.saliency import saliency, saliency_picture, with_guided_relus

MODELS = {
    "mtu2": {"channels": 4, "residual_blocks": 1, "match_radius": 2},
    "cdvd_tsp": {"channels": 4, "residual_blocks": 1, "flow_width": 1 / 16},
    "svrnn": {"width": 1 / 16},
    "vdflow": {"width": 1 / 32},
    "dbn": {"width": 1 / 32},
    "deblurgan": {"width": 1 / 32, "blocks": 1},
    "maxim": {"stages": 1, "features": 4, "groups": 1, "bottleneck_blocks": 1},
    "nafnet32": {"width": 4, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1), "training_px": 32},
    "estrnn": {"features": 4, "blocks": 2},
}
WITHOUT_RELU = ("nafnet32", "estrnn")


def test_two_layers_by_hand():
    rng = np.random.default_rng(0)
    x, first, second, last = rng.normal(size=5), *(rng.normal(size=shape) for shape in ((5, 7), (7, 6), (6,)))

    def network(x):
        hidden = nn.relu(x @ first)
        return jnp.sum(jax.jit(nn.relu)(hidden @ second) * last)  # one of them inside a compiled function

    before_1, before_2 = x @ first, np.maximum(x @ first, 0) @ second
    back = np.where((before_2 > 0) & (last > 0), last, 0) @ second.T
    back = np.where((before_1 > 0) & (back > 0), back, 0) @ first.T
    assert 0 < np.sum(before_1 > 0) < 7
    assert 0 < np.sum(before_2 > 0) < 6
    np.testing.assert_allclose(jax.grad(with_guided_relus(network))(x), back, rtol=1e-5)
    assert np.abs(jax.grad(network)(x) - back).max() > 0.1
    np.testing.assert_allclose(with_guided_relus(network)(x), network(x), rtol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_loops_are_guided_turn_by_turn(reverse):
    rng = np.random.default_rng(0)
    x, kernels = rng.normal(size=5), rng.normal(size=(3, 5, 5))

    def turn(carry, kernel):
        carry = nn.relu(carry @ kernel)
        return carry, jnp.sum(carry)

    def loop(x):
        last, sums = jax.lax.scan(turn, x, kernels, reverse=reverse)
        return jnp.sum(last) - jnp.sum(sums * jnp.arange(3.0))

    def written_out(x):
        total = 0.0
        for number in (2, 1, 0) if reverse else (0, 1, 2):
            x, summed = turn(x, kernels[number])
            total = total - number * summed
        return jnp.sum(x) + total

    found, expected = (jax.grad(with_guided_relus(function))(x) for function in (loop, written_out))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.abs(jax.grad(loop)(x) - found).max() > 0.1


def test_leaky_relus_keep_their_slope():
    x = jnp.array([-2.0, 3.0, -1.0, 4.0])
    factor = jnp.array([1.0, 1.0, -1.0, -1.0])
    guided = with_guided_relus(lambda x: jnp.sum(nn.leaky_relu(x, negative_slope=0.25) * factor))
    np.testing.assert_allclose(jax.grad(guided)(x), [0.25, 1.0, 0.0, 0.0])


def test_without_a_relu_it_is_the_gradient():
    x = jnp.linspace(-1.0, 1.0, 5)
    guided = jax.grad(with_guided_relus(lambda x: jnp.sum(jnp.tanh(nn.gelu(x)))))(x)
    np.testing.assert_array_equal(guided, jax.grad(lambda x: jnp.sum(jnp.tanh(nn.gelu(x))))(x))


def test_what_cannot_be_guided_is_refused():
    with pytest.raises(ValueError, match="a ReLU inside while"):
        with_guided_relus(lambda x: jax.lax.while_loop(lambda c: c.sum() > 9, nn.relu, x))(jnp.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == "mtu2" else pytest.param(name, marks=pytest.mark.exhaustive) for name in MODELS]
)
def test_every_model_has_it(name):
    model = create_model(name, **MODELS[name])
    variables = initial_variables(jax.random.key(0), model)
    clip = np.random.default_rng(0).random((1, model.past_frames + 2 + model.future_frames, 40, 56, 3), np.float32)
    found = jax.jit(functools.partial(saliency, model))(variables, clip)
    assert found.shape == clip.shape[:-1]
    assert np.isfinite(found).all()
    assert with_guided_relus_differs(model, variables, clip, found) is (name not in WITHOUT_RELU)
    assert np.abs(found).max() > 0


def with_guided_relus_differs(model, variables, clip, found):
    def total(clip):
        return jnp.sum(restore_consecutive(model, variables, clip, count=1)[0])

    padded = pad_to_multiple(jnp.asarray(clip), model.size_multiple)[0]
    plain = jnp.sum(jax.jit(jax.grad(total))(padded), axis=-1)[..., : clip.shape[2], : clip.shape[3]]
    return bool(np.abs(plain - found).max() > 1e-3 * np.abs(plain).max())


def test_a_region_asks_about_its_own_pixels():
    model = create_model("mtu2", **MODELS["mtu2"])
    variables = initial_variables(jax.random.key(0), model)
    clip = np.random.default_rng(0).random((1, 5, 64, 96, 3), np.float32)
    region = np.zeros((64, 96), bool)
    region[8:12, 8:12] = True
    found = np.abs(saliency(model, variables, clip, region=region))[0, 2]
    assert found[:32, :32].max() > 0
    assert found[:, 80:].max() == 0


def test_the_picture_is_red_above_zero_and_green_below():
    picture = saliency_picture(np.array([[1.0, -2.0], [0.5, 0.0]]), scale=2.0)
    np.testing.assert_array_equal(picture, [[[128, 0, 0], [0, 255, 0]], [[64, 0, 0], [0, 0, 0]]])


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "frames").mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8)).save(tmp_path / "frames" / f"{number}.png")
    return tmp_path / "frames"


def test_the_command_writes_a_picture_of_before_and_after(tmp_path, folder, capsys):
    for number, place in enumerate(("old", "new")):
        model = create_model("deblurgan", **MODELS["deblurgan"])
        variables = initial_variables(jax.random.key(number), model)
        save_model(tmp_path / place, name="deblurgan", options=MODELS["deblurgan"], variables=variables)
    out = tmp_path / "seen.png"
    command = ["saliency", str(folder), str(out), f"--checkpoint={tmp_path / 'new'}", "--frame=1"]
    assert main([*command, f"--before={tmp_path / 'old'}", "--region=4,4,8,8"]) == 0
    assert capsys.readouterr().out == f"{out}: before, after\n"
    sheet = np.asarray(Image.open(out))
    assert sheet.shape[0] > 48
    assert sheet.shape[1] > 80
    red_or_green = (sheet[..., 0] != sheet[..., 1]) & (sheet[..., 2] == 0)
    assert np.sum(red_or_green) > 20
    for wrong, message in (
        ("--region=4,4", "--region is '4,4'; expected X,Y,W,H"),
        ("--region=30,4,20,8", "region (30, 4, 20, 8) lies outside frames of 40x24"),
        ("--frame=3", f"{folder}: has no frame 3"),
    ):
        assert main([*command, wrong, "--overwrite"]) == 2
        assert message in capsys.readouterr().err


def test_each_pixel_of_a_model_that_changes_nothing_comes_from_itself():
    found = saliency(IdentityModel(), {}, np.zeros((1, 4, 24, 40, 3), np.float32))
    np.testing.assert_array_equal(
        found[0], [np.zeros((24, 40)), np.zeros((24, 40)), np.full((24, 40), 3.0), np.zeros((24, 40))]
    )
