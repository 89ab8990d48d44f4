"""Stacked multi-task units: real-time video deblurring with shared deblurring and motion features.

Son, Lee, Cho, Lee, "Real-Time Video Deblurring via Lightweight Motion Compensation", Pacific Graphics 2022.

Input     clips of blurred RGB frames (B, T, H, W, 3) in [0, 1], no normalisation; H and W multiples of 4 (with `scales`
          above 1, of 8, 16, ...).
Output    restored frames of the same shape, not clamped.
A frame   1. heads: structure features of the current frame; history features of the two frames before, the last
             restored frame and the two frames after (15 channels in this order)
          2. unit 1 (a small encoder-decoder, quarter resolution at its deepest) on both
          3. motion features at quarter resolution from structure + unit 1; cosine cost volume against those of the
             previous frame, radius 10; 5 x 5 mean; best displacement, whole quarter-resolution pixels
          4. units 2..N, each on the unit before and the previous frame's last features moved by that displacement
          5. restored = blurred + 3 x 3 convolution of the last unit; with `scales` above 1 the frame as the coarser
             scale leaves it stands for the blurred one here and in 1.
Carry     motion features, last unit's features and restored frame of the previous frame; no gradient passes through it.
Latency   two frames.

The layers, the first-frame rule and the variants' sizes are those of the released models; where the paper's text
differs (a six-channel head, an output layer that reads the moved features too, a cost volume without the 5 x 5 mean),
the released parameter counts fit only what is built here. `first_frame="zero"` is the paper's rule for the first frame.
`scales` is neither's: coarse to fine with shared weights, as in Tao et al., "Scale-recurrent network for deep image
deblurring" (2018), but that the coarser scale's change is added to the blurred frame, which is itself seen no more, no
features are handed on, and nothing but the frames of the two finest scales is a matter of the loss.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, normal, variance_scaling

from jaxdeblur.layers.conv import Conv, ConvTranspose
from jaxdeblur.models.windows import check_window, clip_windows
from jaxdeblur.ops.correlation import best_displacement, local_cost_volume
from jaxdeblur.ops.filters import box_mean
from jaxdeblur.ops.flow import flow_to_colour
from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.ops.warp import warp_blocks
from jaxdeblur.types import BeyondEnds, Border, Clip, CostVolume, Displacement, Features, Image, Pixels

QUARTER = 4
"""Motion is estimated on a grid coarser by this factor; height and width must be multiples, see `size_multiple`."""


_BRANCH, _OUTPUT = 0.3, 0.005  # of "he": relative size on residual branches and output layers


def _initial_weights(kind: str, scale: float = 1.0) -> Initializer:
    """Of a convolution's kernel; biases start at zero. scale: of "he", relative to full variance-preserving size."""
    return normal(0.03) if kind == "released" else variance_scaling(2 * scale**2, "fan_in", "normal")


def _edges(key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None) -> jax.Array:
    """A first layer's kernel that answers to edges and not to brightness; as edges are faint, four times as strong."""
    kernel = 4 * _initial_weights("he")(key, shape, dtype, out_sharding)
    return kernel - jnp.mean(kernel, axis=(0, 1), keepdims=True)


@dataclasses.dataclass(frozen=True)
class MultiTaskUnitConfig:
    """Sizes and switches of the stacked units.

    Attributes:
        units: N, number of units; only the first estimates motion.
        channels: of the full-resolution features; twice as many below.
        residual_blocks: per unit, at quarter resolution.
        match_radius: D, reach of the cost volume in quarter-resolution pixels.
        residual: restored frames are the output layer plus the blurred frame, or what a coarser scale has made of it;
            else the output layer alone.
        structure_injection: the motion layer reads structure features plus unit 1; else unit 1 alone.
        motion_module: estimate motion; else the displacement is zero and the previous features are joined unaligned.
        first_frame: "self" (released): the first frame is matched with itself and its own features stand in for the
            previous ones; "zero" (paper): previous features are zero.
        weight_init: "released": normal, standard deviation 0.03, whatever a layer's size; on short runs the restored
            frames then stay equal to the blurred ones for long. "he": normal with variance 2 / fan-in, less on residual
            branches and least on the output layers; learns from the first hundreds of updates. "edges": likewise, and
            the first layers see edges only: all features are positive, and brightness, which every one of them would
            answer to, would drown what sharpens; learns fastest.
        compute_dtype: of the convolutions: "float32", "float16" (the published half-precision model) or "bfloat16".
            Parameters, matching and outputs are float32 in all three.
        scales: with 2 a frame is first restored at half its size, by the same weights, and what that changes is added
            to it: blur twice as long is within reach. With 3 at a quarter before that, and so on. Not in the paper.
    """

    units: int
    channels: int = 26
    residual_blocks: int = 8
    match_radius: int = 10
    residual: bool = True
    structure_injection: bool = True
    motion_module: bool = True
    first_frame: Literal["self", "zero"] = "self"
    weight_init: Literal["released", "he", "edges"] = "released"
    compute_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    scales: int = 1

    def __post_init__(self) -> None:
        for field, least in (("units", 1), ("channels", 1), ("residual_blocks", 0), ("match_radius", 1), ("scales", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}; expected {least} or more")
        if self.first_frame not in ("self", "zero"):
            raise ValueError(f"first_frame is {self.first_frame!r}; expected 'self' or 'zero'")
        if self.weight_init not in ("released", "he", "edges"):
            raise ValueError(f"weight_init is {self.weight_init!r}; expected 'released', 'he' or 'edges'")
        if self.compute_dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"compute_dtype is {self.compute_dtype!r}; expected float32, float16 or bfloat16")


@flax.struct.dataclass
class MultiTaskUnitCarry:
    """What one frame hands to the next. Fields are arrays, or what JAX puts in their place: shapes, shardings."""

    seen: Any  # () bool: a frame has gone before
    motion_features: Any  # (B, H/4, W/4, 2c), of unit 1; None: no motion is estimated
    unit_features: Any  # (B, H, W, c), of the last unit; None likewise
    restored: Any  # (B, H, W, 3)
    coarse: Any = None  # with more than one scale, the carry of the next coarser one


class MultiTaskUnitOutputs(NamedTuple):
    """All that a frame yields; what the caller does not use is not computed under jit."""

    restored: Image  # (B, H, W, 3), not clamped
    intermediate: tuple[Image, ...]  # N - 1 restored frames of the units before the last, and before them, with more
    # than one scale, the frame as the coarser ones leave it; empty unless training
    cost: CostVolume | None  # (B, H/4, W/4, (2D+1)^2), after the 5 x 5 mean; None where the carry has no features
    displacement_cur_to_prev: Displacement | None  # (B, H/4, W/4, 2), quarter-resolution pixels; None likewise
    structure: Features  # (B, H, W, c)
    history: Features  # (B, H, W, c)
    units: tuple[Features, ...]  # N of (B, H, W, c)
    warped: tuple[Features, ...]  # previous features moved, behind units 1..N-1 (and behind unit 1 for N = 1);
    # empty where the carry has no features
    motion_features: Features  # (B, H/4, W/4, 2c)


class DetailNetwork(nn.Module):
    """One unit's encoder-decoder, (B, H, W, any) -> (B, H, W, c), non-negative. Several arrays count as joined."""

    channels: int
    residual_blocks: int
    weight_init: str
    dtype: Any

    @nn.compact
    def __call__(self, *parts: Features) -> Features:
        def conv(name: str, features: int, kernel_size: int, strides: int = 1) -> Conv:
            weights = _initial_weights(self.weight_init, _BRANCH if name == "block_end" else 1.0)
            return Conv(features, kernel_size, strides, kernel_init=weights, dtype=self.dtype, name=name)

        def up(name: str) -> ConvTranspose:
            # An output value of a stride-2 transposed convolution sees a quarter of the kernel.
            weights = _initial_weights(self.weight_init, 2.0)
            return ConvTranspose(self.channels, kernel_init=weights, dtype=self.dtype, name=name)

        c = self.channels
        full = nn.relu(conv("enc1", c, 5)(*parts))
        half = nn.relu(conv("enc2", c, 3, strides=2)(full))
        quarter = nn.relu(conv("enc3", 2 * c, 3, strides=2)(half))
        y = quarter
        for r in range(1, self.residual_blocks + 1):
            y = y + ResidualBlock(2 * c, self.weight_init, self.dtype, name=f"block_{r}")(y)
        y = nn.relu(conv("block_end", 2 * c, 3)(y)) + quarter
        y = nn.relu(up("dec1")(y)) + half
        return nn.relu(up("dec2")(y)) + full


class ResidualBlock(nn.Module):
    """ReLU(conv(ReLU(conv(x)))): the branch only; the caller adds x."""

    features: int
    weight_init: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Features) -> Features:
        def conv(name: str, scale: float) -> Conv:
            weights = _initial_weights(self.weight_init, scale)
            return Conv(self.features, 3, kernel_init=weights, dtype=self.dtype, name=name)

        return nn.relu(conv("conv2", _BRANCH)(nn.relu(conv("conv1", 1.0)(x))))


class MultiTaskUnits(nn.Module):
    """N stacked units. `step` restores one frame and returns the carry for the next; calling it restores clips."""

    config: MultiTaskUnitConfig

    past_frames = 2
    future_frames = 2
    memory_frames = 2
    beyond_ends: ClassVar[BeyondEnds] = "repeat"
    padding: ClassVar[Border] = "edge"

    def setup(self) -> None:
        cfg = self.config

        def conv(
            features: int, kernel_size: int, strides: int = 1, padding: int | None = None, scale: float = 1.0
        ) -> Conv:
            weights = _initial_weights(cfg.weight_init, scale)
            return Conv(features, kernel_size, strides, padding, kernel_init=weights, dtype=self._dtype)

        first = _edges if cfg.weight_init == "edges" else _initial_weights(cfg.weight_init)
        self.structure_conv = Conv(cfg.channels, 3, kernel_init=first, dtype=self._dtype)
        self.history_conv = Conv(cfg.channels, 3, kernel_init=first, dtype=self._dtype)
        # Dictionaries, so that units are numbered from 1 in the parameter tree, as in the paper.
        self.unit = {
            str(n): DetailNetwork(cfg.channels, cfg.residual_blocks, cfg.weight_init, self._dtype)
            for n in range(1, cfg.units + 1)
        }
        self.motion_conv = conv(2 * cfg.channels, 5, strides=QUARTER, padding=1)
        self.deblur = {str(n): conv(3, 3, scale=_OUTPUT) for n in range(1, cfg.units)}  # read in training only
        self.output_conv = conv(3, 3, scale=_OUTPUT)

    @staticmethod
    def is_training_only(path: str) -> bool:
        """Whether a parameter (its path, joined by "/") is read in training only; released files may lack these."""
        return path.startswith("deblur_")

    @property
    def size_multiple(self) -> Pixels:
        """What height and width must be multiples of."""
        return QUARTER << (self.config.scales - 1)

    @property
    def _dtype(self) -> Any:
        return jnp.dtype(self.config.compute_dtype)

    def init_carry(self, batch: int, height: Pixels, width: Pixels) -> MultiTaskUnitCarry:
        """The carry before the first frame. Needs no parameters."""
        _check_size(height, width, self.size_multiple)
        return self._carry_of_scale(self.config.scales, batch, height, width)

    def _carry_of_scale(self, scales: int, batch: int, height: Pixels, width: Pixels) -> MultiTaskUnitCarry:
        c = self.config.channels
        return MultiTaskUnitCarry(
            seen=jnp.zeros((), bool),
            motion_features=jnp.zeros((batch, height // QUARTER, width // QUARTER, 2 * c), self._dtype),
            unit_features=jnp.zeros((batch, height, width, c), self._dtype),
            restored=jnp.zeros((batch, height, width, 3), jnp.float32),
            coarse=self._carry_of_scale(scales - 1, batch, height // 2, width // 2) if scales > 1 else None,
        )

    def start(self, window: Clip) -> MultiTaskUnitCarry:
        """The carry before the first frame, of the size of its window.

        A single unit uses no motion. Its carry holds no features here, and the steps from it estimate none; start from
        `init_carry` to have them anyway.
        """
        batch, _, height, width, _ = window.shape
        carry = self.init_carry(batch, height, width)
        return carry if self.config.units > 1 else _without_features(carry)

    def step(
        self, carry: MultiTaskUnitCarry, window: Clip, *, train: bool = False
    ) -> tuple[MultiTaskUnitCarry, MultiTaskUnitOutputs]:
        """Restores the middle frame of a window.

        Args:
            carry: of the frame before, or `start`, or `init_carry`.
            window: (B, 5, H, W, 3), frames t-2..t+2; a frame that does not exist is a copy of the nearest one.
            train: also compute the intermediate restored frames, and hand on the restored frame as it is; otherwise it
                is handed on clamped to [0, 1], as the released evaluation does.
        """
        check_window(window, self.past_frames + 1 + self.future_frames, self.size_multiple)
        return self._step(carry, jnp.asarray(window, jnp.float32), train)

    def _step(
        self, carry: MultiTaskUnitCarry, window: Clip, train: bool
    ) -> tuple[MultiTaskUnitCarry, MultiTaskUnitOutputs]:
        """`step` at one scale, and before it at the coarser ones, of which nothing but the frame is handed out."""
        cfg = self.config
        coarse, frame = carry.coarse, window[:, 2]
        if coarse is not None:
            batch, frames, height, width, _ = window.shape
            half = window.reshape(batch, frames, height // 2, 2, width // 2, 2, 3).mean(axis=(3, 5))
            coarse, found = self._step(coarse, half, train)
            change = resize_bilinear(found.restored - half[:, 2], height, width, align_corners=False)
            frame = jnp.clip(frame + change, 0.0, 1.0)
        first = ~carry.seen

        def joined(*parts: Features) -> tuple[Features, ...]:
            # Convolutions can take them as they are, but not where gradients are taken as fast.
            return (jnp.concatenate(parts, axis=-1),) if train else parts

        structure = nn.relu(self.structure_conv(frame.astype(self._dtype)))
        previous = jnp.where(first, frame, jax.lax.stop_gradient(carry.restored))
        history = jnp.concatenate([window[:, 0], window[:, 1], previous, window[:, 3], window[:, 4]], axis=-1)
        history = nn.relu(self.history_conv(history.astype(self._dtype)))

        features = self.unit["1"](*joined(structure, history))
        motion = nn.relu(self.motion_conv(structure + features if cfg.structure_injection else features))
        has_features = carry.motion_features is not None
        cost, displacement = self._match(motion, carry, first) if has_features else (None, None)

        units, warped, intermediate = [features], [], []
        if train and coarse is not None:
            intermediate.append(frame)
        if has_features:
            moved = warp_blocks(jax.lax.stop_gradient(carry.unit_features), displacement, block=QUARTER)
        for n in range(1, max(cfg.units, 2) if has_features else 1):
            # The map behind the last unit feeds nothing; that of a single unit serves only to look at.
            warped.append(self._previous_features(features, moved, displacement, first))
            if n == cfg.units:
                break
            both = joined(features, warped[-1])
            if train or self.is_initializing():
                intermediate.append(self._image(self.deblur[str(n)](*both), frame))
            features = self.unit[str(n + 1)](*both)
            units.append(features)

        restored = self._image(self.output_conv(features), frame)
        outputs = MultiTaskUnitOutputs(
            restored,
            tuple(intermediate),
            cost,
            displacement,
            structure,
            history,
            tuple(units),
            tuple(warped),
            motion,
        )
        handed_on = MultiTaskUnitCarry(
            seen=jnp.ones((), bool),
            motion_features=motion if has_features else None,
            unit_features=features if has_features else None,
            restored=restored if train else jnp.clip(restored, 0.0, 1.0),
            coarse=coarse,
        )
        return jax.lax.stop_gradient(handed_on), outputs

    def explain(self, carry: MultiTaskUnitCarry, window: Clip) -> dict[str, Image]:
        """Pictures of how a frame comes about, (B, H, W, 3) in [0, 1] by name: the motion found (colour wheel), the
        frame before moved by it, the result. A single unit uses no motion, and may not have learned it."""
        _, outputs = self.step(carry, window)
        if self.config.units == 1:
            return {"blurred": window[:, 2], "restored": outputs.restored}
        displacement = outputs.displacement_cur_to_prev
        if displacement is None:
            raise ValueError("the carry holds no features of the frame before; start from `start` or `init_carry`")
        flow = QUARTER * displacement.astype(jnp.float32)
        blurred = window[:, 2]
        previous = jnp.where(carry.seen, carry.restored, blurred)
        return {
            "blurred": blurred,
            "motion to previous": flow_to_colour(jnp.repeat(jnp.repeat(flow, QUARTER, axis=1), QUARTER, axis=2)),
            "previous moved": warp_blocks(previous, displacement, block=QUARTER),
            "restored": outputs.restored,
        }

    def __call__(self, clip: Clip) -> Clip:
        """Restores whole clips, (B, T, H, W, 3) -> the same, by a scan over `step`; not clamped.

        Frames before the first and after the last are copies of the end frames.
        """
        if clip.ndim != 5 or clip.shape[-1] != 3:
            raise ValueError(f"clip has shape {clip.shape}; expected (batch, time, height, width, 3)")
        batch, _, height, width, _ = clip.shape
        window = jnp.broadcast_to(clip[:, :1], (batch, 5, height, width, 3))
        carry = self.start(window)

        def body(model: "MultiTaskUnits", carry: MultiTaskUnitCarry, window: Clip) -> tuple[MultiTaskUnitCarry, Image]:
            carry, outputs = model.step(carry, window)
            return carry, outputs.restored

        if self.is_initializing():  # one step at one scale makes every parameter; more would only cost time
            _, restored = body(self, self._carry_of_scale(1, batch, height, width), window)
            return jnp.broadcast_to(restored[:, None], clip.shape)
        scan = nn.scan(body, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        _, restored = scan(self, carry, clip_windows(clip))
        return restored

    def _match(self, motion: Features, carry: MultiTaskUnitCarry, first: jax.Array) -> tuple[CostVolume, Displacement]:
        cfg = self.config
        previous = jax.lax.stop_gradient(carry.motion_features)
        if cfg.first_frame == "self":
            previous = jnp.where(first, motion, previous)
        cost = matching_cost(motion, previous, radius=cfg.match_radius)
        displacement, _ = best_displacement(cost)
        if not cfg.motion_module:
            displacement = jnp.zeros_like(displacement)
        return cost, displacement

    def _previous_features(
        self, features: Features, moved: Features, displacement: Displacement, first: jax.Array
    ) -> Features:
        """The previous frame's features moved onto this one; at the first frame, the unit's own."""
        if self.config.first_frame == "zero":
            return moved
        return jax.lax.cond(
            first,
            lambda own, _: warp_blocks(own, displacement, block=QUARTER),
            lambda _, moved: moved,
            features,
            moved,
        )

    def _image(self, layer_output: Features, frame: Image) -> Image:
        image = layer_output.astype(jnp.float32)
        return image + frame if self.config.residual else image


def matching_cost(features_1: Features, features_0: Features, *, radius: int) -> CostVolume:
    """How alike features (B, H/4, W/4, any) of a frame and of the one before are, the most alike give the displacement:
    cosines, 5 x 5 means of them; (B, H/4, W/4, (2 radius + 1)^2) float32."""
    features = features_1.astype(jnp.float32), features_0.astype(jnp.float32)
    return box_mean(local_cost_volume(*features, radius=radius, similarity="cosine"), 5)


def _without_features(carry: MultiTaskUnitCarry) -> MultiTaskUnitCarry:
    coarse = None if carry.coarse is None else _without_features(carry.coarse)
    return dataclasses.replace(carry, motion_features=None, unit_features=None, coarse=coarse)


def _check_size(height: Pixels, width: Pixels, multiple: Pixels) -> None:
    if height % multiple or width % multiple:
        raise ValueError(
            f"height and width are {height} x {width}; expected multiples of {multiple}: use pad_to_multiple, or "
            "restore(), which does it"
        )
