"""FlowNetS as FlowNetPytorch has it: the flow branch of VDFlow. FlowNet2S, of the same layers, is in flownet_s.py.

Inputs: two RGB images, (..., H, W, 3) in [0, 1], of any size. Output: flow_1to0, (u right, v down), on image 1's grid.

Stages:
  1. A fixed mean colour is subtracted from both images, which are stacked.
  2. Contraction and refinement as in flownet_s.py, but nothing is resized first: an odd size is rounded up on the way
     down, and what comes up is cut at the bottom and right to the size it meets.
  3. The finest of five flows, at a quarter of the resolution, is brought to full resolution.

Units: every flow is in full-resolution pixels divided by FLOW_UNIT_PX.
Conventions: LeakyReLU slope 0.1; no bias behind the contraction. With batch normalisation (eps 1e-5) none there either.
Parameters: 38,675,536; with batch normalisation 38,680,336.

Paper: Dosovitskiy et al., "FlowNet: Learning Optical Flow with Convolutional Networks", ICCV 2015. The network is
FlowNetS of ClementPinard/FlowNetPytorch. It differs from the released code in that weights start out He normal without
the LeakyReLU's share, and in transposed convolutions counting the taps that meet an input.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxdeblur.flow_nets.base import check_images
from jaxdeblur.flow_nets.flownet_s import (
    CONTRACTION,
    CONTRACTION_FROM_3_1,
    FLOW_UNIT_PX,
    REFINEMENT,
    SIZE_MULTIPLE,
    FlowNetConfig,
    Levels,
    contract,
    refine,
)
from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.types import Features, Flow, Image

MEAN_RGB = np.array([0.411, 0.432, 0.45], np.float32)


def side_by_side(frame_1: Image, frame_0: Image) -> Features:
    """What the bare network sees: frames (B, H, W, 3), less the mean colour, as (B, H, W, 6)."""
    return jnp.concatenate([frame - MEAN_RGB.reshape(1, 1, 1, 3) for frame in (frame_1, frame_0)], axis=-1)


class FlowNetSimple(nn.Module):
    """See the head of this file.

    batch_norm: behind every convolution of the contraction. Then training moves running statistics (collection
        "batch_stats"), and examples of a batch meet in it.
    """

    config: FlowNetConfig = FlowNetConfig()
    batch_norm: bool = False

    size_multiple = SIZE_MULTIPLE
    flow_unit_px = FLOW_UNIT_PX

    def __call__(self, image_1: Image, image_0: Image) -> Flow:
        """Flow from image 1 to image 0, at full resolution, in pixels.

        Raises:
            ValueError: the images differ in shape, are empty, or are not RGB.
        """
        finest_1to0 = self.levels(image_1, image_0)[0]
        return FLOW_UNIT_PX * resize_bilinear(finest_1to0, *image_1.shape[-3:-1], align_corners=False)

    def levels(self, image_1: Image, image_0: Image, *, train: bool = False) -> Levels:
        """The flows of all levels, which a training loss compares.

        Args:
            train: batch normalisation by the batch's own statistics.
        Returns:
            Five of flow_1to0, on grids 4, 8, 16, 32 and 64 times coarser than the images, rounded up, in
            full-resolution pixels divided by `flow_unit_px`.
        Raises:
            ValueError: as `__call__`.
        """
        check_images(image_1, image_0)
        *lead, height, width, _ = image_1.shape
        frames = [jnp.asarray(image, jnp.float32).reshape(-1, height, width, 3) for image in (image_1, image_0)]
        x = side_by_side(*frames)
        return tuple(flow_1to0.reshape(*lead, *flow_1to0.shape[1:]) for flow_1to0 in self.network(x, train=train))

    @nn.compact
    def network(self, x: Features, *, train: bool) -> Levels:
        """The bare network: (B, H, W, 6) -> five flows."""
        layers = CONTRACTION + CONTRACTION_FROM_3_1
        skips = contract(self.config, layers, x, batch_norm=self.batch_norm, train=train)
        return refine(self.config, skips, REFINEMENT, inter_convs=False, upsampling_bias=False, bias=False).flows_1to0
