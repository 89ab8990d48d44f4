"""Released weights of ESTRNN (zzh-tech/ESTRNN).

The training code saves a wrapped network inside a wrapper for several devices, hence the prefix. All released files are
of the same sizes (C80B15).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxdeblur.interop.layout import Table, Tensor, conv_rows, conv_transpose_rows, flat
from jaxdeblur.models.estrnn import DENSE_LAYERS, ESTRNNConfig

PREFIX = "module.model."
RELEASED = ESTRNNConfig()


def table(state_dict: Mapping[str, Any], *, config: ESTRNNConfig = RELEASED) -> Table:
    """All tensors (176 of the released sizes), under the names, with or without prefix, that this file uses."""
    prefix = PREFIX if any(str(name).startswith(PREFIX) for name in state_dict) else ""
    n, c = config.features, config.channels
    rows = conv_rows("cell.F_B0", ("cell", "in_conv"), inputs=3, outputs=n, kernel_size=5)
    for name, ours, channels, growth in (("F_B1", "down1", n, n), ("F_B2", "down2", 2 * n, 3 * n // 2)):
        rows |= _dense_block(f"cell.{name}.rdb", ("cell", f"{ours}_block"), channels, growth)
        path = ("cell", f"{ours}_conv")
        rows |= conv_rows(f"cell.{name}.down_sampling", path, inputs=channels, outputs=2 * channels, kernel_size=5)
    for block in range(config.blocks):
        rows |= _dense_block(f"cell.F_R.RDBs.{block}", ("cell", f"block_{block + 1}"), c, 2 * n)
    rows |= _pointwise("cell.F_R.conv1x1", ("cell", "join"), config.blocks * c, c, image=True)
    rows |= conv_rows("cell.F_R.conv3x3", ("cell", "features_conv"), inputs=c, outputs=c, kernel_size=3)
    rows |= conv_rows("cell.F_h.0", ("cell", "state_conv1"), inputs=c, outputs=n, kernel_size=3)
    rows |= _dense_block("cell.F_h.1", ("cell", "state_block"), n, n)
    rows |= conv_rows("cell.F_h.2", ("cell", "state_conv2"), inputs=n, outputs=n, kernel_size=3)
    fused = config.frames * c
    for index, inputs, outputs in ((0, fused, 2 * n), (1, 2 * n, n)):
        path = ("reconstructor", f"up{index + 1}")
        rows |= conv_transpose_rows(f"recons.model.{index}", path, inputs=inputs, outputs=outputs, kernel_size=3)
    rows |= conv_rows("recons.model.2", ("reconstructor", "out_conv"), inputs=n, outputs=3, kernel_size=5)
    for name, ours, inputs, outputs, image in (
        ("F_f.0", "gate1", 2 * c, 4 * c, False),
        ("F_f.2", "gate2", 4 * c, 2 * c, False),
        ("F_p.0", "project1", 2 * c, 4 * c, True),
        ("F_p.1", "project2", 4 * c, 2 * c, True),
        ("condense", "condense", 2 * c, c, True),
        ("fusion", "mix", fused, fused, True),
    ):
        rows |= _pointwise(f"fusion.{name}", ("fusion", ours), inputs, outputs, image=image)
    return {prefix + name: tensor for name, tensor in rows.items()}


def _dense_block(name: str, path: Iterable[str], channels: int, growth: int) -> Table:
    rows: Table = {}
    for i in range(DENSE_LAYERS):
        inputs, ours = channels + i * growth, (*path, f"dense{i + 1}")
        rows |= conv_rows(f"{name}.dense_layers.{i}.conv", ours, inputs=inputs, outputs=growth, kernel_size=3)
    inputs = channels + DENSE_LAYERS * growth
    return rows | conv_rows(f"{name}.conv1x1", (*path, "join"), inputs=inputs, outputs=channels, kernel_size=1)


def _pointwise(name: str, path: Iterable[str], inputs: int, outputs: int, *, image: bool) -> Table:
    """A layer that is a matrix here: officially a convolution of 1 x 1 over an image, or one of vectors."""
    shape = (outputs, inputs, 1, 1) if image else (outputs, inputs)
    return {
        f"{name}.weight": Tensor((*path, "kernel"), lambda weight: weight.reshape(outputs, inputs).T, shape),
        f"{name}.bias": Tensor((*path, "bias"), flat, (outputs,)),
    }
