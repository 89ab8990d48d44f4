"""Variables of networks: held to what a network needs, and as a file of weights.

A file of weights is one .npz: the arrays by their paths, such as params/unit_1/enc1/kernel, and under "model" what
`create_model` makes the network of, as JSON. It holds no state of training. The package has one of its own, "default",
which restores whatever no other checkpoint is given for; docs/model_card.md says how it came about. Official weights
that were converted without a place of their own are kept in the user's cache, and found by the network's name.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdeblur.cache import kept_weights
from jaxdeblur.data.image_io import StrPath
from jaxdeblur.data.own_files import replacing
from jaxdeblur.models import create_model, example_inputs
from jaxdeblur.sources import OFFICIAL, missing_weights
from jaxdeblur.types import Array, PyTree, Variables

DEFAULT = "default"
"""By this name the weights of the package are known."""
_DEFAULT_FILE = Path(__file__).parent / "pretrained" / "default.npz"

SUFFIX = ".npz"
_MODEL = "model"
_STORED = (np.float32, np.float16)
_MOST_ABOUT_BYTES = 2**20


def save_weights(target: StrPath, options: dict[str, Any], variables: Variables) -> None:
    """Writes a file of weights.

    Args:
        target: its name, which ends in .npz; replaced if it is there, and there whole or not at all.
        options: {"name": ..., ...} as for create_model.
        variables: {"params": ...}, with "batch_stats" where the network has such; float16 is kept, all else becomes
            float32.

    Raises:
        ValueError: another suffix, or variables of another network.
    """
    target = Path(target)
    if target.suffix.lower() != SUFFIX:
        raise ValueError(f"{target}: expected a name that ends in {SUFFIX}")
    check_variables(create_model(**options), variables, str(target))
    arrays: dict[str, Any] = {path: _storable(leaf) for path, leaf in flatten_dict(variables, sep="/").items()}
    arrays[_MODEL] = np.array(json.dumps(options))
    with replacing(target) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def keep_weights(name: str, variables: Variables) -> Path:
    """Writes official weights to where `find_weights` finds them by the network's name, and beside them their checksum.

    Raises:
        FileExistsError: there are some already.
    """
    refuse_kept_weights(name)
    target = kept_weights(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_weights(target, {"name": name}, variables)
    checksum = hashlib.sha256(target.read_bytes()).hexdigest()
    with replacing(target.with_suffix(f"{SUFFIX}.sha256")) as partial:
        partial.write_text(f"{checksum}  {target.name}\n")
    return target


def refuse_kept_weights(name: str) -> None:
    """FileExistsError if there are some of the network already."""
    if kept_weights(name).exists():
        raise FileExistsError(
            f"{kept_weights(name)}: weights of {name} are kept already; move them away, or name a folder for OUT"
        )


def _storable(leaf: Array) -> np.ndarray:
    array = np.asarray(leaf)
    return array if array.dtype in _STORED else array.astype(np.float32)


def load_weights(path: StrPath = DEFAULT, **options: Any) -> tuple[nn.Module, Variables]:
    """Reads a file of weights: the network and its variables, on the default device.

    Args:
        path: of the file, "default", or the name of a network whose official weights were converted.
        options: fields of the network's configuration to change, such as compute_dtype.

    Raises:
        ValueError: no such file, a damaged one, or weights of another network than it says.
    """
    found = find_weights(path)
    if found is None:
        raise ValueError(f"{os.fspath(path)}: expected a file of weights, {SUFFIX}")
    model = create_model(**{**read_options(found), **options})
    if found != _DEFAULT_FILE or options.keys() - {"compute_dtype"}:  # which fits, and tracing takes a while
        check_variables(model, _read_members(found, _shape), str(found))
    return model, jax.tree.map(jnp.asarray, _read_members(found, np.lib.format.read_array))


def find_weights(path: StrPath) -> Path | None:
    """The file of weights that a user's path means; None for a checkpoint's folder. A folder called default is meant by
    ./default. The name of a network means its official weights, unless there is something of that name."""
    if os.fspath(path) == DEFAULT:
        return _DEFAULT_FILE
    if os.fspath(path) in OFFICIAL and not os.path.exists(path):
        return kept_weights(os.fspath(path))
    return Path(path).absolute() if Path(path).suffix.lower() == SUFFIX and not Path(path).is_dir() else None


def is_file_of_weights(path: StrPath) -> bool:
    """Whether there is one, and not another .npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{_MODEL}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def read_options(path: Path) -> dict[str, Any]:
    """What `create_model` makes a file's network of.

    Raises:
        ValueError: no such file, a damaged one, or a network that this version of the package does not know.
    """
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        about = archive.getinfo(f"{_MODEL}.npy")
        if about.file_size > _MOST_ABOUT_BYTES:
            raise ValueError("no description of a network is so long")
        with archive.open(about) as member:
            options = json.loads(str(np.lib.format.read_array(member, allow_pickle=False)))
        if not isinstance(options, dict) or not isinstance(options.get("name"), str):
            raise ValueError("it names no network")
    try:
        create_model(**options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its network is unknown to this version of jaxdeblur: {error}") from error
    return options


def _read_members(path: Path, read: Callable[[Any], Any]) -> Variables:
    """The tree of what `read` makes of every array's member."""
    found = {}
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename != f"{_MODEL}.npy":
                with archive.open(info) as member:
                    found[info.filename.removesuffix(".npy")] = read(member)
        variables = unflatten_dict(found, sep="/")
        if "params" not in variables:
            raise ValueError("it holds no parameters")
        return variables


def _shape(member: Any) -> jax.ShapeDtypeStruct:
    """Of an array, from its header: a file may claim sizes that no memory holds."""
    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = readers[version](member)
    if dtype not in _STORED:
        raise ValueError(f"an array of {dtype}; expected float32 or float16")
    return jax.ShapeDtypeStruct(shape, dtype)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if path.stem in OFFICIAL and path == kept_weights(path.stem):
            raise ValueError(missing_weights(path.stem)) from error
        raise ValueError(f"{path}: there is no such file of weights") from error
    except Exception as error:  # zipfile, zlib, json and NumPy meet damage with whatever they trip over
        raise ValueError(f"{path}: damaged, or no file of weights of jaxdeblur ({error})") from error


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
