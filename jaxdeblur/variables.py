"""Variables of networks: held to what a network needs, and as a file of weights.

A file of weights is one .npz: the arrays by their paths, such as params/unit_1/enc1/kernel, and under "model" what
`create_model` makes the network of, as JSON. It holds no state of training. The package has one of its own, "default",
which restores whatever no other checkpoint is given for; docs/model_card.md says how it came about.
"""

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdeblur.data.image_io import StrPath, replacing
from jaxdeblur.models import create_model, example_inputs
from jaxdeblur.types import PyTree, Variables

DEFAULT = "default"
"""By this name the weights of the package are known."""
_DEFAULT_FILE = Path(__file__).parent / "pretrained" / "default.npz"

SUFFIX = ".npz"
_MODEL = "model"


def save_weights(target: StrPath, options: dict[str, Any], variables: Variables) -> None:
    """Writes a file of weights.

    Args:
        target: its name, which ends in .npz; replaced if it is there, and there whole or not at all.
        options: {"name": ..., ...} as for create_model.
        variables: {"params": ...}, with "batch_stats" where the network has such; kept in the precision they have.

    Raises:
        ValueError: another suffix, or variables of another network.
    """
    target = Path(target)
    if target.suffix.lower() != SUFFIX:
        raise ValueError(f"{target}: expected a name that ends in {SUFFIX}")
    check_variables(create_model(**options), variables, str(target))
    arrays: dict[str, Any] = {path: np.asarray(leaf) for path, leaf in flatten_dict(variables, sep="/").items()}
    arrays[_MODEL] = np.array(json.dumps(options))
    with replacing(target) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def load_weights(path: StrPath = DEFAULT, **options: Any) -> tuple[nn.Module, Variables]:
    """Reads a file of weights: the network and its variables, on the default device.

    Args:
        path: of the file, or "default".
        options: fields of the network's configuration to change, such as compute_dtype.

    Raises:
        ValueError: no such file, a damaged one, or weights of another network than it says.
    """
    found = find_weights(path)
    if found is None:
        raise ValueError(f"{os.fspath(path)}: expected a file of weights, {SUFFIX}")
    saved, variables = read_weights(found)
    model = create_model(**{**saved, **options})
    check_variables(model, variables, str(found))
    return model, jax.tree.map(jnp.asarray, variables)


def find_weights(path: StrPath) -> Path | None:
    """The file of weights that a user's path means; None for a checkpoint's folder."""
    if os.fspath(path) == DEFAULT and not Path(path).exists():
        return _DEFAULT_FILE
    return Path(path).absolute() if Path(path).suffix.lower() == SUFFIX and not Path(path).is_dir() else None


def read_weights(path: Path) -> tuple[dict[str, Any], Variables]:
    """What `create_model` takes, and the variables as NumPy arrays."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            options = json.loads(str(arrays[_MODEL]))
            options["name"]
            return options, unflatten_dict({name: arrays[name] for name in arrays.files if name != _MODEL}, sep="/")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file of weights") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged, or no file of weights of jaxdeblur") from error


def check_variables(model: nn.Module, variables: Variables, source: str) -> None:
    """Raises a ValueError that lists every missing, unexpected and wrongly shaped parameter or statistic at once.

    What a model reads in training only (its `is_training_only(path)`) may be missing.
    """
    # One argument per example input: shapes only, nothing is computed.
    expected = _variable_shapes(jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model)))
    found = _variable_shapes(variables)
    optional = getattr(model, "is_training_only", lambda path: False)
    wanted = {path: shape for path, shape in expected.items() if path in found or not optional(path)}
    if wanted != found:
        raise ValueError(f"{source} does not fit {type(model).__name__}: {difference_of(wanted, found)}")


def check_same_params(expected: PyTree, found: PyTree, source: str) -> None:
    """Raises a ValueError that lists every missing, unexpected and wrongly shaped parameter at once."""
    if (wanted := shapes_of(expected)) != (shapes := shapes_of(found)):
        raise ValueError(f"{source} does not fit: {difference_of(wanted, shapes)}")


def shapes_of(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Of every leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(entry.key) for entry in path): tuple(np.shape(leaf) or leaf.shape) for path, leaf in leaves}


def _variable_shapes(variables: Variables) -> dict[str, tuple[int, ...]]:
    """Parameters by their path, others by their collection and path."""
    params, others = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}
    return {**shapes_of(params), **shapes_of(others)}


def difference_of(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str:
    """What is missing, unexpected or of another shape, in words."""
    parts = []
    if missing := [path for path in wanted if path not in found]:
        parts.append(f"missing {', '.join(missing)}")
    if unexpected := [path for path in found if path not in wanted]:
        parts.append(f"unexpected {', '.join(unexpected)}")
    if shaped := [f"{p} is {found[p]}, not {wanted[p]}" for p in wanted if p in found and found[p] != wanted[p]]:
        parts.append("; ".join(shaped))
    return "; ".join(parts)
