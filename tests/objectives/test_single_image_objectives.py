"""The losses of MAXIM and NAFNet against NumPy, and what an update does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import create_model
from jaxdeblur.models import example_inputs
from jaxdeblur.models.maxim import resized_inputs
from jaxdeblur.objectives.maxim import MAXIMObjective
from jaxdeblur.objectives.nafnet import NAFNetObjective

MAXIM = {"stages": 2, "features": 4, "groups": 1, "bottleneck_blocks": 1}
NAFNET = {"width": 4, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1), "training_px": 64}


def batch(count=2, frames=1):
    rng = np.random.default_rng(0)
    sharp = rng.uniform(0, 1, (count, frames, 64, 64, 3)).astype(np.float32)
    return {"blurred": sharp + rng.normal(0, 0.1, sharp.shape).astype(np.float32), "sharp": sharp}


def network(name, options):
    model = create_model(name, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    rng = np.random.default_rng(1)

    def drawn(leaf):
        return rng.standard_normal(leaf.shape, np.float32) / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)

    return model, jax.tree.map(drawn, shapes)  # drawn by JAX, each shape would be compiled


def losses(objective, params, given, seed=0):
    prepared = objective.prepare(given, {})
    carry = objective.init_carry(prepared)
    return objective.losses(params, {}, prepared, carry, jnp.int32(0), jax.random.key(seed))


@pytest.fixture(scope="module")
def maxim():
    return network("maxim", MAXIM)


def test_maxim_is_supervised_at_every_stage_and_scale(maxim):
    model, params = maxim
    given = batch()
    objective = MAXIMObjective(model, mixed_share=0.0)
    found, _, _, terms = jax.jit(lambda params: losses(objective, params, given))(params)
    outputs = jax.jit(lambda params: model.apply({"params": params}, given["blurred"], method="restore_scales"))(params)
    sharp = given["sharp"][:, 0].astype(np.float64)
    targets = {16: sharp[:, 2::4, 2::4], 32: sharp[:, 1::2, 1::2], 64: sharp}
    charbonnier = frequency = 0.0
    for stage in outputs:
        assert [image.shape[1] for image in stage] == [16, 32, 64]
        for image in stage:
            difference = np.asarray(image, np.float64) - targets[image.shape[1]]
            charbonnier += np.sqrt(difference**2 + 1e-6).mean()
            spectrum = np.fft.rfft2(difference, axes=(1, 2), norm="ortho")
            frequency += (np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()) / 2
    np.testing.assert_allclose(terms["charbonnier"], charbonnier, rtol=1e-5)
    np.testing.assert_allclose(found["all"], charbonnier + 0.1 * frequency, rtol=1e-5)


def test_targets_of_maxim_are_resized_as_its_inputs():
    image = np.arange(8 * 12 * 3, dtype=np.float32).reshape(1, 8, 12, 3)
    full, half, quarter = resized_inputs(image)
    np.testing.assert_array_equal(full, image)
    np.testing.assert_array_equal(half, image[:, 1::2, 1::2])
    np.testing.assert_array_equal(quarter, image[:, 2::4, 2::4])


def test_mixed_examples_are_their_own_targets_mixed_alike(maxim):
    objective = MAXIMObjective(maxim[0], mixed_share=0.5)
    given = batch(count=64)
    blurred, sharp = objective._mixed(jax.random.key(3), given["blurred"][:, 0], given["sharp"][:, 0])
    before = np.roll(given["sharp"][:, 0], 1, axis=0)
    own = np.mean((sharp - before) * (given["sharp"][:, 0] - before), axis=(1, 2, 3), keepdims=True) / np.mean(
        np.square(given["sharp"][:, 0] - before), axis=(1, 2, 3), keepdims=True
    )
    assert np.all((own > 0) & (own < 1 + 1e-6))
    assert 16 < np.sum(own < 0.999) < 48
    np.testing.assert_allclose(sharp, own * given["sharp"][:, 0] + (1 - own) * before, atol=1e-6)
    expected = own * given["blurred"][:, 0] + (1 - own) * np.roll(given["blurred"][:, 0], 1, axis=0)
    np.testing.assert_allclose(blurred, expected, atol=1e-6)
    again = objective._mixed(jax.random.key(3), given["blurred"][:, 0], given["sharp"][:, 0])
    np.testing.assert_array_equal(again[1], sharp)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_from_0_to_1(maxim, share):
    with pytest.raises(ValueError, match=rf"objective\.mixed_share is {share}; expected a share from 0 to 1"):
        MAXIMObjective(maxim[0], mixed_share=share)


def test_nafnet_maximises_the_mean_psnr_of_frames():
    model, params = network("nafnet32", NAFNET)
    given = batch(count=2, frames=2)
    found, _, _, terms = losses(NAFNetObjective(model), params, given)
    frames = given["blurred"].reshape(4, 1, 64, 64, 3)
    restored = np.asarray(model.apply({"params": params}, frames), np.float64)[:, 0]
    errors = np.square(restored - given["sharp"].reshape(4, 64, 64, 3)).mean((1, 2, 3))
    np.testing.assert_allclose(terms["psnr_db"], np.mean(-10 * np.log10(errors)), rtol=1e-5)
    np.testing.assert_allclose(found["all"], -terms["psnr_db"])


@pytest.mark.parametrize(
    ("name", "options", "objective"),
    [("maxim", {**MAXIM, "stages": 1}, MAXIMObjective), ("nafnet32", NAFNET, NAFNetObjective)],
)
def test_updates_lower_the_loss(name, options, objective):
    model, params = network(name, options)
    given = batch()
    value_and_grad = jax.jit(jax.value_and_grad(lambda params: losses(objective(model), params, given)[0]["all"]))
    first, _ = value_and_grad(params)
    for _ in range(12):
        value, gradient = value_and_grad(params)
        norm = np.sqrt(sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(gradient)))
        assert np.isfinite(norm)
        rate = 0.02 / norm
        params = jax.tree.map(lambda leaf, change, rate=rate: leaf - rate * change, params, gradient)
    assert float(value) < float(first)
