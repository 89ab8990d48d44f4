import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import create_model
from jaxdeblur.objectives import Objective
from jaxdeblur.objectives.optical_flow import OpticalFlowObjective


class TwoLevels(nn.Module):
    """The same flow everywhere, a parameter in units of 20 px."""

    flow_unit_px = 20.0

    @nn.compact
    def levels(self, image_1, image_0):
        flow = self.param("flow", nn.initializers.zeros, (2,))
        height, width = image_1.shape[1:3]
        return tuple(jnp.broadcast_to(flow, (len(image_1), height // size, width // size, 2)) for size in (4, 8))


def objective(**options):
    return OpticalFlowObjective(TwoLevels(), weights=(0.5, 2.0), **options)


def clips(frames=3):
    rng = np.random.default_rng(0)
    batch = {name: rng.random((2, frames, 8, 16, 3), np.float32) for name in ("blurred", "sharp")}
    for side in ("prev", "next"):
        batch[f"flow_cur_to_{side}"] = rng.standard_normal((2, frames, 8, 16, 2), np.float32)
        batch[f"valid_cur_to_{side}"] = rng.random((2, frames, 8, 16)) > 0.3
    return batch


@pytest.mark.parametrize("images", ["sharp", "blurred"])
def test_clips_give_all_pairs_of_neighbours(images):
    batch = clips()
    prepared = objective(images=images).prepare(batch, {})
    expected = []
    for clip in range(2):
        frames = batch[images][clip]
        for t, neighbour, side in ((0, 1, "next"), (1, 2, "next"), (1, 0, "prev"), (2, 1, "prev")):
            flow, valid = (batch[f"{name}_cur_to_{side}"][clip, t] for name in ("flow", "valid"))
            expected.append((frames[t], frames[neighbour], flow, valid))
    for name, values in zip(("image_1", "image_0", "flow_1to0", "valid_1to0"), zip(*expected), strict=True):
        np.testing.assert_array_equal(prepared[name], np.stack(values), err_msg=name)
    with pytest.raises(ValueError, match=r"set data\.frames to 2 or more"):
        objective().prepare(clips(frames=1), {})


def test_pairs_of_bytes_are_scaled():
    image = np.full((1, 8, 16, 3), 51, np.uint8)
    batch = {
        "image_1": image,
        "image_0": image,
        "flow_1to0": np.zeros((1, 8, 16, 2), np.float32),
        "valid_1to0": np.ones((1, 8, 16), bool),
    }
    prepared = objective().prepare(batch, {})
    np.testing.assert_allclose(prepared["image_1"], 0.2, rtol=1e-6)


def test_the_loss_sums_weighted_levels_and_reports_pixels():
    prepared = {
        "image_1": jnp.zeros((1, 8, 16, 3)),
        "image_0": jnp.zeros((1, 8, 16, 3)),
        "flow_1to0": jnp.broadcast_to(jnp.array([6.0, 8.0]), (1, 8, 16, 2)),
        "valid_1to0": jnp.ones((1, 8, 16), bool),
    }
    model = objective()
    assert isinstance(model, Objective)
    assert model.learning_rate_name("total", ("features",)) == "flow"
    losses, _, _, terms = model.losses({"flow": jnp.zeros(2)}, {}, prepared, (), jnp.asarray(0), jax.random.key(0))
    # 10 px are half a unit: at 2 x 4 and 1 x 2 positions.
    np.testing.assert_allclose(losses["total"], 0.5 * (0.5 * 8 + 2.0 * 2), rtol=1e-6)
    np.testing.assert_allclose(terms["end_point_error_px"], 10.0, rtol=1e-6)


def test_what_has_no_levels_is_refused():
    with pytest.raises(ValueError, match="FlowNet2 gives no flow by levels"):
        OpticalFlowObjective(create_model("flownet2"))
