"""Released weights of the real-time multi-task units (codeslake/RealTime_VDBLR).

The training code saves a wrapped network, hence the prefix. The layers that restore an image after every unit
but the last serve training only: a file has them all or none.
"""

from collections.abc import Mapping
from typing import Any

from jaxdeblur.interop.layout import Table, conv_rows, conv_transpose_rows

PREFIX = "module.Network."


def table(state_dict: Mapping[str, Any], *, units: int, channels: int, blocks: int) -> Table:
    """All tensors of `units` units, under the names, with or without prefix, that this file uses."""
    prefix = PREFIX if any(str(name).startswith(PREFIX) for name in state_dict) else ""
    has_deblur = any(str(name).startswith(f"{prefix}deblur_layer.") for name in state_dict)
    c = channels
    rows = conv_rows("base_conv.0", ("structure_conv",), inputs=3, outputs=c, kernel_size=3)
    rows |= conv_rows("inp_prev_conv.0", ("history_conv",), inputs=15, outputs=c, kernel_size=3)
    for n in range(units):
        official, ours = f"HGs.{n}", f"unit_{n + 1}"
        rows |= conv_rows(f"{official}.enc1.0", (ours, "enc1"), inputs=2 * c, outputs=c, kernel_size=5)
        rows |= conv_rows(f"{official}.enc2.0", (ours, "enc2"), inputs=c, outputs=c, kernel_size=3)
        rows |= conv_rows(f"{official}.enc3.0", (ours, "enc3"), inputs=c, outputs=2 * c, kernel_size=3)
        for r in range(blocks):
            for index, conv in ((0, "conv1"), (2, "conv2")):
                rows |= conv_rows(
                    f"{official}.RBs.{r}.{index}",
                    (ours, f"block_{r + 1}", conv),
                    inputs=2 * c,
                    outputs=2 * c,
                    kernel_size=3,
                )
        rows |= conv_rows(f"{official}.RB_end.0", (ours, "block_end"), inputs=2 * c, outputs=2 * c, kernel_size=3)
        rows |= conv_transpose_rows(f"{official}.dec1.0", (ours, "dec1"), inputs=2 * c, outputs=c, kernel_size=4)
        rows |= conv_transpose_rows(f"{official}.dec2.0", (ours, "dec2"), inputs=c, outputs=c, kernel_size=4)
    rows |= conv_rows("motion_layer.0.0", ("motion_conv",), inputs=c, outputs=2 * c, kernel_size=5)
    if has_deblur:
        for n in range(units - 1):
            rows |= conv_rows(f"deblur_layer.{n}", (f"deblur_{n + 1}",), inputs=2 * c, outputs=3, kernel_size=3)
    rows |= conv_rows("out", ("output_conv",), inputs=c, outputs=3, kernel_size=3)
    return {prefix + name: tensor for name, tensor in rows.items()}
