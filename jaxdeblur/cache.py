"""The user's cache: what can be made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/jaxdeblur, or ~/.cache/jaxdeblur. It need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdeblur"


def kept_weights(name: str) -> Path:
    """Where official weights of a network are kept, or would be."""
    return cache_folder() / "weights" / f"{name}.npz"
