"""Released FlowNetS weights of ClementPinard/FlowNetPytorch, plain and with batch normalisation.

Layers have the same names here as there, but for a ".0" behind those an activation follows.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxdeblur.flow_nets.flownet_s import CONTRACTION, CONTRACTION_FROM_3_1, REFINEMENT
from jaxdeblur.interop.flownet2 import refinement_rows
from jaxdeblur.interop.layout import Table, batch_norm_rows, conv_rows, without_bias


def table(state_dict: Mapping[str, Any], *, batch_norm: bool) -> Table:
    """All 33 tensors; with batch normalisation 73, of which files made before PyTorch 0.4.1 lack the ten counts."""
    rows: Table = {}
    layers, inputs = CONTRACTION + CONTRACTION_FROM_3_1, 6
    for layer in layers:
        convolution = conv_rows(
            f"{layer.name}.0", (layer.name,), inputs=inputs, outputs=layer.channels, kernel_size=layer.kernel_size
        )
        rows |= without_bias(convolution) if batch_norm else convolution
        if batch_norm:
            rows |= batch_norm_rows(state_dict, f"{layer.name}.1", (f"{layer.name}_bn",), channels=layer.channels)
        inputs = layer.channels
    return rows | without_bias(refinement_rows("", (), layers, REFINEMENT))


flownets_table = partial(table, batch_norm=False)
flownets_bn_table = partial(table, batch_norm=True)
