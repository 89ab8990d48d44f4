"""DeblurGAN's generator: a residual network on single frames, one of the two that Reblur2Deblur tunes.

Inputs: gamma-encoded RGB, [0, 1]; inside, [-1, 1]. Output: the frame, in [0, 1].

Stages:
  1. A convolution of 7 x 7 and two of stride 2, down to a quarter of the resolution.
  2. Nine residual blocks of two convolutions.
  3. Two transposed convolutions up again and one convolution of 7 x 7; its hyperbolic tangent is added to the frame,
     and the sum is clipped, which has no gradient beyond the range.

Conventions: instance normalisation without scale and shift (eps 1e-5) behind every convolution but the last, then ReLU,
but not behind a block's second, nor behind its sum. Borders of convolutions of stride 1 mirror the features, the edge
pixel not repeated. Height and width are multiples of 4.
Parameters: 11,378,179; with six blocks 7,837,699.

Paper: Kupyn, Budzan, Mykhailych, Mishkin, Matas, "DeblurGAN: Blind Motion Deblurring Using Conditional Adversarial
Networks", CVPR 2018. The network is that of KupynOrest/DeblurGAN before March 2019; since then a slip there leaves one
convolution a block (6,067,459 parameters), which cannot load the published weights. It differs from the released code
in that dropout is off unless it is asked for: there it stays on when frames are restored. Its adversarial training is
not part of this toolkit.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import normal

from jaxdeblur.layers.conv import Conv, ConvTranspose
from jaxdeblur.layers.norm import instance_norm
from jaxdeblur.models.dbn import stretched_difference
from jaxdeblur.models.windows import check_window, restore_all_windows
from jaxdeblur.ops.resample import pad_mirrored
from jaxdeblur.types import BeyondEnds, Border, Clip, Features, Image, PyTree

SIZE_MULTIPLE = 4
DROPOUT_RATE = 0.5


@dataclasses.dataclass(frozen=True)
class DeblurGANConfig:
    """Sizes and switches.

    Attributes:
        blocks: residual blocks; the published weights have nine.
        width: takes this fraction of all channels but the result's, for small models.
        weight_init: "released": normal, deviation 0.02. "pass": ours, for short runs: likewise, but the last
            convolution starts at zero, so that the network starts out as the identity.
        dropout_seed: restore with dropout, its masks drawn from this seed, the same for every frame; the released test
            script has it on, too, but draws anew. None: without.
        compute_dtype: of the convolutions: "float32", "bfloat16" or "float16". Parameters, normalisation and the
            restored frame are float32 in all three.
    """

    blocks: int = 9
    width: float = 1.0
    weight_init: Literal["released", "pass"] = "released"
    dropout_seed: int | None = None
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"blocks is {self.blocks}; expected 1 or more")
        if not self.width > 0:
            raise ValueError(f"width is {self.width}; expected a fraction above 0")
        for field, choices in (
            ("weight_init", ("released", "pass")),
            ("compute_dtype", ("float32", "bfloat16", "float16")),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(choices)}")


class DeblurGANOutputs(NamedTuple):
    """What a frame yields."""

    restored: Image  # (B, H, W, 3), in [0, 1]
    residual: Features  # (B, H, W, 3), in (-1, 1), on the scale of [-1, 1]


class DeblurGAN(nn.Module):
    """See the head of this file. It keeps nothing from frame to frame. Features behind the second convolution of stride
    2 and behind the last block are sown into "intermediates" as "down" and "blocks"."""

    config: DeblurGANConfig = DeblurGANConfig()

    past_frames: ClassVar[int] = 0
    future_frames: ClassVar[int] = 0
    beyond_ends: ClassVar[BeyondEnds] = "repeat"
    size_multiple: ClassVar[int] = SIZE_MULTIPLE
    padding: ClassVar[Border] = "edge"

    def start(self, window: Clip) -> PyTree:
        """The carry before the first frame: nothing."""
        del window
        return ()

    def step(self, carry: PyTree, window: Clip) -> tuple[PyTree, DeblurGANOutputs]:
        """Restores the frame of a window (B, 1, H, W, 3)."""
        return carry, self.restore_window(window)

    def __call__(self, clip: Clip) -> Clip:
        """Restores whole clips, (B, T, H, W, 3) -> the same. All frames at once."""
        return restore_all_windows(self, clip)

    @nn.compact
    def restore_window(self, window: Clip, *, dropout_key: jax.Array | None = None) -> DeblurGANOutputs:
        """As `step`, without a carry.

        dropout_key: training's dropout, half of a block's features at a time; None: what the configuration says.
        """
        check_window(window, 1, SIZE_MULTIPLE)
        cfg = self.config
        if dropout_key is None and cfg.dropout_seed is not None:
            dropout_key = jax.random.key(cfg.dropout_seed)
        image = 2 * jnp.asarray(window[:, 0], jnp.float32) - 1
        x = image.astype(jnp.dtype(cfg.compute_dtype))
        x = nn.relu(instance_norm(self._mirrored("conv_in", x, 64, 7)))
        x = nn.relu(instance_norm(self._conv("down1", 128, 3, strides=2)(x)))
        x = nn.relu(instance_norm(self._conv("down2", 256, 3, strides=2)(x)))
        self.sow("intermediates", "down", x)
        for number in range(1, cfg.blocks + 1):
            y = nn.relu(instance_norm(self._mirrored(f"block{number}_conv1", x, 256, 3)))
            if dropout_key is not None:
                kept = jax.random.bernoulli(jax.random.fold_in(dropout_key, number), 1 - DROPOUT_RATE, y.shape)
                y = jnp.where(kept, y / (1 - DROPOUT_RATE), jnp.zeros((), y.dtype))
            x = x + instance_norm(self._mirrored(f"block{number}_conv2", y, 256, 3))
        self.sow("intermediates", "blocks", x)
        for name, channels in (("up1", 128), ("up2", 64)):
            up = ConvTranspose(self._channels(channels), 3, kernel_init=_NORMAL, dtype=x.dtype, name=name)
            x = nn.relu(instance_norm(up(x)))
        residual = jnp.tanh(self._mirrored("conv_out", x, 3, 7).astype(jnp.float32))
        return DeblurGANOutputs((jnp.clip(image + residual, -1, 1) + 1) / 2, residual)

    def explain(self, carry: PyTree, window: Clip) -> dict[str, Image]:
        """Pictures of how the frame comes about, (B, H, W, 3) in [0, 1] by name; the difference as for DBN."""
        del carry
        restored = self.restore_window(window).restored
        frame = window[:, 0]
        return {"blurred": frame, "difference": stretched_difference(restored, frame), "restored": restored}

    def _channels(self, published: int) -> int:
        return published if published == 3 else max(1, round(self.config.width * published))

    def _conv(
        self, name: str, channels: int, kernel_size: int, *, strides: int = 1, padding: int | None = None
    ) -> Conv:
        zero = name == "conv_out" and self.config.weight_init == "pass"
        return Conv(
            self._channels(channels),
            kernel_size,
            strides,
            padding=padding,
            kernel_init=nn.initializers.zeros if zero else _NORMAL,
            dtype=jnp.dtype(self.config.compute_dtype),
            name=name,
        )

    def _mirrored(self, name: str, x: Features, channels: int, kernel_size: int) -> Features:
        return self._conv(name, channels, kernel_size, padding=0)(pad_mirrored(x, kernel_size // 2))


_NORMAL: Any = normal(0.02)
