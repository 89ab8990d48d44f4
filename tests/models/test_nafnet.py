"""NAFNet against the golden vectors, what is easily got wrong, its switches, its weights."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur import create_model, restore
from jaxdeblur.checkpoint import load_model, save_model
from jaxdeblur.interop import TABLES, from_torch
from jaxdeblur.interop.layout import find_faults, to_variables
from jaxdeblur.interop.nafnet import table
from jaxdeblur.models import initial_variables
from jaxdeblur.models.nafnet import Block, NAFNetConfig, over_frame, window_means
from jaxdeblur.ops.resample import pad_to_multiple, pixel_shuffle, unpad

TOLERANCE = 1e-5  # of an array's largest value; measured 1.2e-6 at most
CASES = ("case_a", "case_b", "case_c_local", "case_d_local_one_axis")


def check(value, expected, name):
    np.testing.assert_allclose(value, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=name)


def official_model(provenance, **options):
    """The network of a golden file."""
    published = provenance["config"]
    return create_model(
        "nafnet32",
        **{
            "width": published["width"],
            "encoder_blocks": tuple(published["enc_blk_nums"]),
            "middle_blocks": published["middle_blk_num"],
            "decoder_blocks": tuple(published["dec_blk_nums"]),
            "local": provenance["tlc_train_size"] is not None,
            "training_px": provenance["tlc_train_size"] or 256,
            **options,
        },
    )


@functools.cache
def official_variables(case):
    provenance = load_case("nafnet", case)[1]
    return to_variables(table({}, config=official_model(provenance).config), seeded_state_dict(provenance))


@functools.cache
def jit_window(model, **options):
    return jax.jit(functools.partial(model.apply, method="restore_window", **options))


def intermediate(made, name):
    """What is stored under an official module's name, of all that our modules make."""
    if name == "intro":
        return made["intro"]["__call__"][0]
    if name.startswith("downs_"):
        return made[f"down_{int(name[-1]) + 1}"]["__call__"][0]
    if name.startswith("ups_"):
        return pixel_shuffle(made[f"up_{int(name[-1]) + 1}"]["__call__"][0], 2)
    place, at, part = re.fullmatch(r"(encoders|decoders|middle_blks)((?:_\d+)+)_?(conv2|sca|sca_0|)", name).groups()
    numbers = [str(int(number) + 1) for number in at.split("_")[1:]]
    ours = {"encoders": "encoder", "decoders": "decoder", "middle_blks": "middle"}[place]
    block = made["_".join([ours, *numbers[:-1], "block", numbers[-1]])]
    result = block["__call__"][0]
    if part == "":
        return result
    if part == "sca_0":
        means = over_frame(block["means"][0], *result.shape[1:3])
        return jnp.broadcast_to(means, result.shape)
    return block[{"sca": "channel_attention"}.get(part, part)]["__call__"][0]


@pytest.mark.parametrize("case", CASES)
def test_every_stage_matches_the_reference(case):
    arrays, provenance = load_case("nafnet", case)
    variables = official_variables(case)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == provenance["param_count"]
    padded, size = pad_to_multiple(arrays["image"], 16, "zeros")
    run = jit_window(official_model(provenance), capture_intermediates=True)
    outputs, state = run(variables, padded[:, None])
    check(unpad(outputs.restored, size), arrays["output"], "output")
    compared = []
    for stored, expected in arrays.items():
        name, *step = stored.split("_every")
        if not stored.startswith(("image", "output")):
            step = int(step[0]) if step else 1
            check(intermediate(state["intermediates"], name)[:, ::step, ::step], expected, stored)
            compared.append(name)
    assert len(compared) == {"case_a": 14, "case_b": 5, "case_c_local": 5, "case_d_local_one_axis": 3}[case]


@pytest.mark.parametrize("case", ["case_c_local", pytest.param("case_d_local_one_axis", marks=pytest.mark.exhaustive)])
def test_means_of_whole_frames_are_a_choice(case):
    arrays, provenance = load_case("nafnet", case)
    padded, size = pad_to_multiple(arrays["image"], 16, "zeros")
    outputs = jit_window(official_model(provenance, local=False))(official_variables(case), padded[:, None])
    check(unpad(outputs.restored, size), arrays["output_global_pool"], "output_global_pool")
    assert np.abs(arrays["output_global_pool"] - arrays["output"]).max() > 0.02


@pytest.mark.parametrize(("name", "parameters"), [("nafnet32", 17_111_907), ("nafnet64", 67_888_835)])
def test_parameter_counts(name, parameters):
    """That the networks have just the tables' parameters, tests of the importer say."""
    rows = TABLES[name]({})
    assert len(rows) == 664
    assert sum(math.prod(tensor.official_shape) for tensor in rows.values()) == parameters
    for channels in (32, 64):  # a block's, by the formula
        block = jax.eval_shape(Block(None, jnp.float32).init, jax.random.key(0), jnp.zeros((1, 4, 4, channels)))
        assert sum(leaf.size for leaf in jax.tree.leaves(block)) == 7 * channels**2 + 33 * channels


def test_windows_are_one_and_a_half_times_the_crops():
    assert [NAFNetConfig().window(level) for level in range(5)] == [384, 192, 96, 48, 24]
    assert [NAFNetConfig(training_px=32).window(level) for level in range(5)] == [48, 24, 12, 6, 3]
    assert NAFNetConfig(local=False).window(0) is None


# --- means ---


def local_means_oracle(x, window):
    """Pixel by pixel: which window is its, and the mean over that. (H, W, C)."""
    height, width, _ = x.shape
    out = np.zeros(x.shape)
    kh, kw = min(window, height), min(window, width)
    for row, column in np.ndindex(height, width):
        # The full windows, edge-replicated: as many missing rows above as below, an odd one below.
        top = min(max(row - (kh - 1) // 2, 0), height - kh)
        left = min(max(column - (kw - 1) // 2, 0), width - kw)
        out[row, column] = x[top : top + kh, left : left + kw].mean((0, 1))
    return out


@pytest.mark.parametrize("window", [1, 2, 3, 6, 7, 24])
@pytest.mark.parametrize("size", [(7, 10), (12, 3), (1, 1)])
def test_each_pixel_has_the_mean_of_its_window(size, window):
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    found = np.broadcast_to(jax.jit(lambda x: over_frame(window_means(x, window), *size))(x), x.shape)
    for one, of_one in zip(x, found, strict=True):
        np.testing.assert_allclose(of_one, local_means_oracle(one, window), atol=1e-6)
    whole = window_means(x, None)
    assert whole.shape == (2, 1, 1, 3)
    np.testing.assert_allclose(whole, x.mean((1, 2), keepdims=True), atol=1e-6)
    if window >= max(size):
        np.testing.assert_allclose(window_means(x, window), whole, atol=1e-6)


def test_means_are_float32_whatever_the_features_are():
    x = jnp.asarray(np.random.default_rng(0).random((1, 64, 80, 4)), jnp.bfloat16)
    for window in (None, 24):
        means = window_means(x, window)
        assert means.dtype == jnp.float32
        np.testing.assert_allclose(means, window_means(x.astype(jnp.float32), window), rtol=1e-6)


# --- small networks ---


def small(**options):
    blocks = {"encoder_blocks": (1, 2), "middle_blocks": 1, "decoder_blocks": (1, 1)}
    return create_model("nafnet32", **{"width": 4, **blocks, "training_px": 16, **options})


@functools.cache
def small_variables():
    """Random beta, gamma and norms too, for those that networks start with leave every block without effect."""
    variables = initial_variables(jax.random.key(0), small())
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.asarray(x) + 0.3 * rng.standard_normal(x.shape, np.float32), variables)


def frames(count=2, height=20, width=36, seed=0):
    return np.random.default_rng(seed).random((count, height, width, 3), np.float32)


def restored(model, video):
    return jit_window(model)(small_variables(), video[:, None]).restored


def test_zeros_around_a_frame_count_in_the_means():
    video = frames(1, 21, 33)
    zeros, size = pad_to_multiple(video, 4, "zeros")
    by_hand = unpad(restored(small(), zeros), size)
    np.testing.assert_allclose(restore(video, small(), small_variables()), np.clip(by_hand, 0, 1), atol=2e-5)
    edge = unpad(restored(small(), pad_to_multiple(video, 4, "edge")[0]), size)
    assert np.abs(edge - by_hand)[:, :8, :8].max() > 1e-3  # far from what was added


def test_the_windows_change_nothing_up_to_their_size():
    for size, same in (((24, 24), True), ((24, 28), False)):
        video = frames(1, *size)
        whole = restored(small(local=False), video)
        difference = np.abs(restored(small(), video) - whole).max() / np.abs(whole).max()
        assert difference < TOLERANCE if same else difference > 1e-3, size


def test_every_block_starts_as_the_identity():
    variables = initial_variables(jax.random.key(0), small())
    video = frames()
    run = jit_window(small(), capture_intermediates=True)
    made = run(variables, video[:, None])[1]["intermediates"]
    np.testing.assert_array_equal(made["encoder_1_block_1"]["__call__"][0], made["intro"]["__call__"][0])
    bare = small(encoder_blocks=(0, 0), middle_blocks=0, decoder_blocks=(0, 0))
    params = {name: value for name, value in variables["params"].items() if "block" not in name}
    plain = jit_window(bare)({"params": params}, video[:, None]).restored
    np.testing.assert_allclose(plain, run(variables, video[:, None])[0].restored, atol=1e-6)
    assert np.abs(plain - video).max() > 0.01


def test_initial_values_are_those_of_pytorch():
    params = initial_variables(
        jax.random.key(0), create_model("nafnet32", encoder_blocks=(0, 1), decoder_blocks=(0, 0))
    )
    block = params["params"]["encoder_2_block_1"]
    for layer, summed in (("conv1", 64), ("conv2", 9), ("channel_attention", 64), ("conv4", 64)):
        for values in block[layer].values():
            assert 0.9 * summed**-0.5 < np.abs(values).max() <= summed**-0.5
            assert np.std(values) == pytest.approx((3 * summed) ** -0.5, rel=0.15)
    assert "bias" not in params["params"]["up_1"]


def test_the_frame_is_added_and_nothing_is_clamped():
    outputs = jit_window(small())(small_variables(), frames()[:, None])
    check(outputs.restored, frames() + outputs.added, "restored")
    assert outputs.restored.min() < 0
    assert outputs.restored.max() > 1


@pytest.mark.parametrize("size", [(20, 36), (4, 8)])
def test_compiled_equals_eager(size):
    """Also where an axis, or both, have fewer pixels than the windows."""
    video = frames(1, *size)
    expected = small().apply(small_variables(), video[:, None], method="restore_window")
    check(restored(small(), video), expected.restored, "compiled")


@pytest.mark.parametrize("size", [(1, 1), (9, 30)])
def test_any_size_is_restored_frame_by_frame(size):
    video = frames(3, *size)
    found = restore(video, small(), small_variables())
    assert found.shape == video.shape
    np.testing.assert_allclose(restore(video[1:2], small(), small_variables()), found[1:2], atol=2e-5)


def test_frames_of_a_batch_do_not_see_each_other():
    video = frames(2)
    both = restored(small(), video)
    check(both[:1], restored(small(), video[:1]), "alone")
    check(jax.jit(small().apply)(small_variables(), video[None])[0], both, "as a clip")


def test_one_trace_for_many_frames():
    traces = []

    @jax.jit
    def step(window):
        traces.append(window.shape)
        return small().apply(small_variables(), (), window, method="step")[1].restored

    for frame in frames(3):
        step(frame[None, None])
    assert len(traces) == 1


@pytest.mark.parametrize("local", [True, False])
def test_gradients_are_finite_and_reach_every_parameter(local):
    @jax.jit
    def gradients(variables, video):
        def loss(variables, video):
            outputs = small(local=local).apply(variables, video[:, None], method="restore_window")
            return jnp.mean(jnp.square(outputs.added))

        return jax.grad(loss, argnums=(0, 1))(variables, video)

    of_black = gradients(small_variables(), np.zeros((1, 20, 36, 3), np.float32))  # there is nothing to divide by
    of_noise = gradients(small_variables(), frames(1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((of_black, of_noise)))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_noise))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_near(precision):
    exact = restored(small(), frames())
    half = jit_window(small(compute_dtype=precision))(small_variables(), frames()[:, None])
    assert half.restored.dtype == jnp.float32
    scale = np.abs(exact - frames()).max()
    assert 0 < np.abs(half.restored - exact).max() < {"bfloat16": 0.03, "float16": 0.004}[precision] * scale


def test_explain_shows_what_was_changed():
    pictures = jax.jit(functools.partial(small().apply, method="explain"))(small_variables(), (), frames()[:, None])
    assert set(pictures) == {"blurred", "difference", "restored"}
    assert all(0 <= np.min(picture) <= np.max(picture) <= 1 for picture in pictures.values())
    np.testing.assert_allclose(pictures["restored"], np.clip(restored(small(), frames()), 0, 1), atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width is 0; expected 1 or more"),
        ({"middle_blocks": -1}, "middle_blocks is -1; expected 0 or more"),
        ({"encoder_blocks": ()}, r"encoder_blocks is \(\); expected a tuple of whole numbers"),
        ({"decoder_blocks": (1, -1)}, r"decoder_blocks is \(1, -1\); expected a tuple"),
        ({"decoder_blocks": (1,)}, "as many levels down as up"),
        ({"training_px": 90}, "training_px is 90; expected a multiple of 4"),
    ],
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_windows_that_do_not_fit_are_refused():
    for shape, message in (((1, 2, 8, 8, 3), "1, height, width, 3"), ((1, 1, 8, 10, 3), "multiples of 4")):
        with pytest.raises(ValueError, match=message):
            small().apply(small_variables(), jnp.zeros(shape), method="restore_window")
    assert create_model("nafnet64").size_multiple == 16


# --- released weights ---


def test_each_tensor_lands_where_it_belongs():
    given = seeded_state_dict(load_case("nafnet", "case_a")[1])
    params = from_torch("nafnet32", given)["params"]
    block = params["encoder_4_block_28"]
    np.testing.assert_array_equal(block["beta"], np.float32(given["encoders.3.27.beta"].reshape(-1)))
    sca = given["encoders.3.27.sca.1.weight"][:, :, 0, 0]
    np.testing.assert_array_equal(block["channel_attention"]["kernel"][0, 0], np.float32(sca.T))
    depthwise = given["encoders.3.27.conv2.weight"][:, 0].transpose(1, 2, 0)
    np.testing.assert_array_equal(block["conv2"]["kernel"][:, :, 0], np.float32(depthwise))
    for ours, theirs in (
        ("up_1", "ups.0.0"),
        ("down_4", "downs.3"),
        ("decoder_1_block_1", "decoders.0.0.conv1"),
        ("middle_block_1", "middle_blks.0.conv1"),
    ):
        kernel = params[ours].get("conv1", params[ours])["kernel"]
        np.testing.assert_array_equal(kernel, np.float32(given[f"{theirs}.weight"].transpose(2, 3, 1, 0)))


def test_weights_of_another_width_are_told_by_name():
    wide = {name: np.zeros(row.official_shape, np.float32) for name, row in TABLES["nafnet64"]({}).items()}
    with pytest.raises(ValueError, match=r"\nThey are the weights of nafnet64\.$"):
        from_torch("nafnet32", wide)


def test_a_smaller_networks_table_is_complete():
    rows = table({}, config=small().config)
    given = {name: np.zeros(row.official_shape, np.float32) for name, row in rows.items()}
    assert not find_faults(rows, given)
    shapes, expected = (jax.tree.map(np.shape, tree) for tree in (to_variables(rows, given), small_variables()))
    assert shapes == expected


def test_a_checkpoint_keeps_the_numbers_of_blocks(tmp_path):
    options = {"width": 4, "encoder_blocks": (1, 2), "decoder_blocks": (1, 1), "training_px": 16}
    save_model(tmp_path / "saved", name="nafnet32", options=options, variables=small_variables())
    model, variables = load_model(tmp_path / "saved")
    assert model == small()
    jax.tree.map(np.testing.assert_array_equal, variables, small_variables())
