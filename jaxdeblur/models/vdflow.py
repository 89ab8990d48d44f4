"""VDFlow: a deblurring network and a flow network that hand each other their features.

Inputs: gamma-encoded RGB, [0, 1], five frames. Outputs: the middle frame, in (0, 1), and the flows from it to the frame
before and the frame after.

Stages:
  1. The deblurring branch, DBN (`models.dbn`), sees the five frames; the flow branch, FlowNetS without batch
     normalisation (`flow_nets.flownet_simple`), sees the middle frame with the one before and, by the same weights,
     with the one after. Both go down to their coarsest features; the flow branch refines its flows up to 1/8.
  2. At 1/8 each hands over what it has there: the deblurring branch's F8 is joined to what the flow branch predicts and
     goes on from, the flow branch's joined features of both passes to F8.
  3. At 1/4 likewise, with the deblurring branch's first sum on the way up, S1.
  4. Both go on alone: to the restored frame, to flows at a quarter of the resolution.

Units: flows of all levels are in full-resolution pixels divided by FLOW_UNIT_PX, on the middle frame's grid.
Conventions: those of the two branches. Height and width are multiples of 64; `restore` adds zeros at the bottom and
right, as DBN does. Frames beyond a clip's ends are copies of the end frames.
Parameters: 58,575,003; with a flow network for each direction 97,788,651.

No feature depends on one frame alone: DBN's first layer sees five frames, FlowNetS's a pair. So nothing of a frame can
be kept for the next window but by splitting first layers into a share of each frame, which saves less than a hundredth
of the work.

Paper: Yan, Wu, Xu, Zhang, Ren, "VDFlow: Joint Learning for Optical Flow and Video Deblurring", CVPR workshops 2020. No
code was published, and the text says at which scales features are exchanged but not which: what is joined (F8, S1 and
the flow branch's concatenations), that frames of a pair are (middle, neighbour) in both directions, shared weights,
DBN's normalisation and sigmoid, and that no gradient is stopped between branches are this toolkit's reading.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdeblur.flow_nets.flownet_s import (
    CONTRACTION,
    CONTRACTION_FROM_3_1,
    FLOW_UNIT_PX,
    REFINEMENT,
    SIZE_MULTIPLE,
    FlowNetConfig,
    Levels,
    Refinement,
    contract,
    refine,
)
from jaxdeblur.flow_nets.flownet_simple import side_by_side
from jaxdeblur.models.dbn import AROUND, DBNConfig, EncoderDecoder, Ends, stretched_difference
from jaxdeblur.models.windows import check_window, restore_all_windows
from jaxdeblur.ops.flow import flow_to_colour
from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.types import BeyondEnds, Border, Clip, Features, Flow, Image, PyTree

EIGHTH, QUARTER = 3, 2
"""The flow branch's levels at which features are exchanged."""


@dataclasses.dataclass(frozen=True)
class VDFlowConfig:
    """Sizes and switches.

    Attributes:
        deblur_reads_flow_at_8, deblur_reads_flow_at_4: join the flow branch's features to the deblurring branch's, at
            1/8 and at 1/4 of the resolution.
        flow_reads_deblur_at_8, flow_reads_deblur_at_4: the other way round.
        flow_networks: one for both directions ("shared") or one for each ("separate").
        adds_to: as for DBN.
        width: takes this fraction of all channels but those of flows and the result, for small models.
        compute_dtype: of the convolutions, other than those that give or upsample a flow: "float32", "bfloat16" or
            "float16". Parameters, normalisation, flows and the restored frame are float32 in all three.
    """

    deblur_reads_flow_at_8: bool = True
    deblur_reads_flow_at_4: bool = True
    flow_reads_deblur_at_8: bool = True
    flow_reads_deblur_at_4: bool = True
    flow_networks: Literal["shared", "separate"] = "shared"
    adds_to: Ends = "image"
    width: float = 1.0
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.flow_networks not in ("shared", "separate"):
            raise ValueError(f"flow_networks is {self.flow_networks!r}; expected shared or separate")
        assert self.deblur  # which checks what it shares with this

    @property
    def deblur(self) -> DBNConfig:
        return DBNConfig(adds_to=self.adds_to, width=self.width, compute_dtype=self.compute_dtype)

    @property
    def flow(self) -> FlowNetConfig:
        return FlowNetConfig(width=self.width, compute_dtype=self.compute_dtype)


class VDFlowOutputs(NamedTuple):
    """All that a window yields; what the caller does not use is not computed under jit."""

    restored: Image  # (B, H, W, 3), in (0, 1)
    levels_cur_to_prev: Levels  # finest first, at 1/4 to 1/64, in network units
    levels_cur_to_next: Levels


class VDFlow(nn.Module):
    """See the head of this file. It keeps nothing from frame to frame."""

    config: VDFlowConfig = VDFlowConfig()

    past_frames: ClassVar[int] = AROUND
    future_frames: ClassVar[int] = AROUND
    beyond_ends: ClassVar[BeyondEnds] = "repeat"
    size_multiple: ClassVar[int] = SIZE_MULTIPLE
    padding: ClassVar[Border] = "zeros"
    flow_unit_px: ClassVar[float] = FLOW_UNIT_PX

    def setup(self) -> None:
        self.deblur = EncoderDecoder(self.config.deblur)
        if self.config.flow_networks == "shared":
            self.flow_net = FlowBranch(self.config.flow)
        else:
            self.flow_net_prev, self.flow_net_next = FlowBranch(self.config.flow), FlowBranch(self.config.flow)

    def start(self, window: Clip) -> PyTree:
        """The carry before the first frame: nothing."""
        del window
        return ()

    def step(self, carry: PyTree, window: Clip) -> tuple[PyTree, VDFlowOutputs]:
        """Restores the middle frame of a window (B, 5, H, W, 3)."""
        return carry, self.restore_window(window)

    def __call__(self, clip: Clip) -> Clip:
        """Restores whole clips, (B, T, H, W, 3) -> the same. All frames at once."""
        return restore_all_windows(self, clip)

    def restore_window(self, window: Clip, *, train: bool = False) -> VDFlowOutputs:
        """All that comes of a window (B, 5, H, W, 3); H and W multiples of 64.

        train: the deblurring branch's batch normalisation by the batch's own statistics, which moves the running
            ones. The flow branch has none.
        """
        cfg = self.config
        check_window(window, 2 * AROUND + 1, SIZE_MULTIPLE)
        window = jnp.asarray(window, jnp.float32)
        previous, middle, following = (window[:, AROUND + i] for i in (-1, 0, 1))
        encoded = self.deblur.encode(window, train=train)
        passes = self._by_pass([side_by_side(middle, neighbour) for neighbour in (previous, following)])
        coarse = [network(pairs) for network, pairs in passes]

        seen_at_8 = self._of_both([pass_.joined[EIGHTH] for pass_ in coarse])
        quarter = self.deblur.to_quarter(encoded, seen_at_8 if cfg.deblur_reads_flow_at_8 else (), train=train)
        fine = []
        for (network, pairs), pass_ in zip(passes, coarse, strict=True):
            repeats = len(pairs) // len(window)  # both directions, where weights are shared
            extra = {}
            if cfg.flow_reads_deblur_at_8:
                extra[EIGHTH] = jnp.repeat(encoded.f8, repeats, axis=0)
            if cfg.flow_reads_deblur_at_4:
                extra[QUARTER] = jnp.repeat(quarter, repeats, axis=0)
            fine.append(network(pairs, pass_, extra))
        seen_at_4 = self._of_both([pass_.joined[QUARTER] for pass_ in fine])
        restored = self.deblur.to_image(
            encoded, quarter, middle, seen_at_4 if cfg.deblur_reads_flow_at_4 else (), train=train
        ).restored

        by_level = zip(*(pass_.flows_1to0 for pass_ in fine), strict=True)
        to_prev, to_next = zip(*(self._of_both(list(flows)) for flows in by_level), strict=True)
        return VDFlowOutputs(restored, to_prev, to_next)

    def flows(self, window: Clip) -> tuple[Flow, Flow]:
        """The flows from the middle frame of a window to the one before and the one after, (B, H, W, 2) in pixels."""
        outputs = self.restore_window(window)
        return full_flow(outputs.levels_cur_to_prev, window), full_flow(outputs.levels_cur_to_next, window)

    def explain(self, carry: PyTree, window: Clip) -> dict[str, Image]:
        """Pictures of how the middle frame comes about, (B, H, W, 3) in [0, 1] by name: both flows (colour wheel, on
        one scale), the difference that was made (as for DBN)."""
        del carry
        middle = window[:, AROUND]
        outputs = self.restore_window(window)
        flows = [full_flow(levels, window) for levels in (outputs.levels_cur_to_prev, outputs.levels_cur_to_next)]
        # At least a pixel, so that stillness is white.
        longest_px = jnp.maximum(1.0, jnp.max(jnp.linalg.norm(jnp.stack(flows), axis=-1)))
        colours = [flow_to_colour(flow / longest_px, max_px=1.0) for flow in flows]
        return {
            "blurred": middle,
            "flow to previous": colours[0],
            "flow to next": colours[1],
            "difference": stretched_difference(outputs.restored, middle),
            "restored": outputs.restored,
        }

    def _by_pass(self, pairs: list[Features]) -> list[tuple["FlowBranch", Features]]:
        """Networks and what each sees: both directions in one batch, or one direction each. The two of an example lie
        side by side, so that a batch split over devices stays where it is."""
        if self.config.flow_networks == "shared":
            return [(self.flow_net, both_ways(*pairs))]
        return list(zip((self.flow_net_prev, self.flow_net_next), pairs, strict=True))

    def _of_both(self, by_pass: list[Any]) -> tuple[Any, Any]:
        """(to the previous frame, to the next), of what `_by_pass`'s networks made."""
        both = each_way(by_pass[0]) if self.config.flow_networks == "shared" else by_pass
        return both[0], both[1]


def both_ways(to_prev: Features, to_next: Features) -> Features:
    """Two batches (B, ...) as one, (2 B, ...), an example's two next to each other."""
    return jnp.stack([to_prev, to_next], axis=1).reshape(-1, *to_prev.shape[1:])


def each_way(both: Features) -> tuple[Features, Features]:
    """The inverse of both_ways."""
    pairs = both.reshape(-1, 2, *both.shape[1:])
    return pairs[:, 0], pairs[:, 1]


class FlowBranch(nn.Module):
    """FlowNetS in two parts: pairs (B, H, W, 6) -> up to 1/8, without a flow there; then on from there, joined by
    `extra` features by level, with all five flows."""

    config: FlowNetConfig

    @nn.compact
    def __call__(
        self, pairs: Features, coarse: "Coarse | None" = None, extra: dict[int, Features] | None = None
    ) -> Any:
        plain: dict[str, Any] = {"inter_convs": False, "upsampling_bias": False, "bias": False}
        if coarse is None:
            skips = contract(self.config, CONTRACTION + CONTRACTION_FROM_3_1, pairs)
            down_to_8 = {level: channels for level, channels in REFINEMENT.items() if level >= EIGHTH}
            refined = refine(self.config, skips, down_to_8, finest_flow=EIGHTH + 1, **plain)
            return Coarse(refined.flows_1to0, refined.joined, skips[QUARTER])
        extra = extra or {}
        eighth = coarse.joined[EIGHTH]
        if EIGHTH in extra:
            eighth = jnp.concatenate([eighth, extra[EIGHTH].astype(eighth.dtype)], axis=-1)
        skips = {EIGHTH: eighth, QUARTER: coarse.skip}
        below = {level: channels for level, channels in REFINEMENT.items() if level < EIGHTH}
        refined = refine(self.config, skips, below, extra=extra, **plain)
        return Refinement(refined.flows_1to0 + coarse.flows_1to0, refined.joined)


class Coarse(NamedTuple):
    """The flow branch up to 1/8."""

    flows_1to0: Levels  # at 1/16 to 1/64
    joined: dict[int, Features]
    skip: Features  # of the way down, at 1/4


def full_flow(levels: Levels, window: Clip) -> Flow:
    """The finest of a network's flows at the window's resolution, in pixels."""
    return FLOW_UNIT_PX * resize_bilinear(levels[0], *window.shape[-3:-1], align_corners=False)


def with_zero_slices(flow_net: PyTree, fused: PyTree) -> PyTree:
    """FlowNetS's parameters for a flow branch that is fed further features: kernels read nothing of those, so that the
    flows are FlowNetS's.

    Args:
        flow_net: of FlowNetS.
        fused: parameters of the branch, for their shapes.
    """

    def widen(kernel: jax.Array, like: jax.Array) -> jax.Array:
        missing = like.shape[-2] - kernel.shape[-2] if kernel.ndim == 4 == like.ndim else 0
        return jnp.pad(kernel, [(0, 0), (0, 0), (0, max(missing, 0)), (0, 0)]) if missing > 0 else kernel

    def of_layer(layer: str) -> PyTree:
        return {
            name: widen(value, fused[layer][name]) if layer in fused and name in fused[layer] else value
            for name, value in flow_net[layer].items()
        }

    return {layer: of_layer(layer) for layer in flow_net}
