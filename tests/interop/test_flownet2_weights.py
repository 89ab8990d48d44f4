import flax.traverse_util
import jax
import numpy as np
import pytest
from parity import load_case

from jaxdeblur.flow_nets.flownet2 import FlowNet2, FlowNetC, FlowNetSD
from jaxdeblur.flow_nets.flownet_s import FlowNetS
from jaxdeblur.interop.flownet2 import flownet2_table, flownet_c_table, flownet_s_table, flownet_sd_table

# Model, table, tensors.
RELEASED = [
    (FlowNet2, flownet2_table, 220),
    (FlowNetC, flownet_c_table, 48),
    (FlowNetS, flownet_s_table, 42),
    (FlowNetSD, flownet_sd_table, 60),
]


def official_shapes(table):
    return {name: tensor.official_shape for name, tensor in table.items()}


def test_the_stack_has_the_official_names_and_shapes_in_order():
    expected = load_case("flownet2", "case_a")[1]["state_dict"]
    assert list(official_shapes(flownet2_table({})).items()) == [(k, tuple(shape)) for k, shape in expected.items()]


@pytest.mark.parametrize(("model", "table", "tensors"), RELEASED)
def test_tensors_are_those_of_the_model(model, table, tensors):
    rows = table({})
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(model().init, jax.random.key(0), image, image)
    assert list(shapes) == ["params"]
    expected = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(shapes["params"]).items()}
    # A broadcast number takes the shape without the memory.
    made = {row.path: row.convert(np.broadcast_to(np.float32(0), row.official_shape)).shape for row in rows.values()}
    assert made == expected
    assert len(rows) == len(made) == tensors


@pytest.mark.parametrize(
    ("table", "prefix"),
    [(flownet_c_table, "flownetc."), (flownet_sd_table, "flownets_d."), (flownet_s_table, "flownets_1.")],
)
def test_a_network_alone_has_the_names_it_has_in_the_stack(table, prefix):
    stack = official_shapes(flownet2_table({}))
    alone = official_shapes(table({}))
    inside = {name.removeprefix(prefix): shape for name, shape in stack.items() if name.startswith(prefix)}
    if table is flownet_s_table:
        assert alone.pop("conv1.0.weight") == (64, 6, 7, 7)
        assert inside.pop("conv1.0.weight") == (64, 12, 7, 7)
    assert alone == inside


@pytest.mark.parametrize("table", [row[1] for row in RELEASED])
def test_prefix_and_path_go_before_every_name(table):
    bare, inside = table({}), table({}, prefix="module.flow.", path=("flow_net", "stage_2"))
    assert [f"module.flow.{name}" for name in bare] == list(inside)
    for one, other in zip(bare.values(), inside.values(), strict=True):
        assert other.path == ("flow_net", "stage_2", *one.path)
        assert other.official_shape == one.official_shape
