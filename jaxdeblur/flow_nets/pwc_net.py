"""PWC-Net: optical flow by a pyramid of features, warping, and cost volumes.

Inputs: two RGB images, (..., H, W, 3) in [0, 1]. Output: flow_1to0, (u right, v down), on image 1's grid.

Stages:
  1. Both images are resized to height and width rounded up to multiples of 64, and one pyramid of features is computed
     of each with the same weights; level l lies on a grid 2^l times coarser than the resized image. Nothing so far
     needs the other image: `encode`.
  2. At the levels 6, 5, 4, 3, 2 in turn, features of image 0 are warped by the coarser level's flow and correlated with
     those of image 1 over 9 x 9 displacements; densely connected convolutions over the costs, the features of image 1
     and what is upsampled from the coarser level give the level's flow. It is the flow itself, not a correction.
  3. At level 2 dilated convolutions, the context network, give a correction of the flow.
  4. The flow is brought to full resolution.

Units: inside, the flow is in full-resolution pixels divided by PWC_FLOW_SCALE at every level, so that it is not
rescaled between levels.
Conventions: no normalisation, of images or inside; LeakyReLU slope 0.1; taps outside a map read zero, in warping and
correlation alike, and a warped position counts as nothing where too little of its weight lies inside.
Parameters: 9,374,274.

Paper: Sun, Yang, Liu, Kautz, "PWC-Net: CNNs for Optical Flow Using Pyramid, Warping, and Cost Volume", CVPR 2018. The
network is that of the authors' PyTorch release (NVlabs/PWC-Net, class PWCDCNet) and its weights. The 8.75 M parameters
quoted in papers are those of an older one, with two convolutions a pyramid level where this has three. CDVD-TSP and
sniklaus/pytorch-pwc hold the same network; in what they feed it, and in which positions count, they differ:
`PWCNetConfig`. Ours differs from the released code in:
  - images resized in 8 bits (`round_resized`) are rounded after exact interpolation, where OpenCV computes in fixed
    point: seldom, a level off;
  - weights start out He normal, counting the taps that meet an input; there, the outputs count in the layers that
    upsample;
  - the layer `deconv2`, which is never used, is left out.
"""

import dataclasses
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
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
from jaxdeblur.ops.correlation import local_cost_volume
from jaxdeblur.ops.flow import resize_flow
from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.ops.warp import inside_weight, warp_backward
from jaxdeblur.types import CostVolume, Features, Flow, Image, Pixels

PWC_FLOW_SCALE = 20.0
SIZE_MULTIPLE = 64
HALF_LEVEL_SLACK = 5e-4
"""Makes half a level of 8 bits round up, as in OpenCV, whatever the last bits of float32 are."""
COST_RADIUS = 4

LEVELS = (6, 5, 4, 3, 2)
CONTEXT_DILATIONS = (1, 2, 4, 8, 16, 1)

Encoding: TypeAlias = dict[int, Features]
"""Level, 2 to 6 -> features of an image."""


@dataclasses.dataclass(frozen=True)
class PWCNetConfig:
    """What the callers of the network differ in, its size and its arithmetic. Variants: NVLABS, CDVD_TSP.

    Attributes:
        channel_order: in which the network sees the colours. Released weights are trained on "bgr"; CDVD-TSP gives them
            "rgb" all the same, and trains on.
        mask_threshold: a warped position counts from this inside weight on, in (0, 1].
        round_resized: images that must be resized are rounded to whole levels of 8 bits. Their gradient passes as if
            they were not.
        pyramid_channels: at levels 1 to 6.
        dense_channels: of the five densely connected layers of each level.
        context_channels: of the context network's layers but the last.
        width: takes this fraction of all these channels, for small models.
        compute_dtype: "float32", "bfloat16" or "float16", of the convolutions other than those that give or upsample a
            flow. Parameters, flows, warping and cost volumes are float32 in all three.
    """

    channel_order: Literal["bgr", "rgb"]
    mask_threshold: float
    round_resized: bool
    pyramid_channels: tuple[int, ...] = (16, 32, 64, 96, 128, 196)
    dense_channels: tuple[int, ...] = (128, 128, 96, 64, 32)
    context_channels: tuple[int, ...] = (128, 128, 128, 96, 64, 32)
    width: float = 1.0
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        for field, choices in (
            ("channel_order", ("bgr", "rgb")),
            ("compute_dtype", ("float32", "bfloat16", "float16")),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(choices)}")
        for field, count in (("pyramid_channels", 6), ("dense_channels", 5), ("context_channels", 6)):
            value = getattr(self, field)
            if isinstance(value, list):  # as a checkpoint's JSON has it
                value = tuple(value)
                object.__setattr__(self, field, value)
            if not isinstance(value, tuple) or len(value) != count or any(channels < 1 for channels in value):
                raise ValueError(f"{field} is {value!r}; expected a tuple of {count} whole numbers above 0")
        if not 0 < self.mask_threshold <= 1:
            raise ValueError(f"mask_threshold is {self.mask_threshold}; expected a weight above 0 and up to 1")
        if not self.width > 0:
            raise ValueError(f"width is {self.width}; expected a fraction above 0")

    def scaled(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        """Channels at this width."""
        return tuple(max(1, round(self.width * count)) for count in channels)

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.compute_dtype)


NVLABS = PWCNetConfig(channel_order="bgr", mask_threshold=0.9999, round_resized=True)
"""As the authors' script runs it."""
CDVD_TSP = PWCNetConfig(channel_order="rgb", mask_threshold=0.999, round_resized=False)
"""As it is part of CDVD-TSP (csbhr/CDVD-TSP)."""


class PWCNet(nn.Module):
    """See the head of this file. Calling it is `match(encode(image_1), encode(image_0), height, width)`.

    Sows into the collection "intermediates": "frame", resized and in the network's channel order, and "level_<l>" of
    "features", each with an entry an image; "upsampled_flow", "upsampled_features", "cost" (before its LeakyReLU) and
    "flow_1to0" of "level_<l>"; and "flow_1to0", the result at level 2. Flows in network units.
    """

    config: PWCNetConfig

    size_multiple = SIZE_MULTIPLE
    flow_unit_px = PWC_FLOW_SCALE

    def setup(self) -> None:
        self.features = FeaturePyramid(self.config)
        self.level = {level: LevelDecoder(self.config, level) for level in LEVELS}
        self.context = ContextNetwork(self.config)

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

    def encode(self, image: Image) -> Encoding:
        """All that depends on one image alone, so that a video's frames need it once each.

        Args:
            image: (..., H, W, 3), RGB in [0, 1], at least 1 x 1 pixels.
        Returns:
            Features in `compute_dtype`, (..., H64 / 2^l, W64 / 2^l, C_l) at level l, H64 and W64 being height and width
            rounded up to multiples of 64.
        """
        check_images(image)
        *lead, height, width, _ = image.shape
        frame: Image = jnp.asarray(image, jnp.float32).reshape(-1, height, width, 3)
        if self.config.channel_order == "bgr":
            frame = frame[..., ::-1]
        whole = rounded_up(height, width, SIZE_MULTIPLE)
        if whole != (height, width):
            frame = resize_bilinear(frame, *whole, align_corners=False)
            if self.config.round_resized:
                levels = jnp.floor(frame * 255 + (0.5 + HALF_LEVEL_SLACK))
                frame = frame + jax.lax.stop_gradient(levels / 255 - frame)
        self.sow("intermediates", "frame", frame)
        return {level: _with_lead(x, lead) for level, x in self.features(frame).items()}

    def match(self, encoding_1: Encoding, encoding_0: Encoding, height: Pixels, width: Pixels) -> Flow:
        """Flow from what `encode` has made of two images of height x width pixels.

        Returns:
            As `__call__`: (..., height, width, 2) in pixels of that size.
        """
        rows, columns = encoding_1[LEVELS[-1]].shape[-3:-1]
        check_encoded_size((2 ** LEVELS[-1] * rows, 2 ** LEVELS[-1] * columns), height, width, SIZE_MULTIPLE)
        finest_1to0 = self._levels(encoding_1, encoding_0)[0]
        # From pixels of H64 x W64 to those of the flow's own grid, a quarter of it, and of height x width.
        return resize_flow(finest_1to0 * (PWC_FLOW_SCALE / 4), height, width, align_corners=False)

    def levels(self, image_1: Image, image_0: Image) -> tuple[Flow, ...]:
        """The flows of all levels, which a training loss compares.

        Args:
            image_1: RGB in [0, 1]; height and width multiples of 64.
            image_0: likewise, of the same shape.
        Returns:
            Five of flow_1to0, on grids 4, 8, 16, 32 and 64 times coarser than the images, in full-resolution pixels
            divided by PWC_FLOW_SCALE. The first is the network's result, with the context network's correction.
        Raises:
            ValueError: as `__call__`, or a size is no multiple of 64.
        """
        check_images(image_1, image_0)
        height, width = image_1.shape[-3:-1]
        check_multiple("levels", height, width, SIZE_MULTIPLE)
        return self._levels(self.encode(image_1), self.encode(image_0))

    def _levels(self, encoding_1: Encoding, encoding_0: Encoding) -> tuple[Flow, ...]:
        lead = encoding_1[LEVELS[0]].shape[:-3]
        flows_1to0: list[Flow] = []
        coarse = None
        for level in LEVELS:
            features_1, features_0 = (
                encoding[level].reshape(-1, *encoding[level].shape[-3:]) for encoding in (encoding_1, encoding_0)
            )
            coarse = self.level[level](features_1, features_0, coarse)
            flows_1to0.append(coarse[0])
        assert coarse is not None
        flow_1to0, dense = coarse
        flow_1to0 = flow_1to0 + self.context(dense)
        self.sow("intermediates", "flow_1to0", flow_1to0)
        return tuple(_with_lead(x, lead) for x in (flow_1to0, *reversed(flows_1to0[:-1])))


class FeaturePyramid(nn.Module):
    """Image (B, H, W, 3) -> its encoding; H and W multiples of 64."""

    config: PWCNetConfig

    @nn.compact
    def __call__(self, frame: Image) -> Encoding:
        encoding, x = {}, frame
        for level, channels in enumerate(self.config.scaled(self.config.pyramid_channels), start=1):
            for index in (1, 2, 3):
                conv = _conv(self.config, f"conv{level}_{index}", channels, strides=2 if index == 1 else 1)
                x = leaky_relu(conv(x))
            if level in LEVELS:
                encoding[level] = x
                self.sow("intermediates", f"level_{level}", x)
        return encoding


class LevelDecoder(nn.Module):
    """Features of both images, and the next coarser level's flow and dense features -> those of this level."""

    config: PWCNetConfig
    level: int

    @nn.compact
    def __call__(
        self, features_1: Features, features_0: Features, coarse: tuple[Flow, Features] | None
    ) -> tuple[Flow, Features]:
        cfg = self.config
        features_1_f32, features_0_f32 = (x.astype(jnp.float32) for x in (features_1, features_0))
        others = []
        if coarse is not None:
            coarse_1to0, coarse_dense = coarse
            upsampled_1to0 = _upsample("upsample_flow", jnp.float32)(coarse_1to0)
            upsampled = _upsample("upsample_features", cfg.dtype)(coarse_dense)
            self.sow("intermediates", "upsampled_flow", upsampled_1to0)
            self.sow("intermediates", "upsampled_features", upsampled)
            features_0_f32 = warp_features(
                features_0_f32, upsampled_1to0 * (PWC_FLOW_SCALE / 2**self.level), mask_threshold=cfg.mask_threshold
            )
            others = [features_1, upsampled_1to0.astype(cfg.dtype), upsampled]
        cost = mean_cost_volume(features_1_f32, features_0_f32)
        self.sow("intermediates", "cost", cost)
        x = jnp.concatenate([leaky_relu(cost).astype(cfg.dtype), *others], axis=-1)
        for index, channels in enumerate(cfg.scaled(cfg.dense_channels), start=1):
            new = leaky_relu(_conv(cfg, f"conv_{index}", channels)(x))
            x = jnp.concatenate([new, x], axis=-1)
        flow_1to0 = _flow_conv("flow_conv")(x)
        self.sow("intermediates", "flow_1to0", flow_1to0)
        return flow_1to0, x


class ContextNetwork(nn.Module):
    """Dense features of level 2 -> a correction of its flow."""

    config: PWCNetConfig

    @nn.compact
    def __call__(self, x: Features) -> Flow:
        channels = self.config.scaled(self.config.context_channels)
        for index, (count, dilation) in enumerate(zip(channels, CONTEXT_DILATIONS), start=1):
            x = leaky_relu(_conv(self.config, f"conv_{index}", count, dilation=dilation)(x))
        return _flow_conv("flow_conv")(x)


def mean_cost_volume(features_1: Features, features_0: Features) -> CostVolume:
    """`local_cost_volume` over displacements of up to four positions, the products' mean instead of their sum."""
    cost = local_cost_volume(features_1, features_0, radius=COST_RADIUS, similarity="dot")
    return cost / features_1.shape[-1]


def warp_features(features_0: Features, flow_1to0: Flow, *, mask_threshold: float) -> Features:
    """`warp_backward` with border "zeros", and zero where the inside weight is below `mask_threshold`.

    The released code asks for weights of at least 0.9999 (NVlabs) or above 0.999 (sniklaus, CDVD-TSP).
    """
    features_0on1, _ = warp_backward(features_0, flow_1to0, border="zeros")
    counts = inside_weight(flow_1to0) >= mask_threshold
    return jnp.where(counts[..., None], features_0on1, 0.0)


def _conv(config: PWCNetConfig, name: str, channels: int, *, strides: int = 1, dilation: int = 1) -> Conv:
    return Conv(channels, 3, strides=strides, dilation=dilation, kernel_init=he_normal, dtype=config.dtype, name=name)


def _flow_conv(name: str) -> Conv:
    return Conv(2, 3, kernel_init=he_normal, dtype=jnp.float32, name=name)


def _upsample(name: str, dtype: Any) -> ConvTranspose:
    return ConvTranspose(2, 4, kernel_init=he_normal_transposed, dtype=dtype, name=name)


def _with_lead(x: Features, lead: Any) -> Features:
    """Gives (B, H, W, C) back the leading axes that were joined to B."""
    return x.reshape(*lead, *x.shape[-3:])
