"""Released weights of SVRNN (zhjwustc/tcsvt21_flow_deblur_matcaffe) and of its flow network, FlowNet2-s.

Caffe's layers as a mapping: "<layer>.weight" and "<layer>.bias" (blobs 0 and 1), under the released file's names.
`table` takes weights in this toolkit's order, `reordered` brings the released ones into it. The licence of FlowNet2-s:
research only.

What is different in the released network: the blocks of weights come left-right, top-bottom, right-left, bottom-top;
and since MATLAB hands pictures over transposed, its rows are columns, so that kernels are transposed, the recurrence it
calls horizontal is vertical, and a flow's first number is the vertical one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdeblur.flow_nets.flownet_s import CONTRACTION, CONTRACTION_FROM_3_1, REFINEMENT, SMALL_WIDTH
from jaxdeblur.interop.layout import Table, conv_rows, conv_transpose_rows
from jaxdeblur.models.svrnn import REFINEMENT_TO_1

Path = tuple[str, ...]

# Released names of convolutions: inputs, outputs, kernel size; ours beside them.
_DEBLURRING = {
    "conv_rnne_1": ("d_conv1", 3, 24, 5),
    "conv_rnne_2": ("d_conv2", 96, 48, 5),
    "conv_rnne_3": ("d_conv3", 192, 96, 5),
    "conv_rnne_4": ("d_conv3_2", 384, 96, 5),
    "conv_rnne_4_1": ("d_conv3_3", 96, 48, 5),
    "conv_rnnd_4_1": ("d_deconv3_1", 48, 48, 5),
    "conv_rnnd_3_1": ("d_deconv2_1", 24, 24, 5),
    "conv_rnnd_2_1": ("d_deconv1_1", 12, 12, 5),
    "conv_rnnd_1": ("d_conv0", 15, 3, 5),
    "conv_rnnw2": ("rnnw1", 38, 96, 3),
    "conv_rnnw3": ("rnnw2", 74, 192, 3),
    "conv_rnnw4": ("rnnw3", 146, 384, 3),
}
_DEBLURRING_TRANSPOSED = {
    "conv_rnnd_4": ("d_deconv3", 432, 48),
    "conv_rnnd_3": ("d_deconv2", 240, 24),
    "conv_rnnd_2": ("d_deconv1", 120, 12),
}

_READS_DIRECTIONS = {
    "conv_rnne_2": 96,
    "conv_rnne_3": 192,
    "conv_rnne_4": 384,
    "conv_rnnd_4": 384,
    "conv_rnnd_3": 192,
    "conv_rnnd_2": 96,
}
"""How many of the channels a layer reads are a recurrence's results."""


def table(state_dict: Mapping[str, Any]) -> Table:
    """All 86 tensors of the full model, directions in this toolkit's order; the same whatever the file holds."""
    rows = _flow_rows(("flow_net",), REFINEMENT_TO_1)
    for name, (ours, inputs, outputs, size) in _DEBLURRING.items():
        rows |= conv_rows(name, (ours,), inputs=inputs, outputs=outputs, kernel_size=size)
    for name, (ours, inputs, outputs) in _DEBLURRING_TRANSPOSED.items():
        rows |= conv_transpose_rows(name, (ours,), inputs=inputs, outputs=outputs, kernel_size=4)
    return rows


def small_flownet_s_table(state_dict: Mapping[str, Any]) -> Table:
    """All 46 tensors of FlowNet2-s, by the names that the released SVRNN gives them."""
    return _flow_rows((), REFINEMENT)


def _flow_rows(path: Path, refinement: Mapping[int, int]) -> Table:
    rows: Table = {}
    inputs, skips = 6, {}
    for layer in CONTRACTION + CONTRACTION_FROM_3_1:
        outputs = round(SMALL_WIDTH * layer.channels)
        rows |= conv_rows(
            layer.name, (*path, layer.name), inputs=inputs, outputs=outputs, kernel_size=layer.kernel_size
        )
        inputs = skips[layer.level] = outputs
    joined = inputs
    rows |= conv_rows("predict_conv6", (*path, "predict_flow6"), inputs=joined, outputs=2, kernel_size=3)
    for level, released in refinement.items():
        outputs, above = round(SMALL_WIDTH * released), level + 1
        rows |= conv_transpose_rows(
            f"deconv{level}", (*path, f"deconv{level}"), inputs=joined, outputs=outputs, kernel_size=4
        )
        rows |= conv_transpose_rows(
            f"upsample_flow{above}to{level}",
            (*path, f"upsampled_flow{above}_to_{level}"),
            inputs=2,
            outputs=2,
            kernel_size=4,
        )
        joined = skips[level] + outputs + 2
        if level > 1:
            rows |= conv_rows(
                f"predict_conv{level}", (*path, f"predict_flow{level}"), inputs=joined, outputs=2, kernel_size=3
            )
    return rows


def blobs(released: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Without what the recurrences' layers hold, which is switched off, and with biases as vectors: old files have them
    as (1, 1, 1, n)."""
    arrays = {name: np.asarray(array) for name, array in released.items() if not name.startswith("rnn")}
    return {name: array.reshape(-1) if name.endswith(".bias") else array for name, array in arrays.items()}


def reordered(released: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The released file's weights as `table` takes them.

    Kernels are transposed in space, so that pictures are fed as they are; flow channels are swapped to (right, down)
    and the directions' blocks put into the order of ops.spatial_rnn.DIRECTIONS, wherever they are made or read. No
    shape changes.
    """
    return {name: _reordered(name, np.asarray(array)) for name, array in released.items()}


# Of a transposed picture: left-right, top-bottom, right-left, bottom-top; what they make, with the middle two swapped.
_RELEASED_WEIGHTS = (1, 3, 0, 2)
_RELEASED_RESULTS = (2, 3, 0, 1)


def _reordered(name: str, array: np.ndarray) -> np.ndarray:
    layer, _, part = name.rpartition(".")
    is_kernel = part == "weight"
    makes_flow = layer.startswith(("predict_conv", "upsample_flow"))
    transposed = layer.startswith(("deconv", "upsample_flow")) or layer in _DEBLURRING_TRANSPOSED
    outputs, inputs = (1, 0) if transposed and is_kernel else (0, 1)
    if is_kernel:
        array = array.swapaxes(2, 3)
    if makes_flow:
        array = _last_two_swapped(array, outputs)
    if layer.startswith("conv_rnnw"):
        array = _blocks(array, outputs, array.shape[outputs], _RELEASED_WEIGHTS)
    if not is_kernel:
        return array
    # The flow stands last in what is read, the four directions first.
    if (makes_flow or layer.startswith(("conv_rnnw", "deconv"))) and layer not in ("predict_conv6", "deconv5"):
        array = _last_two_swapped(array, inputs)
    if layer in _READS_DIRECTIONS:
        array = _blocks(array, inputs, _READS_DIRECTIONS[layer], _RELEASED_RESULTS)
    return array


def _last_two_swapped(array: np.ndarray, axis: int) -> np.ndarray:
    count = array.shape[axis]
    return array.take([*range(count - 2), count - 1, count - 2], axis)


def _blocks(array: np.ndarray, axis: int, count: int, order: tuple[int, ...]) -> np.ndarray:
    """The first `count` of an axis as four equal blocks in another order: block i of the result is block order[i]."""
    first = np.arange(count).reshape(4, -1)[list(order)].reshape(-1)
    return array.take([*first, *range(count, array.shape[axis])], axis)


def blue_last(released: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """FlowNet2-s of Caffe, which sees blue first, for pictures in RGB."""
    return {**released, "conv1.weight": np.asarray(released["conv1.weight"])[:, [2, 1, 0, 5, 4, 3]]}
