"""DeblurGAN's generator against the golden vectors, its switches, its weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur import create_model, restore
from jaxdeblur.interop import from_torch
from jaxdeblur.models import example_inputs, initial_variables

TOLERANCE = 8e-6  # of an array's largest value; measured 5e-6 at most


@functools.cache
def official():
    return seeded_state_dict(load_case("deblurgan", "case_a")[1])


def check(value, expected, name):
    np.testing.assert_allclose(value, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["case_a", "case_b_batch2"])
def test_every_stage_matches_the_reference(case):
    arrays, _ = load_case("deblurgan", case)
    run = functools.partial(create_model("deblurgan").apply, method="restore_window", mutable=["intermediates"])
    outputs, sown = jax.jit(run)(from_torch("deblurgan", official()), arrays["image"][:, None])
    check(2 * outputs.restored - 1, arrays["output"], "output")
    check(outputs.residual, arrays["residual_tanh"], "residual")
    for ours, theirs in (("down", "feat_down_every2_ch0_32"), ("blocks", "feat_res9_every2_ch0_32")):
        check(sown["intermediates"][ours][0][:, ::2, ::2, :32], arrays[theirs], theirs)


@pytest.mark.parametrize(("blocks", "parameters"), [(9, 11_378_179), (6, 7_837_699)])
def test_parameter_counts(blocks, parameters):
    model = create_model("deblurgan", blocks=blocks)
    params = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_files_with_unused_statistics_and_networks_without_dropout_are_read_alike():
    given = official()
    expected = from_torch("deblurgan", given)
    norms = {"model.2": 64, "model.5": 128, "model.8": 256, "model.20": 128, "model.23": 64}
    norms |= {f"model.{block}.conv_block.{index}": 256 for block in range(10, 19) for index in (2, 7)}
    statistics = {f"{name}.{kind}": np.ones(n) for name, n in norms.items() for kind in ("running_mean", "running_var")}
    jax.tree.map(np.testing.assert_array_equal, from_torch("deblurgan", given | statistics), expected)
    without_dropout = {name.replace("conv_block.6", "conv_block.5"): value for name, value in given.items()}
    assert without_dropout.keys() != given.keys()
    jax.tree.map(np.testing.assert_array_equal, from_torch("deblurgan", without_dropout), expected)


def test_the_later_heads_weights_are_told_by_name():
    later = {name: value for name, value in official().items() if "conv_block.6" not in name}
    assert sum(value.size for value in later.values()) == 6_067_459
    with pytest.raises(ValueError, match="one convolution a block: they are of the repository's head since March 2019"):
        from_torch("deblurgan", later)


def small(**options):
    return create_model("deblurgan", **{"width": 1 / 16, "blocks": 2, **options})


@functools.cache
def small_variables():
    variables = initial_variables(jax.random.key(0), small())
    return jax.tree.map(lambda x: 8 * x, variables)  # so that the residual is seen


@functools.cache
def jit_window(model):
    return jax.jit(functools.partial(model.apply, method="restore_window"))


def frames(count=2, height=12, width=16):
    return np.random.default_rng(0).random((count, height, width, 3), np.float32)


def test_the_residual_is_added_on_the_scale_from_minus_one_to_one_and_clipped():
    outputs = jit_window(small())(small_variables(), frames()[:, None])
    expected = (np.clip(2 * frames() - 1 + outputs.residual, -1, 1) + 1) / 2
    np.testing.assert_allclose(outputs.restored, expected, atol=1e-6)
    assert np.abs(outputs.residual).max() > 0.05
    ours = small(weight_init="pass")
    restored = jit_window(ours)(initial_variables(jax.random.key(0), ours), frames()[:, None]).restored
    np.testing.assert_allclose(restored, frames(), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (5, 18)])
def test_any_size_is_restored_frame_by_frame(size):
    video = frames(3, *size)
    restored = restore(video, small(), small_variables())
    assert restored.shape == video.shape
    alone = restore(video[1:2], small(), small_variables())
    np.testing.assert_allclose(restored[1:2], alone, atol=1e-6)


def test_dropout_is_off_unless_asked_for():
    window = frames()[:, None]
    plain = jit_window(small())(small_variables(), window).restored
    released = jit_window(small(dropout_seed=3))
    once, again = (released(small_variables(), window).restored for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - plain).max() > 1e-3
    other = jit_window(small(dropout_seed=4))(small_variables(), window).restored
    assert np.abs(once - other).max() > 1e-3
    key = jax.random.key(3)
    trained = jax.jit(functools.partial(small().apply, method="restore_window"))
    np.testing.assert_allclose(trained(small_variables(), window, dropout_key=key).restored, once, atol=1e-6)


def test_half_precision_stays_near():
    exact = restore(frames(), small(), small_variables())
    half = restore(frames(), small(compute_dtype="bfloat16"), small_variables())
    assert 0 < np.abs(half - exact).max() < 0.05


def test_explain_and_what_is_refused():
    pictures = jax.jit(functools.partial(small().apply, method="explain"))(small_variables(), (), frames()[:, None])
    assert set(pictures) == {"blurred", "difference", "restored"}
    for options, message in (({"blocks": 0}, "blocks is 0"), ({"width": 0.0}, "expected a fraction above 0")):
        with pytest.raises(ValueError, match=message):
            small(**options)
    with pytest.raises(ValueError, match="multiples of 4"):
        small().apply(small_variables(), jnp.zeros((1, 1, 6, 8, 3)), method="restore_window")
