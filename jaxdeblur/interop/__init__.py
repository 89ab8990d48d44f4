"""Released weights -> our variables. Nothing here needs PyTorch but opening its files (`interop.files`)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jaxdeblur.interop import (
    cdvd_tsp,
    dbn,
    deblurgan,
    estrnn,
    flownet2,
    flownet_simple,
    lite_flow_net,
    maxim,
    multi_task_unit,
    nafnet,
    pwc_net,
    svrnn,
)
from jaxdeblur.interop.layout import Table, find_faults, to_variables
from jaxdeblur.models.nafnet import NAFNetConfig
from jaxdeblur.types import Variables

# The table of a model may depend on the file: prefixes, layers that serve training only.
TABLES: dict[str, Callable[[Mapping[str, Any]], Table]] = {
    "mtu1": partial(multi_task_unit.table, units=1, channels=26, blocks=8),
    "mtu2": partial(multi_task_unit.table, units=2, channels=26, blocks=8),
    "mtu4": partial(multi_task_unit.table, units=4, channels=26, blocks=8),
    "mtu10": partial(multi_task_unit.table, units=10, channels=26, blocks=8),
    "mtu10l": partial(multi_task_unit.table, units=10, channels=48, blocks=6),
    "liteflownet": lite_flow_net.table,
    "cdvd_tsp": cdvd_tsp.table,
    "pwcnet": partial(pwc_net.table, otherwise="nvlabs"),
    "pwcnet_cdvd": pwc_net.table,
    "flownet2": flownet2.flownet2_table,
    "flownet2c": flownet2.flownet_c_table,
    "flownet2s": flownet2.flownet_s_table,
    "flownet2sd": flownet2.flownet_sd_table,
    "flownets": flownet_simple.flownets_table,
    "flownets_bn": flownet_simple.flownets_bn_table,
    "flownet2s_small": svrnn.small_flownet_s_table,
    "svrnn": svrnn.table,
    "dbn": dbn.table,
    "deblurgan": deblurgan.table,
    "maxim": maxim.table,
    "nafnet32": partial(nafnet.table, config=NAFNetConfig(width=32)),
    "nafnet64": partial(nafnet.table, config=NAFNetConfig(width=64)),
    "estrnn": estrnn.table,
}


# Released Caffe weights are first brought into this toolkit's order.
CAFFE: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "svrnn": svrnn.reordered,
    "flownet2s_small": svrnn.blue_last,
}


def from_caffe(name: str, arrays: Mapping[str, Any]) -> Variables:
    """Flax variables, NumPy float32, from weights of a Caffe release.

    Args:
        name: "svrnn" or "flownet2s_small".
        arrays: "<layer>.weight" and "<layer>.bias" -> the layer's blobs 0 and 1, under the released names and in the
            released order; `interop.files.load_arrays` reads them from a .npz file.
    Raises:
        ValueError: as `from_torch`.
    """
    if name not in CAFFE:
        raise ValueError(f"no Caffe weights are known for {name!r}; choose from {', '.join(CAFFE)}")
    arrays = svrnn.blobs(arrays)
    _check(name, arrays)
    return from_torch(name, CAFFE[name](arrays))


def from_torch(name: str, state_dict: Mapping[str, Any]) -> Variables:
    """Flax variables, NumPy float32, from released weights.

    Args:
        name: a model, as for `jaxdeblur.create_model`.
        state_dict: the official names and their arrays (anything `np.asarray` takes);
            `interop.files.load_torch_file` reads it from a file. For "svrnn" and "flownet2s_small", which were released
            for Caffe, in this toolkit's order of directions, flows and colours: `from_caffe` takes the released one.
            For "maxim" the release's Flax arrays, "opt/target/..."; `interop.files.load_maxim` reads them.
    Raises:
        ValueError: the name is unknown, or the weights are not this model's; then the missing, unexpected
            and wrong-shaped names are listed, 40 of a kind at most, and the model they do fit, if any, is named.
    """
    check_name(name)
    return to_variables(_check(name, state_dict), state_dict)


def check_name(name: str) -> None:
    """ValueError that lists the networks there are released weights of, unless it is one."""
    if name not in TABLES:
        raise ValueError(f"no released weights are known for {name!r}; choose from {', '.join(TABLES)}")


def _check(name: str, state_dict: Mapping[str, Any]) -> Table:
    """The model's table, or a ValueError that lists what keeps the weights from being its."""
    table = TABLES[name](state_dict)
    faults = find_faults(table, state_dict)
    if faults:
        fitting = [other for other in TABLES if not find_faults(TABLES[other](state_dict), state_dict)]
        hint = f"\nThey are the weights of {fitting[0]}." if fitting else ""
        raise ValueError(f"these are not the weights of {name}:\n" + "\n".join(faults) + hint)
    return table
