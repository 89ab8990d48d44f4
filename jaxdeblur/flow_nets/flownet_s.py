"""FlowNetS, and what the networks of the FlowNet 2.0 family share.

Inputs: two RGB images, (..., H, W, 3) in [0, 1]. Output: flow_1to0, (u right, v down), on image 1's grid.

Stages of every network of the family:
  1. Both images are resized to height and width rounded up to multiples of 64, and each channel's mean over both is
     subtracted.
  2. Contraction: strided convolutions, down to a grid 2^6 times coarser. FlowNetS sees both images stacked.
  3. Refinement: at every level from 6 to 2 a convolution predicts the flow; it is upsampled and joined to the
     upsampled features and to the contraction's features of the next finer level.
  4. The flow of level 2 is brought to full resolution, and resized back.

Units: the five flows are in full-resolution pixels divided by FLOW_UNIT_PX at every level, so that they are not
rescaled from one level to the next.
Conventions: no normalisation layers; LeakyReLU slope 0.1.
Parameters of FlowNetS: 38,676,506; of the small variant, FlowNet2-s, with 3/8 of the channels: 5,462,674.

Papers: Dosovitskiy et al., "FlowNet: Learning Optical Flow with Convolutional Networks", ICCV 2015; Ilg et al.,
"FlowNet 2.0: Evolution of Optical Flow Estimation with Deep Networks", CVPR 2017. The network is FlowNet2S of
NVIDIA/flownet2-pytorch: biases everywhere but in the upsampling of flows. It differs from the released code in:
  - any size is taken, by resizing; there, frames are cut to multiples of 64;
  - weights start out He normal, counting the taps that meet an input, and biases at zero.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax.numpy as jnp

from jaxdeblur.flow_nets.base import (
    check_encoded_size,
    check_images,
    check_multiple,
    he_normal,
    he_normal_transposed,
    leaky_relu,
    rounded_up,
)
from jaxdeblur.layers.conv import Conv, ConvTranspose
from jaxdeblur.layers.norm import BatchNorm
from jaxdeblur.ops.flow import resize_flow
from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.types import Features, Flow, Image, Pixels

FLOW_UNIT_PX = 20.0
SIZE_MULTIPLE = 64
BATCH_NORM_EPS = 1e-5
SMALL_WIDTH = 3 / 8
"""Of FlowNet2-s."""

Levels: TypeAlias = tuple[Flow, ...]
"""Flows in network units, finest first, each on half the grid of the one before."""


@dataclasses.dataclass(frozen=True)
class FlowNetConfig:
    """Size and arithmetic of a network of the family.

    Attributes:
        width: channel counts as a fraction of the released ones; correlations and flows keep theirs.
        compute_dtype: "float32", "float16" or "bfloat16", of the convolutions other than those that predict or
            upsample a flow. Parameters and all other arithmetic are float32 in all three.
    """

    width: float = 1.0
    compute_dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"width is {self.width}; expected a fraction above 0")
        if self.compute_dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"compute_dtype is {self.compute_dtype!r}; expected float32, float16 or bfloat16")

    def channels(self, released: int) -> int:
        """Channels of a layer that has `released` of them at full width."""
        return max(1, round(self.width * released))

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.compute_dtype)


class Layer(NamedTuple):
    """A convolution of a contracting part; a LeakyReLU follows."""

    name: str
    level: int  # its output lies on a grid 2^level times coarser than the images
    channels: int
    kernel_size: int
    strides: int = 1


CONTRACTION = (
    Layer("conv1", 1, 64, 7, strides=2),
    Layer("conv2", 2, 128, 5, strides=2),
    Layer("conv3", 3, 256, 5, strides=2),
)
"""What FlowNetC has up to its correlation; each layer is the first at its level."""

CONTRACTION_FROM_3_1 = (
    Layer("conv3_1", 3, 256, 3),
    Layer("conv4", 4, 512, 3, strides=2),
    Layer("conv4_1", 4, 512, 3),
    Layer("conv5", 5, 512, 3, strides=2),
    Layer("conv5_1", 5, 512, 3),
    Layer("conv6", 6, 1024, 3, strides=2),
    Layer("conv6_1", 6, 1024, 3),
)

REFINEMENT = {5: 512, 4: 256, 3: 128, 2: 64}
"""Level -> channels of the upsampled features there."""


def contract(
    config: FlowNetConfig, layers: tuple[Layer, ...], x: Features, *, batch_norm: bool = False, train: bool = False
) -> dict[int, Features]:
    """Level -> its last layer's output. Call within a compact method: the layers become that module's.

    batch_norm: batch normalisation, over the batch if `train`, takes the place of the convolutions' biases.
    """
    features = {}
    for layer in layers:
        x = _conv(config, layer.name, layer.channels, layer.kernel_size, layer.strides, use_bias=not batch_norm)(x)
        if batch_norm:
            x = BatchNorm(eps=BATCH_NORM_EPS, name=f"{layer.name}_bn")(x, train=train)
        features[layer.level] = x = leaky_relu(x)
    return features


class Refinement(NamedTuple):
    """What the refining part makes."""

    flows_1to0: Levels
    joined: dict[int, Features]  # level -> features, upsampled features and upsampled flow side by side, less `extra`


def refine(
    config: FlowNetConfig,
    skips: Mapping[int, Features],
    channels: Mapping[int, int],
    *,
    inter_convs: bool,
    upsampling_bias: bool,
    bias: bool = True,
    flow_channels: int = 2,
    finest_flow: int = 0,
    extra: Mapping[int, Features] = MappingProxyType({}),
) -> Refinement:
    """The refining part. Call within a compact method: the layers become that module's.

    Where a size was rounded up on the way down, what comes up again loses its last row or column.

    Args:
        skips: level -> features of the contracting part.
        channels: level -> channels of the upsampled features there at full width, from the level below the coarsest of
            `skips` to the finest that is to have a flow.
        inter_convs: below the coarsest level, a convolution without activation, to the same number of channels, goes
            before each prediction.
        upsampling_bias: the layers that upsample flows have a bias.
        bias: those that upsample features and predict flows do.
        flow_channels: two a flow.
        finest_flow: at levels below this no flow is predicted.
        extra: level below the coarsest -> features from elsewhere that are joined, too, before anything is made of what
            is joined there.
    """
    level = max(skips)
    joined = {level: (x := skips[level])}
    flows_1to0 = [_predict_flow(level, flow_channels, bias)(x)]
    for level, count in channels.items():
        deconv = _conv_transpose(config.channels(count), f"deconv{level}", dtype=config.dtype, use_bias=bias)
        upsampled = leaky_relu(deconv(x))
        upsample_flow = _conv_transpose(
            flow_channels, f"upsampled_flow{level + 1}_to_{level}", dtype=jnp.float32, use_bias=upsampling_bias
        )
        flow_1to0 = upsample_flow(flows_1to0[-1]).astype(upsampled.dtype)
        height, width = skips[level].shape[-3:-1]
        rising = jnp.concatenate([upsampled, flow_1to0], axis=-1)[..., :height, :width, :]
        joined[level] = x = jnp.concatenate([skips[level], rising], axis=-1)
        if level in extra:
            x = jnp.concatenate([x, extra[level].astype(x.dtype)], axis=-1)
        if level >= finest_flow:
            basis = _conv(config, f"inter_conv{level}", count, 3)(x) if inter_convs else x
            flows_1to0.append(_predict_flow(level, flow_channels, bias)(basis))
    return Refinement(tuple(reversed(flows_1to0)), joined)


def _conv(
    config: FlowNetConfig, name: str, channels: int, kernel_size: int, strides: int = 1, use_bias: bool = True
) -> Conv:
    return Conv(
        config.channels(channels),
        kernel_size,
        strides,
        use_bias=use_bias,
        kernel_init=he_normal,
        dtype=config.dtype,
        name=name,
    )


def _predict_flow(level: int, channels: int, use_bias: bool) -> Conv:
    name = f"predict_flow{level}"
    return Conv(channels, 3, use_bias=use_bias, kernel_init=he_normal, dtype=jnp.float32, name=name)


def _conv_transpose(channels: int, name: str, *, dtype: Any, use_bias: bool = True) -> ConvTranspose:
    return ConvTranspose(channels, 4, use_bias=use_bias, kernel_init=he_normal_transposed, dtype=dtype, name=name)


class FlowNetBase(nn.Module):
    """Two images of any size -> flow; a subclass says what happens between frames of a size that fits."""

    config: FlowNetConfig = FlowNetConfig()

    size_multiple = SIZE_MULTIPLE

    def __call__(self, image_1: Image, image_0: Image) -> Flow:
        """Flow from image 1 to image 0, at full resolution.

        Args:
            image_1: RGB in [0, 1], at least 1 x 1 pixels.
            image_0: likewise, of the same shape.
        Returns:
            flow_1to0 in pixels on image 1's grid: image_1(x) is about image_0(x + flow_1to0(x)).
        Raises:
            ValueError: the images differ in shape, are empty, or are not RGB.
        """
        check_images(image_1, image_0)
        height, width = image_1.shape[-3:-1]
        return self.match(self.encode(image_1), self.encode(image_0), height, width)

    def encode(self, image: Image) -> Image:
        """What depends on one image alone: here the image itself, resized to multiples of 64."""
        check_images(image)
        height, width = image.shape[-3:-1]
        height, width = rounded_up(height, width, SIZE_MULTIPLE)
        return resize_bilinear(jnp.asarray(image, jnp.float32), height, width, align_corners=False)

    def match(self, encoding_1: Image, encoding_0: Image, height: Pixels, width: Pixels) -> Flow:
        """Flow from what `encode` has made of two images of height x width pixels.

        Returns:
            As `__call__`: (..., height, width, 2) in pixels of that size.
        Raises:
            ValueError: the encodings are not those of two images of that size.
        """
        check_images(encoding_1, encoding_0)
        check_encoded_size(encoding_1.shape[-3:-1], height, width, SIZE_MULTIPLE)
        flow_1to0 = self.pixel_flow(*_normalize(encoding_1, encoding_0))
        flow_1to0 = flow_1to0.reshape(*encoding_1.shape[:-1], 2)
        return resize_flow(flow_1to0, height, width, align_corners=False)

    def pixel_flow(self, frame_1: Image, frame_0: Image) -> Flow:
        """From normalised frames, (B, H, W, 3) with H and W multiples of 64: (B, H, W, 2) in pixels."""
        raise NotImplementedError


class SingleFlowNet(FlowNetBase):
    """A network of one contraction and refinement; a subclass gives its five flows."""

    flow_unit_px = FLOW_UNIT_PX

    def levels(self, image_1: Image, image_0: Image) -> Levels:
        """The flows of all levels, which a training loss compares.

        Args:
            image_1: RGB in [0, 1]; height and width multiples of 64.
            image_0: likewise, of the same shape.
        Returns:
            Five of flow_1to0, on grids 4, 8, 16, 32 and 64 times coarser than the images, in full-resolution pixels
            divided by `flow_unit_px`.
        Raises:
            ValueError: as `__call__`, or a size is no multiple of 64.
        """
        check_images(image_1, image_0)
        *lead, height, width, _ = image_1.shape
        check_multiple("levels", height, width, SIZE_MULTIPLE)
        flows_1to0 = self.frame_levels(*_normalize(self.encode(image_1), self.encode(image_0)))
        return tuple(flow_1to0.reshape(*lead, *flow_1to0.shape[1:]) for flow_1to0 in flows_1to0)

    def frame_levels(self, frame_1: Image, frame_0: Image) -> Levels:
        """`levels` of normalised frames (B, H, W, 3)."""
        raise NotImplementedError

    def pixel_flow(self, frame_1: Image, frame_0: Image) -> Flow:
        finest_1to0 = self.frame_levels(frame_1, frame_0)[0]
        return self.flow_unit_px * resize_bilinear(finest_1to0, *frame_1.shape[1:3], align_corners=False)


class FlowNetS(SingleFlowNet):
    """See the head of this file. Sows its five flows into the collection "intermediates" as "levels".

    upsampling_bias: the layers that upsample flows have a bias: those of the small variant, FlowNet2-s, do.
    """

    upsampling_bias: bool = False

    def frame_levels(self, frame_1: Image, frame_0: Image) -> Levels:
        return self.network(jnp.concatenate([frame_1, frame_0], axis=-1))

    @nn.compact
    def network(self, x: Features) -> Levels:
        """The bare network: (B, H, W, any) -> five flows; H and W multiples of 64."""
        skips = contract(self.config, CONTRACTION + CONTRACTION_FROM_3_1, x)
        refined = refine(self.config, skips, REFINEMENT, inter_convs=False, upsampling_bias=self.upsampling_bias)
        flows_1to0 = refined.flows_1to0
        self.sow("intermediates", "levels", flows_1to0)
        return flows_1to0


def _normalize(image_1: Image, image_0: Image) -> tuple[Image, Image]:
    """Both images as (B, H, W, 3), less each channel's mean over the pixels of both.

    The released code subtracts from values in 0..255 and divides by 255 afterwards, which is the same.
    """
    pair = jnp.stack([image.reshape(-1, *image.shape[-3:]) for image in (image_1, image_0)])
    pair = pair - jnp.mean(pair, axis=(0, 2, 3), keepdims=True)
    return pair[0], pair[1]
