"""Models as files of StableHLO, which restore frames without the network's code and without its checkpoint.

A file is a zip of

    manifest.json   what the model looks at, what sizes it takes and what fills them up (see `jaxdeblur.models`); which
                    platforms the file is for; the version of jax that wrote it
    variables.npz   the weights, by their paths
    start.bin       (variables, window) -> carry                     serialised by jax.export
    step.bin        (variables, carry, window) -> carry, restored    likewise

Arguments are the model's own, float32 windows (1, frames, H, W, 3) in [0, 1] of any H and W that are multiples of what
it needs; variables are a dictionary by path, a carry is the tuple of its leaves. Weights are arguments, because inside
the functions they would stand twice, and compilers would try to fold them. `load_exported` makes of the file what
`restore` takes; without this package, `jax.export.deserialize` gives the functions and their StableHLO.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from jaxdeblur.data.image_io import StrPath
from jaxdeblur.data.own_files import replacing
from jaxdeblur.models.windows import tile_multiple
from jaxdeblur.restoration.clip import check_restorer, restore
from jaxdeblur.types import BeyondEnds, Border, Clip, PyTree, Restorer, Variables
from jaxdeblur.variables import DEFAULT, find_weights, load_weights

SUFFIX = ".zip"
PLATFORMS = ("cpu", "cuda", "tpu")
"""What a file is for, unless it is said."""
_KNOWN_PLATFORMS = (*PLATFORMS, "rocm")
_FORMAT = 1
_CONTRACT = ("past_frames", "future_frames", "beyond_ends", "size_multiple", "padding")

TOLERANCE = 1 / 510
"""How far restored values in [0, 1] may lie from the model's: half a step of 8 bits."""
# So that padded to multiples of 4, 8 or 64 they are of two sizes still.
_COMPARED_SIZES = ((61, 120), (130, 75))
_COMPARED_FRAMES = 3


class DifferentResultsError(ValueError):
    """What was exported does not restore frames as the model does."""


class Outputs(NamedTuple):
    """What an exported step yields of a frame."""

    restored: jax.Array  # (1, H, W, 3)


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedModel:
    """A model read from a file: for `restore` no different from one of `create_model`.

    Attributes:
        platforms: what it runs on.
        code: a few letters that tell its functions from others, so that `repr` does.
        functions: "start" and "step", as the head of this file has them.
    The others are those of `jaxdeblur.models`.
    """

    past_frames: int
    future_frames: int
    beyond_ends: BeyondEnds
    size_multiple: int
    padding: Border
    tile_multiple: int
    platforms: tuple[str, ...]
    code: str
    functions: dict[str, export.Exported] = dataclasses.field(repr=False)

    def apply(self, variables: Variables, *arguments: Any, method: str) -> Any:
        """Calls `start` or `step`, as a Flax module's `apply` does."""
        return getattr(self, method)(variables, *arguments)

    def start(self, variables: Variables, window: Clip) -> PyTree:
        """The carry before the first frame."""
        return self.functions["start"].call(variables, window)

    def step(self, variables: Variables, carry: PyTree, window: Clip) -> tuple[PyTree, Outputs]:
        """Restores the frame that a window is around."""
        carry, restored = self.functions["step"].call(variables, carry, window)
        return carry, Outputs(restored)


def export_model(
    target: StrPath, model: Restorer, variables: Variables, *, platforms: Sequence[str] = PLATFORMS
) -> float | None:
    """Writes a model as one file, for frames of every size and for all platforms at once.

    Before the file gets its name it is read back, and restores clips of noise of two sizes beside the model.

    Args:
        target: its name, which ends in .zip; replaced if it is there, and there whole or not at all.
        model, variables: as for `restore`.
        platforms: of "cpu", "cuda", "rocm" and "tpu"; none of them needs to be here.
    Returns:
        The largest difference of a restored value, in [0, 1], from the model's; None if none of the platforms is here.
    Raises:
        DifferentResultsError: that is more than TOLERANCE.
        ValueError: the name or a platform is another, or the model does not restore frames.
        OSError: target cannot be written.
    """
    target = Path(target)
    if target.suffix.lower() != SUFFIX:
        raise ValueError(f"{target}: expected a name that ends in {SUFFIX}")
    unknown = [platform for platform in platforms if platform not in _KNOWN_PLATFORMS]
    if unknown or not platforms:
        raise ValueError(
            f"platforms are {', '.join(platforms) or 'none'}; expected one or more of {', '.join(_KNOWN_PLATFORMS)}"
        )
    functions = _exported(model, variables, platforms)
    manifest = {
        "format": _FORMAT,
        "jax": jax.__version__,
        "platforms": list(platforms),
        **{name: getattr(model, name) for name in _CONTRACT},
        "tile_multiple": tile_multiple(model),
    }
    with replacing(target) as partial:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("manifest.json", json.dumps(manifest, indent=2))
            with archive.open("variables.npz", "w", force_zip64=True) as stream:
                np.savez(stream, **jax.tree.map(np.asarray, _by_path(variables)))
            for name, function in functions.items():
                archive.writestr(f"{name}.bin", function.serialize())
        if export.default_export_platform() not in platforms:
            return None
        # The model first: a fault of its own is named as such.
        difference = _largest_difference((model, variables), load_exported(partial))
        check_difference(difference, target)
    return difference


def load_exported(path: StrPath) -> tuple[ExportedModel, Variables]:
    """Reads what `export_model` has written, ready for `restore`.

    Raises:
        ValueError: the file is damaged or none of ours, or is not for this machine.
        OSError: it cannot be read.
    """
    name = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read("manifest.json"))
            if manifest["format"] != _FORMAT:
                raise ValueError(f"format is {manifest['format']}, expected {_FORMAT}: update jaxdeblur")
            written_by = manifest["jax"]
            contract = {field: manifest[field] for field in _CONTRACT}
            contract["tile_multiple"] = manifest.get("tile_multiple", contract["size_multiple"])
            platforms = tuple(manifest["platforms"])
            serialized = {function: archive.read(f"{function}.bin") for function in ("start", "step")}
            # Out of memory, since reading it in places would unpack it from the beginning each time.
            variables = dict(np.load(io.BytesIO(archive.read("variables.npz"))))
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, EOFError) as error:
        raise ValueError(f"{name}: damaged, too new, or not written by jaxdeblur export ({error})") from error
    here = export.default_export_platform()
    if here not in platforms:
        raise ValueError(
            f"{name}: is for {', '.join(platforms)}, and this machine is {here}; export the model again, with "
            f"--platforms={here}"
        )
    try:
        functions = {function: export.deserialize(bytearray(code)) for function, code in serialized.items()}
    except Exception as error:  # JAX raises whatever it stumbles over in the form of another version
        raise ValueError(
            f"{name}: jax {jax.__version__} cannot read what jax {written_by} has written ({error}); export the model "
            "again"
        ) from error
    code = hashlib.sha256(b"".join(serialized.values())).hexdigest()[:16]
    return ExportedModel(**contract, platforms=platforms, code=code, functions=functions), variables


def load_restorer(path: StrPath = DEFAULT, **options: Any) -> tuple[Restorer, Variables]:
    """Reads whatever restores frames: an exported file, or what `checkpoint.load_model` reads.

    Args:
        path: of that; "default": the weights of this package.
        options: as for `load_model`; in an exported file nothing can be changed any more.
    Raises:
        ValueError: as those raise, or there are options for an exported file.
    """
    if find_weights(path) is not None:
        return load_weights(path, **options)
    if not Path(path).is_file():
        from jaxdeblur.checkpoint import load_model  # Orbax takes a second to import

        return load_model(path, **options)
    if options:
        raise ValueError(
            f"{os.fspath(path)}: is an exported model, of which {', '.join(options)} can no longer be changed; leave "
            "that out, or export its checkpoint again"
        )
    return load_exported(path)


def check_difference(difference: float, target: Path) -> None:
    """Raises DifferentResultsError if what was to become a file lies too far from its model."""
    if not difference <= TOLERANCE:  # NaN fails this, too
        raise DifferentResultsError(
            f"{target}: what was exported restores frames that differ from the model's by {difference:.2g}, of values "
            f"in [0, 1]; expected at most {TOLERANCE:.2g}. Nothing is written; please report this"
        )


def _exported(model: Restorer, variables: Variables, platforms: Sequence[str]) -> dict[str, export.Exported]:
    check_restorer(model)
    height, width = export.symbolic_shape(f"{model.size_multiple}*h, {model.size_multiple}*w")
    window = jax.ShapeDtypeStruct((1, model.past_frames + 1 + model.future_frames, height, width, 3), jnp.float32)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _by_path(variables))

    def start(by_path: Variables, window: Clip) -> PyTree:
        return model.apply(_as_tree(by_path), window, method="start")

    carry, structure = jax.tree.flatten(jax.eval_shape(start, shapes, window))

    def start_leaves(by_path: Variables, window: Clip) -> tuple[jax.Array, ...]:
        return tuple(jax.tree.leaves(start(by_path, window)))

    def step_leaves(by_path: Variables, carry: tuple[jax.Array, ...], window: Clip) -> Any:
        after, outputs = model.apply(_as_tree(by_path), jax.tree.unflatten(structure, carry), window, method="step")
        return tuple(jax.tree.leaves(after)), outputs.restored

    with _without_places():
        return {
            "start": export.export(jax.jit(start_leaves), platforms=platforms)(shapes, window),
            "step": export.export(jax.jit(step_leaves), platforms=platforms)(shapes, tuple(carry), window),
        }


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
    """Keeps the names of source files and who called whom out of what is lowered."""
    config: Any = jax.config  # of whose options type checkers know nothing
    limit = config.jax_traceback_in_locations_limit
    config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        config.update("jax_traceback_in_locations_limit", limit)


def _by_path(variables: Variables) -> dict[str, Any]:
    return flatten_dict(variables, sep="/")


def _as_tree(by_path: dict[str, Any]) -> Variables:
    return unflatten_dict(by_path, sep="/")


def _largest_difference(*pairs: tuple[Restorer, Variables]) -> float:
    """Of a restored value, between two models and their variables, on clips of noise of two sizes."""
    differences = []
    for seed, size in enumerate(_COMPARED_SIZES):
        frames = np.random.default_rng(seed).random((_COMPARED_FRAMES, *size, 3), np.float32)
        one, other = (restore(frames, model, variables) for model, variables in pairs)
        differences.append(np.max(np.abs(one - other)))
    return float(np.max(differences))
