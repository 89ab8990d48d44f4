"""Frames between two frames, along the flow between them."""

import jax.numpy as jnp

from jaxdeblur.ops.warp import inside_weight, warp_backward
from jaxdeblur.types import Flow, Image, Scalars


def interpolate_frame(image_0: Image, image_1: Image, flow_0to1: Flow, flow_1to0: Flow, time: Scalars | float) -> Image:
    """The frame at a time between frame 0 (at 0) and frame 1 (at 1), motion taken for uniform.

    flow_tto0 = -(1 - t) t flow_0to1 + t^2 flow_1to0, flow_tto1 = (1 - t)^2 flow_0to1 - t (1 - t) flow_1to0, and the two
    frames read along them are blended with weights 1 - t and t where they lie inside (Jiang et al. 2018, "Super SloMo",
    Eqs. 1 and 4). Differs from the paper in: nothing learned corrects the flow or says what is hidden in one of the
    frames, so that edges of motion show a ghost, of the width of a step.

    Args:
        image_0, image_1: (..., H, W, C), any range.
        flow_0to1, flow_1to0: (..., H, W, 2) in pixels of this resolution.
        time: 0 to 1.
    Returns:
        (..., H, W, C); at times 0 and 1 the frames themselves.
    """
    t = jnp.asarray(time, jnp.float32)
    flow_tto0 = -(1 - t) * t * flow_0to1 + t * t * flow_1to0
    flow_tto1 = (1 - t) * (1 - t) * flow_0to1 - t * (1 - t) * flow_1to0
    from_0, from_1 = (
        warp_backward(image, flow, border="edge")[0] for image, flow in ((image_0, flow_tto0), (image_1, flow_tto1))
    )
    # Never nothing at all: where both lie outside, the nearest pixels inside are blended.
    weight_0, weight_1 = (
        share * (inside_weight(flow)[..., None] + 1e-6) for share, flow in ((1 - t, flow_tto0), (t, flow_tto1))
    )
    return (weight_0 * from_0 + weight_1 * from_1) / (weight_0 + weight_1)
