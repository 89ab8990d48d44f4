"""NAFNet (megvii-research/NAFNet); with windowed means or without, the weights are the same."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxdeblur.interop.layout import Table, Tensor, conv_rows, flat, without_bias
from jaxdeblur.models.nafnet import NAFNetConfig


def table(state_dict: Mapping[str, Any], *, config: NAFNetConfig) -> Table:
    """All tensors, 664 of the published networks, in the official order."""
    del state_dict
    levels = len(config.encoder_blocks)
    channels = [config.width << level for level in range(levels + 1)]
    rows = conv_rows("intro", ("intro",), inputs=3, outputs=config.width, kernel_size=3)
    rows |= conv_rows("ending", ("ending",), inputs=config.width, outputs=3, kernel_size=3)
    for level, blocks in enumerate(config.encoder_blocks):
        for j in range(blocks):
            rows |= _block_rows(f"encoders.{level}.{j}", (f"encoder_{level + 1}_block_{j + 1}",), channels[level])
    for i, blocks in enumerate(config.decoder_blocks):
        for j in range(blocks):
            name = f"decoders.{i}.{j}"
            rows |= _block_rows(name, (f"decoder_{i + 1}_block_{j + 1}",), channels[levels - 1 - i])
    for j in range(config.middle_blocks):
        rows |= _block_rows(f"middle_blks.{j}", (f"middle_block_{j + 1}",), channels[levels])
    for i in range(levels):
        inputs = channels[levels - i]
        up = conv_rows(f"ups.{i}.0", (f"up_{i + 1}",), inputs=inputs, outputs=2 * inputs, kernel_size=1)
        rows |= without_bias(up)
    for level in range(levels):
        path = (f"down_{level + 1}",)
        rows |= conv_rows(f"downs.{level}", path, inputs=channels[level], outputs=channels[level + 1], kernel_size=2)
    return rows


def _block_rows(name: str, path: Iterable[str], channels: int) -> Table:
    path = tuple(path)
    rows: Table = {f"{name}.{scale}": Tensor((*path, scale), flat, (1, channels, 1, 1)) for scale in ("beta", "gamma")}
    for official, ours, inputs, outputs, kernel_size in (
        ("conv1", "conv1", channels, 2 * channels, 1),
        ("conv2", "conv2", 1, 2 * channels, 3),  # depthwise
        ("conv3", "conv3", channels, channels, 1),
        ("sca.1", "channel_attention", channels, channels, 1),
        ("conv4", "conv4", channels, 2 * channels, 1),
        ("conv5", "conv5", channels, channels, 1),
    ):
        rows |= conv_rows(f"{name}.{official}", (*path, ours), inputs=inputs, outputs=outputs, kernel_size=kernel_size)
    for norm in ("norm1", "norm2"):
        rows[f"{name}.{norm}.weight"] = Tensor((*path, norm, "scale"), flat, (channels,))
        rows[f"{name}.{norm}.bias"] = Tensor((*path, norm, "bias"), flat, (channels,))
    return rows
