"""DeblurGAN's generator (KupynOrest/DeblurGAN, weights published before March 2019)."""

from collections.abc import Mapping
from typing import Any

from jaxdeblur.interop.layout import Table, Tensor, conv_rows, conv_transpose_rows, flat

BLOCKS = 9
_NORMS = {2: 64, 5: 128, 8: 256, 20: 128, 23: 64}  # of the sequence, channels; and two a block


def table(state_dict: Mapping[str, Any]) -> Table:
    """All 48 tensors. A block's second convolution has the number 6, or 5 where the network was built without dropout;
    files from before PyTorch 0.4 also hold running statistics of its instance norms, which nothing reads.

    Raises:
        ValueError: the file is of the repository's later head, whose blocks have lost their second convolution.
    """
    first_block = [name for name in state_dict if name.startswith("model.10.conv_block.") and name.endswith(".weight")]
    if first_block == ["model.10.conv_block.1.weight"]:
        raise ValueError(
            "these weights have one convolution a block: they are of the repository's head since March 2019, another "
            "network by a slip. Take weights made before, or train with the code of before"
        )
    second = 5 if "model.10.conv_block.5.weight" in state_dict else 6
    rows = conv_rows("model.1", ("conv_in",), inputs=3, outputs=64, kernel_size=7)
    rows |= conv_rows("model.4", ("down1",), inputs=64, outputs=128, kernel_size=3)
    rows |= conv_rows("model.7", ("down2",), inputs=128, outputs=256, kernel_size=3)
    norms = {f"model.{index}": channels for index, channels in _NORMS.items()}
    for block in range(1, BLOCKS + 1):
        name = f"model.{9 + block}.conv_block"
        for conv, index in (("conv1", 1), ("conv2", second)):
            path = (f"block{block}_{conv}",)
            rows |= conv_rows(f"{name}.{index}", path, inputs=256, outputs=256, kernel_size=3)
            norms[f"{name}.{index + 1}"] = 256
    rows |= conv_transpose_rows("model.19", ("up1",), inputs=256, outputs=128, kernel_size=3)
    rows |= conv_transpose_rows("model.22", ("up2",), inputs=128, outputs=64, kernel_size=3)
    rows |= conv_rows("model.26", ("conv_out",), inputs=64, outputs=3, kernel_size=7)
    for name, channels in norms.items():
        for statistic in ("running_mean", "running_var"):
            if f"{name}.{statistic}" in state_dict:
                rows[f"{name}.{statistic}"] = Tensor(None, flat, (channels,))
    return rows
