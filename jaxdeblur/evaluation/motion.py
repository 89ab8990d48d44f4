"""How well the motion a model estimates on its own, while it deblurs, aligns the sharp frames."""

from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxdeblur.compilation import jit
from jaxdeblur.data.clips import frame_windows
from jaxdeblur.evaluation.protocols import motion_accuracy
from jaxdeblur.evaluation.scores import MAX_PSNR_DB, EvaluationClip
from jaxdeblur.models.multi_task_unit import QUARTER, MultiTaskUnits, matching_cost
from jaxdeblur.ops.correlation import best_displacement
from jaxdeblur.ops.resample import downsample_area
from jaxdeblur.types import Array, Displacement, PyTree, Variables


def mean_motion_accuracy(
    clips: Iterable[EvaluationClip], model: nn.Module, variables: Variables
) -> tuple[float, float]:
    """PSNR in decibel and SSIM of the previous sharp frame, moved by the model's displacement, against the current
    one: means over all frames of all clips that have a previous one.

    Units without a motion module give no displacement of their own: as in the paper, features of the first unit are
    matched instead. Which of them at a quarter of the resolution it does not say; here they are 4 x 4 means.

    Differs from the released evaluation: it also counts each clip's first frame, aligned with itself, and does not take
    frames whose sides are no multiples of 4; here up to three rows and columns at the bottom and right are left out
    (more, where the model works at several scales).

    Raises:
        ValueError: the model is no stack of multi-task units, or no clip has two frames.
    """
    if not isinstance(model, MultiTaskUnits):
        raise ValueError(f"{type(model).__name__} estimates no motion of its own; expected multi-task units")
    scores = [score for clip in clips for score in _clip_scores(clip, model, variables)]
    if not scores:
        raise ValueError("no clip has a second frame to align with its first")
    psnr_db, ssim = np.mean(scores, axis=0)
    return float(psnr_db), float(ssim)


def _clip_scores(clip: EvaluationClip, model: MultiTaskUnits, variables: Variables) -> Iterator[tuple[float, float]]:
    blurred = (_whole_blocks(frame, model.size_multiple) for frame, _ in clip.frames())
    windows = frame_windows(blurred, model.past_frames, model.future_frames, beyond_ends=model.beyond_ends)
    carry: PyTree = None
    features: Array | None = None
    previous: np.ndarray | None = None
    for (_, sharp_u8), window in zip(clip.frames(), windows, strict=True):
        sharp = _whole_blocks(sharp_u8, model.size_multiple)
        if carry is None:
            carry = model.init_carry(1, *sharp.shape[:2])
        carry, displacement, features = _step(model, variables, carry, features, np.stack(window)[None])
        if previous is not None:
            psnr_db, ssim = motion_accuracy(displacement, previous, sharp)
            yield min(float(psnr_db), MAX_PSNR_DB), float(ssim)
        previous = sharp


@jit(static_argnames="model")
def _step(
    model: Any, variables: Variables, carry: PyTree, features_0: Array | None, window: Array
) -> tuple[PyTree, Displacement, Array]:
    """The carry, the displacement and the first unit's features at a quarter of the resolution, of which those of the
    frame before are given from the second frame on."""
    carry, outputs = model.apply(variables, carry, jnp.asarray(window), method="step")
    features_1 = downsample_area(outputs.units[0].astype(jnp.float32), QUARTER)
    if model.config.motion_module:
        return carry, outputs.displacement_cur_to_prev[0], features_1
    features_0 = features_1 if features_0 is None else features_0
    cost = matching_cost(features_1, features_0, radius=model.config.match_radius)
    return carry, best_displacement(cost)[0][0], features_1


def _whole_blocks(image_u8: np.ndarray, block: int) -> np.ndarray:
    height, width, _ = image_u8.shape
    whole = image_u8[: height // block * block, : width // block * block]
    return whole.astype(np.float32) / np.float32(255)
