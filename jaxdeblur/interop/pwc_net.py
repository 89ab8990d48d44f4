"""Released PWC-Net weights: NVlabs/PWC-Net, sniklaus/pytorch-pwc, and inside CDVD-TSP (csbhr/CDVD-TSP).

The same tensors under two namings. The licence of NVlabs' code and weights: CC BY-NC-SA 4.0, non-commercial.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from jaxdeblur.flow_nets.pwc_net import COST_RADIUS, LEVELS, NVLABS
from jaxdeblur.interop.layout import Table, conv_rows, conv_transpose_rows, unused_rows

Naming: TypeAlias = Literal["nvlabs", "module", "net"]
Path: TypeAlias = tuple[str, ...]

_NUMBERS = ("One", "Two", "Thr", "Fou", "Fiv", "Six")
_NVLABS_FIRST_PARTS = re.compile(r"(conv\d|predict_flow|deconv|upfeat|dc_conv)")
_SNIKLAUS_FIRST_PART = re.compile(r"(module|net)(Extractor|Refiner|Two|Thr|Fou|Fiv|Six)\.")


def table(state_dict: Mapping[str, Any], *, prefix: str = "", path: Path = (), otherwise: Naming = "module") -> Table:
    """All 126 tensors, under the names that this file uses, in their order; NVlabs' files have two more, unused.

    Args:
        prefix: goes before every official name.
        path: goes before every path of ours.
        otherwise: naming where the file shows none: "nvlabs", or the other with "module" (network-default.pytorch,
            CDVD-TSP) or "net" (today's sniklaus/pytorch-pwc) in its names.
    """
    names = [str(name).removeprefix(prefix) for name in state_dict if str(name).startswith(prefix)]
    naming = _naming(names) or otherwise
    if naming == "nvlabs":
        return _nvlabs_table(prefix, path, with_unused=any(name.startswith("deconv2.") for name in names))
    return _sniklaus_table(prefix, path, naming)


def _naming(names: list[str]) -> Naming | None:
    """That of the first name which belongs to either."""
    for name in names:
        if _NVLABS_FIRST_PARTS.match(name):
            return "nvlabs"
        if found := _SNIKLAUS_FIRST_PART.match(name):
            return "net" if found[1] == "net" else "module"
    return None


def _nvlabs_table(prefix: str, path: Path, *, with_unused: bool) -> Table:
    rows: Table = {}
    for level in range(1, 7):
        # The layer that halves the size comes first; at level 6 it goes by the name that is the second's elsewhere.
        parts = ("aa", "a", "b") if level == 6 else ("a", "aa", "b")
        rows |= _pyramid_rows([f"{prefix}conv{level}{part}.0" for part in parts], path, level)
    for level in LEVELS:
        names = [f"{prefix}conv{level}_{index}.0" for index in range(5)]
        rows |= _decoder_rows(names, f"{prefix}predict_flow{level}", path, level)
        if level > LEVELS[-1]:
            rows |= _upsampling_rows(f"{prefix}deconv{level}", f"{prefix}upfeat{level}", path, level)
        elif with_unused:
            rows |= unused_rows(conv_transpose_rows(f"{prefix}deconv{level}", (), inputs=2, outputs=2, kernel_size=4))
    names = [f"{prefix}dc_conv{index}.0" for index in range(1, 7)]
    return rows | _context_rows([*names, f"{prefix}dc_conv7"], path)


def _sniklaus_table(prefix: str, path: Path, word: str) -> Table:
    rows: Table = {}
    for level, number in enumerate(_NUMBERS, start=1):
        names = [f"{prefix}{word}Extractor.{word}{number}.{index}" for index in (0, 2, 4)]
        rows |= _pyramid_rows(names, path, level)
    for level in reversed(LEVELS):
        decoder = f"{prefix}{word}{_NUMBERS[level - 1]}"
        if level < LEVELS[0]:
            rows |= _upsampling_rows(f"{decoder}.{word}Upflow", f"{decoder}.{word}Upfeat", path, level + 1)
        *names, flow_name = [f"{decoder}.{word}{number}.0" for number in _NUMBERS]
        rows |= _decoder_rows(names, flow_name, path, level)
    return rows | _context_rows([f"{prefix}{word}Refiner.{word}Main.{index}" for index in range(0, 14, 2)], path)


def _pyramid_rows(names: list[str], path: Path, level: int) -> Table:
    channels = (3, *NVLABS.pyramid_channels)
    paths = [("features", f"conv{level}_{index}") for index in (1, 2, 3)]
    return _chain_rows(names, [(*path, *ours) for ours in paths], (channels[level - 1], *3 * (channels[level],)))


def _decoder_rows(names: list[str], flow_name: str, path: Path, level: int) -> Table:
    """Dense layers and the one that gives the flow."""
    rows: Table = {}
    inputs = _undense_channels(level)
    for index, (name, outputs) in enumerate(zip(names, NVLABS.dense_channels), start=1):
        rows |= conv_rows(
            name, (*path, f"level_{level}", f"conv_{index}"), inputs=inputs, outputs=outputs, kernel_size=3
        )
        inputs += outputs
    return rows | conv_rows(flow_name, (*path, f"level_{level}", "flow_conv"), inputs=inputs, outputs=2, kernel_size=3)


def _upsampling_rows(flow_name: str, features_name: str, path: Path, level: int) -> Table:
    """The layers that bring the flow and the dense features of `level` to the next finer level, whose they are here."""
    ours = (*path, f"level_{level - 1}")
    inputs = _undense_channels(level) + sum(NVLABS.dense_channels)
    return {
        **conv_transpose_rows(flow_name, (*ours, "upsample_flow"), inputs=2, outputs=2, kernel_size=4),
        **conv_transpose_rows(features_name, (*ours, "upsample_features"), inputs=inputs, outputs=2, kernel_size=4),
    }


def _context_rows(names: list[str], path: Path) -> Table:
    inputs = _undense_channels(LEVELS[-1]) + sum(NVLABS.dense_channels)
    paths = [("context", ours) for ours in (*(f"conv_{index}" for index in range(1, 7)), "flow_conv")]
    return _chain_rows(names, [(*path, *ours) for ours in paths], (inputs, *NVLABS.context_channels, 2))


def _chain_rows(names: list[str], paths: list[Path], channels: tuple[int, ...]) -> Table:
    """Convolutions of which each reads what the one before gives."""
    rows: Table = {}
    for name, path, inputs, outputs in zip(names, paths, channels, channels[1:]):
        rows |= conv_rows(name, path, inputs=inputs, outputs=outputs, kernel_size=3)
    return rows


def _undense_channels(level: int) -> int:
    """Channels before the dense layers: costs, and but for the coarsest level features, flow, upsampled features."""
    costs = (2 * COST_RADIUS + 1) ** 2
    return costs if level == LEVELS[0] else costs + NVLABS.pyramid_channels[level - 1] + 2 + 2
