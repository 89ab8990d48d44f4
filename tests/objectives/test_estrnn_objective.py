"""ESTRNN's loss against the released order of things: one pass over the clip, Charbonnier of colours."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur import create_model
from jaxdeblur.models import initial_variables
from jaxdeblur.objectives.estrnn import ESTRNNObjective


def test_the_frames_with_all_their_neighbours_are_supervised_in_one_pass():
    model = create_model("estrnn", features=4, blocks=1)
    params = initial_variables(jax.random.key(0), model)["params"]
    rng = np.random.default_rng(0)
    blurred = rng.uniform(0, 1, (2, 6, 16, 24, 3)).astype(np.float32)
    sharp = rng.uniform(0, 1, (2, 2, 16, 24, 3)).astype(np.float32)
    found = {}
    for remat in (False, True):
        objective = ESTRNNObjective(model, remat=remat)
        assert (objective.past_frames, objective.future_frames) == (2, 2)

        def loss(params, objective=objective):
            prepared = objective.prepare({"blurred": blurred, "sharp": sharp}, {})
            return objective.losses(params, {}, prepared, (), jnp.int32(0), jax.random.key(0))[0]["all"]

        found[remat] = jax.jit(jax.value_and_grad(loss))(params)
    restored = np.asarray(model.apply({"params": params}, blurred, method="unroll"), np.float64)
    assert restored.shape == sharp.shape
    expected = np.sqrt(np.square(restored - sharp).mean(-1) + 1e-6).mean()
    np.testing.assert_allclose(found[False][0], expected, rtol=1e-5)
    for have, want in zip(jax.tree.leaves(found[True]), jax.tree.leaves(found[False]), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-6 * max(1e-3, float(np.abs(want).max())))
    # Gradients go back through the state: the first frame's cell is reached.
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(found[False][1]["cell"])) > 0
