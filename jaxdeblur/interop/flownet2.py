"""Released FlowNet 2.0 weights (NVIDIA/flownet2-pytorch): the stack, and FlowNet2C, 2S and 2SD alone.

Layers have the same names here as there, but for a ".0" behind those an activation follows. The licence of the trained
weights: research only.
"""

from collections.abc import Mapping
from typing import Any

from jaxdeblur.flow_nets.flownet2 import (
    CONTRACTION_SD,
    CONTRACTION_SMALL,
    COST_RADIUS,
    REDUCTION,
    REFINEMENT_FUSION,
)
from jaxdeblur.flow_nets.flownet_s import CONTRACTION, CONTRACTION_FROM_3_1, REFINEMENT, Layer
from jaxdeblur.interop.layout import Table, Tensor, conv_rows, conv_transpose, conv_transpose_rows

Path = tuple[str, ...]


def flownet2_table(state_dict: Mapping[str, Any], *, prefix: str = "", path: Path = ()) -> Table:
    """All 220 tensors of the stack; the same whatever the file holds.

    Args:
        prefix: goes before every official name.
        path: goes before every path of ours.
    """
    return {
        **flownet_c_table(state_dict, prefix=f"{prefix}flownetc.", path=(*path, "flownet_c")),
        **flownet_s_table(state_dict, prefix=f"{prefix}flownets_1.", path=(*path, "flownet_s_1"), inputs=12),
        **flownet_s_table(state_dict, prefix=f"{prefix}flownets_2.", path=(*path, "flownet_s_2"), inputs=12),
        **flownet_sd_table(state_dict, prefix=f"{prefix}flownets_d.", path=(*path, "flownet_sd")),
        **_fusion_table(prefix=f"{prefix}flownetfusion.", path=(*path, "flownet_fusion")),
    }


def flownet_c_table(state_dict: Mapping[str, Any], *, prefix: str = "", path: Path = ()) -> Table:
    """All 48 tensors of FlowNetC; arguments as of `flownet2_table`."""
    joined = REDUCTION.channels + (2 * COST_RADIUS + 1) ** 2
    return {
        **_contraction_rows(prefix, path, CONTRACTION, inputs=3),
        **_contraction_rows(prefix, path, (REDUCTION,), inputs=CONTRACTION[-1].channels),
        **_contraction_rows(prefix, path, CONTRACTION_FROM_3_1, inputs=joined),
        **refinement_rows(prefix, path, CONTRACTION + CONTRACTION_FROM_3_1, REFINEMENT),
    }


def flownet_s_table(state_dict: Mapping[str, Any], *, prefix: str = "", path: Path = (), inputs: int = 6) -> Table:
    """All 42 tensors of FlowNetS with `inputs` channels to see; other arguments as of `flownet2_table`."""
    layers = CONTRACTION + CONTRACTION_FROM_3_1
    return {
        **_contraction_rows(prefix, path, layers, inputs=inputs),
        **refinement_rows(prefix, path, layers, REFINEMENT, upsampling_bias=False),
    }


def flownet_sd_table(state_dict: Mapping[str, Any], *, prefix: str = "", path: Path = ()) -> Table:
    """All 60 tensors of FlowNetSD; arguments as of `flownet2_table`."""
    return {
        **_contraction_rows(prefix, path, CONTRACTION_SD, inputs=6),
        **refinement_rows(prefix, path, CONTRACTION_SD, REFINEMENT, inter_convs=True),
    }


def _fusion_table(*, prefix: str, path: Path) -> Table:
    return {
        **_contraction_rows(prefix, path, CONTRACTION_SMALL, inputs=11),
        **refinement_rows(prefix, path, CONTRACTION_SMALL, REFINEMENT_FUSION, inter_convs=True),
    }


def _contraction_rows(prefix: str, path: Path, layers: tuple[Layer, ...], *, inputs: int) -> Table:
    rows: Table = {}
    for layer in layers:
        rows |= conv_rows(
            f"{prefix}{layer.name}.0",
            (*path, layer.name),
            inputs=inputs,
            outputs=layer.channels,
            kernel_size=layer.kernel_size,
        )
        inputs = layer.channels
    return rows


def refinement_rows(
    prefix: str,
    path: Path,
    layers: tuple[Layer, ...],
    refinement: Mapping[int, int],
    *,
    inter_convs: bool = False,
    upsampling_bias: bool = True,
) -> Table:
    """Of a refining part with `refinement` as channels by level, behind a contracting part of `layers`."""
    skip_channels = {layer.level: layer.channels for layer in layers}  # the last of each level
    coarsest = max(skip_channels)
    joined = {level: skip_channels[level] + channels + 2 for level, channels in refinement.items()}
    joined[coarsest] = skip_channels[coarsest]

    rows: Table = {}
    for level, channels in refinement.items():
        rows |= conv_transpose_rows(
            f"{prefix}deconv{level}.0",
            (*path, f"deconv{level}"),
            inputs=joined[level + 1],
            outputs=channels,
            kernel_size=4,
        )
    seen = dict(joined)
    if inter_convs:
        for level, channels in refinement.items():
            rows |= conv_rows(
                f"{prefix}inter_conv{level}.0",
                (*path, f"inter_conv{level}"),
                inputs=joined[level],
                outputs=channels,
                kernel_size=3,
            )
            seen[level] = channels
    for level in (coarsest, *refinement):
        name = f"predict_flow{level}"
        rows |= conv_rows(f"{prefix}{name}", (*path, name), inputs=seen[level], outputs=2, kernel_size=3)
    for level in refinement:
        name = f"upsampled_flow{level + 1}_to_{level}"
        if upsampling_bias:
            rows |= conv_transpose_rows(f"{prefix}{name}", (*path, name), inputs=2, outputs=2, kernel_size=4)
        else:
            rows[f"{prefix}{name}.weight"] = Tensor((*path, name, "kernel"), conv_transpose, (2, 2, 4, 4))
    return rows
