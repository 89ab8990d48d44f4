"""LiteFlowNet: optical flow by matching and regularising over a pyramid.

Inputs: two RGB images, (..., H, W, 3) in [0, 1]. Output: flow_1to0, (u right, v down), on image 1's grid.

Stages:
  1. One pyramid of features, the same weights for both images. Level l lies on a grid 2^(l-1) times coarser
     than the image; the flow is estimated at levels 6, 5, 4, 3, 2 in turn, each starting from the one before.
  2. Matching: features of image 0 are warped by the flow so far and correlated with those of image 1 over
     7 x 7 displacements (two pixels apart at levels 3 and 2, and there at every second position only);
     convolutions turn the 49 costs into a correction of the flow.
  3. Subpixel: features of image 1, warped features of image 0 and the flow give a second correction.
  4. Regularization: every flow vector becomes a weighted mean of its k x k neighbours; convolutions over the
     colour error, the flow and the features choose the weights, exp(-distance^2).

Units: inside, the flow is in full-resolution pixels divided by FLOW_UNIT_PX at every level, so that it is not
rescaled between levels. Both methods return full-resolution pixels.
Conventions: no normalisation layers; LeakyReLU slope 0.1; taps outside a map read zero, in warping,
correlation and the weighted mean alike, so that flow is drawn towards zero at the borders; all in float32.
Parameters: 5,381,969.

Paper: Hui, Tang, Loy, "LiteFlowNet: A Lightweight Convolutional Neural Network for Optical Flow Estimation",
CVPR 2018. The network is that of the PyTorch release (sniklaus/pytorch-liteflownet). It differs from the
authors' Caffe network in the image pyramid: here every level is the mean of 2 x 2 blocks of the level before.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.flow_nets.base import check_images, check_multiple, he_normal, leaky_relu, rounded_up
from jaxdeblur.layers.conv import Conv
from jaxdeblur.ops.correlation import local_cost_volume
from jaxdeblur.ops.resample import downsample_area, resize_bilinear
from jaxdeblur.ops.warp import warp_backward
from jaxdeblur.types import Array, CostVolume, Features, Flow, Image

FLOW_UNIT_PX = 20.0
SIZE_MULTIPLE = 32
# Channel means of the training images, in the order blue, green, red; the two images have their own.
MEAN_1_BGR = (0.411618, 0.434631, 0.454253)
MEAN_0_BGR = (0.410782, 0.433645, 0.452793)

LEVELS = (6, 5, 4, 3, 2)
FEATURES = {1: (32,), 2: (32, 32, 32), 3: (64, 64), 4: (96, 96), 5: (128,), 6: (192,)}
FLOW_KERNEL_SIZE = {6: 3, 5: 3, 4: 5, 3: 5, 2: 7}
COST_RADIUS = 3


class LiteFlowNet(nn.Module):
    """See the head of this file. `__call__` takes any size; `half_resolution` is the network alone.

    Every stage sows what it makes into the collection "intermediates": "level_<l>" of "features", and "cost",
    "distances" and "flow_1to0" (network units) of "matching_<l>", "subpixel_<l>" and "regularization_<l>".
    """

    size_multiple = SIZE_MULTIPLE

    def __call__(self, image_1: Image, image_0: Image) -> Flow:
        """Flow from image 1 to image 0, at full resolution.

        The wrapper of the public release: colours reversed to BGR, both images resized to height and width
        rounded up to multiples of 32, the training means subtracted, the flow resized back and its vectors
        rescaled.

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
        padded_height, padded_width = rounded_up(height, width, SIZE_MULTIPLE)

        def prepare(image: Image, mean_bgr: tuple[float, ...]) -> Image:
            image_bgr: Image = jnp.asarray(image, jnp.float32)[..., ::-1]
            image_bgr = resize_bilinear(image_bgr, padded_height, padded_width, align_corners=False)
            return image_bgr - _like(mean_bgr, image_bgr)

        flow_1to0 = self.half_resolution(prepare(image_1, MEAN_1_BGR), prepare(image_0, MEAN_0_BGR))
        flow_1to0 = resize_bilinear(flow_1to0, height, width, align_corners=False)
        return flow_1to0 * _like((width / padded_width, height / padded_height), flow_1to0)

    @nn.compact
    def half_resolution(self, image_1: Image, image_0: Image) -> Flow:
        """The bare network, as the released trainer of the real-time multi-task units calls it.

        That trainer passes RGB in [0, 1] as it is; the weights were trained on what `__call__` prepares.

        Args:
            image_1: height and width multiples of 32; used as given.
            image_0: likewise, of the same shape.
        Returns:
            flow_1to0 on the grid of half the height and width, in pixels of the full resolution.
        Raises:
            ValueError: as `__call__`, or a size is no multiple of 32.
        """
        check_images(image_1, image_0)
        batch_shape, (height, width) = image_1.shape[:-3], image_1.shape[-3:-1]
        check_multiple("half_resolution", height, width, SIZE_MULTIPLE)
        pair = jnp.stack([jnp.asarray(image, jnp.float32) for image in (image_1, image_0)])
        pair = pair.reshape(-1, height, width, 3)
        features = FeaturePyramid(name="features")(pair)
        flow_1to0 = None
        for level in LEVELS:
            features_1, features_0 = jnp.split(features[level], 2)
            level_1, level_0 = jnp.split(downsample_area(pair, 2 ** (level - 1)), 2)
            flow_1to0 = Matching(level, name=f"matching_{level}")(features_1, features_0, flow_1to0)
            flow_1to0 = Subpixel(level, name=f"subpixel_{level}")(features_1, features_0, flow_1to0)
            flow_1to0 = Regularization(level, name=f"regularization_{level}")(level_1, level_0, features_1, flow_1to0)
        assert flow_1to0 is not None
        return (flow_1to0 * FLOW_UNIT_PX).reshape(*batch_shape, height // 2, width // 2, 2)


class FeaturePyramid(nn.Module):
    """Image (B, H, W, 3) -> features by level, 1 to 6, each on the grid of its level."""

    @nn.compact
    def __call__(self, image: Image) -> dict[int, Features]:
        features, x = {}, image
        for level, widths in FEATURES.items():
            for index, width in enumerate(widths, start=1):
                kernel_size = 7 if level == 1 else 3
                strides = 2 if level > 1 and index == 1 else 1
                x = _conv(width, kernel_size, strides=strides, name=f"conv{level}_{index}")(x)
                x = leaky_relu(x)
            features[level] = x
            self.sow("intermediates", f"level_{level}", x)
        return features


class Matching(nn.Module):
    """Corrects the coarser level's flow by what a 7 x 7 search finds. Flows in network units."""

    level: int

    @nn.compact
    def __call__(self, features_1: Features, features_0: Features, coarse_1to0: Flow | None) -> Flow:
        if self.level == 2:
            features_1, features_0 = _widen(features_1, features_0)
        flow_1to0 = None
        if coarse_1to0 is not None:
            flow_1to0 = DepthwiseUpsample(name="upsample_flow")(coarse_1to0)
            features_0 = _warp(features_0, flow_1to0, self.level)
        if self.level <= 3:
            # From even positions, displacements of 0, 2, 4, 6 pixels reach even positions only.
            cost = _mean_cost(features_1[:, ::2, ::2], features_0[:, ::2, ::2])
            cost = DepthwiseUpsample(name="upsample_cost")(leaky_relu(cost))
        else:
            cost = leaky_relu(_mean_cost(features_1, features_0))
        self.sow("intermediates", "cost", cost)
        correction = _flow_convs(cost, FLOW_KERNEL_SIZE[self.level])
        flow_1to0 = correction if flow_1to0 is None else flow_1to0 + correction
        self.sow("intermediates", "flow_1to0", flow_1to0)
        return flow_1to0


class Subpixel(nn.Module):
    """Corrects the flow by looking at the features it brings together. Flows in network units."""

    level: int

    @nn.compact
    def __call__(self, features_1: Features, features_0: Features, flow_1to0: Flow) -> Flow:
        if self.level == 2:
            features_1, features_0 = _widen(features_1, features_0)
        features_0on1 = _warp(features_0, flow_1to0, self.level)
        x = jnp.concatenate([features_1, features_0on1, flow_1to0], axis=-1)
        flow_1to0 = flow_1to0 + _flow_convs(x, FLOW_KERNEL_SIZE[self.level])
        self.sow("intermediates", "flow_1to0", flow_1to0)
        return flow_1to0


class Regularization(nn.Module):
    """Feature-driven local convolution: each vector becomes a weighted mean of its neighbours.

    The authors keep the scales at one and their biases at zero, so that the mean is normalised, but their
    checkpoints store them; here they are parameters like any other. Flows in network units.
    """

    level: int

    @nn.compact
    def __call__(self, image_1: Image, image_0: Image, features_1: Features, flow_1to0: Flow) -> Flow:
        kernel_size = FLOW_KERNEL_SIZE[self.level]
        taps = kernel_size**2
        error = jnp.linalg.norm(image_1 - _warp(image_0, flow_1to0, self.level), axis=-1, keepdims=True)
        centred_1to0 = flow_1to0 - jnp.mean(flow_1to0, axis=(-3, -2), keepdims=True)
        if self.level <= 4:
            features_1 = leaky_relu(_conv(128, 1, name="feature_conv")(features_1))
        # The error says where to trust the flow; it is not there to be made small.
        x: Features = jnp.concatenate([jax.lax.stop_gradient(error), centred_1to0, features_1], axis=-1)
        for index, width in enumerate((128, 128, 64, 64, 32, 32), start=1):
            x = leaky_relu(_conv(width, 3, name=f"conv_{index}")(x))
        if kernel_size == 3:
            distances = _conv(taps, 3, name="distance_conv")(x)
        else:
            x = _conv(taps, (kernel_size, 1), name="distance_conv_vertical")(x)
            distances = _conv(taps, (1, kernel_size), name="distance_conv_horizontal")(x)
        self.sow("intermediates", "distances", distances)

        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scales = [self.param(f"scale_{axis}", ones, (taps,)) for axis in "xy"]
        biases = [self.param(f"scale_bias_{axis}", zeros, (1,)) for axis in "xy"]
        flow_1to0 = weighted_mean(flow_1to0, distances, jnp.stack(scales, axis=-1), jnp.concatenate(biases))
        self.sow("intermediates", "flow_1to0", flow_1to0)
        return flow_1to0


class DepthwiseUpsample(nn.Module):
    """Depthwise transposed convolution, kernel 4, stride 2, padding 1: (B, H, W, C) -> (B, 2H, 2W, C).

    The kernel, (4, 4, 1, C), is stored as in layers.conv.ConvTranspose. Each of the four output phases sees
    2 x 2 inputs, so sums of shifted maps do it all: on CPU 30 times faster than grouped convolutions.
    """

    @nn.compact
    def __call__(self, x: Features) -> Features:
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", _bilinear_kernel, (4, 4, 1, channels))
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

        def phase(row: int, column: int) -> Array:
            total = jnp.zeros_like(x)
            for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
                shifted = padded[:, row + dy : row + dy + height, column + dx : column + dx + width]
                total = total + kernel[None, None, row + 2 * dy, column + 2 * dx] * shifted
            return total

        rows = [jnp.stack([phase(row, 0), phase(row, 1)], axis=3) for row in (0, 1)]
        return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, channels)


def weighted_mean(flow_1to0: Flow, distances: CostVolume, scale: Array, bias: Array) -> Flow:
    """(sum_k scale_k a_k flow_k + bias) / sum_k a_k, a_k = exp(-distances_k^2), over k x k neighbours.

    Neighbours outside are zero vectors of full weight.

    Args:
        flow_1to0: (B, H, W, 2).
        distances: (B, H, W, k * k), neighbours row by row from the top left.
        scale: (k * k, 2), a factor for each neighbour's u and v.
        bias: (2,), added before the division.
    """
    height, width, taps = distances.shape[1:]
    kernel_size = round(taps**0.5)
    border = kernel_size // 2
    padded_1to0 = jnp.pad(flow_1to0, ((0, 0), (border, border), (border, border), (0, 0)))
    exponents = -jnp.square(distances)
    # Subtracting the largest keeps the weights from all vanishing; it also sets the scale of the bias.
    weights = jnp.exp(exponents - jnp.max(exponents, axis=-1, keepdims=True))
    # XLA makes one loop of this; patches, or maps with the taps first, measured five times slower on CPU.
    total = _like(bias, flow_1to0)
    for tap in range(taps):
        y, x = divmod(tap, kernel_size)
        neighbour_1to0 = padded_1to0[:, y : y + height, x : x + width]
        total = total + _like(scale[tap], flow_1to0) * weights[..., tap, None] * neighbour_1to0
    return total / jnp.sum(weights, axis=-1, keepdims=True)


def _bilinear_kernel(key: Array, shape: tuple[int, ...]) -> Array:
    """Twofold bilinear up-sampling; the key is unused, as in every constant initialiser."""
    ramp = np.array([0.25, 0.75, 0.75, 0.25], np.float32)
    return jnp.broadcast_to(jnp.asarray(np.outer(ramp, ramp)[:, :, None, None]), shape)


def _conv(features: int, kernel_size: int | tuple[int, int], *, name: str, strides: int = 1) -> Conv:
    return Conv(features, kernel_size, strides=strides, kernel_init=he_normal, name=name)


def _widen(features_1: Features, features_0: Features) -> tuple[Features, Features]:
    """One 1 x 1 convolution for both images."""
    conv = _conv(64, 1, name="feature_conv")
    return leaky_relu(conv(features_1)), leaky_relu(conv(features_0))


def _flow_convs(x: Features, last_kernel_size: int) -> Flow:
    for index, width in enumerate((128, 64, 32), start=1):
        x = leaky_relu(_conv(width, 3, name=f"conv_{index}")(x))
    return _conv(2, last_kernel_size, name="conv_4")(x)


def _mean_cost(features_1: Features, features_0: Features) -> CostVolume:
    cost = local_cost_volume(features_1, features_0, radius=COST_RADIUS, similarity="dot")
    return cost / features_1.shape[-1]


def _warp(image_0: Features, flow_1to0: Flow, level: int) -> Features:
    """Warps a map of this level by a flow in network units."""
    return warp_backward(image_0, flow_1to0 * (FLOW_UNIT_PX / 2 ** (level - 1)), border="zeros")[0]


def _like(per_channel: Array | tuple[float, ...], x: Array) -> Array:
    """Per-channel constants in the dtype and rank of `x`."""
    return jnp.asarray(per_channel, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
