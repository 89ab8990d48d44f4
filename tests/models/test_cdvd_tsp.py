"""CDVD-TSP against the golden vectors, and streaming against windows on their own."""

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
from jaxdeblur.models.cdvd_tsp import RestorationNetwork

TOLERANCE = 2e-5  # of an array's largest value; measured 6e-6 at most


@functools.cache
def released_variables():
    return from_torch("cdvd_tsp", seeded_state_dict(load_case("cdvd_tsp", "case_a")[1]))


def check(expected, name, value):
    """Takes what it has checked out of `expected`; case_b holds fewer arrays than case_a."""
    if name in expected:
        array = expected.pop(name)
        np.testing.assert_allclose(value, array, rtol=0, atol=TOLERANCE * np.abs(array).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_every_stage_matches_the_released_network(case):
    expected, _ = load_case("cdvd_tsp", case)
    first, second = jit_cascade(create_model("cdvd_tsp"))(released_variables(), expected["frames"])
    for stage, mark, centres in ((first, "", (1, 2, 3)), (second, "s2_", (2,))):
        for i, centre in enumerate(centres):
            for neighbour, side in ((centre - 1, "prev"), (centre + 1, "next")):
                pair = f"{mark}{centre}_{neighbour}"
                check(expected, f"flow_{pair}", getattr(stage, f"flow_cur_to_{side}")[:, i])
                check(expected, f"warped_{pair}", getattr(stage, f"{side}_on_cur")[:, i])
                check(expected, f"mask_{pair}", getattr(stage, f"valid_{side}_on_cur")[:, i, ..., None])
            check(expected, "prior_s2" if mark else f"prior_{centre}", stage.prior[:, i])
            check(expected, "stage2" if mark else f"stage1_{centre}", stage.restored[:, i])
    assert set(expected) == {"frames"}


BLOCKS = {
    "inBlock": "in",
    "encoder_first": "down1",
    "encoder_second": "down2",
    "decoder_second": "up2",
    "decoder_first": "up1",
}


@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_every_block_of_the_encoder_decoder_matches(case):
    expected, _ = load_case("srn_restoration", case)
    network = RestorationNetwork(32, 3, "released", jnp.dtype("float32"))
    apply = jax.jit(functools.partial(network.apply, mutable="intermediates"))
    restored, seen = apply({"params": released_variables()["params"]["restoration"]}, expected["input"])
    check(expected, "output", restored)
    for official, ours in BLOCKS.items():
        check(expected, official, seen["intermediates"][ours][0])
    assert set(expected) == {"input"}


def parameter_count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("options", "flow", "restoration"),
    [
        ({}, 9_374_274, 6_812_771),
        ({"stages": 1}, 9_374_274, 6_812_771),
        ({"stages": 3}, 9_374_274, 6_812_771),
        ({"prior": False}, 9_374_274, 16_186_245 - 9_374_274),
        ({"flow": "flownet2"}, 162_518_834, 6_812_771),
        ({"flow": "zero"}, 0, 6_812_771),
        ({"flow": "none"}, 0, 6_816_771),
    ],
)
def test_every_switch_has_the_papers_parameters(options, flow, restoration):
    model = create_model("cdvd_tsp", **options)
    params = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    assert parameter_count(params.get("flow_net", {})) == flow
    assert parameter_count(params["restoration"]) == restoration


def small(**options):
    return create_model(
        "cdvd_tsp", **{"channels": 4, "residual_blocks": 1, "flow_width": 0.05, "weight_init": "he", **options}
    )


@functools.cache
def small_variables(**options):
    """Random ones that keep images near [0, 1] and give flows of some pixels; quicker than compiling init."""
    model, rng = small(**options), np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))

    def fill(path, leaf):
        gain = 0.55 if path[1].key == "restoration" else 1.0
        scale = gain * np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) == 4 else 0.1
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def video(count, height=20, width=28):
    """Smooth frames that move."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    t = np.arange(count, dtype=np.float32)[:, None, None, None]
    phase = np.arange(3, dtype=np.float32)
    waves = np.sin((x[None, ..., None] - 2 * t) / 3 + phase) * np.cos((y[None, ..., None] + t) / 4 + 2 * phase)
    return (0.5 + 0.45 * waves).astype(np.float32)


@functools.cache
def jit_cascade(model):
    return jax.jit(functools.partial(model.apply, method="cascade"))


def windows_on_their_own(model, variables, frames):
    """The last stage of every frame's window, nothing shared between windows."""
    cascade = jit_cascade(model)
    windows = frame_windows(frames, model.past_frames, model.future_frames, beyond_ends="alternate")
    return np.stack([cascade(variables, np.stack(window)[None])[-1].restored[0, 0] for window in windows])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_streaming_equals_windows_on_their_own(count):
    model, variables, frames = small(), small_variables(), video(count)
    expected = windows_on_their_own(model, variables, frames)
    restored = restore(frames, model, variables)
    assert np.ptp(restored) > 0.1
    np.testing.assert_allclose(restored, expected.clip(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"flow": "zero", "stages": 3},
        {"flow": "none"},
        *(
            pytest.param({"flow": "zero", **switch}, marks=pytest.mark.exhaustive)
            for switch in ({"stages": 1}, {"prior": False}, {"prior_box_px": 1})
        ),
    ],
    ids=str,
)
def test_streaming_equals_windows_with_every_switch(options):
    model, variables, frames = small(**options), small_variables(**options), video(4)
    expected = windows_on_their_own(model, variables, frames)
    np.testing.assert_allclose(restore(frames, model, variables), expected.clip(0, 1), rtol=0, atol=1e-5)


@pytest.mark.exhaustive
def test_flownet2_inside():
    model, variables, frames = small(flow="flownet2"), small_variables(flow="flownet2"), video(2)
    expected = windows_on_their_own(model, variables, frames)
    np.testing.assert_allclose(restore(frames, model, variables), expected.clip(0, 1), rtol=0, atol=1e-5)


def test_a_clip_at_once_equals_the_stream():
    model, variables, frames = small(flow="zero"), small_variables(flow="zero"), video(5)
    clip = np.asarray(jax.jit(model.apply)(variables, frames[None])[0])
    np.testing.assert_allclose(restore(frames, model, variables), clip.clip(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "flow"),
    [((1, 1), "zero"), ((5, 7), "zero"), pytest.param((64, 66), "pwcnet", marks=pytest.mark.exhaustive)],
)
def test_frames_of_any_size_come_out_whole(size, flow):
    frames = video(3, *size)
    restored = restore(frames, small(flow=flow), small_variables(flow=flow))
    assert restored.shape == frames.shape
    assert np.all(np.isfinite(restored))


def test_a_window_is_read_in_the_order_of_time():
    """The prior of a still scene is one; a neighbour that differs lowers it on both sides alike."""
    model, variables = small(flow="zero"), small_variables(flow="zero")
    still = np.repeat(video(1), 5, axis=0)[None]
    moved = still.copy()
    moved[:, 3] = 0
    cascade = jit_cascade(model)
    first = cascade(variables, still)[0]
    np.testing.assert_allclose(first.prior, 1, atol=1e-6)
    np.testing.assert_array_equal(first.prev_on_cur[:, 1], still[:, 1])
    lowered = cascade(variables, moved)[0]
    np.testing.assert_array_equal(lowered.next_on_cur[:, 1], 0)
    np.testing.assert_array_equal(lowered.prior[:, 0], first.prior[:, 0])
    assert np.all(np.asarray(lowered.prior[:, 1]) < 0.9)


def test_half_precision_is_near():
    variables, frames = small_variables(flow="zero"), video(3)
    full = restore(frames, small(flow="zero"), variables)
    for dtype in ("bfloat16", "float16"):
        half = restore(frames, small(flow="zero", compute_dtype=dtype), variables)
        assert 0 < np.abs(half - full).mean() < 0.02


def test_initial_values_follow_the_release_or_the_paper():
    for kind, spread in (("released", 1 / 3), ("he", 2.0)):
        model = create_model("cdvd_tsp", flow="zero", residual_blocks=1, weight_init=kind)
        params = initial_variables(jax.random.key(0), model)["params"]["restoration"]
        for name, fan_in in (("in_conv", 250), ("down2_block_1_conv1", 3200), ("up2_conv", 1152)):
            kernel, bias = params[name]["kernel"], params[name]["bias"]
            np.testing.assert_allclose(np.var(kernel) * fan_in, spread, rtol=0.1)
            if kind == "released":
                assert np.abs(kernel).max() <= fan_in**-0.5
                assert 0.7 * fan_in**-0.5 < np.abs(bias).max() <= fan_in**-0.5
            else:
                assert not np.any(bias)


@pytest.mark.parametrize("options", [{"flow": "zero"}, {"flow": "none"}, {"flow": "zero", "stages": 1}], ids=str)
def test_frames_are_passed_on_at_first_if_asked_for(options):
    model = create_model("cdvd_tsp", **options, channels=8, weight_init="pass")
    variables, frames = initial_variables(jax.random.key(0), model), video(5)
    restored = restore(frames, model, variables)
    assert 0 < np.abs(restored - frames).mean() < 0.08
    assert np.abs(restored - frames).mean() < 0.5 * np.abs(restored - np.roll(frames, 1, axis=0)).mean()


@pytest.mark.slow
def test_explains_itself():
    model, variables, frames = small(), small_variables(), video(4)
    sheets = []
    restored = restore(frames, model, variables, explain=lambda number, pictures: sheets.append((number, pictures)))
    assert [number for number, _ in sheets] == [0, 1, 2, 3]
    for (_, pictures), frame, blurred in zip(sheets, restored, frames, strict=True):
        assert list(pictures)[:2] == ["blurred", "stage 1: flow to previous"]
        assert list(pictures)[-1] == "stage 2: restored"
        assert len(pictures) == 13
        assert all(picture.shape == (20, 28, 3) and picture.dtype == np.uint8 for picture in pictures.values())
        np.testing.assert_allclose(pictures["stage 2: restored"] / 255, frame, atol=0.6 / 255)
        np.testing.assert_allclose(pictures["blurred"] / 255, blurred, atol=0.6 / 255)
        assert np.ptp(pictures["stage 1: flow to previous"]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 0}, "stages is 0; expected 1 or more"),
        ({"flow_width": -1.0}, "flow_width is -1.0; expected a fraction above 0"),
        ({"prior_box_px": 4}, "prior_box_px is 4; expected an odd number"),
        ({"depth": 3}, "CDVDTSPConfig has no option depth"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("cdvd_tsp", **options)


def test_a_window_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"window has shape \(1, 3, 8, 8, 3\); expected \(batch, 5, height"):
        small().apply(small_variables(), np.zeros((1, 3, 8, 8, 3), np.float32), method="cascade")
    with pytest.raises(ValueError, match="8 x 10; expected multiples of 4"):
        small().apply(small_variables(), np.zeros((1, 5, 8, 10, 3), np.float32), method="cascade")
