import functools

import jax
import numpy as np
import pytest

from jaxdeblur import create_model
from jaxdeblur.evaluation.motion import mean_motion_accuracy
from jaxdeblur.evaluation.protocols import motion_accuracy
from jaxdeblur.evaluation.scores import EvaluationClip
from jaxdeblur.models import example_inputs, initial_variables
from jaxdeblur.models.windows import clip_windows


def test_each_frame_is_aligned_with_the_one_before():
    model = create_model("mtu1", channels=4, residual_blocks=1, match_radius=2, weight_init="he")
    variables = model.init(jax.random.key(0), *example_inputs(model))
    rng = np.random.default_rng(0)
    frames = {length: rng.integers(0, 256, (2, length, 18, 23, 3), np.uint8) for length in (4, 3)}
    clips = [EvaluationClip("", lambda pair=pair: zip(*pair, strict=True)) for pair in frames.values()]
    step = jax.jit(functools.partial(model.apply, method="step"))
    scores = []
    for blurred_u8, sharp_u8 in frames.values():
        blurred, sharp = (images[:, :16, :20].astype(np.float32) / 255 for images in (blurred_u8, sharp_u8))
        carry = model.init_carry(1, 16, 20)
        for t, window in enumerate(clip_windows(blurred[None])[0]):
            carry, outputs = step(variables, carry, window[None])
            if t:
                scores.append(motion_accuracy(outputs.displacement_cur_to_prev[0], sharp[t - 1], sharp[t]))
    assert len(scores) == 5
    np.testing.assert_allclose(mean_motion_accuracy(clips, model, variables), np.mean(scores, axis=0), rtol=1e-4)


def test_what_has_no_motion_is_refused():
    with pytest.raises(ValueError, match="LiteFlowNet estimates no motion of its own"):
        mean_motion_accuracy([], create_model("liteflownet"), {})
    one_frame = np.zeros((1, 8, 8, 3), np.uint8)
    model = create_model("mtu1", channels=2, residual_blocks=0)
    variables = model.init(jax.random.key(0), *example_inputs(model))
    with pytest.raises(ValueError, match="no clip has a second frame"):
        mean_motion_accuracy([EvaluationClip("", lambda: zip(one_frame, one_frame))], model, variables)


def test_units_without_motion_are_measured_by_matching_their_features():
    """The picture moves by whole blocks, which zero displacement would not see."""
    model = create_model(
        "mtu1", channels=6, residual_blocks=0, match_radius=2, weight_init="edges", motion_module=False
    )
    variables = initial_variables(jax.random.key(0), model)
    wide = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    frames = np.stack([wide[:, 8 * t : 8 * t + 48] for t in range(4)])  # it moves 8 px to the left a frame
    psnr_db, _ = mean_motion_accuracy([EvaluationClip("", lambda: zip(frames, frames, strict=True))], model, variables)
    still_db = np.mean(
        [
            motion_accuracy(np.zeros((12, 12, 2), np.int32), frames[t - 1] / 255.0, frames[t] / 255.0)[0]
            for t in (1, 2, 3)
        ]
    )
    assert psnr_db > still_db + 3, (psnr_db, still_db)  # columns that come into sight have no match
