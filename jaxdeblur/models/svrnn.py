"""SVRNN: a flow network writes, for every pixel, the weights of recurrences that run through the blurred frame.

Inputs: gamma-encoded RGB, [0, 1], nothing subtracted. Output: the current frame, linear and unbounded, not a residual.

Stages, for the current frame and the next:
  1. The flow network, a small FlowNetS with one more level, sees both frames. It predicts flow_cur_to_next at 1/4 to
     1/64 of the resolution, and from its features at 1/2, 1/4 and 1/8 a convolution and tanh make the weights.
  2. A convolution halves the current frame; four recurrences, one a direction, run over the result with those weights,
     and what all four yield goes on to the next scale, down to 1/8 (`ops.spatial_rnn`).
  3. A decoder takes it back to full resolution, joining what the recurrences gave at each scale; its last convolution
     sees the blurred frame once more.

Units: a flow is in pixels of its own grid at every level, and so is what training compares.
Conventions: no normalisation; LeakyReLU slope 0.1 but for flows, weights, the three convolutions before a recurrence,
and the output. Height and width are multiples of 64; `restore` adds zeros at the bottom and right, as the paper does.
Parameters: 8,281,696.

Over a video a frame comes out one frame late. The last has no successor: the frame before stands in for it (the paper's
protocol leaves that frame out; the same frame twice, the paper shows, makes the network remove less blur).

Paper: Zhang, Pan, Wang, Zhou, Wei, Zhao, Liu, Ren, "Deep Dynamic Scene Deblurring from Optical Flow", TCSVT 2021. The
network is that of its Tables I and II, which the released one (zhjwustc/tcsvt21_flow_deblur_matcaffe) has, too; the
paper's 8.7 M parameters cannot be had from them. It differs from the released code in:
  - the order of the weights' blocks (see ops.spatial_rnn.DIRECTIONS), rows of pictures are rows, and flows are (right,
    down); `interop.svrnn` brings released weights into this order;
  - initial weights of transposed convolutions count the taps that meet an input.
The variants of Table IV are this toolkit's reading of the paper's text.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling

from jaxdeblur.flow_nets.base import he_normal, he_normal_transposed, leaky_relu
from jaxdeblur.flow_nets.flownet_s import (
    CONTRACTION,
    CONTRACTION_FROM_3_1,
    FLOW_UNIT_PX,
    REFINEMENT,
    SMALL_WIDTH,
    FlowNetConfig,
    Levels,
    Refinement,
    contract,
    refine,
)
from jaxdeblur.layers.conv import Conv, ConvTranspose, passing_three
from jaxdeblur.models.windows import check_window, restore_all_windows
from jaxdeblur.ops.flow import flow_to_colour, resize_flow
from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.ops.spatial_rnn import DIRECTIONS, four_direction_recurrence
from jaxdeblur.types import BeyondEnds, Border, Clip, Features, Image, PyTree

SIZE_MULTIPLE = 64
REFINEMENT_TO_1 = {**REFINEMENT, 1: 32}
FINEST_FLOW = 2

Recurrence = Literal["encoder", "decoder", "concatenated", "none"]
Sees = Literal["current", "next", "both"]


@dataclasses.dataclass(frozen=True)
class SVRNNConfig:
    """Switches and sizes. The rows of the paper's Table IV:

        none            recurrence="none"
        concat weights  recurrence="concatenated"
        no flow         sees="current" (and no flow loss)
        no flow loss    objective.flow_loss=False
        two direction   sees="both"
        decoder         recurrence="decoder"
        full            as it is

    Attributes:
        recurrence: where the recurrences are. "encoder": on the way down; "decoder": on the way up; "concatenated":
            nowhere, weights are joined to the features they would have steered; "none": nowhere, and no flow network.
        sees: which frames the flow network sees: the "current" alone, it and the "next", or it and "both" neighbours;
            then it predicts the flow to both.
        width: takes this fraction of all channels but those of flows, for small models.
        weight_init: "release": normal with variance 2 / fan-in in the flow network and the decoder, uniform with
            variance 1 / fan-in before recurrences and for the weights; "paper": the latter everywhere but in the flow
            network. "pass": ours: as "release", but the last convolution hands the blurred frame through, so that the
            network starts out nearly as the result; the others have to learn to paint a frame first.
        compute_dtype: of the convolutions other than those that give or upsample a flow, and of what goes into and
            comes out of a recurrence: "float32", "bfloat16" or "float16". Parameters, flows, the recurrences' weights
            and state and the restored frame are float32 in all three.
    """

    recurrence: Recurrence = "encoder"
    sees: Sees = "next"
    width: float = 1.0
    weight_init: Literal["release", "paper", "pass"] = "release"
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        for field, choices in (
            ("recurrence", ("encoder", "decoder", "concatenated", "none")),
            ("sees", ("current", "next", "both")),
            ("weight_init", ("release", "paper", "pass")),
            ("compute_dtype", ("float32", "bfloat16", "float16")),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(choices)}")
        if not self.width > 0:
            raise ValueError(f"width is {self.width}; expected a fraction above 0")
        if self.recurrence == "none" and self.sees != "next":
            raise ValueError(f"sees is {self.sees!r}, but recurrence='none' has no flow network that would see it")

    def channels(self, published: int) -> int:
        return max(1, round(self.width * published))

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.compute_dtype)


class Recurred(NamedTuple):
    """A recurrence: what went in, its weights, what came out."""

    before: Features  # (B, h, w, C)
    weights: Features  # (B, h, w, 4 C), between -1 and 1, a block a direction; float32
    after: Features  # (B, h, w, 4 C), or (B, h, w, 5 C) where weights are concatenated


class SVRNNOutputs(NamedTuple):
    """All that a frame yields; what the caller does not use is not computed under jit."""

    restored: Image  # (B, H, W, 3), not clamped
    flows_cur_to_next: Levels | None  # finest first, at 1/4 to 1/64, in pixels of their own grids
    flows_cur_to_prev: Levels | None  # of sees="both"
    recurred: tuple[Recurred, ...]  # at 1/2, 1/4, 1/8


class SVRNN(nn.Module):
    """See the head of this file. It keeps nothing from frame to frame."""

    config: SVRNNConfig = SVRNNConfig()

    beyond_ends: ClassVar[BeyondEnds] = "alternate"
    size_multiple: ClassVar[int] = SIZE_MULTIPLE
    padding: ClassVar[Border] = "zeros"

    @property
    def past_frames(self) -> int:
        return 1 if self.config.sees == "both" and self.config.recurrence != "none" else 0

    @property
    def future_frames(self) -> int:
        return 0 if self.config.sees == "current" or self.config.recurrence == "none" else 1

    def start(self, window: Clip) -> PyTree:
        """The carry before the first frame: nothing."""
        del window
        return ()

    def step(self, carry: PyTree, window: Clip) -> tuple[PyTree, SVRNNOutputs]:
        """Restores the current frame of a window (B, past + 1 + future, H, W, 3)."""
        return carry, self.restore_window(window)

    def __call__(self, clip: Clip) -> Clip:
        """Restores whole clips, (B, T, H, W, 3) -> the same; not clamped. All frames at once."""
        return restore_all_windows(self, clip)

    @nn.compact
    def restore_window(self, window: Clip) -> SVRNNOutputs:
        """All that comes of a window of frames (B, past + 1 + future, H, W, 3); H and W multiples of 64."""
        cfg = self.config
        frames = self.past_frames + 1 + self.future_frames
        check_window(window, frames, SIZE_MULTIPLE)
        window = jnp.asarray(window, jnp.float32)
        current = window[:, self.past_frames]
        to_next = to_prev = None
        steer = _Steering(cfg, None)
        if cfg.recurrence != "none":
            # The next frame follows the current one, whatever else is seen, as released weights have it.
            seen = [current, *(window[:, i] for i in (self.past_frames + 1, 0) if i != self.past_frames and i < frames)]
            refined = FlowNetwork(cfg, name="flow_net")(jnp.concatenate(seen, axis=-1))
            steer = _Steering(cfg, refined.joined)
            to_next = tuple(flow[..., :2] for flow in refined.flows_1to0)
            if cfg.sees == "both":
                to_prev = tuple(flow[..., 2:] for flow in refined.flows_1to0)
        restored, recurred = self._deblur(current, steer)
        return SVRNNOutputs(restored, to_next, to_prev, recurred)

    def _deblur(self, current: Image, steer: "_Steering") -> tuple[Image, tuple[Recurred, ...]]:
        cfg = self.config
        recurred: list[Recurred] = []

        def maybe(x: Features, level: int, *, here: tuple[Recurrence, ...]) -> Features:
            if cfg.recurrence not in here:
                return x
            recurred.append(steer(x, level))
            return recurred[-1].after

        down: dict[int, Features] = {0: current.astype(cfg.dtype)}
        for level, channels in ((1, 24), (2, 48), (3, 96)):
            x = self._conv(f"d_conv{level}", down[level - 1], channels, strides=2, encoder=True)
            down[level] = maybe(x, level, here=("encoder", "concatenated"))
        y = leaky_relu(self._conv("d_conv3_2", down[3], 96))
        y = maybe(leaky_relu(self._conv("d_conv3_3", y, 48)), 3, here=("decoder",))
        for level, channels in ((2, 48), (1, 24), (0, 12)):
            joined = jnp.concatenate([down[level + 1], y], axis=-1)
            y = leaky_relu(self._conv_transpose(f"d_deconv{level + 1}", joined, channels))
            y = leaky_relu(self._conv(f"d_deconv{level + 1}_1", y, channels))
            if level:
                y = maybe(y, level, here=("decoder",))
        y = jnp.concatenate([current.astype(cfg.dtype), y], axis=-1)
        out = Conv(3, 5, kernel_init=self._output_init(), dtype=cfg.dtype, name="d_conv0")
        return out(y).astype(jnp.float32), tuple(sorted(recurred, key=lambda r: -r.before.shape[1]))

    def _conv(self, name: str, x: Features, channels: int, *, strides: int = 1, encoder: bool = False) -> Features:
        init = _xavier if encoder or self.config.weight_init == "paper" else he_normal
        cfg = self.config
        return Conv(cfg.channels(channels), 5, strides, kernel_init=init, dtype=cfg.dtype, name=name)(x)

    def _conv_transpose(self, name: str, x: Features, channels: int) -> Features:
        init = _xavier_transposed if self.config.weight_init == "paper" else he_normal_transposed
        cfg = self.config
        return ConvTranspose(cfg.channels(channels), 4, kernel_init=init, dtype=cfg.dtype, name=name)(x)

    def _output_init(self) -> Callable[..., Any]:
        if self.config.weight_init == "pass":
            return passing_three(he_normal, first=0)
        return _xavier if self.config.weight_init == "paper" else he_normal

    def explain(self, carry: PyTree, window: Clip) -> dict[str, Image]:
        """Pictures of how the current frame of a window comes about, (B, H, W, 3) in [0, 1] by name: the flow (colour
        wheel), and of the recurrence at half the resolution the features before it and, for every direction, its
        weights (-1 black, 1 white) and the features behind it, all as means over channels."""
        del carry
        outputs = self.restore_window(window)
        current = window[:, self.past_frames]
        height, width = current.shape[1:3]
        pictures = {"blurred": current}
        flows = {"flow to next": outputs.flows_cur_to_next, "flow to previous": outputs.flows_cur_to_prev}
        for name, levels in flows.items():
            if levels is not None:
                flow = resize_flow(levels[0], height, width, align_corners=False)
                pictures[name] = flow_to_colour(flow)
        if outputs.recurred:
            finest = outputs.recurred[0]

            def grey(features: Features) -> Image:
                mean = jnp.mean(features.astype(jnp.float32), axis=-1, keepdims=True)
                return jnp.repeat(resize_bilinear(mean, height, width, align_corners=False), 3, axis=-1)

            before = grey(finest.before)
            concatenated = self.config.recurrence == "concatenated"
            pictures["features" if concatenated else "before the recurrence"] = _stretched(before, before)
            for i, direction in enumerate(DIRECTIONS):
                block = slice(i * finest.before.shape[-1], (i + 1) * finest.before.shape[-1])
                pictures[f"weights {direction}"] = (1 + grey(finest.weights[..., block])) / 2
                if not concatenated:
                    # All on the scale of what went in, so that they compare.
                    pictures[f"after {direction}"] = _stretched(grey(finest.after[..., block]), before)
        pictures["restored"] = outputs.restored
        return pictures


class FlowNetwork(nn.Module):
    """Frames side by side, (B, H, W, 3 n) -> flows, and features down to half the resolution.

    Its layers are those of FlowNetS at 3/8 of the channels, of the same names, and two more.
    """

    config: SVRNNConfig

    @nn.compact
    def __call__(self, frames: Features) -> Refinement:
        cfg = FlowNetConfig(width=SMALL_WIDTH * self.config.width, compute_dtype=self.config.compute_dtype)
        skips = contract(cfg, CONTRACTION + CONTRACTION_FROM_3_1, frames)
        return refine(
            cfg,
            skips,
            REFINEMENT_TO_1,
            inter_convs=False,
            upsampling_bias=True,
            flow_channels=4 if self.config.sees == "both" else 2,
            finest_flow=FINEST_FLOW,
        )


def in_pixels_of_own_grid(flow_net: PyTree) -> PyTree:
    """Parameters of FlowNet2-s, whose flows are in full-resolution pixels over 20, made to give pixels of their own
    grids, with the same features for the same input. The released code leaves the factor, 5 to 0.3, to the training.

    FlowNet2-s sees its frames less their mean colour, SVRNN as they are, here as in the released code: that is left to
    the training.
    """
    scaled = dict(flow_net)
    for level in range(FINEST_FLOW, 7):
        factor = FLOW_UNIT_PX / 2**level
        scaled[f"predict_flow{level}"] = {k: factor * v for k, v in flow_net[f"predict_flow{level}"].items()}
        name = f"upsampled_flow{level}_to_{level - 1}"
        if name in flow_net:  # FlowNet2-s does not go on below its finest flow
            scaled[name] = {**flow_net[name], "kernel": flow_net[name]["kernel"] / factor}
    return scaled


@dataclasses.dataclass
class _Steering:
    """Recurrences with weights made of the flow network's features. Call within a compact method of the model."""

    config: SVRNNConfig
    joined: dict[int, Features] | None

    def __call__(self, x: Features, level: int) -> Recurred:
        assert self.joined is not None
        head = Conv(4 * x.shape[-1], 3, kernel_init=_xavier, dtype=self.config.dtype, name=f"rnnw{level}")
        # In half precision the hyperbolic tangent would reach one from 3.5 on, where nothing new gets in.
        weights = jnp.tanh(head(self.joined[level].astype(self.config.dtype)).astype(jnp.float32))
        if self.config.recurrence == "concatenated":
            return Recurred(x, weights, jnp.concatenate([x, weights.astype(x.dtype)], axis=-1))
        return Recurred(x, weights, four_direction_recurrence(x, weights))


_xavier = variance_scaling(1.0, "fan_in", "uniform")
_xavier_transposed = variance_scaling(4.0, "fan_in", "uniform")


def _stretched(picture: Image, scale: Image) -> Image:
    """So that the picture `scale` fills [0, 1]."""
    lowest, highest = (reduce(scale, axis=(1, 2, 3), keepdims=True) for reduce in (jnp.min, jnp.max))
    return jnp.clip((picture - lowest) / jnp.maximum(highest - lowest, 1e-6), 0, 1)
