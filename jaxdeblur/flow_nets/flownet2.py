"""FlowNet 2.0: a stack of three networks for large motion, one for small motion, and one that fuses their flows.

Inputs: two RGB images, (..., H, W, 3) in [0, 1]. Output: flow_1to0, (u right, v down), on image 1's grid.

Stages:
  1. FlowNetC: features of both images, correlated over displacements of up to 20 positions, then as FlowNetS.
  2. FlowNetS on both images, image 0 warped by that flow, the flow and the colour error that remains.
  3. Another FlowNetS, likewise, on the flow of stage 2.
  4. FlowNetSD on both images, built of small kernels: small motion.
  5. Fusion of the flows of stages 3 and 4, their lengths and the colour errors they leave: a network of three levels,
     down to a quarter of the resolution, whose flow is already in pixels at full resolution.

Units: FlowNetC and FlowNetS work in full-resolution pixels divided by 20, FlowNetSD in pixels divided by 1/20. The
released code multiplies the flow of FlowNetSD by 20 where that network stands alone, and divides it by 20 in the stack;
here both divide, for the released weights of the single network too give the better flow so (ptlflow's finding).
Conventions, resizing, normalisation and arithmetic: as in flownet_s.py. Taps outside a correlation read zero, those of
a warp the nearest pixel. Flows go to full resolution bilinearly, but into the fusion by repeating pixels.
Parameters: FlowNetC 39,175,298; FlowNetSD 45,371,666; the stack with its fusion 162,518,834.

Paper: Ilg, Mayer, Saikia, Keuper, Dosovitskiy, Brox, "FlowNet 2.0: Evolution of Optical Flow Estimation with Deep
Networks", CVPR 2017. The networks are those of NVIDIA/flownet2-pytorch. They differ from the released code in what
flownet_s.py lists and in the gradient of a vector's length, which here is zero where the vector is.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxdeblur.flow_nets.base import leaky_relu
from jaxdeblur.flow_nets.flownet_s import (
    CONTRACTION,
    CONTRACTION_FROM_3_1,
    FLOW_UNIT_PX,
    REFINEMENT,
    FlowNetBase,
    FlowNetConfig,
    FlowNetS,
    Layer,
    Levels,
    SingleFlowNet,
    contract,
    refine,
)
from jaxdeblur.ops.correlation import strided_cost_volume
from jaxdeblur.ops.flow import vector_length
from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.ops.warp import warp_backward
from jaxdeblur.types import Features, Flow, Image

COST_RADIUS = 10
COST_STRIDE = 2

REDUCTION = Layer("conv_redir", 3, 32, 1)
"""What FlowNetC keeps of image 1's features beside their correlation."""

CONTRACTION_SMALL = (
    Layer("conv0", 0, 64, 3),
    Layer("conv1", 1, 64, 3, strides=2),
    Layer("conv1_1", 1, 128, 3),
    Layer("conv2", 2, 128, 3, strides=2),
    Layer("conv2_1", 2, 128, 3),
)
"""Of FlowNetSD and of the fusion network."""

CONTRACTION_SD = (*CONTRACTION_SMALL, Layer("conv3", 3, 256, 3, strides=2), *CONTRACTION_FROM_3_1)
REFINEMENT_FUSION = {1: 32, 0: 16}


class FlowNetC(SingleFlowNet):
    """FlowNet with correlation. Sows "cost" (after its LeakyReLU) and "levels" into "intermediates"."""

    @nn.compact
    def frame_levels(self, frame_1: Image, frame_0: Image) -> Levels:
        features = contract(self.config, CONTRACTION, jnp.concatenate([frame_1, frame_0]))
        features_1, features_0 = jnp.split(features[3].astype(jnp.float32), 2)
        cost = strided_cost_volume(features_1, features_0, radius=COST_RADIUS, stride=COST_STRIDE)
        cost = leaky_relu(cost / features_1.shape[-1])
        self.sow("intermediates", "cost", cost)

        reduced_1 = contract(self.config, (REDUCTION,), features_1)[3]
        x = jnp.concatenate([reduced_1, cost.astype(reduced_1.dtype)], axis=-1)
        skips = {2: jnp.split(features[2], 2)[0], **contract(self.config, CONTRACTION_FROM_3_1, x)}
        flows_1to0 = refine(self.config, skips, REFINEMENT, inter_convs=False, upsampling_bias=True).flows_1to0
        self.sow("intermediates", "levels", flows_1to0)
        return flows_1to0


class FlowNetSD(SingleFlowNet):
    """FlowNet for small displacements. Sows "levels" into "intermediates".

    Its flows are in twentieths of a pixel: `levels` gives what a loss compares with 20 times the flow in pixels.
    """

    flow_unit_px = 1 / 20

    @nn.compact
    def frame_levels(self, frame_1: Image, frame_0: Image) -> Levels:
        skips = contract(self.config, CONTRACTION_SD, jnp.concatenate([frame_1, frame_0], axis=-1))
        flows_1to0 = refine(self.config, skips, REFINEMENT, inter_convs=True, upsampling_bias=True).flows_1to0
        self.sow("intermediates", "levels", flows_1to0)
        return flows_1to0


class FlowNetFusion(nn.Module):
    """Two flows and how good they are, (B, H, W, 11) as FlowNet2 joins them -> one flow (B, H, W, 2) in pixels."""

    config: FlowNetConfig

    @nn.compact
    def __call__(self, x: Features) -> Flow:
        skips = contract(self.config, CONTRACTION_SMALL, x)
        return refine(self.config, skips, REFINEMENT_FUSION, inter_convs=True, upsampling_bias=True).flows_1to0[0]


class FlowNet2(FlowNetBase):
    """See the head of this file. Sows "fusion_input" into "intermediates", and its networks what they sow."""

    @nn.compact
    def pixel_flow(self, frame_1: Image, frame_0: Image) -> Flow:
        flow_1to0 = FlowNetC(self.config, name="flownet_c").pixel_flow(frame_1, frame_0)
        finest_1to0 = FlowNetS(self.config, name="flownet_s_1").network(_with_error(frame_1, frame_0, flow_1to0))[0]
        flow_1to0 = FLOW_UNIT_PX * resize_bilinear(finest_1to0, *frame_1.shape[1:3], align_corners=False)
        finest_1to0 = FlowNetS(self.config, name="flownet_s_2").network(_with_error(frame_1, frame_0, flow_1to0))[0]
        large_1to0 = FLOW_UNIT_PX * _repeat_pixels(finest_1to0)

        finest_1to0 = FlowNetSD(self.config, name="flownet_sd").frame_levels(frame_1, frame_0)[0]
        small_1to0 = FlowNetSD.flow_unit_px * _repeat_pixels(finest_1to0)

        flows_1to0 = (small_1to0, large_1to0)
        lengths = [vector_length(flow_1to0) for flow_1to0 in flows_1to0]
        errors = [vector_length(frame_1 - _warp(frame_0, flow_1to0)) for flow_1to0 in flows_1to0]
        fusion_input = jnp.concatenate([frame_1, *flows_1to0, *lengths, *errors], axis=-1)
        self.sow("intermediates", "fusion_input", fusion_input)
        return FlowNetFusion(self.config, name="flownet_fusion")(fusion_input)


def _with_error(frame_1: Image, frame_0: Image, flow_1to0: Flow) -> Features:
    """What a later network of the stack sees, 12 channels."""
    frame_0on1 = _warp(frame_0, flow_1to0)
    error = vector_length(frame_1 - frame_0on1)
    return jnp.concatenate([frame_1, frame_0, frame_0on1, flow_1to0 / FLOW_UNIT_PX, error], axis=-1)


def _warp(frame_0: Image, flow_1to0: Flow) -> Image:
    return warp_backward(frame_0, flow_1to0, border="edge")[0]


def _repeat_pixels(flow_1to0: Flow) -> Flow:
    """Fourfold upsampling: each vector fills 4 x 4 pixels."""
    return jnp.repeat(jnp.repeat(flow_1to0, 4, axis=1), 4, axis=2)
