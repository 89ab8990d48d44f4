import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur.interop import TABLES, from_torch
from jaxdeblur.interop.layout import conv, conv_transpose
from jaxdeblur.layers.conv import Conv, ConvTranspose
from jaxdeblur.models import MODELS, create_model, example_inputs

GOLDEN = {
    "liteflownet": ("liteflownet", "case_a"),
    "mtu1": ("rt_mtu1", "case_a"),
    "mtu2": ("rt_mtu2", "case_a"),
    "mtu10l": ("rt_mtu10l", "case_a"),
    "cdvd_tsp": ("cdvd_tsp", "case_a"),
    "pwcnet": ("pwcnet", "case_a"),
    "pwcnet_cdvd": ("pwcnet", "case_b"),
    "flownet2": ("flownet2", "case_a"),
    "flownets": ("flownets", "case_a"),
    "flownets_bn": ("flownets_bn", "case_a"),
    "dbn": ("dbn", "case_a"),
    "deblurgan": ("deblurgan", "case_a"),
    "maxim": ("maxim", "case_a"),
    "nafnet32": ("nafnet", "case_a"),
    "estrnn": ("estrnn", "case_a"),
}
# Of the released networks: all parameters, and how many of them are layers for training only.
PARAMETERS = {
    "liteflownet": (5_381_969, 0),
    "mtu1": (538_073, 0),
    "mtu2": (1_038_732, 1_407),
    "mtu4": (2_040_050, 4_221),
    "mtu10": (5_044_004, 12_663),
    "mtu10l": (13_825_902, 23_355),
    "cdvd_tsp": (16_187_045, 0),
    "pwcnet": (9_374_274, 0),
    "pwcnet_cdvd": (9_374_274, 0),
    "flownet2": (162_518_834, 0),
    "flownet2c": (39_175_298, 0),
    "flownet2s": (38_676_506, 0),
    "flownet2sd": (45_371_666, 0),
    "flownet2s_small": (5_462_674, 0),
    "svrnn": (8_281_696, 0),
    "flownets": (38_675_536, 0),
    "flownets_bn": (38_680_336, 0),
    "dbn": (15_305_291, 0),
    "deblurgan": (11_378_179, 0),
    "maxim": (22_212_795, 0),
    "nafnet32": (17_111_907, 0),
    "nafnet64": (67_888_835, 0),
    "estrnn": (2_467_931, 0),
}
DEBLUR_KEY = {"deblur_layer.0.bias": np.zeros(3, np.float32)}  # makes the table one with layers for training
PREFIX = "module.Network."


def official(name, *, prefix=""):
    """A whole official file, by our own table; the goldens hold the tables to account."""
    table = TABLES[name]({prefix + key: value for key, value in DEBLUR_KEY.items()})
    return {key: np.zeros(tensor.official_shape, np.float32) for key, tensor in table.items()}


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


@pytest.mark.parametrize("name", GOLDEN)
def test_table_lists_the_official_names_and_shapes_in_order(name):
    expected = load_case(*GOLDEN[name])[1]["state_dict"]
    table = TABLES[name](expected)
    assert [(key, list(tensor.official_shape)) for key, tensor in table.items()] == list(expected.items())


def test_every_table_is_a_model_and_counted():
    assert set(TABLES) <= set(MODELS)
    assert set(TABLES) == set(PARAMETERS)


@pytest.mark.parametrize("name", TABLES)
def test_variables_are_those_of_the_model(name):
    variables = from_torch(name, official(name))
    model = create_model(name)
    expected = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    assert shapes(variables) == shapes(expected)
    leaves = jax.tree.leaves(variables)
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in leaves)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name][0]


@pytest.mark.parametrize("name", [name for name in TABLES if name.startswith("mtu")])
def test_layers_for_training_may_be_left_out_but_only_all_of_them(name):
    everything = official(name)
    without = {key: value for key, value in everything.items() if "deblur_layer" not in key}
    count = sum(leaf.size for leaf in jax.tree.leaves(from_torch(name, without)))
    assert PARAMETERS[name][0] - count == PARAMETERS[name][1]
    if name not in ("mtu1", "mtu2"):
        del everything["deblur_layer.1.weight"]
        with pytest.raises(ValueError, match=r"1 missing: deblur_layer\.1\.weight$"):
            from_torch(name, everything)


def test_batch_normalisation_comes_with_its_statistics_and_with_or_without_its_count():
    given = seeded_state_dict(load_case("flownets_bn", "case_a")[1])
    variables = from_torch("flownets_bn", given)
    of_layer = variables["params"]["conv3_1_bn"] | variables["batch_stats"]["conv3_1_bn"]
    official = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    assert set(of_layer) == set(official)
    for name, theirs in official.items():
        np.testing.assert_array_equal(of_layer[name], given[f"conv3_1.1.{theirs}"].astype(np.float32))
    older = {name: value for name, value in given.items() if not name.endswith("num_batches_tracked")}
    assert (len(given), len(older)) == (73, 63)
    jax.tree.map(np.testing.assert_array_equal, from_torch("flownets_bn", older), variables)
    with pytest.raises(ValueError, match="They are the weights of flownets_bn"):
        from_torch("flownets", given)


def test_prefix_makes_no_difference():
    state_dict = seeded_state_dict(load_case("rt_mtu2", "case_a")[1])
    bare = {key.removeprefix(PREFIX): value for key, value in state_dict.items()}
    assert len(bare) == 98
    assert "base_conv.0.weight" in bare
    jax.tree.map(np.testing.assert_array_equal, from_torch("mtu2", state_dict), from_torch("mtu2", bare))


def test_each_multi_task_tensor_lands_where_it_belongs():
    rows = {
        "base_conv.0": "structure_conv",
        "inp_prev_conv.0": "history_conv",
        "HGs.0.enc1.0": "unit_1/enc1",
        "HGs.1.enc2.0": "unit_2/enc2",
        "HGs.1.enc3.0": "unit_2/enc3",
        "HGs.0.RBs.0.0": "unit_1/block_1/conv1",
        "HGs.0.RBs.7.2": "unit_1/block_8/conv2",
        "HGs.1.RB_end.0": "unit_2/block_end",
        "HGs.1.dec1.0": "unit_2/dec1",
        "HGs.1.dec2.0": "unit_2/dec2",
        "motion_layer.0.0": "motion_conv",
        "deblur_layer.0": "deblur_1",
        "out": "output_conv",
    }
    state_dict = seeded_state_dict(load_case("rt_mtu2", "case_a")[1])
    params = from_torch("mtu2", state_dict)["params"]
    for theirs, ours in rows.items():
        node = params
        for part in ours.split("/"):
            node = node[part]
        np.testing.assert_array_equal(node["bias"], np.float32(state_dict[f"{PREFIX}{theirs}.bias"]))


# --- layouts ---


def correlate_oracle(x, weight):
    """Cross-correlation at stride 1, zeros outside, official weight (out, in, kh, kw)."""
    batch, height, width, _ = x.shape
    outputs, _, kh, kw = weight.shape
    padded = np.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
    out = np.zeros((batch, height, width, outputs))
    for ky in range(kh):
        for kx in range(kw):
            out += padded[:, ky : ky + height, kx : kx + width] @ weight[:, :, ky, kx].T
    return out


def transposed_oracle(x, weight):
    """Kernel 4, stride 2, padding 1: every input pixel spreads the official kernel, (in, out, 4, 4)."""
    batch, height, width, _ = x.shape
    out = np.zeros((batch, 2 * height + 2, 2 * width + 2, weight.shape[1]))
    for y in range(height):
        for column in range(width):
            for ky in range(4):
                for kx in range(4):
                    out[:, 2 * y + ky, 2 * column + kx] += x[:, y, column] @ weight[:, :, ky, kx]
    return out[:, 1:-1, 1:-1]


def test_converted_kernels_compute_what_the_official_ones_do():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 5, 3)).astype(np.float32)

    weight = rng.standard_normal((2, 3, 5, 3)).astype(np.float32)
    layer = Conv(2, (5, 3), use_bias=False)
    out = layer.apply({"params": {"kernel": conv(weight)}}, x)
    np.testing.assert_allclose(out, correlate_oracle(x, weight), atol=1e-5)

    weight = rng.standard_normal((3, 2, 4, 4)).astype(np.float32)
    layer = ConvTranspose(2, use_bias=False)
    out = layer.apply({"params": {"kernel": conv_transpose(weight)}}, x)
    np.testing.assert_allclose(out, transposed_oracle(x, weight), atol=1e-5)


# --- strictness ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, jnp.bfloat16])
def test_any_float_comes_out_as_float32_and_as_a_copy(dtype):
    state_dict = {key: np.ones(value.shape, dtype) for key, value in official("mtu1").items()}
    params = from_torch("mtu1", state_dict)["params"]
    assert params["output_conv"]["bias"].dtype == np.float32
    params["output_conv"]["bias"][:] = 5
    assert np.all(np.asarray(state_dict["out.bias"], np.float32) == 1)


def test_all_faults_are_listed_at_once():
    state_dict = official("liteflownet")
    missing = ["moduleFeatures.moduleOne.0.bias", "moduleSubpixel.4.moduleMain.6.weight"]
    for key in missing:
        del state_dict[key]
    state_dict["moduleExtra.weight"] = state_dict["another.bias"] = np.zeros(1, np.float32)
    state_dict["moduleMatching.0.moduleUpcorr.weight"] = np.zeros((49, 49, 4, 4), np.float32)
    state_dict["moduleRegularization.2.moduleScaleX.bias"] = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="not the weights of liteflownet") as caught:
        from_torch("liteflownet", state_dict)
    lines = str(caught.value).splitlines()
    assert lines[1:] == [
        f"2 missing: {', '.join(missing)}",
        "2 unexpected: moduleExtra.weight, another.bias",
        "2 of another shape: moduleMatching.0.moduleUpcorr.weight (expected floats (49, 1, 4, 4), got "
        "float32 (49, 49, 4, 4)), moduleRegularization.2.moduleScaleX.bias (expected floats (1,), got int64 "
        "(1,))",
    ]


def test_names_with_and_without_prefix_do_not_mix():
    state_dict = official("mtu1", prefix=PREFIX)
    state_dict["out.bias"] = state_dict.pop(f"{PREFIX}out.bias")
    with pytest.raises(ValueError, match=r"1 missing: module\.Network\.out\.bias\n1 unexpected: out\.bias$"):
        from_torch("mtu1", state_dict)


def test_weights_of_another_model_are_named():
    with pytest.raises(ValueError, match=r"\nThey are the weights of mtu4\.$"):
        from_torch("mtu2", official("mtu4"))


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"'mtu3'; choose from mtu1, .*liteflownet"):
        from_torch("mtu3", {})
