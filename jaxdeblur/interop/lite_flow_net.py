"""Released LiteFlowNet weights (sniklaus/pytorch-liteflownet; the multi-task units train with a copy).

The official lists run 0 to 4 for levels 2 to 6. The licence of the trained weights: non-commercial research.
"""

from collections.abc import Mapping
from typing import Any

from jaxdeblur.interop.layout import Table, Tensor, conv_rows, depthwise_conv_transpose, flat

_FEATURES = (
    # official name, ours, inputs, outputs, kernel size
    ("moduleOne.0", "conv1_1", 3, 32, 7),
    ("moduleTwo.0", "conv2_1", 32, 32, 3),
    ("moduleTwo.2", "conv2_2", 32, 32, 3),
    ("moduleTwo.4", "conv2_3", 32, 32, 3),
    ("moduleThr.0", "conv3_1", 32, 64, 3),
    ("moduleThr.2", "conv3_2", 64, 64, 3),
    ("moduleFou.0", "conv4_1", 64, 96, 3),
    ("moduleFou.2", "conv4_2", 96, 96, 3),
    ("moduleFiv.0", "conv5_1", 96, 128, 3),
    ("moduleSix.0", "conv6_1", 128, 192, 3),
)
_LEVELS = (2, 3, 4, 5, 6)
# Feature channels as the pyramid gives them; Matching and Subpixel first widen those of level 2 to 64.
_CHANNELS = {2: 32, 3: 64, 4: 96, 5: 128, 6: 192}
_KERNEL_SIZE = {2: 7, 3: 5, 4: 5, 5: 3, 6: 3}


def table(state_dict: Mapping[str, Any]) -> Table:
    """All 212 tensors; the same whatever the file holds."""
    rows: Table = {}
    for official, ours, inputs, outputs, kernel_size in _FEATURES:
        rows |= conv_rows(
            f"moduleFeatures.{official}",
            ("features", ours),
            inputs=inputs,
            outputs=outputs,
            kernel_size=kernel_size,
        )
    for index, level in enumerate(_LEVELS):
        rows |= _matching_rows(f"moduleMatching.{index}", f"matching_{level}", level)
    for index, level in enumerate(_LEVELS):
        rows |= _subpixel_rows(f"moduleSubpixel.{index}", f"subpixel_{level}", level)
    for index, level in enumerate(_LEVELS):
        rows |= _regularization_rows(f"moduleRegularization.{index}", f"regularization_{level}", level)
    return rows


def _matching_rows(official: str, ours: str, level: int) -> Table:
    rows: Table = {}
    if level == 2:
        rows |= conv_rows(f"{official}.moduleFeat.0", (ours, "feature_conv"), inputs=32, outputs=64, kernel_size=1)
    if level < 6:
        rows |= _upsample_row(f"{official}.moduleUpflow", (ours, "upsample_flow"), channels=2)
    if level <= 3:
        rows |= _upsample_row(f"{official}.moduleUpcorr", (ours, "upsample_cost"), channels=49)
    return rows | _main_rows(official, ours, widths=(49, 128, 64, 32, 2), last_kernel_size=_KERNEL_SIZE[level])


def _subpixel_rows(official: str, ours: str, level: int) -> Table:
    rows: Table = {}
    channels = _CHANNELS[level]
    if level == 2:
        rows |= conv_rows(f"{official}.moduleFeat.0", (ours, "feature_conv"), inputs=32, outputs=64, kernel_size=1)
        channels = 64
    widths = (2 * channels + 2, 128, 64, 32, 2)
    return rows | _main_rows(official, ours, widths=widths, last_kernel_size=_KERNEL_SIZE[level])


def _regularization_rows(official: str, ours: str, level: int) -> Table:
    rows: Table = {}
    channels, kernel_size = _CHANNELS[level], _KERNEL_SIZE[level]
    taps = kernel_size**2
    if level <= 4:
        rows |= conv_rows(
            f"{official}.moduleFeat.0", (ours, "feature_conv"), inputs=channels, outputs=128, kernel_size=1
        )
        channels = 128
    widths = (channels + 3, 128, 128, 64, 64, 32, 32)
    rows |= _main_rows(official, ours, widths=widths, last_kernel_size=3)
    distance = f"{official}.moduleDist"
    if kernel_size == 3:
        rows |= conv_rows(f"{distance}.0", (ours, "distance_conv"), inputs=32, outputs=taps, kernel_size=3)
    else:
        for index, (name, inputs, size) in enumerate(
            (("vertical", 32, (kernel_size, 1)), ("horizontal", taps, (1, kernel_size)))
        ):
            rows |= conv_rows(
                f"{distance}.{index}",
                (ours, f"distance_conv_{name}"),
                inputs=inputs,
                outputs=taps,
                kernel_size=size,
            )
    for axis in "xy":
        scale = f"{official}.moduleScale{axis.upper()}"
        rows[f"{scale}.weight"] = Tensor((ours, f"scale_{axis}"), flat, (1, taps, 1, 1))
        rows[f"{scale}.bias"] = Tensor((ours, f"scale_bias_{axis}"), flat, (1,))
    return rows


def _main_rows(official: str, ours: str, *, widths: tuple[int, ...], last_kernel_size: int) -> Table:
    """A chain of convolutions; activations take the odd places in the official numbering."""
    rows: Table = {}
    count = len(widths) - 1
    for index in range(count):
        rows |= conv_rows(
            f"{official}.moduleMain.{2 * index}",
            (ours, f"conv_{index + 1}"),
            inputs=widths[index],
            outputs=widths[index + 1],
            kernel_size=last_kernel_size if index == count - 1 else 3,
        )
    return rows


def _upsample_row(official: str, path: tuple[str, ...], *, channels: int) -> Table:
    return {f"{official}.weight": Tensor((*path, "kernel"), depthwise_conv_transpose, (channels, 1, 4, 4))}
