"""How released PyTorch weights are laid out, and how a file of them is matched to a model: all or nothing.

A table lists every tensor of a model under its official name, in the official order. Ours are channels last:
convolutions (height, width, in, out), transposed ones likewise and flipped in both axes, because PyTorch
defines them as the gradient of a convolution, while ours are convolutions over the dilated input.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdeblur.types import Variables


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One row of a table: where an official tensor goes, how it gets there, and the shape it must have.

    With None for a path it goes nowhere: files hold it, no one uses it, and it may be whole numbers.
    """

    path: tuple[str, ...] | None
    convert: Callable[[np.ndarray], np.ndarray]
    official_shape: tuple[int, ...]
    collection: str = "params"


Table = dict[str, Tensor]

_MOST_LISTED = 40
"""Names of a kind in a message; networks have thousands."""


def conv(weight: np.ndarray) -> np.ndarray:
    """(out, in, height, width) -> (height, width, in, out)."""
    return weight.transpose(2, 3, 1, 0)


def conv_transpose(weight: np.ndarray) -> np.ndarray:
    """(in, out, height, width) -> (height, width, in, out), flipped in height and width."""
    return weight.transpose(2, 3, 0, 1)[::-1, ::-1]


def depthwise_conv_transpose(weight: np.ndarray) -> np.ndarray:
    """(channels, 1, height, width) -> (height, width, 1, channels), flipped in height and width."""
    return weight.transpose(2, 3, 1, 0)[::-1, ::-1]


def as_it_is(weight: np.ndarray) -> np.ndarray:
    """Any array, which is laid out as ours are."""
    return weight


def flat(weight: np.ndarray) -> np.ndarray:
    """Any shape -> its numbers in order; what a vector needs."""
    return weight.reshape(-1)


def conv_rows(
    name: str, path: Iterable[str], *, inputs: int, outputs: int, kernel_size: int | tuple[int, int]
) -> Table:
    """The weight and bias of a convolution called `name`."""
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    return _rows(name, path, conv, (outputs, inputs, height, width), outputs)


def conv_transpose_rows(name: str, path: Iterable[str], *, inputs: int, outputs: int, kernel_size: int) -> Table:
    """The weight and bias of a transposed convolution called `name`."""
    return _rows(name, path, conv_transpose, (inputs, outputs, kernel_size, kernel_size), outputs)


def _rows(name: str, path: Iterable[str], convert: Callable, weight_shape: tuple[int, ...], outputs: int) -> Table:
    return {
        f"{name}.weight": Tensor((*path, "kernel"), convert, weight_shape),
        f"{name}.bias": Tensor((*path, "bias"), flat, (outputs,)),
    }


def batch_norm_rows(state_dict: Mapping[str, Any], name: str, path: Iterable[str], *, channels: int) -> Table:
    """Scale, shift and running statistics of a batch normalisation; also the count of batches, if the file has it."""
    path = tuple(path)
    rows = {
        f"{name}.weight": Tensor((*path, "scale"), flat, (channels,)),
        f"{name}.bias": Tensor((*path, "bias"), flat, (channels,)),
        f"{name}.running_mean": Tensor((*path, "mean"), flat, (channels,), "batch_stats"),
        f"{name}.running_var": Tensor((*path, "var"), flat, (channels,), "batch_stats"),
    }
    counter = f"{name}.num_batches_tracked"
    return rows | ({counter: Tensor(None, flat, ())} if counter in state_dict else {})


def without_bias(rows: Table) -> Table:
    """The same layers, of which the files hold no bias."""
    return {name: tensor for name, tensor in rows.items() if not name.endswith(".bias")}


def unused_rows(rows: Table) -> Table:
    """The same tensors, for a layer that files hold and no one uses."""
    return {name: dataclasses.replace(tensor, path=None) for name, tensor in rows.items()}


def find_faults(table: Table, state_dict: Mapping[str, Any]) -> list[str]:
    """What keeps these weights from being the table's: lines for missing, unexpected, wrong-shaped names."""
    missing = [name for name in table if name not in state_dict]
    unexpected = [str(name) for name in state_dict if name not in table]
    wrong = []
    for name, tensor in table.items():
        if name not in state_dict:
            continue
        array = np.asarray(state_dict[name])
        floats = tensor.path is None or jnp.issubdtype(array.dtype, jnp.floating)
        if array.shape != tensor.official_shape or not floats:
            wrong.append(f"{name} (expected floats {tensor.official_shape}, got {array.dtype.name} {array.shape})")
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    return [f"{len(names)} {what}: {_listed(names)}" for what, names in parts.items() if names]


def _listed(names: list[str]) -> str:
    return ", ".join([*names[:_MOST_LISTED], *(["..."] if len(names) > _MOST_LISTED else [])])


def to_variables(table: Table, state_dict: Mapping[str, Any]) -> Variables:
    """The Flax variables, float32, of weights in which `find_faults` found none."""
    variables: dict[str, Any] = {"params": {}}
    for name, tensor in table.items():
        if tensor.path is None:
            continue
        *parents, leaf = tensor.path
        node = variables.setdefault(tensor.collection, {})
        for parent in parents:
            node = node.setdefault(parent, {})
        # A copy, so that nothing done to the variables reaches the caller's arrays.
        node[leaf] = np.array(tensor.convert(np.asarray(state_dict[name])), np.float32, order="C")
    return variables
