"""NAFNet: an encoder-decoder without activation functions, on single frames.

Inputs: gamma-encoded RGB, [0, 1], nothing subtracted. Output: the frame, not clamped.

Stages:
  1. A convolution, and on the way down blocks at each level; between levels a convolution of stride 2 halves the size
     and doubles the channels.
  2. Blocks at the coarsest level.
  3. On the way up a convolution and a pixel shuffle double the size; the encoder's features of that level are added,
     then come blocks. A last convolution makes three channels, which are added to the frame.
  A block has two halves. Each normalises every pixel's channels (eps 1e-6), widens them to twice as many, multiplies
  one half of these with the other, and adds a learnt multiple of the result to its input. The first half also looks
  around: by a depthwise convolution, and by channel attention, which multiplies features with a linear function of
  their means.

Conventions: height and width are multiples of 16 (2 to the number of levels); `restore` adds zeros at the bottom and
right, as the released code does, which count in the means. Parameters: `nafnet32` 17,111,907, `nafnet64` 67,888,835.
Means are those of whole frames only as far as the network knows these from training: on larger ones each pixel has the
means of a window around it (`local`), 1.5 times as wide as the crops it was trained on (256 pixels), which keeps as far
inside the frame as it can. Still it looks far: tiles differ from whole frames.

Papers: Chen, Chu, Zhang, Sun, "Simple Baselines for Image Restoration", ECCV 2022; of the windows, Chu et al.,
"Revisiting Global Statistics Aggregation", arXiv 2112.04491 (TLC). The network is that of megvii-research/NAFNet. It
differs from the released code in that channel attention's convolution comes before its windows' values are copied to
the pixels outside, which gives the same and costs less, and in that sums over windows are not differences of
cumulative sums. Of the released code's approximation of the means (its fast mode), which no published result uses,
there is nothing here.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export
from jax.nn.initializers import Initializer, uniform, variance_scaling

from jaxdeblur.layers.conv import Conv
from jaxdeblur.layers.norm import LayerNorm
from jaxdeblur.models.dbn import stretched_difference
from jaxdeblur.models.windows import check_window, restore_all_windows
from jaxdeblur.ops.filters import sliding_mean
from jaxdeblur.ops.resample import pixel_shuffle
from jaxdeblur.types import Array, BeyondEnds, Border, Clip, Features, Image, Pixels, PyTree

LAYER_NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class NAFNetConfig:
    """Sizes and switches.

    Attributes:
        width: channels of the first level; each further one has twice as many.
        encoder_blocks: at each level of the way down, finest first; so many levels there are.
        middle_blocks: at the coarsest level, half as fine as the encoder's last.
        decoder_blocks: at each level of the way up, coarsest first.
        local: channel attention takes means of windows, as published. False: of whole frames. Then the authors measured
            0.6 dB less on GoPro's frames, and saw none of the coloured checkerboards that the released weights
            otherwise paint into a few real ones, unlike those they were trained on.
        training_px: side of the crops that the weights were trained on, a multiple of `size_multiple`. Windows are 1.5
            times as wide.
        compute_dtype: of the convolutions: "float32", "bfloat16" or "float16". Parameters, normalisation, the sums over
            blocks, means and the restored frame are float32 in all three.
    """

    width: int = 32
    encoder_blocks: tuple[int, ...] = (1, 1, 1, 28)
    middle_blocks: int = 1
    decoder_blocks: tuple[int, ...] = (1, 1, 1, 1)
    local: bool = True
    training_px: int = 256
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        for field, least in (("width", 1), ("middle_blocks", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}; expected {least} or more")
        for field in ("encoder_blocks", "decoder_blocks"):
            value = getattr(self, field)
            if not isinstance(value, tuple) or not value or any(blocks < 0 for blocks in value):
                raise ValueError(f"{field} is {value!r}; expected a tuple of whole numbers, one a level")
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise ValueError(
                f"encoder_blocks is {self.encoder_blocks} and decoder_blocks is {self.decoder_blocks}; expected as "
                "many levels down as up"
            )
        if self.training_px < 1 or self.training_px % self.size_multiple:
            raise ValueError(f"training_px is {self.training_px}; expected a multiple of {self.size_multiple}")
        if self.compute_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"compute_dtype is {self.compute_dtype!r}; expected float32, bfloat16 or float16")

    @property
    def size_multiple(self) -> int:
        """What height and width must be multiples of."""
        return 1 << len(self.encoder_blocks)

    def window(self, level: int) -> int | None:
        """Side of the windows of channel attention at a level, 0 the finest; None: whole frames."""
        return (self.training_px >> level) * 3 // 2 if self.local else None


class NAFNetOutputs(NamedTuple):
    """What a frame yields."""

    restored: Image  # (B, H, W, 3), not clamped
    added: Features  # (B, H, W, 3), the last layer's channels


class NAFNet(nn.Module):
    """See the head of this file. It keeps nothing from frame to frame."""

    config: NAFNetConfig = NAFNetConfig()

    past_frames: ClassVar[int] = 0
    future_frames: ClassVar[int] = 0
    beyond_ends: ClassVar[BeyondEnds] = "repeat"
    padding: ClassVar[Border] = "zeros"

    @property
    def size_multiple(self) -> int:
        """What height and width must be multiples of."""
        return self.config.size_multiple

    def start(self, window: Clip) -> PyTree:
        """The carry before the first frame: nothing."""
        del window
        return ()

    def step(self, carry: PyTree, window: Clip) -> tuple[PyTree, NAFNetOutputs]:
        """Restores the frame of a window (B, 1, H, W, 3)."""
        return carry, self.restore_window(window)

    def __call__(self, clip: Clip) -> Clip:
        """Restores whole clips, (B, T, H, W, 3) -> the same. All frames at once."""
        return restore_all_windows(self, clip)

    @nn.compact
    def restore_window(self, window: Clip) -> NAFNetOutputs:
        """As `step`, without a carry."""
        check_window(window, 1, self.size_multiple)
        cfg = self.config
        levels = len(cfg.encoder_blocks)
        image = jnp.asarray(window[:, 0], jnp.float32)
        x = self._conv("intro", image, cfg.width, 3).astype(jnp.float32)
        skips = []
        for level, blocks in enumerate(cfg.encoder_blocks):
            x = self._blocks(f"encoder_{level + 1}", x, blocks, level)
            skips.append(x)
            x = self._conv(f"down_{level + 1}", x, 2 * x.shape[-1], 2, strides=2, padding=0).astype(jnp.float32)
        x = self._blocks("middle", x, cfg.middle_blocks, levels)
        for number, blocks in enumerate(cfg.decoder_blocks, start=1):
            x = pixel_shuffle(self._conv(f"up_{number}", x, 2 * x.shape[-1], 1, use_bias=False), 2)
            x = x.astype(jnp.float32) + skips.pop()
            x = self._blocks(f"decoder_{number}", x, blocks, levels - number)
        added = self._conv("ending", x, 3, 3).astype(jnp.float32)
        return NAFNetOutputs(image + added, added)

    def explain(self, carry: PyTree, window: Clip) -> dict[str, Image]:
        """Pictures of how the frame comes about, (B, H, W, 3) in [0, 1] by name; the difference as for DBN."""
        del carry
        frame = window[:, 0]
        restored = self.restore_window(window).restored
        return {
            "blurred": frame,
            "difference": stretched_difference(restored, frame),
            "restored": jnp.clip(restored, 0, 1),
        }

    def _conv(self, name: str, x: Features, features: int, kernel_size: int, **options: Any) -> Features:
        return _conv(name, x, features, kernel_size, jnp.dtype(self.config.compute_dtype), **options)

    def _blocks(self, place: str, x: Features, count: int, level: int) -> Features:
        dtype = jnp.dtype(self.config.compute_dtype)
        for number in range(1, count + 1):
            x = Block(self.config.window(level), dtype, name=f"{place}_block_{number}")(x)
        return x


class Block(nn.Module):
    """(B, H, W, C) float32 -> the same.

    The means that channel attention is made from, those of the windows that lie inside the frame, are sown into
    "intermediates" as "means".

    window: side of the windows; None: the whole frame.
    """

    window: int | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Features) -> Features:
        channels = x.shape[-1]
        y = LayerNorm(LAYER_NORM_EPS, name="norm1")(x).astype(self.dtype)
        y = self._conv("conv1", y, 2 * channels, 1)
        y = _gated(self._conv("conv2", y, 2 * channels, 3, groups=2 * channels))
        means = window_means(y, self.window)
        self.sow("intermediates", "means", means)
        attention = self._conv("channel_attention", means, channels, 1)
        y = self._conv("conv3", y * over_frame(attention, *y.shape[1:3]), channels, 1)
        x = x + self._scale("beta", channels) * y.astype(jnp.float32)
        y = LayerNorm(LAYER_NORM_EPS, name="norm2")(x).astype(self.dtype)
        y = _gated(self._conv("conv4", y, 2 * channels, 1))
        y = self._conv("conv5", y, channels, 1)
        return x + self._scale("gamma", channels) * y.astype(jnp.float32)

    def _conv(self, name: str, x: Features, features: int, kernel_size: int, **options: Any) -> Features:
        return _conv(name, x, features, kernel_size, self.dtype, **options)

    def _scale(self, name: str, channels: int) -> Array:
        return self.param(name, nn.initializers.zeros, (channels,), jnp.float32).reshape(1, 1, 1, -1)


def window_means(x: Features, window: int | None) -> Features:
    """Means over each window x window of values that lies inside (B, H, W, C): (B, H', W', C) float32.

    An axis with no more values than the window is averaged whole, and so is the frame where there is no window.
    """
    for axis in (-3, -2):  # one after the other: sums of fewer values lose fewer digits
        if window is None:
            x = jnp.mean(x.astype(jnp.float32), axis=axis, keepdims=True)
        else:
            x = sliding_mean(x, window, axis)
    return x


def over_frame(x: Features, height: Pixels, width: Pixels) -> Features:
    """Values of windows (B, H', W', C), given to the pixels in their middle: (B, height, width, C), or 1 for an axis of
    which there is one window only.

    Windows of even sides reach a pixel farther down and right of it than up and left. Pixels that are in no window's
    middle have the values of the nearest one.
    """
    for axis, size in ((-3, height), (-2, width)):
        count = x.shape[axis]
        if not export.is_symbolic_dim(count) and count == 1:
            continue
        before = (size - count) // 2
        ends = [jax.lax.slice_in_dim(x, at, at + 1, axis=axis) for at in (0, count - 1)]
        sides = [
            jnp.broadcast_to(end, [pixels if n == axis % x.ndim else side for n, side in enumerate(x.shape)])
            for end, pixels in zip(ends, (before, size - count - before))
        ]
        x = jnp.concatenate([sides[0], x, sides[1]], axis=axis)
    return x


def _gated(x: Features) -> Features:
    """The first half of the channels times the second."""
    first, second = jnp.split(x, 2, axis=-1)
    return first * second


def _conv(name: str, x: Features, features: int, kernel_size: int, dtype: Any, **options: Any) -> Features:
    """A convolution whose initial values are PyTorch's: uniform, up to the root of what an output value sums up."""
    summed = kernel_size**2 * x.shape[-1] // options.get("groups", 1)
    return Conv(
        features,
        kernel_size,
        kernel_init=variance_scaling(1 / 3, "fan_in", "uniform"),
        bias_init=_around_zero(summed**-0.5),
        dtype=dtype,
        name=name,
        **options,
    )(x)


def _around_zero(bound: float) -> Initializer:
    values = uniform(2 * bound)

    def initializer(key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        return values(key, shape, dtype) - bound

    return initializer
