"""SVRNN against the golden vectors, its variants, and streaming against windows on their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur import create_model, restore
from jaxdeblur.data.clips import frame_windows
from jaxdeblur.interop import from_torch
from jaxdeblur.models import example_inputs, initial_variables
from jaxdeblur.models.svrnn import FINEST_FLOW, FlowNetwork, SVRNNConfig, in_pixels_of_own_grid

TOLERANCE = 2e-5  # of an array's largest value; measured 2e-6 at most
CASES = ["case_a", "case_b_batch2"]


@functools.cache
def released_variables():
    return from_torch("svrnn", seeded_state_dict(load_case("svrnn_flow", "case_a")[1]))


@functools.cache
def jit_window(model):
    return jax.jit(functools.partial(model.apply, method="restore_window"))


def check(value, expected, name):
    np.testing.assert_allclose(value, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_stage_matches_the_reference(case):
    arrays, _ = load_case("svrnn_flow", case)
    window = np.stack([arrays["image1"], arrays["image2"]], axis=1)
    outputs = jit_window(create_model("svrnn"))(released_variables(), window)
    for level, flow in enumerate(outputs.flows_cur_to_next, start=FINEST_FLOW):
        check(flow, arrays[f"flow{level}"], f"flow{level}")
    for level, step, recurred in zip((1, 2, 3), (8, 4, 2), outputs.recurred, strict=True):
        for value, name in ((recurred.weights, "rnn_weight"), (recurred.after, "rnn_out")):
            check(value[:, ::step, ::step], arrays[f"{name}{level}_every{step}"], f"{name}{level}")
    check(outputs.restored, arrays["output"], "output")


ROWS = {  # of Table IV, with the parameters of this reading of it
    "none": ({"recurrence": "none"}, 725_280),
    "concat weights": ({"recurrence": "concatenated"}, 8_752_864),
    "no flow": ({"sees": "current"}, 8_278_168),
    "two direction": ({"sees": "both"}, 8_327_388),
    "decoder": ({"recurrence": "decoder"}, 6_795_424),
    "full": ({}, 8_281_696),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_table_has_its_parameters(row):
    options, count = ROWS[row]
    model = create_model("svrnn", **options)
    params = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def small(**options):
    return create_model("svrnn", **{"width": 0.2, **options})


@functools.cache
def small_variables(**options):
    return initial_variables(jax.random.key(1), small(**options))


def video(count, height=40, width=50):
    return np.random.default_rng(0).random((count, height, width, 3), np.float32)


def windows_on_their_own(model, variables, frames):
    """Each frame's window by itself, padded with zeros by hand."""
    _, height, width, _ = frames.shape
    padded = np.pad(frames, ((0, 0), (0, -height % 64), (0, -width % 64), (0, 0)))
    windows = frame_windows(padded, model.past_frames, model.future_frames, beyond_ends="alternate")
    run = jit_window(model)
    return np.stack([run(variables, np.stack(w)[None]).restored[0, :height, :width] for w in windows])


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"sees": "both"}, marks=pytest.mark.exhaustive),
        pytest.param({"sees": "current"}, marks=pytest.mark.exhaustive),
        {"recurrence": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 3])
def test_streaming_equals_windows_on_their_own(options, count):
    model, variables, frames = small(**options), small_variables(**options), video(count)
    expected = windows_on_their_own(model, variables, frames)
    restored = restore(frames, model, variables)
    assert np.ptp(restored) > 0.1
    np.testing.assert_allclose(restored, expected.clip(0, 1), rtol=0, atol=1e-5)


def test_the_last_frame_sees_the_one_before_it():
    model, variables, frames = small(), small_variables(), video(3)
    padded = np.pad(frames, ((0, 0), (0, 24), (0, 14), (0, 0)))
    swapped = jit_window(model)(variables, padded[None, [2, 1]]).restored[0, :40, :50]
    np.testing.assert_allclose(restore(frames, model, variables)[-1], np.clip(swapped, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, *(pytest.param({"sees": sees}, marks=pytest.mark.exhaustive) for sees in ("both", "current"))],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_clip_at_once_equals_the_stream(options, count):
    model, variables, frames = small(**options), small_variables(**options), video(count, 64, 64)
    clip = np.asarray(jax.jit(model.apply)(variables, frames[None])[0])
    np.testing.assert_allclose(restore(frames, model, variables), clip.clip(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("recurrence", ["decoder", "concatenated"])
def test_where_the_recurrences_are(recurrence):
    outputs = jit_window(small(recurrence=recurrence))(small_variables(recurrence=recurrence), video(2, 64, 64)[None])
    channels = {"decoder": (5, 10, 10), "concatenated": (5, 10, 19)}[recurrence]  # of 24, 48, 48 or 96, a fifth
    assert [recurred.before.shape[1:] for recurred in outputs.recurred] == [
        (64 // 2**level, 64 // 2**level, count) for level, count in enumerate(channels, start=1)
    ]
    for recurred in outputs.recurred:
        assert recurred.weights.shape[-1] == 4 * recurred.before.shape[-1]
        if recurrence == "concatenated":
            np.testing.assert_array_equal(recurred.after, np.concatenate([recurred.before, recurred.weights], axis=-1))


def test_features_are_the_same_when_flows_are_in_pixels_of_their_grids():
    arrays, _ = load_case("svrnn_flow", "case_a")
    frames = np.concatenate([arrays["image1"], arrays["image2"]], axis=-1)
    params = released_variables()["params"]["flow_net"]
    run = jax.jit(lambda params: FlowNetwork(SVRNNConfig()).apply({"params": params}, frames))
    before, after = run(params), run(in_pixels_of_own_grid(params))
    for level, one, other in zip(range(2, 7), before.flows_1to0, after.flows_1to0, strict=True):
        scaled = one * 20 / 2**level
        np.testing.assert_allclose(other, scaled, rtol=0, atol=1e-5 * np.abs(scaled).max())
        np.testing.assert_allclose(
            after.joined[level], before.joined[level], rtol=0, atol=1e-5 * np.abs(before.joined[level]).max()
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_half_precision_is_near(dtype, tolerance):
    window = video(2, 64, 64)[None]
    full, half = (jit_window(small(**options))(small_variables(), window) for options in ({}, {"compute_dtype": dtype}))

    def check_near(value, expected):
        difference = np.abs(np.asarray(value, np.float32) - expected)
        assert 0 < difference.mean() < tolerance * np.abs(expected).mean()

    for value, expected in zip(half.recurred, full.recurred, strict=True):
        assert (value.before.dtype, value.weights.dtype, value.after.dtype) == (dtype, jnp.float32, dtype)
        check_near(value.after, expected.after)
        check_near(value.weights, expected.weights)
    assert half.restored.dtype == half.flows_cur_to_next[0].dtype == jnp.float32
    check_near(half.flows_cur_to_next[0], full.flows_cur_to_next[0])
    check_near(half.restored, full.restored)


def test_initial_values_follow_the_recipes():
    drawn = {
        kind: initial_variables(jax.random.key(0), create_model("svrnn", weight_init=kind))["params"]
        for kind in ("release", "paper")
    }

    def variance_times_fan_in(kind, *path):
        params = drawn[kind]
        for name in path:
            params = params[name]
        assert not np.any(params["bias"])
        kernel = np.asarray(params["kernel"])
        return np.var(kernel) * np.prod(kernel.shape[:3])

    for kind, decoder in (("release", 2.0), ("paper", 1.0)):
        np.testing.assert_allclose(variance_times_fan_in(kind, "d_conv3_2"), decoder, rtol=0.05)
        np.testing.assert_allclose(variance_times_fan_in(kind, "d_deconv3"), 4 * decoder, rtol=0.05)
        np.testing.assert_allclose(variance_times_fan_in(kind, "d_conv2"), 1.0, rtol=0.05)
        np.testing.assert_allclose(variance_times_fan_in(kind, "rnnw3"), 1.0, rtol=0.05)
        np.testing.assert_allclose(variance_times_fan_in(kind, "flow_net", "conv5"), 2.0, rtol=0.05)


def test_frames_are_passed_on_at_first_if_asked_for():
    model, frames = small(weight_init="pass"), video(3)
    np.testing.assert_allclose(restore(frames, model, small_variables(weight_init="pass")), frames, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "others"),
    [
        ({}, ["flow to next"]),
        ({"sees": "both"}, ["flow to next", "flow to previous"]),
        ({"recurrence": "none"}, None),
        ({"recurrence": "concatenated"}, ["flow to next"]),
    ],
    ids=str,
)
def test_explains_itself(options, others):
    model, variables, frames = small(**options), small_variables(**options), video(2)
    sheets = []
    restored = restore(frames, model, variables, explain=lambda _, pictures: sheets.append(pictures))
    for pictures, frame, blurred in zip(sheets, restored, frames, strict=True):
        names = ["blurred"]
        if others is not None:
            concatenated = "recurrence" in options
            names += [*others, "features" if concatenated else "before the recurrence"]
            for direction in ("left to right", "right to left", "top to bottom", "bottom to top"):
                names += [f"weights {direction}"] if concatenated else [f"weights {direction}", f"after {direction}"]
        assert list(pictures) == [*names, "restored"]
        assert all(picture.shape == (40, 50, 3) and picture.dtype == np.uint8 for picture in pictures.values())
        assert all(np.ptp(picture) > 0 for picture in pictures.values())
        np.testing.assert_allclose(pictures["restored"] / 255, frame, atol=0.6 / 255)
        np.testing.assert_allclose(pictures["blurred"] / 255, blurred, atol=0.6 / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.0}, "width is 0.0; expected a fraction above 0"),
        ({"recurrence": "none", "sees": "both"}, "sees is 'both', but recurrence='none' has no flow network"),
        ({"depth": 3}, "SVRNNConfig has no option depth"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("svrnn", **options)


def test_windows_that_do_not_fit_are_refused():
    run = functools.partial(small().apply, small_variables(), method="restore_window")
    with pytest.raises(ValueError, match=r"window has shape \(1, 3, 64, 64, 3\); expected \(batch, 2, height"):
        run(jnp.zeros((1, 3, 64, 64, 3)))
    with pytest.raises(ValueError, match="height and width are 64 x 60; expected multiples of 64"):
        run(jnp.zeros((1, 2, 64, 60, 3)))
    with pytest.raises(ValueError, match=r"clip has shape \(2, 64, 64, 3\); expected \(batch, time"):
        small().apply(small_variables(), jnp.zeros((2, 64, 64, 3)))
