"""Released weights of CDVD-TSP (csbhr/CDVD-TSP): the encoder-decoder and, inside, a PWC-Net."""

from collections.abc import Mapping
from typing import Any

from jaxdeblur.interop import pwc_net
from jaxdeblur.interop.layout import Table, conv_rows, conv_transpose_rows

_WRAPPER = "module."
_BLOCKS = 3
_C = 32

# Official block, our residual blocks, our convolution, its inputs and outputs.
_ENCODERS = (
    ("inBlock", "in", "in_conv", 10, _C),
    ("encoder_first", "down1", "down1_conv", _C, 2 * _C),
    ("encoder_second", "down2", "down2_conv", 2 * _C, 4 * _C),
)
_DECODERS = (("decoder_second", "up2", "up2_conv", 4 * _C, 2 * _C), ("decoder_first", "up1", "up1_conv", 2 * _C, _C))


def table(state_dict: Mapping[str, Any]) -> Table:
    """All 210 tensors, under the names, with or without the wrapper's prefix, that this file uses."""
    prefix = _WRAPPER if any(str(name).startswith(_WRAPPER) for name in state_dict) else ""
    rows = pwc_net.table(state_dict, prefix=f"{prefix}flow_net.moduleNetwork.", path=("flow_net",))
    network = f"{prefix}recons_net"
    for official, ours, conv, inputs, outputs in _ENCODERS:
        name = f"{network}.{official}"
        rows |= conv_rows(f"{name}.0.0", ("restoration", conv), inputs=inputs, outputs=outputs, kernel_size=5)
        rows |= _block_rows(name, 1, ours, outputs)
    for official, ours, conv, inputs, outputs in _DECODERS:
        name = f"{network}.{official}"
        rows |= _block_rows(name, 0, ours, inputs)
        rows |= conv_transpose_rows(
            f"{name}.{_BLOCKS}.0", ("restoration", conv), inputs=inputs, outputs=outputs, kernel_size=3
        )
    rows |= _block_rows(f"{network}.outBlock", 0, "out", _C)
    return rows | conv_rows(
        f"{network}.outBlock.{_BLOCKS}", ("restoration", "out_conv"), inputs=_C, outputs=3, kernel_size=5
    )


def _block_rows(official: str, first: int, ours: str, channels: int) -> Table:
    rows: Table = {}
    for r in range(_BLOCKS):
        for conv in ("conv1", "conv2"):
            rows |= conv_rows(
                f"{official}.{first + r}.{conv}",
                ("restoration", f"{ours}_block_{r + 1}_{conv}"),
                inputs=channels,
                outputs=channels,
                kernel_size=5,
            )
    return rows
