"""Networks small enough to be tuned in a test: what Reblur2Deblur starts from."""

import jax

from jaxdeblur.checkpoint import save_model
from jaxdeblur.models import create_model, initial_variables

DEBLURGAN = {"width": 1 / 32, "blocks": 1, "weight_init": "pass"}
FLOWNETS = {"width": 1 / 32}


def save_networks(folder):
    """Writes both as checkpoints, `deblurgan` and `flownets`."""
    for number, (name, options) in enumerate((("deblurgan", DEBLURGAN), ("flownets", FLOWNETS))):
        variables = initial_variables(jax.random.key(number), create_model(name, **options))
        save_model(folder / name, name=name, options=options, variables=variables)
    return folder
