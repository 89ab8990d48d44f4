"""CDVD-TSP: deblurring in a cascade of stages, each on three neighbouring frames of the one before.

Inputs: gamma-encoded RGB, [0, 1]. Output: the frame in the middle, predicted itself and not as a residual, unbounded.

One stage restores the middle of three frames:
  1. A flow network gives the flow from the middle frame to each neighbour; both neighbours are warped onto the middle
     one and are zero where they are not seen.
  2. The temporal sharpness prior says where the three agree.
  3. An encoder-decoder over (previous, middle, next, prior) predicts the frame.
Two stages with one set of weights read five frames: three first-stage frames, of which the second stage makes the
result. S stages read 2 S + 1 frames.

Over a video every first-stage frame, flow and feature pyramid is needed by several windows. `step` computes each once:
for S stages S restorations and 2 S flows a frame, where a window on its own takes S^2 and 2 S^2.

Paper: Pan, Bai, Tang, "Cascaded Deep Video Deblurring Using Temporal Sharpness Prior", CVPR 2020. The network is that
of the released code (csbhr/CDVD-TSP). It differs from the paper in the prior (see `ops.sharpness`), in the order of the
concatenation, in transposed convolutions of 3 x 3, in the second convolution of a residual block, which no ReLU
follows, and in warped frames that are zero where they are not valid. Left out from the code: an edge map of the
neighbour that is computed and never read.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling

from jaxdeblur.flow_nets.flownet2 import FlowNet2
from jaxdeblur.flow_nets.flownet_s import FlowNetConfig
from jaxdeblur.flow_nets.pwc_net import CDVD_TSP, PWCNet
from jaxdeblur.layers.conv import Conv, ConvTranspose, passing_three
from jaxdeblur.models.windows import check_window, clip_windows
from jaxdeblur.ops.flow import flow_to_colour
from jaxdeblur.ops.sharpness import temporal_sharpness_prior
from jaxdeblur.ops.warp import inside_weight, warp_backward
from jaxdeblur.types import BeyondEnds, Border, Clip, Features, Flow, Image, Mask, PyTree

SIZE_MULTIPLE = 4
_TRIPLES = (slice(None, -2), slice(1, -1), slice(2, None))
"""Of the frames in time: those that are previous, current and following in turn."""
_BRANCH = 0.01  # of "pass": relative size of what is added to the frame that is passed on
VALID_WEIGHT = 0.999
"""A warped pixel counts where this share of its bilinear weights lies inside the frame."""


@dataclasses.dataclass(frozen=True)
class CDVDTSPConfig:
    """Sizes and switches.

    Attributes:
        stages: S. 1 is the paper's model without cascade (Table 3); of 3 the paper gives only the score, that it reads
            seven frames is our reading.
        prior: give the encoder-decoder the sharpness prior; else it reads nine channels (Tables 4 and 7).
        prior_box_px: side of the box mean inside the prior; 1 is the released switch that leaves it out.
        flow: "pwcnet"; "flownet2" (Table 5); "zero": no motion is estimated and all else stays; "none": no alignment,
            no prior, no cascade: the encoder-decoder on the 2 S + 1 frames side by side. The paper's "without optical
            flow" (Table 5) may be either of the last two.
        channels: of the encoder-decoder at full resolution; twice and four times as many below.
        residual_blocks: at each place of the encoder-decoder.
        flow_width: fraction of the flow network's channels, for small models.
        weight_init: of the encoder-decoder. "released": uniform in +-1 / sqrt(fan-in), biases too; "he": the paper's.
            "pass": ours: He normal but less on the way to the result, and three channels that hand the middle frame
            through, so that it starts out nearly as the result. The others first have to learn to paint a frame, for
            thousands of updates.
        compute_dtype: of the convolutions, other than those that give or upsample a flow: "float32", "bfloat16" or
            "float16". Parameters, flow, warping, prior and results are float32 in all three.
    """

    stages: int = 2
    prior: bool = True
    prior_box_px: int = 5
    flow: Literal["pwcnet", "flownet2", "zero", "none"] = "pwcnet"
    channels: int = 32
    residual_blocks: int = 3
    flow_width: float = 1.0
    weight_init: Literal["released", "he", "pass"] = "released"
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        for field, least in (("stages", 1), ("channels", 1), ("residual_blocks", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}; expected {least} or more")
        if not self.flow_width > 0:
            raise ValueError(f"flow_width is {self.flow_width}; expected a fraction above 0")
        if self.prior_box_px < 1 or self.prior_box_px % 2 == 0:
            raise ValueError(f"prior_box_px is {self.prior_box_px}; expected an odd number of pixels")
        for field, choices in (
            ("flow", ("pwcnet", "flownet2", "zero", "none")),
            ("weight_init", ("released", "he", "pass")),
            ("compute_dtype", ("float32", "bfloat16", "float16")),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(choices)}")


class SeenFrame(NamedTuple):
    """A frame and what the flow network computes from it alone."""

    image: Any  # (B, H, W, 3)
    encoding: PyTree


class StageOutputs(NamedTuple):
    """All that a stage yields; what the caller does not use is not computed under jit. None where there is none."""

    restored: Image  # (..., H, W, 3), not clamped
    flow_cur_to_prev: Flow | None = None  # (..., H, W, 2), pixels
    flow_cur_to_next: Flow | None = None
    prev_on_cur: Image | None = None  # (..., H, W, 3), zero where not valid
    next_on_cur: Image | None = None
    valid_prev_on_cur: Mask | None = None  # (..., H, W)
    valid_next_on_cur: Mask | None = None
    prior: Features | None = None  # (..., H, W, 1), in [0, 1]


class CDVDTSP(nn.Module):
    """See the head of this file. `step` restores one frame of a stream, calling it restores clips, `cascade` is a
    window on its own, all stages of it."""

    config: CDVDTSPConfig

    # Copies of an end frame would look like a still, sharp scene.
    beyond_ends: ClassVar[BeyondEnds] = "alternate"
    size_multiple: ClassVar[int] = SIZE_MULTIPLE
    padding: ClassVar[Border] = "edge"

    @property
    def past_frames(self) -> int:
        return self.config.stages

    @property
    def future_frames(self) -> int:
        return self.config.stages

    def setup(self) -> None:
        cfg = self.config
        dtype = jnp.dtype(cfg.compute_dtype)
        flow_net: Any = None
        if cfg.flow == "pwcnet":
            flow_net = PWCNet(dataclasses.replace(CDVD_TSP, width=cfg.flow_width, compute_dtype=cfg.compute_dtype))
        elif cfg.flow == "flownet2":
            flow_net = FlowNet2(FlowNetConfig(width=cfg.flow_width, compute_dtype=cfg.compute_dtype))
        self.flow_net = flow_net
        middle = 3 * (cfg.stages if cfg.flow == "none" else 1)
        self.restoration = RestorationNetwork(cfg.channels, cfg.residual_blocks, cfg.weight_init, dtype, middle)

    def start(self, window: Clip) -> PyTree:
        """The carry before the first frame: of every stage the two newest frames it has read.

        Args:
            window: (B, 2 S + 1, H, W, 3) around the first frame.
        """
        if self.config.flow == "none":
            return ()
        images = jnp.moveaxis(jnp.asarray(window[:, :-1], jnp.float32), 1, 0)
        carry = []
        for stage in range(self.config.stages):
            frames = _in_turn(self, lambda model, image: model._see(image), images)
            carry.append(tuple(jax.tree.map(lambda x, at=at: x[at], frames) for at in (-2, -1)))
            if stage + 1 < self.config.stages:
                triples = [jax.tree.map(lambda x, part=part: x[part], frames) for part in _TRIPLES]
                images = _in_turn(self, lambda model, *frames: model._restore(*frames).restored, *triples)
        return tuple(carry)

    def step(self, carry: PyTree, window: Clip) -> tuple[PyTree, StageOutputs]:
        """Restores the middle frame of a window.

        Args:
            carry: of the frame before, or `start`.
            window: (B, 2 S + 1, H, W, 3), frames t - S .. t + S; but with flow "none" only the newest is read.
        Returns:
            The next carry, and what the last stage yields.
        """
        check_window(window, 2 * self.config.stages + 1, SIZE_MULTIPLE)
        if self.config.flow == "none":
            return carry, StageOutputs(self._restore_side_by_side(window))

        def stage(model: "CDVDTSP", image: Image, frames: PyTree) -> tuple[Image, PyTree]:
            previous, current = frames
            newest = model._see(image)
            outputs = model._restore(previous, current, newest)
            return outputs.restored, ((current, newest), outputs)

        # A loop, since all stages are the same program: written out, each would be compiled anew.
        stages = jax.tree.map(lambda *frames: jnp.stack(frames), *carry)
        _, (after, outputs) = _loop(self, stage, jnp.asarray(window[:, -1], jnp.float32), stages)
        of_stage = [jax.tree.map(lambda x, s=s: x[s], (after, outputs)) for s in range(self.config.stages)]
        return tuple(frames for frames, _ in of_stage), of_stage[-1][1]

    def restore_middle(self, previous: Image, current: Image, following: Image) -> StageOutputs:
        """One stage on three frames (B, H, W, 3) by themselves, as the released code calls it."""
        return self._restore(self._see(previous), self._see(current), self._see(following))

    def cascade(self, window: Clip) -> tuple[StageOutputs, ...]:
        """All stages of a window, as in training: (B, 2 S + 1, H, W, 3) -> for stage s what its 2 (S - s) + 1 frames
        yield, (B, 2 (S - s) + 1, ...) each. A frame is encoded once a stage; nothing else is shared."""
        check_window(window, 2 * self.config.stages + 1, SIZE_MULTIPLE)
        if self.config.flow == "none":
            return (StageOutputs(self._restore_side_by_side(window)[:, None]),)
        images = jnp.asarray(window, jnp.float32)
        stages = []
        for _ in range(self.config.stages):
            batch = len(images)
            frames = _split_time(self._see(_join_time(images)), batch)
            triples = (jax.tree.map(lambda x, part=part: x[:, part], frames) for part in _TRIPLES)
            stages.append(_split_time(self._restore(*map(_join_time, triples)), batch))
            images = stages[-1].restored
        return tuple(stages)

    def __call__(self, clip: Clip) -> Clip:
        """Restores whole clips, (B, T, H, W, 3) -> the same, by a scan over `step`; not clamped.

        Before the first frame stand the second and the first in turn, after the last likewise: the released code's
        border option. Its published scores leave those frames out.
        """
        if clip.ndim != 5 or clip.shape[-1] != 3:
            raise ValueError(f"clip has shape {clip.shape}; expected (batch, time, height, width, 3)")
        around = self.config.stages
        windows = clip_windows(clip, past=around, future=around, beyond_ends=self.beyond_ends)
        if self.is_initializing():  # one step makes every parameter; scanning would only cost time
            window = windows[:, 0]
            restored = self.step(self.start(window), window)[1].restored
            return jnp.broadcast_to(restored[:, None], clip.shape)

        def body(model: "CDVDTSP", carry: PyTree, window: Clip) -> tuple[PyTree, Image]:
            carry, outputs = model.step(carry, window)
            return carry, outputs.restored

        scan = nn.scan(body, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        _, restored = scan(self, self.start(windows[:, 0]), windows)
        return restored

    def explain(self, carry: PyTree, window: Clip) -> dict[str, Image]:
        """Pictures of how the middle frame of a window comes about, (B, H, W, 3) in [0, 1] by name: of every stage the
        flows (colour wheel), the warped neighbours, the prior and the result, all around the middle frame."""
        del carry  # a window holds all there is to know
        pictures = {"blurred": window[:, self.config.stages]}
        stages = [jax.tree.map(lambda x: x[:, x.shape[1] // 2], stage) for stage in self.cascade(window)]
        flows = [
            flow for stage in stages for flow in (stage.flow_cur_to_prev, stage.flow_cur_to_next) if flow is not None
        ]
        # One scale for all flows of a sheet, so that they compare; at least a pixel, so that stillness is white.
        longest_px = functools.reduce(jnp.maximum, [jnp.max(jnp.linalg.norm(f, axis=-1)) for f in flows], jnp.ones(()))

        def coloured(flow: Flow | None) -> Image | None:
            return None if flow is None else flow_to_colour(flow / longest_px, max_px=1.0)

        for number, middle in enumerate(stages, start=1):
            named = {
                "flow to previous": coloured(middle.flow_cur_to_prev),
                "flow to next": coloured(middle.flow_cur_to_next),
                "previous warped": middle.prev_on_cur,
                "next warped": middle.next_on_cur,
                "sharpness prior": None if middle.prior is None else jnp.repeat(middle.prior, 3, axis=-1),
                "restored": middle.restored,
            }
            pictures |= {f"stage {number}: {name}": image for name, image in named.items() if image is not None}
        return pictures

    def _see(self, image: Image) -> SeenFrame:
        return SeenFrame(image, () if self.config.flow == "zero" else self.flow_net.encode(image))

    def _restore(self, previous: SeenFrame, current: SeenFrame, following: SeenFrame) -> StageOutputs:
        cfg = self.config
        batch, height, width, _ = current.image.shape
        neighbours = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), previous, following)
        if cfg.flow == "zero":
            flows = jnp.zeros((2 * batch, height, width, 2))
        else:  # both flows in one call
            twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), current.encoding)
            flows = self.flow_net.match(twice, neighbours.encoding, height, width)
        valid = inside_weight(flows) >= VALID_WEIGHT
        warped, _ = warp_backward(neighbours.image, flows, border="edge")
        warped = jnp.where(valid[..., None], warped, 0.0)
        (prev_on_cur, next_on_cur), (valid_prev, valid_next) = jnp.split(warped, 2), jnp.split(valid, 2)
        parts, prior = [prev_on_cur, current.image, next_on_cur], None
        if cfg.prior:
            prior = temporal_sharpness_prior(
                prev_on_cur, current.image, next_on_cur, valid_prev, valid_next, box_px=cfg.prior_box_px
            )
            parts.append(prior)
        restored = self.restoration(jnp.concatenate(parts, axis=-1))
        flow_prev, flow_next = jnp.split(flows, 2)
        return StageOutputs(restored, flow_prev, flow_next, prev_on_cur, next_on_cur, valid_prev, valid_next, prior)

    def _restore_side_by_side(self, window: Clip) -> Image:
        batch, count, height, width, _ = window.shape
        images = jnp.asarray(window, jnp.float32).transpose(0, 2, 3, 1, 4)
        return self.restoration(images.reshape(batch, height, width, count * 3))


class RestorationNetwork(nn.Module):
    """The encoder-decoder of a stage, (B, H, W, any) -> (B, H, W, 3) float32, unbounded; H and W multiples of 4.

    SRN-DeblurNet's (Tao et al. 2018) at one scale: without ConvLSTM, with symmetric padding and transposed convolutions
    of 3 x 3. The result of each of its five blocks is sown into the collection "intermediates".

    middle: the first of the input's three channels that hold the frame to be restored.
    """

    channels: int
    residual_blocks: int
    weight_init: str
    dtype: Any
    middle: int = 3

    @nn.compact
    def __call__(self, x: Features) -> Image:
        c = self.channels
        full = self._blocks("in", nn.relu(self._conv("in_conv", x.astype(self.dtype), c, passed=self.middle)))
        self.sow("intermediates", "in", full)
        half = self._blocks("down1", nn.relu(self._conv("down1_conv", full, 2 * c, strides=2)))
        self.sow("intermediates", "down1", half)
        quarter = self._blocks("down2", nn.relu(self._conv("down2_conv", half, 4 * c, strides=2)))
        self.sow("intermediates", "down2", quarter)
        y = nn.relu(self._up("up2_conv", self._blocks("up2", quarter), 2 * c))
        self.sow("intermediates", "up2", y)
        y = nn.relu(self._up("up1_conv", self._blocks("up1", y + half), c, scale=_BRANCH))
        self.sow("intermediates", "up1", y)
        return self._conv("out_conv", self._blocks("out", y + full), 3, scale=_BRANCH, passed=0).astype(jnp.float32)

    def _blocks(self, place: str, x: Features) -> Features:
        for r in range(1, self.residual_blocks + 1):
            branch = nn.relu(self._conv(f"{place}_block_{r}_conv1", x, x.shape[-1]))
            x = x + self._conv(f"{place}_block_{r}_conv2", branch, x.shape[-1], scale=_BRANCH)
        return x

    def _conv(
        self, name: str, x: Features, features: int, *, strides: int = 1, scale: float = 1.0, passed: int | None = None
    ) -> Features:
        initial = self._initial_values(25 * x.shape[-1], scale, passed)
        return Conv(features, 5, strides, name=name, dtype=self.dtype, **initial)(x)

    def _up(self, name: str, x: Features, features: int, *, scale: float = 1.0) -> Features:
        initial = self._initial_values(9 * x.shape[-1], scale)
        return ConvTranspose(features, 3, name=name, dtype=self.dtype, **initial)(x)

    def _initial_values(self, fan_in: int, scale: float, passed: int | None = None) -> dict[str, Any]:
        """scale, and `passed`, the first of three inputs handed to the first three outputs, are those of "pass"."""
        if self.weight_init == "he":
            return {"kernel_init": variance_scaling(2.0, "fan_in", "normal")}
        if self.weight_init == "pass":
            normal = variance_scaling(2.0 * scale**2, "fan_in", "normal")
            return {"kernel_init": normal if passed is None else passing_three(normal, first=passed)}
        bound = fan_in**-0.5

        def bias(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return {"kernel_init": variance_scaling(1 / 3, "fan_in", "uniform"), "bias_init": bias}


def _loop(model: CDVDTSP, body: Callable[..., tuple[Any, Any]], carry: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
    """jax.lax.scan over `body`(model, carry, x) -> (carry, y): what is the same program every time is compiled once."""
    if model.is_initializing():  # parameters are made outside of loops
        carry, y = body(model, carry, jax.tree.map(lambda x: x[0], xs))
        return carry, jax.tree.map(lambda z: jnp.broadcast_to(z, (len(jax.tree.leaves(xs)[0]), *z.shape)), y)
    alone, variables = model.unbind()

    def turn(carry: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        return nn.apply(lambda model: body(model, carry, x), alone)(variables)

    return jax.lax.scan(turn, carry, xs)


def _in_turn(model: CDVDTSP, function: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    """function(model, ...) of every element of the first axis, stacked."""
    return _loop(model, lambda model, carry, elements: (carry, function(model, *elements)), None, arguments)[1]


def _join_time(tree: Any) -> Any:
    """(B, T, ...) -> (B T, ...)."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _split_time(tree: Any, batch: int) -> Any:
    """(B T, ...) -> (B, T, ...)."""
    return jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[1:]), tree)
