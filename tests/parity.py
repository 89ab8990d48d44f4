"""The rule that makes the weights of the golden vectors, and the vectors themselves."""

import json
import pathlib
import re
import zlib
from typing import Any

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"


def seeded_tensor(key: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """A tensor that depends on its official name and shape only; float64.

    Names with slashes are Flax's, whose kernels have their outputs last.
    """
    normal = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    is_flax = "/" in key
    kind = key.rsplit("/" if is_flax else ".", maxsplit=1)[-1]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_var":
        return 1 + 0.1 * np.abs(normal)
    if kind == "running_mean":
        return 0.1 * normal
    if len(shape) >= 2:
        return gain * normal * np.sqrt(2 / np.prod(shape[:-1] if is_flax else shape[1:]))
    return 1 + 0.1 * normal if kind in ("weight", "scale") else 0.1 * normal


def seeded_state_dict(provenance: dict[str, Any]) -> dict[str, np.ndarray]:
    """Official names -> seeded weights, float64, from the JSON beside a golden file."""
    return {
        key: seeded_tensor(key, tuple(shape), _gain(key, provenance)) for key, shape in provenance["state_dict"].items()
    }


def _gain(key: str, provenance: dict[str, Any]) -> float:
    """Of the key itself, else of the first pattern that is found in it, else of all."""
    by_pattern = (gain for pattern, gain in provenance.get("gain_rules", ()) if re.search(pattern, key))
    return provenance.get("gain_by_key", {}).get(key, next(by_pattern, provenance["gain"]))


def load_case(folder: str, case: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays by name, JSON) of tests/golden/<folder>/<case>."""
    with np.load(GOLDEN / folder / f"{case}.npz") as file:
        arrays = dict(file)
    return arrays, json.loads((GOLDEN / folder / f"{case}.json").read_text())
