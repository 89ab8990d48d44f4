import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur.flow_nets.pwc_net import CDVD_TSP, NVLABS, PWCNet
from jaxdeblur.interop import TABLES, from_torch, pwc_net
from jaxdeblur.interop.layout import conv_rows, find_faults, to_variables, unused_rows

NAMES = ("pwcnet", "pwcnet_cdvd")
NUMBERS = {1: "One", 2: "Two", 3: "Thr", 4: "Fou", 5: "Fiv", 6: "Six"}
UNUSED = ("deconv2.weight", "deconv2.bias")


@functools.cache
def nvlabs():
    """A whole NVlabs file of seeded weights, the unused layer included."""
    return seeded_state_dict(load_case("pwcnet", "case_a")[1])


def sniklaus_names(word="module"):
    """NVlabs name -> the other repositories', layer by layer as the specification lists them."""
    names = {}
    for level, number in NUMBERS.items():
        extractor = f"{word}Extractor.{word}{number}"
        parts = ("aa", "a", "b") if level == 6 else ("a", "aa", "b")
        names |= {f"conv{level}{part}.0": f"{extractor}.{2 * index}" for index, part in enumerate(parts)}
        if level == 1:
            continue
        decoder = f"{word}{number}"
        for index, dense in enumerate(("One", "Two", "Thr", "Fou", "Fiv")):
            names[f"conv{level}_{index}.0"] = f"{decoder}.{word}{dense}.0"
        names[f"predict_flow{level}"] = f"{decoder}.{word}Six.0"
        if level > 2:
            finer = f"{word}{NUMBERS[level - 1]}"
            names[f"deconv{level}"] = f"{finer}.{word}Upflow"
            names[f"upfeat{level}"] = f"{finer}.{word}Upfeat"
    for index in range(1, 8):
        names[f"dc_conv{index}.0" if index < 7 else "dc_conv7"] = f"{word}Refiner.{word}Main.{2 * index - 2}"
    return names


def renamed(word="module", prefix=""):
    """The numbers of `nvlabs` under the other naming."""
    names = {
        f"{nvlabs_name}.{kind}": f"{prefix}{other}.{kind}"
        for nvlabs_name, other in sniklaus_names(word).items()
        for kind in ("weight", "bias")
    }
    return {names[name]: value for name, value in nvlabs().items() if name not in UNUSED}


def assert_equal(made, expected):
    jax.tree.map(np.testing.assert_array_equal, made, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("case", "count"), [("case_a", 128), ("case_b", 126)])
def test_table_lists_the_official_names_and_shapes_in_order(name, case, count):
    expected = load_case("pwcnet", case)[1]["state_dict"]
    assert len(expected) == count
    table = TABLES[name](expected)
    assert [(key, list(tensor.official_shape)) for key, tensor in table.items()] == list(expected.items())


@pytest.mark.parametrize(("name", "config"), [("pwcnet", NVLABS), ("pwcnet_cdvd", CDVD_TSP)])
def test_variables_are_those_of_the_model(name, config):
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    expected = jax.eval_shape(PWCNet(config).init, jax.random.key(0), image, image)
    variables = from_torch(name, nvlabs())
    shapes = [jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (variables, expected)]
    assert shapes[0] == shapes[1]
    leaves = jax.tree.leaves(variables)
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == 9_374_274


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("word", ["module", "net"])
def test_all_namings_give_the_same_variables(name, word):
    assert len(renamed(word)) == 126
    assert_equal(from_torch(name, renamed(word)), from_torch(name, nvlabs()))


def test_each_tensor_lands_where_it_belongs():
    params = from_torch("pwcnet", nvlabs())["params"]
    rows = {
        "conv1a.0": "features/conv1_1",
        "conv5aa.0": "features/conv5_2",
        "conv6aa.0": "features/conv6_1",
        "conv6a.0": "features/conv6_2",
        "conv4_0.0": "level_4/conv_1",
        "conv6_4.0": "level_6/conv_5",
        "predict_flow2": "level_2/flow_conv",
        "deconv6": "level_5/upsample_flow",
        "upfeat3": "level_2/upsample_features",
        "dc_conv5.0": "context/conv_5",
        "dc_conv7": "context/flow_conv",
    }
    for theirs, ours in rows.items():
        module, layer = ours.split("/")
        np.testing.assert_array_equal(params[module][layer]["bias"], np.float32(nvlabs()[f"{theirs}.bias"]))


# --- inside another model ---


def test_prefix_and_path():
    prefix = "flow_net.moduleNetwork."
    inside = {**renamed(prefix=prefix), "recons_net.weight": np.zeros(1, np.float32)}
    table = pwc_net.table(inside, prefix=prefix, path=("flow_net",))
    assert find_faults(table, inside) == ["1 unexpected: recons_net.weight"]
    variables = to_variables(table, inside)
    assert_equal(variables["params"]["flow_net"], from_torch("pwcnet", nvlabs())["params"])


def test_names_before_the_prefix_do_not_decide_the_naming():
    state_dict = {"conv1a.0.weight": 0, "net.netExtractor.netOne.0.weight": 0}
    assert "net.netTwo.netUpflow.bias" in pwc_net.table(state_dict, prefix="net.")


# --- strictness ---


def without(*names):
    return {name: value for name, value in nvlabs().items() if name not in names}


def test_the_unused_layer_may_be_left_out_but_only_whole():
    assert_equal(from_torch("pwcnet", without(*UNUSED)), from_torch("pwcnet", nvlabs()))
    for name in UNUSED:
        with pytest.raises(ValueError, match=rf"not the weights of pwcnet:\n1 missing: {name}$"):
            from_torch("pwcnet", without(name))
    with pytest.raises(
        ValueError, match=r"1 of another shape: deconv2\.bias \(expected floats \(2,\), got .* \(3,\)\)"
    ):
        from_torch("pwcnet", {**nvlabs(), "deconv2.bias": np.zeros(3, np.float32)})


def test_namings_do_not_mix():
    state_dict = without(*UNUSED, "dc_conv7.bias")
    state_dict["moduleRefiner.moduleMain.12.bias"] = np.zeros(2, np.float32)
    with pytest.raises(
        ValueError, match=r"1 missing: dc_conv7\.bias\n1 unexpected: moduleRefiner\.moduleMain\.12\.bias$"
    ):
        from_torch("pwcnet_cdvd", state_dict)
    state_dict = renamed("net")
    state_dict["netTwo.moduleSix.0.bias"] = state_dict.pop("netTwo.netSix.0.bias")
    with pytest.raises(
        ValueError, match=r"1 missing: netTwo\.netSix\.0\.bias\n1 unexpected: netTwo\.moduleSix\.0\.bias$"
    ):
        from_torch("pwcnet_cdvd", state_dict)


@pytest.mark.parametrize(("name", "first"), [("pwcnet", "conv1a.0"), ("pwcnet_cdvd", "moduleExtractor.moduleOne.0")])
def test_a_file_of_neither_naming_is_held_to_that_of_the_model(name, first):
    with pytest.raises(ValueError, match=rf"126 missing: {first}\.weight, .*\n1 unexpected: weight$"):
        from_torch(name, {"weight": np.zeros(1, np.float32)})


def test_weights_of_pwc_net_given_for_another_model_are_named():
    with pytest.raises(ValueError, match=r"\nThey are the weights of pwcnet\.$"):
        from_torch("liteflownet", renamed())


# --- rows that go nowhere ---


def test_unused_rows_are_checked_like_others_and_left_out():
    used = conv_rows("a", ("a",), inputs=1, outputs=2, kernel_size=3)
    table = used | unused_rows(conv_rows("b", ("b",), inputs=2, outputs=1, kernel_size=1))
    state_dict = {name: np.zeros(tensor.official_shape, np.float32) for name, tensor in table.items()}
    assert find_faults(table, state_dict) == []
    assert list(to_variables(table, state_dict)["params"]) == ["a"]
    del state_dict["b.bias"]
    assert find_faults(table, state_dict) == ["1 missing: b.bias"]
    assert find_faults(used, state_dict) == ["1 unexpected: b.weight"]
