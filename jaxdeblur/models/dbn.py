"""DBN: an encoder-decoder over five unaligned frames, alone and as the deblurring branch of VDFlow.

Inputs: gamma-encoded RGB, [0, 1], nothing subtracted. Output: the middle frame, in (0, 1).

Stages:
  1. Five frames side by side go through convolutions down to 1/8 of the resolution.
  2. Transposed convolutions bring the features up again; at each scale those of the way down are added.
  3. Two convolutions make three channels, which are added to the middle frame; a sigmoid makes the frame of the sum.

Conventions: batch normalisation (eps 1e-3) behind every convolution, then ReLU, but for transposed convolutions, where
it follows the addition, and the last one. Height and width are multiples of 8; `restore` adds zeros at the bottom and
right, as the released code does. Frames beyond a clip's ends are copies of the end frames.
Parameters: 15,305,291.

Paper: Su, Delbracio, Wang, Sapiro, Heidrich, Wang, "Deep Video Deblurring for Hand-held Cameras", CVPR 2017. The
network is that of shuochsu/DeepVideoDeblurring (model2_symskip_nngraph2_deeper), with its names of layers. It differs
from the released code in that whole frames are restored, not overlapping tiles, and in initial weights, which here are
He normal and count, in transposed convolutions, the taps that meet an input (Yan et al. 2020: msra).
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdeblur.flow_nets.base import he_normal, he_normal_transposed
from jaxdeblur.layers.conv import Conv, ConvTranspose
from jaxdeblur.layers.norm import BatchNorm
from jaxdeblur.models.windows import check_window, restore_all_windows
from jaxdeblur.types import BeyondEnds, Border, Clip, Features, Image, PyTree

SIZE_MULTIPLE = 8
BATCH_NORM_EPS = 1e-3
AROUND = 2
"""Frames on either side of the one that is restored."""
_LOGIT_MARGIN = 1 / 512

Ends = Literal["image", "logit"]

LAYERS = (
    # name, output channels, kernel size, stride (0: transposed, which doubles the size)
    ("F0", 64, 5, 1),
    ("D1", 64, 3, 2),
    ("F1", 128, 3, 1),
    ("F2", 128, 3, 1),
    ("D2", 256, 3, 2),
    ("F3", 256, 3, 1),
    ("F4", 256, 3, 1),
    ("F5", 256, 3, 1),
    ("D3", 512, 3, 2),
    ("F6", 512, 3, 1),
    ("F7", 512, 3, 1),
    ("F8", 512, 3, 1),
    ("U1", 256, 4, 0),
    ("F9", 256, 3, 1),
    ("F10", 256, 3, 1),
    ("F11", 256, 3, 1),
    ("U2", 128, 4, 0),
    ("F12", 128, 3, 1),
    ("F13", 64, 3, 1),
    ("U3", 64, 4, 0),
    ("F14", 15, 3, 1),
    ("F15", 3, 3, 1),
)


@dataclasses.dataclass(frozen=True)
class DBNConfig:
    """Sizes and switches.

    Attributes:
        sees: "window", the five frames (the papers' DBN+NOALIGN), or "single", the middle one five times (DBN+SINGLE).
        adds_to: what the last layer's channels are added to before the sigmoid. "image": the middle frame, released:
            where nothing is added a frame comes out between 0.50 and 0.73, so that the network has to learn the
            logarithm of odds first. "logit": ours, for short runs: the middle frame's logarithm of odds (values kept
            1/512 from 0 and 1), and the last normalisation's scale starts at zero, so that the network starts out as
            the identity.
        width: takes this fraction of all channels but the result's, for small models.
        compute_dtype: of the convolutions: "float32", "bfloat16" or "float16". Parameters, normalisation, its
            statistics and the restored frame are float32 in all three.
    """

    sees: Literal["window", "single"] = "window"
    adds_to: Ends = "image"
    width: float = 1.0
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        for field, choices in (
            ("sees", ("window", "single")),
            ("adds_to", ("image", "logit")),
            ("compute_dtype", ("float32", "bfloat16", "float16")),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(choices)}")
        if not self.width > 0:
            raise ValueError(f"width is {self.width}; expected a fraction above 0")


class Encoded(NamedTuple):
    """The way down: what is added on the way up, and the coarsest features."""

    f0: Features  # (B, H, W, 64)
    f2: Features  # (B, H/2, W/2, 128)
    f5: Features  # (B, H/4, W/4, 256)
    f8: Features  # (B, H/8, W/8, 512)


class DBNOutputs(NamedTuple):
    """What a frame yields."""

    restored: Image  # (B, H, W, 3), in (0, 1)
    added: Features  # (B, H, W, 3), the last layer's channels


class EncoderDecoder(nn.Module):
    """The network in three parts, so that another can have a say in between: `encode`, `to_quarter`, `to_image`.

    Every method takes train: batch normalisation by the batch's own statistics, which moves the running ones
    (collection "batch_stats"). Features, behind their ReLU, are sown into "intermediates" as <layer>_out.
    """

    config: DBNConfig

    def setup(self) -> None:
        dtype = jnp.dtype(self.config.compute_dtype)
        for name, channels, kernel_size, strides in LAYERS:
            if name != LAYERS[-1][0]:
                channels = max(1, round(self.config.width * channels))
            zero = name == LAYERS[-1][0] and self.config.adds_to == "logit"
            setattr(self, name, _Layer(channels, kernel_size, strides, zero, dtype))

    def encode(self, frames: Clip, *, train: bool) -> Encoded:
        """(B, 5, H, W, 3), of which H and W are multiples of 8."""
        batch, count, height, width, colours = frames.shape
        x = frames.transpose(0, 2, 3, 1, 4).reshape(batch, height, width, count * colours)
        x = x.astype(jnp.dtype(self.config.compute_dtype))
        f0 = self._chain(x, "F0", train=train)
        f2 = self._chain(f0, "D1", "F1", "F2", train=train)
        f5 = self._chain(f2, "D2", "F3", "F4", "F5", train=train)
        return Encoded(f0, f2, f5, self._chain(f5, "D3", "F6", "F7", "F8", train=train))

    def to_quarter(self, encoded: Encoded, extra: tuple[Features, ...] = (), *, train: bool) -> Features:
        """(B, H/4, W/4, 256); extra features are at 1/8 and joined to the coarsest."""
        return self._up("S1", "U1", _join(encoded.f8, extra), encoded.f5, train=train)

    def to_image(
        self, encoded: Encoded, quarter: Features, middle: Image, extra: tuple[Features, ...] = (), *, train: bool
    ) -> DBNOutputs:
        """The restored frame from features at 1/4, to which extra features there are joined."""
        x = self._chain(_join(quarter, extra), "F9", "F10", "F11", train=train)
        x = self._up("S2", "U2", x, encoded.f2, train=train)
        x = self._up("S3", "U3", self._chain(x, "F12", "F13", train=train), encoded.f0, train=train)
        x = self._chain(x, "F14", train=train)
        added = getattr(self, LAYERS[-1][0])(x, train=train).astype(jnp.float32)
        if self.config.adds_to == "logit":
            middle = jax.scipy.special.logit(jnp.clip(middle, _LOGIT_MARGIN, 1 - _LOGIT_MARGIN))
        return DBNOutputs(nn.sigmoid(middle + added), added)

    def _chain(self, x: Features, *names: str, train: bool) -> Features:
        for name in names:
            x = nn.relu(getattr(self, name)(x, train=train))
            self.sow("intermediates", f"{name}_out", x)
        return x

    def _up(self, name: str, layer: str, x: Features, skip: Features, *, train: bool) -> Features:
        x = nn.relu(getattr(self, layer)(x, train=train) + skip)
        self.sow("intermediates", f"{name}_out", x)
        return x


class _Layer(nn.Module):
    """A convolution, or a transposed one, and batch normalisation."""

    features: int
    kernel_size: int
    strides: int
    zero: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Features:
        if self.strides:
            conv: Any = Conv(
                self.features, self.kernel_size, self.strides, kernel_init=he_normal, dtype=self.dtype, name="conv"
            )
        else:
            conv = ConvTranspose(
                self.features, self.kernel_size, kernel_init=he_normal_transposed, dtype=self.dtype, name="conv"
            )
        scale_init = nn.initializers.zeros if self.zero else nn.initializers.ones
        return BatchNorm(eps=BATCH_NORM_EPS, scale_init=scale_init, name="bn")(conv(x), train=train)


class DBN(nn.Module):
    """See the head of this file. It keeps nothing from frame to frame."""

    config: DBNConfig = DBNConfig()

    beyond_ends: ClassVar[BeyondEnds] = "repeat"
    size_multiple: ClassVar[int] = SIZE_MULTIPLE
    padding: ClassVar[Border] = "zeros"

    def setup(self) -> None:
        self.deblur = EncoderDecoder(self.config)

    @property
    def past_frames(self) -> int:
        return AROUND if self.config.sees == "window" else 0

    @property
    def future_frames(self) -> int:
        return self.past_frames

    def start(self, window: Clip) -> PyTree:
        """The carry before the first frame: nothing."""
        del window
        return ()

    def step(self, carry: PyTree, window: Clip) -> tuple[PyTree, DBNOutputs]:
        """Restores the middle frame of a window (B, 5, H, W, 3), or (B, 1, H, W, 3) of a single frame."""
        return carry, self.restore_window(window)

    def __call__(self, clip: Clip) -> Clip:
        """Restores whole clips, (B, T, H, W, 3) -> the same. All frames at once."""
        return restore_all_windows(self, clip)

    def restore_window(self, window: Clip, *, train: bool = False) -> DBNOutputs:
        """As `step`, without a carry; train as `EncoderDecoder` says."""
        check_window(window, 2 * self.past_frames + 1, SIZE_MULTIPLE)
        window = jnp.asarray(window, jnp.float32)
        middle = window[:, self.past_frames]
        frames = window if self.config.sees == "window" else jnp.repeat(window, 2 * AROUND + 1, axis=1)
        encoded = self.deblur.encode(frames, train=train)
        quarter = self.deblur.to_quarter(encoded, train=train)
        return self.deblur.to_image(encoded, quarter, middle, train=train)

    def explain(self, carry: PyTree, window: Clip) -> dict[str, Image]:
        """Pictures of how the middle frame comes about, (B, H, W, 3) in [0, 1] by name; the difference is brought to
        the whole range, grey where there is none."""
        del carry
        middle = window[:, self.past_frames]
        restored = self.restore_window(window).restored
        return {"blurred": middle, "difference": stretched_difference(restored, middle), "restored": restored}


def stretched_difference(image: Image, other: Image) -> Image:
    """image - other as a picture: grey where equal, black or white at the largest difference of the frame."""
    difference = image - other
    largest = jnp.max(jnp.abs(difference), axis=(-3, -2, -1), keepdims=True)
    return 0.5 + 0.5 * difference / jnp.maximum(largest, 1 / 255)


def _join(features: Features, extra: tuple[Features, ...]) -> Features:
    return jnp.concatenate([features, *(x.astype(features.dtype) for x in extra)], axis=-1) if extra else features
