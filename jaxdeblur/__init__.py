"""jaxdeblur: the JAX toolkit for video deblurring.

restored = jaxdeblur.restore(frames)

model = jaxdeblur.create_model("mtu2")
variables = jaxdeblur.interop.from_torch("mtu2", state_dict)
restored = jaxdeblur.restore(frames, model, variables)
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxdeblur.version import __version__

if TYPE_CHECKING:
    from jaxdeblur import interop
    from jaxdeblur.models import MODELS, create_model
    from jaxdeblur.restoration.clip import restore

__all__ = ["MODELS", "__version__", "create_model", "interop", "restore"]

_PLACES = {"MODELS": "jaxdeblur.models", "create_model": "jaxdeblur.models", "restore": "jaxdeblur.restoration.clip"}


def __getattr__(name: str) -> Any:
    """What is above, when it is first asked for: JAX takes a second to import, and a mistyped command needs none."""
    if name == "interop":
        return importlib.import_module("jaxdeblur.interop")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
