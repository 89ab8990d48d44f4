"""DBN against the golden vectors, its variants, batch statistics, and streaming."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur import create_model, restore
from jaxdeblur.interop import from_torch
from jaxdeblur.models import example_inputs, initial_variables

TOLERANCE = 8e-6  # of an array's largest value; measured 2e-6 at most


def check(value, expected, name):
    np.testing.assert_allclose(value, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_every_stage_matches_the_reference(case):
    arrays, provenance = load_case("dbn", case)
    variables = from_torch("dbn", seeded_state_dict(provenance))
    run = functools.partial(create_model("dbn").apply, method="restore_window", mutable=["intermediates"])
    outputs, sown = jax.jit(run)(variables, arrays["frames"])
    check(outputs.restored, arrays["output"], "output")
    check(outputs.added, arrays["F15"], "F15")
    features = {name.removesuffix("_out"): value[0] for name, value in sown["intermediates"]["deblur"].items()}
    compared = []
    for name, expected in arrays.items():
        layer, *cut = name.split("_")
        if cut and layer in features:
            step = int(cut[0].removeprefix("every")) if cut[0].startswith("every") else 1
            check(features[layer][:, ::step, ::step, : int(cut[-1])], expected, name)
            compared.append(layer)
    assert compared == ["F0", "F5", "F8", "S1", "S2", "S3"]
    for layer, found in features.items():
        trace = provenance["trace_per_layer"].get(layer)
        if trace is not None:
            np.testing.assert_allclose([found.mean(), found.std()], [trace["mean"], trace["std"]], rtol=1e-4)


def test_parameter_count():
    model = create_model("dbn")
    params = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 15_305_291


def small(**options):
    return create_model("dbn", **{"width": 1 / 16, **options})


@functools.cache
def small_variables(**options):
    variables = initial_variables(jax.random.key(1), small(**options))
    # Statistics that are not those of the start.
    noise = iter(jax.random.split(jax.random.key(2), 200))
    stats = jax.tree.map(lambda x: x + 0.2 * jax.random.uniform(next(noise), x.shape), variables["batch_stats"])
    return {**variables, "batch_stats": stats}


def video(count, height=24, width=16):
    return np.random.default_rng(0).random((count, height, width, 3), np.float32)


@functools.cache
def jit_window(model, **options):
    return jax.jit(functools.partial(model.apply, method="restore_window", **options))


def test_a_single_frame_is_the_window_of_five_copies():
    frames = video(3)
    single = jit_window(small(sees="single"))(small_variables(), frames[:, None])
    window = jit_window(small())(small_variables(), np.repeat(frames[:, None], 5, axis=1))
    np.testing.assert_allclose(single.restored, window.restored, atol=1e-6)


def test_restored_frames_have_their_neighbours_on_either_side():
    frames, model = video(4), small()
    restored = restore(frames, model, small_variables())
    assert restored.shape == frames.shape
    for t in range(4):
        window = frames[np.clip(np.arange(t - 2, t + 3), 0, 3)][None]
        alone = jit_window(model)(small_variables(), window).restored[0]
        np.testing.assert_allclose(restored[t], alone, atol=1e-5)
    at_once = jax.jit(model.apply)(small_variables(), frames[None])[0]
    np.testing.assert_allclose(restored, at_once, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (9, 17)])
def test_any_size_is_restored(size):
    frames = video(2, *size)
    assert restore(frames, small(), small_variables()).shape == frames.shape


def test_the_released_output_is_a_sigmoid_of_the_frame_and_ours_starts_as_the_identity():
    frames = video(5)[None]
    middle = frames[:, 2]
    outputs = jit_window(small())(small_variables(), frames)
    np.testing.assert_allclose(outputs.restored, 1 / (1 + np.exp(-(middle + outputs.added))), rtol=1e-5)
    ours = small(adds_to="logit")
    restored = jit_window(ours)(initial_variables(jax.random.key(0), ours), frames).restored
    np.testing.assert_allclose(restored, np.clip(middle, 1 / 512, 511 / 512), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: ours.apply(small_variables(), x).sum()))(jnp.zeros((1, 1, 8, 8, 3)))
    assert np.isfinite(gradient).all()


def test_training_moves_the_statistics_of_every_layer_and_evaluation_none():
    frames, variables = video(5)[None], small_variables()

    def after(train):
        return jit_window(small(), train=train, mutable=("batch_stats",))(variables, frames)[1]["batch_stats"]

    jax.tree.map(np.testing.assert_array_equal, after(False), variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after(True), variables["batch_stats"])
    assert jax.tree.leaves(moved) == [True] * 44


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_near(precision):
    frames = video(3)
    exact = restore(frames, small(), small_variables())
    half = restore(frames, small(compute_dtype=precision), small_variables())
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.05


def test_explain_shows_what_was_changed():
    frames, carry = video(5)[None], ()
    pictures = small().apply(small_variables(), carry, frames, method="explain")
    assert list(pictures) == ["blurred", "difference", "restored"]
    difference = pictures["restored"] - pictures["blurred"]
    np.testing.assert_allclose((pictures["difference"] - 0.5) * 2 * np.abs(difference).max(), difference, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.0}, "width is 0.0; expected a fraction above 0"),
    ],
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("dbn", **options)


def test_windows_that_do_not_fit_are_refused():
    for shape, message in (((1, 4, 8, 8, 3), "5, height, width, 3"), ((1, 5, 8, 12, 3), "multiples of 8")):
        with pytest.raises(ValueError, match=message):
            small().apply(small_variables(), jnp.zeros(shape), method="restore_window")
