"""MAXIM: encoder-decoders in stages, whose dense layers mix pixels within blocks and across the whole frame.

Inputs: single frames, gamma-encoded RGB, [0, 1], nothing subtracted. Output: the frame, not clipped.

Stages, of which there are three, each at full, half and quarter resolution:
  1. The frame at each scale is convolved to features; from the second stage on, what the one before has learnt about
     the frame is let in by cross gating.
  2. Encoder blocks go down, each with the features of its scale; two blocks at 1/8 follow.
  3. From the coarsest scale up, cross gating joins what all encoders have made, resized, with the signal from 1/8.
  4. Decoder blocks come up, each with what all of step 3 has made, resized.
  5. Three channels of each scale are added to the frame of that scale: the outputs. All but the last stage let them
     weigh the features that go on to the next (supervised attention). The last one's at full resolution is the result.

Blocks hold multi-axis gated layers. Half the channels take a dense layer over the 16 x 16 (at 1/4 and 1/8: 8 x 8)
pixels of a block, one matrix for all blocks. The others cut the frame into 16 x 16 (8 x 8) cells, whatever its size,
and take one over the cells, the same for each place in a cell: so every pixel sees the whole frame.

Conventions: layer normalisation over channels (eps 1e-6), GELU by its hyperbolic tangent, bias everywhere, borders are
zeros. The network takes multiples of 64. Frames of other sizes are mirrored all around to the next ones, the edge pixel
not repeated, and cut back, within `step`: where a size is odd a row is first added at the bottom, a column on the
right; of the rest half goes to either side. What a pixel becomes depends on the frame's size.
Parameters: 22,212,795. Of these 5,190 make the last stage's two smaller outputs, which only `restore_scales` computes.

Paper: Tu, Talebi, Zhang, Yang, Milanfar, Bovik, Li, "MAXIM: Multi-Axis MLP for Image Processing", CVPR 2022. This
is the variant S-3 of google-research/maxim, which is the one for deblurring. It differs from the released code in form
alone: matrices are multiplied where pixels are, without rearranging them into blocks first; features are projected and
resized in whichever order takes fewer products; resizing adds shifted copies.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import lecun_normal, normal, ones, zeros

from jaxdeblur.layers.conv import Conv, ConvTranspose, product_precision
from jaxdeblur.layers.norm import LayerNorm
from jaxdeblur.models.dbn import stretched_difference
from jaxdeblur.models.windows import check_window, restore_all_windows
from jaxdeblur.ops.resample import enlarge_bilinear, shrink_bilinear
from jaxdeblur.types import BeyondEnds, Border, Clip, Features, Image, Pixels, PyTree

SIZE_MULTIPLE = 64
SCALES = 3
CELLS = (16, 16, 8, 8)
"""Blocks are of so many pixels by so many, and frames are cut into so many cells by so many: at full, half, quarter and
eighth resolution."""
CHANNEL_REDUCTION = 4
LAYER_NORM_EPS = 1e-6

Axis = Literal["grid", "block"]
_NORMAL: Any = normal(0.02)


@dataclasses.dataclass(frozen=True)
class MAXIMConfig:
    """Sizes and switches.

    Attributes:
        stages: encoder-decoders, one behind the other (S-1, S-2, S-3 of the paper).
        features: channels at full resolution, 32 in variants S, 64 in M; twice and four times as many below. A multiple
            of 4.
        groups: multi-axis and channel attention layers in every block.
        bottleneck_blocks: at an eighth of the resolution.
        compute_dtype: of the convolutions, dense layers and what goes on between blocks: "float32", "bfloat16" or
            "float16". Parameters, statistics of normalisation and attention, gates and the outputs are float32 in all
            three.
    """

    stages: int = 3
    features: int = 32
    groups: int = 2
    bottleneck_blocks: int = 2
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        for field in ("stages", "groups", "bottleneck_blocks"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected 1 or more")
        if self.features < CHANNEL_REDUCTION or self.features % CHANNEL_REDUCTION:
            raise ValueError(f"features is {self.features}; expected a multiple of {CHANNEL_REDUCTION}")
        if self.compute_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"compute_dtype is {self.compute_dtype!r}; expected one of float32, bfloat16, float16")


class MAXIMOutputs(NamedTuple):
    """What a frame yields."""

    restored: Image  # (B, H, W, 3), about [0, 1]


ScaledOutputs = tuple[Image, Image, Image]
"""A stage's outputs at a quarter, half and all of the resolution, (B, H/4, W/4, 3) to (B, H, W, 3)."""


class MAXIM(nn.Module):
    """See the head of this file. It keeps nothing from frame to frame."""

    config: MAXIMConfig = MAXIMConfig()

    past_frames: ClassVar[int] = 0
    future_frames: ClassVar[int] = 0
    beyond_ends: ClassVar[BeyondEnds] = "repeat"
    size_multiple: ClassVar[int] = 1
    padding: ClassVar[Border] = "edge"
    tile_multiple: ClassVar[int] = SIZE_MULTIPLE

    def start(self, window: Clip) -> PyTree:
        """The carry before the first frame: nothing."""
        del window
        return ()

    def step(self, carry: PyTree, window: Clip) -> tuple[PyTree, MAXIMOutputs]:
        """Restores the frame of a window (B, 1, H, W, 3) of any size."""
        return carry, self.restore_window(window)

    def __call__(self, clip: Clip) -> Clip:
        """Restores whole clips, (B, T, H, W, 3) -> the same. All frames at once."""
        return restore_all_windows(self, clip)

    def restore_window(self, window: Clip) -> MAXIMOutputs:
        """As `step`, without a carry."""
        check_window(window, 1, self.size_multiple)
        image = window[:, 0]
        padded, (top, left) = pad_around(image)
        stages = self._restored(padded, every_output=self.is_initializing())
        restored = stages[-1][-1]
        for axis, first in ((1, top), (2, left)):
            restored = jax.lax.slice_in_dim(restored, first, first + image.shape[axis], axis=axis)
        return MAXIMOutputs(restored)

    def restore_scales(self, window: Clip) -> tuple[ScaledOutputs, ...]:
        """Every stage's outputs at all scales, for training: outputs[stage][scale], coarsest first.

        The result is outputs[-1][-1]. Targets are the sharp frame resized likewise.

        Args:
            window: (B, 1, H, W, 3), of which H and W are multiples of 64.
        """
        check_window(window, 1, SIZE_MULTIPLE)
        return self._restored(window[:, 0], every_output=True)

    def explain(self, carry: PyTree, window: Clip) -> dict[str, Image]:
        """Pictures of how the frame comes about, (B, H, W, 3) in [0, 1] by name: what each stage makes of it, and the
        difference as for DBN."""
        del carry
        check_window(window, 1, self.size_multiple)
        image = window[:, 0]
        padded, (top, left) = pad_around(image)
        stages = [
            jnp.clip(outputs[-1][:, top : top + image.shape[1], left : left + image.shape[2]], 0, 1)
            for outputs in self._restored(padded, every_output=False)
        ]
        pictures = {f"stage_{number}": restored for number, restored in enumerate(stages[:-1], start=1)}
        difference = stretched_difference(stages[-1], image)
        return {"blurred": image, **pictures, "difference": difference, "restored": stages[-1]}

    @nn.compact
    def _restored(self, image: Image, *, every_output: bool) -> tuple[tuple[Image, ...], ...]:
        """outputs[stage][scale] of images whose sizes are multiples; of the last stage the largest alone, unless
        `every_output`."""
        images = resized_inputs(jnp.asarray(image, jnp.float32))
        outputs: list[tuple[Image, ...]] = []
        earlier = None
        for number in range(self.config.stages):
            is_last = number == self.config.stages - 1
            stage = _Stage(self.config, is_last, name=f"stage_{number}")
            made, earlier = stage(images, earlier, every_output=every_output or not is_last)
            outputs.append(made)
        return tuple(outputs)


def resized_inputs(image: Image) -> list[Image]:
    """(B, H, W, 3) -> the same at full, half and quarter resolution, each pixel taken from one of the image."""
    return [image, *(_nearest(image, 2**scale) for scale in range(1, SCALES))]


def pad_around(image: Image) -> tuple[Image, tuple[Pixels, Pixels]]:
    """Mirrors (B, H, W, C) all around up to multiples of 64, as the released evaluation does; also returns where its
    first row and column then are."""
    begins: list[Pixels] = []
    for axis in (1, 2):
        size = image.shape[axis]
        even = size + size % 2
        whole = (even + SIZE_MULTIPLE - 1) // SIZE_MULTIPLE * SIZE_MULTIPLE
        begin = (whole - even) // 2
        begins.append(begin)
        if jax.export.is_symbolic_dim(size) or whole != size:
            # Twice mirrored: the frame at its last row, or what an odd one became at its last.
            number = _mirrored(_mirrored(jnp.arange(whole) - begin, even), size)
            image = jnp.take(image, number, axis=axis)
    return image, (begins[0], begins[1])


def _mirrored(number: jax.Array, size: Pixels) -> jax.Array:
    """Pixel numbers of a side, also of those beyond it, as often as need be; a single pixel is all there is."""
    period = jnp.maximum(2 * jnp.asarray(size) - 2, 1)
    number = number % period
    return jnp.minimum(number, period - number)


def _nearest(image: Image, factor: int) -> Image:
    """Pixel (factor r + factor / 2, ...) for (r, ...): nearest by centres, of which two are as near, the later."""
    batch, height, width, channels = image.shape
    blocks = image.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return blocks[:, :, factor // 2, :, factor // 2]


class _Passed(NamedTuple):
    """What a stage leaves to the next, each by scale."""

    attended: dict[int, Features]
    encoded: dict[int, Features]
    decoded: dict[int, Features]


class _Stage(nn.Module):
    """One encoder-decoder. Scales are 0, 1, 2 for full, half and quarter resolution."""

    config: MAXIMConfig
    is_last: bool

    @nn.compact
    def __call__(
        self, images: list[Image], earlier: _Passed | None, *, every_output: bool
    ) -> tuple[tuple[Image, ...], _Passed | None]:
        cfg = self.config
        widths = [2**scale * cfg.features for scale in range(SCALES)]
        down, up = range(SCALES), range(SCALES - 1, -1, -1)

        inputs = []
        for scale in down:
            x = Conv(widths[scale], 3, name=f"input_{scale}")(images[scale].astype(jnp.dtype(cfg.compute_dtype)))
            if earlier is not None:
                fuse = _CrossGating(widths[scale], CELLS[scale], name=f"fuse_{scale}")
                x, _ = fuse([x], earlier.attended[scale])
            inputs.append(x)

        encoded = {}
        x = inputs[0]
        for scale in down:
            encoder = _EncoderBlock(widths[scale], CELLS[scale], cfg.groups, name=f"encoder_{scale}")
            before = None if earlier is None else earlier.encoded[scale] + earlier.decoded[scale]
            x, encoded[scale] = encoder(x, inputs[scale], before)  # the first one gets its input twice
        for number in range(cfg.bottleneck_blocks):
            x = _BottleneckBlock(widths[-1], CELLS[SCALES], cfg.groups, name=f"bottleneck_{number}")(x)

        gated, gate = {}, x
        for scale in up:
            signal = self._at_scale("encoded", encoded, down, scale, widths[scale])
            gating = _CrossGating(widths[scale], CELLS[scale], doubles=True, name=f"gating_{scale}")
            gated[scale], gate = gating(signal, gate)
        decoded = {}
        for scale in up:
            skip = self._at_scale("gated", gated, up, scale, widths[scale])
            decoder = _DecoderBlock(widths[scale], CELLS[scale], cfg.groups, name=f"decoder_{scale}")
            decoded[scale] = x = decoder(x, skip)

        attended, outputs = {}, []
        for scale in up:
            if not self.is_last:
                attention = _SupervisedAttention(widths[scale], name=f"attention_{scale}")
                attended[scale], output = attention(decoded[scale], images[scale])
                outputs.append(output)
            elif every_output or scale == 0:
                added = Conv(3, 3, name=f"output_{scale}")(decoded[scale])
                outputs.append(added.astype(jnp.float32) + images[scale])
        return tuple(outputs), None if self.is_last else _Passed(attended, encoded, decoded)

    def _at_scale(
        self, kind: str, features: dict[int, Features], order: range, scale: int, width: int
    ) -> list[Features]:
        """The features of all scales at one of them."""
        return [
            _ResizedProjection(width, source - scale, name=f"{kind}_{source}_at_{scale}")(features[source])
            for source in order
        ]


class _EncoderBlock(nn.Module):
    """Features joined with those of the scale, refined, let through by the stage before; and brought to half the
    resolution. Returns the halved ones and those before it."""

    features: int
    cells: int
    groups: int

    @nn.compact
    def __call__(self, x: Features, skip: Features, before: Features | None) -> tuple[Features, Features]:
        x = _refined([x, skip], self.features, self.cells, self.groups)
        if before is not None:
            x, _ = _CrossGating(self.features, self.cells, name="gating")([x], before)
        return Conv(self.features, 4, strides=2, padding=1, name="down")(x), x


class _DecoderBlock(nn.Module):
    """Features brought to twice the resolution, joined with what the gates let through, and refined."""

    features: int
    cells: int
    groups: int

    @nn.compact
    def __call__(self, x: Features, skip: list[Features]) -> Features:
        x = ConvTranspose(self.features, 2, name="up")(x)
        return _refined([x, *skip], self.features, self.cells, self.groups)


class _BottleneckBlock(nn.Module):
    """As `_refined`, with dense layers in the place of convolutions."""

    features: int
    cells: int
    groups: int

    @nn.compact
    def __call__(self, x: Features) -> Features:
        x = shortcut = Conv(self.features, 1, name="project_in")(x)
        for number in range(self.groups):
            x = _MultiAxisMLP(self.features, self.cells, name=f"multi_axis_{number}")(x)
            x = _DenseAttentionBlock(self.features, name=f"channel_attention_{number}")(x)
        return x + shortcut


def _refined(parts: list[Features], features: int, cells: int, groups: int) -> Features:
    """Joined and projected, then through multi-axis and channel attention layers by turns. The layers become those of
    the module in whose call this is called."""
    x = shortcut = Conv(features, 1, name="project_in")(*parts)
    for number in range(groups):
        x = _MultiAxisMLP(features, cells, name=f"multi_axis_{number}")(x)
        x = _ConvAttentionBlock(features, name=f"channel_attention_{number}")(x)
    return x + shortcut


class _MultiAxisMLP(nn.Module):
    """Half the channels mixed over the grid, the other half within blocks."""

    features: int
    cells: int

    @nn.compact
    def __call__(self, x: Features) -> Features:
        project = _Dense(2 * self.features, _NORMAL, outputs=2, name="project_in")
        on_grid, in_blocks = map(_gelu, project(_norm("norm")(x)))
        parts = (
            _GatedMLP(self.features, self.cells, "grid", name="grid")(on_grid),
            _GatedMLP(self.features, self.cells, "block", name="block")(in_blocks),
        )
        return x + _Dense(self.features, _NORMAL, name="project_out")(*parts)


class _GatedMLP(nn.Module):
    """A dense layer, whose one half is scaled by the other, mixed."""

    features: int
    cells: int
    axis: Axis

    @nn.compact
    def __call__(self, x: Features) -> Features:
        project = _Dense(2 * self.features, _NORMAL, outputs=2, name="project_in")
        value, gate = map(_gelu, project(_norm("norm")(x)))
        gate = _Mixing(self.cells, self.axis, name="mix")(_norm("gate_norm")(gate))
        y = (value.astype(jnp.float32) * (gate.astype(jnp.float32) + 1)).astype(x.dtype)
        return x + _Dense(self.features, _NORMAL, name="project_out")(y)


class _Mixing(nn.Module):
    """A dense layer over the pixels of a block, or over the cells of the frame; kernel (in, out), both row by row.

    Frames are not brought into blocks: the product is taken over the two axes that count rows and columns of a block,
    or of the grid.
    """

    cells: int
    axis: Axis
    bias_init: Any = zeros

    @nn.compact
    def __call__(self, x: Features) -> Features:
        batch, height, width, channels = x.shape
        count = self.cells
        kernel = self.param("kernel", _NORMAL, (count**2, count**2), jnp.float32)
        bias = self.param("bias", self.bias_init, (count**2,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=x.dtype)
        if self.axis == "grid":
            rows, columns = (count, height // count), (count, width // count)
            axes, bias_shape = "pqrs,bpyqxc->brysxc", (1, count, 1, count, 1, 1)
        else:
            rows, columns = (height // count, count), (width // count, count)
            axes, bias_shape = "pqrs,bypxqc->byrxsc", (1, 1, count, 1, count, 1)
        # The kernel comes first, so that channels stay together in memory.
        y = jnp.einsum(
            axes,
            kernel.reshape((count,) * 4),
            x.reshape(batch, *rows, *columns, channels),
            precision=product_precision(x.dtype),
        )
        return (y + bias.reshape(bias_shape)).reshape(x.shape)


class _ConvAttentionBlock(nn.Module):
    """Residual channel attention: two convolutions, whose channels are weighed."""

    features: int

    @nn.compact
    def __call__(self, x: Features) -> Features:
        y = Conv(self.features, 3, name="conv1")(_norm("norm")(x))
        y = Conv(self.features, 3, name="conv2")(nn.leaky_relu(y, negative_slope=0.2))
        return x + _ChannelAttention(name="attention")(y)


class _DenseAttentionBlock(nn.Module):
    """Residual channel attention: two dense layers, whose channels are weighed."""

    features: int

    @nn.compact
    def __call__(self, x: Features) -> Features:
        y = _gelu(_Dense(self.features, _NORMAL, name="dense1")(_norm("norm")(x)))
        y = _Dense(self.features, _NORMAL, name="dense2")(y)
        return x + _ChannelAttention(name="attention")(y)


class _ChannelAttention(nn.Module):
    """Channels weighed by what they are on average over the frame."""

    @nn.compact
    def __call__(self, x: Features) -> Features:
        features = x.shape[-1]
        y = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True).astype(x.dtype)
        y = nn.relu(Conv(features // CHANNEL_REDUCTION, 1, name="conv1")(y))
        y = Conv(features, 1, name="conv2")(y)
        return x * nn.sigmoid(y.astype(jnp.float32)).astype(x.dtype)


class _CrossGating(nn.Module):
    """Two signals that weigh each other; returns both, the first with the second added. The first comes in parts.

    doubles: brings the second to twice the resolution first.
    """

    features: int
    cells: int
    doubles: bool = False

    @nn.compact
    def __call__(self, parts: list[Features], y: Features) -> tuple[Features, Features]:
        if self.doubles:
            y = ConvTranspose(self.features, 2, name="up")(y)
        x = shortcut_x = Conv(self.features, 1, name="conv_x")(*parts)
        y = shortcut_y = Conv(self.features, 1, name="conv_y")(y)
        x, y = (
            _gelu(_Dense(self.features, name=f"project_in_{name}")(_norm(f"norm_{name}")(signal)))
            for name, signal in (("x", x), ("y", y))
        )
        gate_x, gate_y = (
            _SpatialGate(self.features, self.cells, name=f"gate_{name}")(signal)
            for name, signal in (("x", x), ("y", y))
        )
        new_y = _Dense(self.features, name="project_out_y")(y * gate_x) + shortcut_y
        new_x = _Dense(self.features, name="project_out_x")(x * gate_y) + new_y + shortcut_x
        return new_x, new_y


class _SpatialGate(nn.Module):
    """Weights for another signal: half the channels mixed over the grid, the other half within blocks."""

    features: int
    cells: int

    @nn.compact
    def __call__(self, x: Features) -> Features:
        project = _Dense(2 * self.features, outputs=2, name="project_in")
        on_grid, in_blocks = map(_gelu, project(_norm("norm")(x)))
        parts = (
            _Mixing(self.cells, "grid", ones, name="mix_grid")(on_grid),
            _Mixing(self.cells, "block", ones, name="mix_block")(in_blocks),
        )
        return _Dense(self.features, name="project_out")(*parts)


class _SupervisedAttention(nn.Module):
    """The output of a scale, and the features weighed by it."""

    features: int

    @nn.compact
    def __call__(self, x: Features, image: Image) -> tuple[Features, Image]:
        output = Conv(3, 3, name="conv_output")(x).astype(jnp.float32) + image
        weights = nn.sigmoid(Conv(self.features, 3, name="conv_weights")(output.astype(x.dtype)).astype(jnp.float32))
        return Conv(self.features, 3, name="conv_features")(x) * weights.astype(x.dtype) + x, output


class _ResizedProjection(nn.Module):
    """A 1 x 1 convolution, and bilinear resizing by 2^doublings. They commute, since weights of either sum to one; the
    convolution is done where there are fewer pixels."""

    features: int
    doublings: int

    @nn.compact
    def __call__(self, x: Features) -> Features:
        conv = Conv(self.features, 1, name="conv")
        if self.doublings > 0:
            return enlarge_bilinear(conv(x), 2**self.doublings)
        return conv(shrink_bilinear(x, 2**-self.doublings) if self.doublings else x)


class _Dense(nn.Module):
    """A dense layer over channels, of the input's dtype; kernel (in, out).

    Several inputs are taken side by side. With two `outputs`, each has half the features and is an array of its own,
    which spares a CPU a copy of either.
    """

    features: int
    kernel_init: Any = lecun_normal()
    outputs: int = 1

    @nn.compact
    def __call__(self, *parts: Features) -> Any:
        channels = [part.shape[-1] for part in parts]
        kernel = self.param("kernel", self.kernel_init, (sum(channels), self.features), jnp.float32)
        bias = self.param("bias", zeros, (self.features,), jnp.float32)
        kernel, bias, *inputs = promote_dtype(kernel, bias, *parts, dtype=parts[0].dtype)
        if kernel.dtype != jnp.float32:  # sums of rounded products would be less exact
            inputs = [jnp.concatenate(inputs, axis=-1)]
        rows = jnp.split(kernel, np.cumsum([x.shape[-1] for x in inputs[:-1]]))
        made = []
        for columns in np.split(np.arange(self.features), self.outputs):
            chosen = slice(columns[0], columns[-1] + 1)
            products = (
                jnp.einsum("bhwi,io->bhwo", x, share[:, chosen], precision=product_precision(x.dtype))
                for x, share in zip(inputs, rows, strict=True)
            )
            made.append(functools.reduce(jnp.add, products) + bias[chosen].reshape(1, 1, 1, -1))
        return made[0] if self.outputs == 1 else tuple(made)


def _norm(name: str) -> LayerNorm:
    return LayerNorm(LAYER_NORM_EPS, name=name)


def _gelu(x: Features) -> Features:
    """By the hyperbolic tangent, of which this is another form; oneDNN, which knows the usual one, takes longer."""
    return x * nn.sigmoid(1.5957691216057308 * (x + 0.044715 * x**3))
