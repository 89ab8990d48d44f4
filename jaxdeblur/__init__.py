"""jaxdeblur: the JAX toolkit for video deblurring.

restored = jaxdeblur.restore(frames)

model = jaxdeblur.create_model("mtu2")
variables = jaxdeblur.interop.from_torch("mtu2", state_dict)
restored = jaxdeblur.restore(frames, model, variables)
"""

from jaxdeblur import interop
from jaxdeblur.models import MODELS, create_model
from jaxdeblur.restoration.clip import restore
from jaxdeblur.version import __version__

__all__ = ["MODELS", "__version__", "create_model", "interop", "restore"]
