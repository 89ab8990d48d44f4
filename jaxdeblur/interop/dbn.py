"""DBN's weights. The Torch7 release holds one flat vector; the names are those of its layers, with ".conv" or ".bn"."""

from collections.abc import Mapping
from typing import Any

from jaxdeblur.interop.layout import Table, batch_norm_rows, conv_rows, conv_transpose_rows
from jaxdeblur.models.dbn import AROUND, LAYERS


def table(state_dict: Mapping[str, Any]) -> Table:
    """All 132 tensors, in the network's order."""
    rows: Table = {}
    inputs = 3 * (2 * AROUND + 1)
    for name, channels, kernel_size, strides in LAYERS:
        of_kind = conv_rows if strides else conv_transpose_rows
        path = ("deblur", name)
        rows |= of_kind(f"{name}.conv", (*path, "conv"), inputs=inputs, outputs=channels, kernel_size=kernel_size)
        rows |= batch_norm_rows(state_dict, f"{name}.bn", (*path, "bn"), channels=channels)
        inputs = channels
    return rows
