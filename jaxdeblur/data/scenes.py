"""The built-in data set: clips of random layered scenes, each a pure JAX function of (seed, index).

A scene is a stack of flat textured layers (premultiplied alpha, linear light), an opaque background first and
objects with soft mattes over it. Every layer moves by a similarity that is a closed-form function of continuous time,
so that any instant can be rendered and the flow between any two is exact. A blurred frame is the mean, in linear
light, of `sub_frames` instants spread over the exposure; its sharp frame is the instant in the middle.

    batch = jax.jit(render_batch, static_argnums=(2, 3))(seed, first_index, 8, SceneConfig())

Time is in frames and zero in the middle of the clip: the exposure of frame i is centred on i - (frames - 1) / 2.
Positions are in pixels from the middle of the frame, x to the right, y down, angles from x to y.
"""

import copy
import dataclasses
import functools
import itertools
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Integer, UInt8

from jaxdeblur.compilation import jit
from jaxdeblur.data.image_io import IMAGE_KINDS, ImageFile, StrPath, read_rgb_u8, write_image
from jaxdeblur.data.streams import Stream
from jaxdeblur.ops.colour import linear_to_srgb, srgb_to_linear
from jaxdeblur.ops.resample import resize_bilinear, sample_bilinear
from jaxdeblur.types import Array, Batch, Flow, Mask, Scalars

Photographs = UInt8[Array, "_n _s _s 3"]

MAX_EXTRA_FRAMES = 4
"""How many frames before and after a clip can be asked for: motion is bounded over these, asked for or not, so that
the clip of (seed, index) does not depend on what a model looks at beyond it."""

OPAQUE = 0.99
"""Share of a pixel's light that must come from one layer for its flow to count as valid."""

_ANGLE, _LOG_ZOOM = 2, 3
_STILL_PX = 1.0
"""Clips in which nothing moves so far from frame to frame are still."""


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What random scenes are like and how they are rendered.

    Args:
        frames, height, width: the clip.
        sub_frames: most instants averaged for one exposure; at least max_speed_px * max_duty, so that nothing moves
            more than a pixel between two. A slow clip takes fewer, less than a pixel apart.
        max_speed_px: bound on the motion at the corners of the frame, pixels a frame.
        min_speed_share: clips draw their own speed between this fraction of max_speed_px and somewhat above the whole,
            and keep to max_speed_px.
        still_share: fraction of the clips that hardly move.
        min_duty, max_duty: range of exposure time over frame time.
        max_shot_noise: variance of the noise per unit of linear light; each clip draws its own below it.
        max_read_noise: standard deviation of the noise in the dark, linear light; likewise.
        encoded_share: fraction of the clips whose exposures are means of encoded values, as in data sets that average
            the frames of a video; the others average light, as sensors do.
        drawn_share: fraction of the textures that are drawn, where there are photographs.
        objects: most objects in front of the background; each clip draws how many it shows.
        texels_per_px: texture resolution; below 1.3 the sharp frames get soft.
        softest_texels_per_px: None, or clips draw their own resolution from this to texels_per_px: seen from nearer and
            softer, as real frames often are at full size.

    Raises:
        ValueError: lists every field that is out of its range.
    """

    frames: int = 13
    height: int = 128
    width: int = 128
    sub_frames: int = 20
    max_speed_px: float = 20.0
    min_speed_share: float = 0.1
    still_share: float = 0.15
    min_duty: float = 0.2
    max_duty: float = 1.0
    max_shot_noise: float = 4e-4
    max_read_noise: float = 1.5e-3
    encoded_share: float = 0.0
    drawn_share: float = 0.0
    objects: int = 3
    texels_per_px: float = 1.5
    softest_texels_per_px: float | None = None

    def __post_init__(self) -> None:
        faults = [
            f"{name} is {getattr(self, name)}; expected at least {least}"
            for name, least in {
                "frames": 1,
                "height": 8,
                "width": 8,
                "sub_frames": 1,
                "max_speed_px": 0,
                "max_shot_noise": 0,
                "max_read_noise": 0,
                "objects": 0,
                "texels_per_px": 1,
            }.items()
            if not getattr(self, name) >= least
        ]
        for name in ("min_speed_share", "still_share", "encoded_share", "drawn_share"):
            if not 0 <= getattr(self, name) <= 1:
                faults.append(f"{name} is {getattr(self, name)}; expected a fraction from 0 to 1")
        if self.softest_texels_per_px is not None and not 0 < self.softest_texels_per_px <= self.texels_per_px:
            faults.append(
                f"softest_texels_per_px is {self.softest_texels_per_px}; expected None, or more than 0 and at most "
                f"texels_per_px {self.texels_per_px:g}"
            )
        if not 0 < self.min_duty <= self.max_duty <= 1:
            faults.append(
                f"min_duty, max_duty are {self.min_duty}, {self.max_duty}; expected 0 < min_duty <= max_duty <= 1"
            )
        if self.sub_frames < self.max_speed_px * self.max_duty:
            faults.append(
                f"sub_frames is {self.sub_frames}, so a motion of max_speed_px * max_duty = "
                f"{self.max_speed_px * self.max_duty:g} px takes steps over one pixel; use at least "
                f"{math.ceil(self.max_speed_px * self.max_duty)} sub_frames or a lower max_speed_px"
            )
        if faults:
            raise ValueError("SceneConfig: " + "; ".join(faults))

    @property
    def texture_size(self) -> int:
        """Height and width of a layer's texture in texels: the frame and some way to go around it."""
        return math.ceil(self.texels_per_px * (max(self.height, self.width) + 2 * self.max_speed_px)) + 32


class MotionPath(NamedTuple):
    """x (px), y (px), angle (rad) and log zoom over time t in frames, zero at t = 0.

    value(t) = drift t + sum_i amplitude_i (sin(frequency_i t + phase_i) - sin(phase_i)).
    """

    drift: Float[Array, "... 4"]
    amplitude: Float[Array, "... 4 _n"]
    frequency: Float[Array, "... 4 _n"]
    phase: Float[Array, "... 4 _n"]

    def at(self, time: Scalars) -> Float[Array, "... 4"]:
        waves = jnp.sin(self.frequency * time + self.phase) - jnp.sin(self.phase)
        return self.drift * time + jnp.sum(self.amplitude * waves, axis=-1)

    def scaled(self, factor: Scalars) -> "MotionPath":
        """The same path run `factor` times as far; the factor has the path's leading axes."""
        factor = jnp.asarray(factor)[..., None]
        return self._replace(drift=self.drift * factor, amplitude=self.amplitude * factor[..., None])


class Scene(NamedTuple):
    """All there is to see in a clip; L layers from back to front.

    A texture point q, in pixels from the middle of its texture, is seen at time t at
    exp(parallax z) R(a) (position + parallax (x, y) + (x', y') + exp(z') R(a') q) from the middle of the frame,
    where (x, y, a, z) is the camera's path and (x', y', a', z') the layer's own.
    """

    textures_linear: Float[Array, "_l _s _s 4"]  # premultiplied RGBA; layer 0 opaque, continued by mirroring
    camera: MotionPath  # no leading axes
    own: MotionPath  # leading axis L
    parallax: Float[Array, "_l"]
    position_px: Float[Array, "_l 2"]
    texels_per_px: Float[Array, ""]
    duty: Float[Array, ""]  # exposure time over frame time
    sub_frames: Integer[Array, ""]  # instants averaged for an exposure
    shot_noise: Float[Array, ""]
    read_noise: Float[Array, ""]
    averages_encoded: Bool[Array, ""]  # an exposure is a mean of encoded values, not of light
    layers_shown: Integer[Array, ""]  # the first so many; nothing of the others is opaque


def scene_key(seed: int | Integer[Array, ""], index: int | Integer[Array, ""]) -> jax.Array:
    """The key that `render_clip` makes clip `index` of the data set `seed` from."""
    return jax.random.fold_in(jax.random.key(seed), index)


def render_batch(
    seed: int | Integer[Array, ""],
    first_index: int | Integer[Array, ""],
    batch_size: int,
    config: SceneConfig,
    *,
    photographs: Photographs | None = None,
    past: int = 0,
    future: int = 0,
    at_once: int = 1,
) -> Batch:
    """Renders clips first_index ... first_index + batch_size - 1 of the data set `seed`.

    Pure, for use under `jit` with batch_size, config, past, future and at_once static.

    Args:
        seed: of the data set.
        first_index: of the first clip.
        batch_size: how many clips.
        config: what they are like.
        photographs: as for `render_clip`.
        past: as for `render_clip`.
        future: as for `render_clip`.
        at_once: clips rendered side by side: 1 is fastest and smallest on a CPU; an accelerator wants more.

    Returns:
        A batch with a leading axis of batch_size; see `render_clip`.
    """

    def render(index: jax.Array) -> Batch:
        return render_clip(scene_key(seed, index), config, photographs=photographs, past=past, future=future)

    indices = jnp.asarray(first_index, jnp.int32) + jnp.arange(batch_size, dtype=jnp.int32)
    return jax.lax.map(render, indices, batch_size=at_once if at_once > 1 else None)


def turned(batch: Batch, symmetry: int) -> Batch:
    """A batch of square clips by one of the eight symmetries of a square: turned, mirrored or both.

    Vectors of flows turn with the grid they lie on.

    Args:
        symmetry: 0 to 7, static; 0 leaves all as it is. Bit 0 mirrors left and right, bit 1 top and bottom, and then
            bit 2 swaps rows and columns.
    """

    def grid(values: jax.Array, rows: int) -> jax.Array:
        values = jnp.flip(values, [axis for bit, axis in ((1, rows + 1), (2, rows)) if symmetry & bit])
        return values.swapaxes(rows, rows + 1) if symmetry & 4 else values

    def turn(name: str, values: jax.Array) -> jax.Array:
        values = grid(values, values.ndim - (2 if name.startswith("valid") else 3))
        if not name.startswith("flow"):
            return values
        u, v = values[..., :1], values[..., 1:]
        u, v = -u if symmetry & 1 else u, -v if symmetry & 2 else v
        return jnp.concatenate([v, u] if symmetry & 4 else [u, v], axis=-1)

    if batch["sharp"].shape[-3] != batch["sharp"].shape[-2]:
        raise ValueError(f"sharp has shape {batch['sharp'].shape}; expected square frames")
    arrays: dict[str, Any] = dict(batch)
    return {name: turn(name, values) for name, values in arrays.items()}  # type: ignore[return-value]


def draw_symmetry(seed: int, batch_number: int) -> int:
    """Which of the symmetries of `turned` a batch of a run gets."""
    # NumPy promises to keep the bits of Philox.
    return int(np.random.Philox(np.random.SeedSequence((Stream.SYMMETRY, seed, batch_number))).random_raw() & 7)


def batch_renderer(
    config: SceneConfig,
    *,
    batch_size: int,
    mesh: Mesh,
    photographs: Photographs | None = None,
    past: int = 0,
    future: int = 0,
    choose_from: int = 1,
) -> Callable[[int, int], Batch]:
    """(seed, number of the first clip) -> a batch, of which each device of a mesh of one axis renders its own share.

    Args:
        choose_from: clip i is one of so many, numbers choose_from * i and those that follow: the first in which nothing
            moves a pixel, that still ones stay among them, or else the one whose blurred frames are farthest from the
            sharp ones, since many have little to see or to restore.

    Raises:
        ValueError: choose_from below 1.
    """
    if choose_from < 1:
        raise ValueError(f"choose_from is {choose_from}; expected 1 or more")
    (axis,) = mesh.axis_names
    share = batch_size // mesh.devices.size
    # On a CPU clips one after another are fastest; an accelerator renders its share at once.
    at_once = 1 if mesh.devices.flat[0].platform == "cpu" else share

    def render_share(seed: jax.Array, first_index: jax.Array, photographs: jax.Array | None) -> Batch:
        batch = render_batch(
            seed,
            choose_from * (first_index + share * jax.lax.axis_index(axis)),
            choose_from * share,
            config,
            photographs=photographs,
            past=past,
            future=future,
            at_once=at_once,
        )
        return chosen_clips(batch) if choose_from > 1 else batch

    def chosen_clips(batch: Batch) -> Batch:
        error = jnp.mean((batch["blurred"][:, past : past + config.frames] - batch["sharp"]) ** 2, axis=(1, 2, 3, 4))
        speed_px = jnp.max(jnp.abs(batch["flow_cur_to_prev"]), axis=(1, 2, 3, 4))
        worth = jnp.where(speed_px < _STILL_PX, jnp.inf, error).reshape(share, choose_from)
        chosen = choose_from * jnp.arange(share) + jnp.argmax(worth, axis=1)
        return jax.tree.map(lambda values: values[chosen], batch)

    sharded = jit(jax.shard_map(render_share, mesh=mesh, in_specs=(P(), P(), P()), out_specs=P(axis), check_vma=False))
    return lambda seed, first_index: sharded(np.int32(seed), np.int32(first_index), photographs)


def clip_cutter(mesh: Mesh, *, share: float, past: int) -> Callable[[Batch, int, int], Batch]:
    """(batch, seed, number of its first clip) -> the batch, some of whose clips have the ends that real ones have.

    Beyond, their first or last frame comes again and again, or, in half of them, nothing but one frame comes at all, as
    where a single image is restored.

    Args:
        mesh: of one axis, along which batches are split.
        share: fraction of the clips.
        past: blurred frames before the clip.

    Raises:
        ValueError: share is no fraction.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of clips with ends is {share}; expected a fraction from 0 to 1")
    (axis,) = mesh.axis_names

    def cut_share(batch: Batch, seed: jax.Array, first_index: jax.Array) -> Batch:
        clips = batch["sharp"].shape[0]
        indices = first_index + clips * jax.lax.axis_index(axis) + jnp.arange(clips)
        keys = jax.vmap(lambda index: jax.random.fold_in(scene_key(seed, index), Stream.CLIP_ENDS))(indices)
        return jax.vmap(functools.partial(_with_ends, share=share, past=past))(keys, batch)

    sharded = jit(jax.shard_map(cut_share, mesh=mesh, in_specs=(P(axis), P(), P()), out_specs=P(axis), check_vma=False))
    return lambda batch, seed, first_index: sharded(batch, np.int32(seed), np.int32(first_index))


def _with_ends(key: jax.Array, clip: Batch, *, share: float, past: int) -> Batch:
    """The clip, without a batch axis, with a share's chance cut off before, after, both, or to its middle frame."""
    frames, seen = clip["sharp"].shape[0], clip["blurred"].shape[0]
    draw_any, draw_kind = jax.random.split(key)
    is_cut = jax.random.uniform(draw_any) < share
    # Single images are frequent, lest a network takes frames that are all the same for a sharp scene at rest.
    kinds = jnp.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]], bool)
    before, after, single = is_cut & jax.random.choice(draw_kind, kinds)
    middle = frames // 2
    first = jnp.where(before, past + jnp.where(single, middle, 0), 0)
    last = jnp.where(after, past + jnp.where(single, middle, frames - 1), seen - 1)
    blurred = clip["blurred"][jnp.clip(jnp.arange(seen), first, last)]

    def of_clip(name: str, values: jax.Array) -> jax.Array:
        if name == "blurred":
            return blurred
        if name == "sharp":
            return jnp.where(single, values[middle], values)
        return jnp.where(single, 0.0 if name.startswith("flow") else True, values)

    arrays: dict[str, Any] = dict(clip)
    return {name: of_clip(name, values) for name, values in arrays.items()}  # type: ignore[return-value]


def scene_batches(
    render: Callable[[int, int], Batch], *, seed: int, batch_size: int, distinct_clips: int, turned_anew: bool
) -> Callable[[int], Iterator[Batch]]:
    """Number of the first batch -> that batch and all after it.

    Args:
        render: as `batch_renderer` makes it.
        distinct_clips: so many are rendered once, kept as bytes, and come round again; 0: none comes twice.
        turned_anew: those are turned or mirrored each time, a batch alike.
    Raises:
        ValueError: distinct_clips is no multiple of the batch size.
    """
    if distinct_clips % batch_size:
        raise ValueError(
            f"data.scenes.distinct_clips is {distinct_clips}; expected 0 or a multiple of the batch size {batch_size}"
        )
    pool: dict[int, Batch] = {}

    def converted(batch: Batch, convert: Callable[[jax.Array], jax.Array]) -> Batch:
        return {**batch, **{name: convert(batch[name]) for name in ("blurred", "sharp")}}  # type: ignore[typeddict-item]

    @jit
    def with_bytes(batch: Batch) -> Batch:
        return converted(batch, lambda values: jnp.rint(255 * values).astype(jnp.uint8))

    @jit(static_argnums=1)
    def with_values(batch: Batch, symmetry: int) -> Batch:
        return converted(turned(batch, symmetry) if symmetry else batch, _values_of_levels)

    def batches(first: int) -> Iterator[Batch]:
        for number in itertools.count(first):
            if not distinct_clips:
                yield render(seed, number * batch_size)
                continue
            index = number * batch_size % distinct_clips
            if index not in pool:
                pool[index] = with_bytes(render(seed, index))
            yield with_values(pool[index], draw_symmetry(seed, number) if turned_anew else 0)

    return batches


def render_clip(
    key: jax.Array,
    config: SceneConfig,
    *,
    photographs: Photographs | None = None,
    past: int = 0,
    future: int = 0,
) -> Batch:
    """Draws a random scene and renders one clip of it, without a batch axis.

    Args:
        key: of `scene_key`.
        config: what the clip is like.
        photographs: (N, S, S, 3), S at least config.texture_size: layers show crops of them, not drawn textures.
        past: further blurred frames before the clip, at most MAX_EXTRA_FRAMES.
        future: further blurred frames after it, likewise.

    Returns:
        As `render_scene`; the frames of the clip itself do not depend on past and future.
    """
    scene_key_, noise_key = jax.random.split(key)
    scene = random_scene(scene_key_, config, photographs=photographs)
    return render_scene(noise_key, scene, config, past=past, future=future)


# --- Rendering ---


class Similarity(NamedTuple):
    """(x, y) -> (a x - b y + dx, b x + a y + dy): rotation, zoom and translation.

    Written out because a matrix product may run in TF32, which is off by tenths of a pixel.
    """

    a: Scalars
    b: Scalars
    dx: Scalars
    dy: Scalars

    @classmethod
    def of(cls, zoom: Scalars, angle: Scalars, dx: Scalars, dy: Scalars) -> "Similarity":
        return cls(zoom * jnp.cos(angle), zoom * jnp.sin(angle), dx, dy)

    def apply(self, x: Scalars, y: Scalars) -> tuple[Scalars, Scalars]:
        return self.a * x - self.b * y + self.dx, self.b * x + self.a * y + self.dy

    def of_layer(self, layer: int | Integer[Array, "..."]) -> "Similarity":
        return Similarity(*(field[layer] for field in self))

    def after(self, first: "Similarity") -> "Similarity":
        """The map that does `first`, then this."""
        dx, dy = self.apply(first.dx, first.dy)
        return Similarity(self.a * first.a - self.b * first.b, self.b * first.a + self.a * first.b, dx, dy)

    def inverse(self) -> "Similarity":
        norm = self.a**2 + self.b**2
        turn = Similarity(self.a / norm, -self.b / norm, jnp.zeros_like(self.dx), jnp.zeros_like(self.dy))
        dx, dy = turn.apply(-self.dx, -self.dy)
        return turn._replace(dx=dx, dy=dy)


def texture_to_frame(scene: Scene, time: Scalars, height: int, width: int) -> Similarity:
    """Where each layer's texels are seen: texel (column, row) to pixel (x, y), fields of shape (L,)."""
    camera, own = scene.camera.at(time), scene.own.at(time)
    shift = scene.position_px + scene.parallax[:, None] * camera[None, :2] + own[:, :2]
    zeros = jnp.zeros_like(scene.parallax)
    texels = zeros + 1 / scene.texels_per_px
    middle = (scene.textures_linear.shape[1] - 1) / 2
    centred = Similarity(texels, zeros, -middle * texels, -middle * texels)
    placed = Similarity.of(jnp.exp(own[:, _LOG_ZOOM]), own[:, _ANGLE], shift[:, 0], shift[:, 1])
    seen = Similarity.of(
        jnp.exp(scene.parallax * camera[_LOG_ZOOM]),
        zeros + camera[_ANGLE],
        zeros + (width - 1) / 2,
        zeros + (height - 1) / 2,
    )
    return seen.after(placed).after(centred)


def render_instant(
    scene: Scene, time: Scalars, height: int, width: int
) -> tuple[Float[Array, "_h _w 3"], Float[Array, "_h _w _l"]]:
    """The scene without exposure time.

    Returns:
        Linear light, and the share of each pixel that each layer fills (they sum to one).
    """
    y, x = jnp.indices((height, width), dtype=jnp.float32)
    to_texture = texture_to_frame(scene, time, height, width).inverse()

    def texels(layer: int) -> jax.Array:
        texture = scene.textures_linear[layer]
        column, row = to_texture.of_layer(layer).apply(x, y)
        if layer == 0:
            column, row = _mirrored(column, texture.shape[1]), _mirrored(row, texture.shape[0])
        return sample_bilinear(texture, column, row, border="edge" if layer == 0 else "zeros")[0]

    nothing = jnp.zeros((height, width, 4))
    light = nothing[..., :3]
    shares: list[jax.Array] = []
    for layer in range(len(scene.textures_linear)):
        is_shown = layer < scene.layers_shown
        over = jax.lax.cond(is_shown, functools.partial(texels, layer), lambda: nothing) if layer else texels(0)
        through = 1 - over[..., 3:]
        light = over[..., :3] + through * light
        shares = [*(through * share for share in shares), over[..., 3:]]
    return light, jnp.concatenate(shares, axis=-1)


def render_scene(key: jax.Array, scene: Scene, config: SceneConfig, *, past: int = 0, future: int = 0) -> Batch:
    """Renders the clip of a given scene, without a batch axis.

    Args:
        key: of the noise.
        scene: what is seen and how it moves.
        config: only frames, height, width, and whether its encoded_share is more than 0, are read.
        past: further blurred frames before the clip, truly rendered, at most MAX_EXTRA_FRAMES.
        future: further blurred frames after it, likewise.

    Returns:
        All of `Batch`: images gamma-encoded with values k / 255; the flow at every frame, to neighbours outside the
        clip too. A valid pixel is filled by one layer (to OPAQUE) and finds it, likewise, in the neighbour.
    """
    for name, extra in {"past": past, "future": future}.items():
        if not 0 <= extra <= MAX_EXTRA_FRAMES:
            raise ValueError(f"{name} is {extra}; expected 0 to {MAX_EXTRA_FRAMES} frames beyond the clip")
    height, width = config.height, config.width
    middle = (config.frames - 1) / 2
    count = scene.sub_frames.astype(jnp.float32)

    def if_encoded(convert: Callable[[jax.Array], jax.Array], values: jax.Array) -> jax.Array:
        # Where no scene asks for it, nothing is compiled: side by side on an accelerator all scenes would pay.
        if not config.encoded_share:
            return values
        return jax.lax.cond(scene.averages_encoded, convert, lambda x: x, values)

    def exposure(frame: jax.Array) -> jax.Array:
        mid_time = frame.astype(jnp.float32) - middle

        def add(sub_frame: jax.Array, total: jax.Array) -> jax.Array:
            time = mid_time + scene.duty * ((sub_frame.astype(jnp.float32) + 0.5) / count - 0.5)
            return total + if_encoded(_encoded, render_instant(scene, time, height, width)[0])

        mean = jax.lax.fori_loop(0, scene.sub_frames, add, jnp.zeros((height, width, 3))) / count
        light = if_encoded(srgb_to_linear, mean)
        noise = jax.random.normal(jax.random.fold_in(key, frame + MAX_EXTRA_FRAMES), light.shape)
        light += jnp.sqrt(scene.shot_noise * light + scene.read_noise**2) * noise
        return _to_8_bit_values(light)

    def instant(frame: jax.Array) -> tuple[jax.Array, jax.Array]:
        light, shares = render_instant(scene, frame.astype(jnp.float32) - middle, height, width)
        return _to_8_bit_values(light), shares

    # One frame after the other: fits the cache, and the memory of one frame is all it takes.
    blurred = jax.lax.map(exposure, jnp.arange(-past, config.frames + future))
    sharp, shares = jax.lax.map(instant, jnp.arange(-1, config.frames + 1))

    def motion(step: int) -> tuple[jax.Array, jax.Array]:
        times = jnp.arange(config.frames, dtype=jnp.float32) - middle
        return jax.lax.map(
            lambda args: _layer_motion(scene, *args),
            (times, times + step, shares[1:-1], shares[1 + step : config.frames + 1 + step]),
        )

    flow_cur_to_prev, valid_cur_to_prev = motion(-1)
    flow_cur_to_next, valid_cur_to_next = motion(1)
    return Batch(
        blurred=blurred,
        sharp=sharp[1:-1],
        flow_cur_to_prev=flow_cur_to_prev,
        flow_cur_to_next=flow_cur_to_next,
        valid_cur_to_prev=valid_cur_to_prev,
        valid_cur_to_next=valid_cur_to_next,
    )


def _layer_motion(
    scene: Scene, time: jax.Array, other_time: jax.Array, shares: jax.Array, other_shares: jax.Array
) -> tuple[Flow, Mask]:
    height, width = shares.shape[:2]
    layer = jnp.argmax(shares, axis=-1)
    to_texture = texture_to_frame(scene, time, height, width).inverse()
    maps = texture_to_frame(scene, other_time, height, width).after(to_texture)
    y, x = jnp.indices((height, width), dtype=jnp.float32)
    other_x, other_y = maps.of_layer(layer).apply(x, y)
    arrived, inside = sample_bilinear(other_shares, other_x, other_y, border="zeros")
    arrived = jnp.take_along_axis(arrived, layer[..., None], axis=-1)[..., 0]
    valid = inside & (jnp.max(shares, axis=-1) >= OPAQUE) & (arrived >= OPAQUE)
    return jnp.stack([other_x - x, other_y - y], axis=-1), valid


def _mirrored(position: jax.Array, size: int) -> jax.Array:
    """Folds any position into 0 ... size - 1 as if the texture were repeated back to back."""
    return size - 1 - jnp.abs(jnp.mod(position, 2 * (size - 1)) - (size - 1))


def _encoded(light: jax.Array) -> jax.Array:
    return linear_to_srgb(jnp.clip(light, 0, 1))


def _to_8_bit_values(light: jax.Array) -> jax.Array:
    return _values_of_levels(jnp.round(255 * _encoded(light)).astype(jnp.int32))


def _values_of_levels(levels: jax.Array) -> jax.Array:
    # Looked up, because a compiler may turn a division by 255 into a product, which is not always the nearest float.
    return jnp.asarray(np.arange(256, dtype=np.float32) / np.float32(255))[levels]


# --- Random scenes ---


def random_scene(key: jax.Array, config: SceneConfig, *, photographs: Photographs | None = None) -> Scene:
    """Draws what a clip shows and how it moves; see `SceneConfig` for the ranges.

    Raises:
        ValueError: photographs of another shape or dtype, or smaller than config.texture_size.
    """
    if photographs is not None:
        _check_photographs(photographs, config)
    texture_key, number_key = jax.random.split(key)
    layers = 1 + config.objects
    draw = _Draws(number_key, 128 * (1 + layers))
    draw_object = draw.shaped(config.objects)
    zero = jnp.zeros(1)
    paths = _random_paths(draw.shaped(1 + layers, 4, 3), config)
    is_object = (jnp.arange(layers) > 0).astype(jnp.float32)
    textures_linear, layers_shown = _random_layers(texture_key, draw, config, photographs)
    scene = Scene(
        textures_linear=textures_linear,
        camera=jax.tree.map(lambda field: field[0], paths),
        own=jax.tree.map(lambda field: field[1:], paths).scaled(is_object),
        parallax=jnp.concatenate([zero + 1, jnp.sort(draw_object.uniform(1.0, 1.5))]),
        position_px=jnp.stack(
            [
                jnp.concatenate([zero, extent * draw_object.uniform(-0.45, 0.45)])
                for extent in (config.width, config.height)
            ],
            axis=-1,
        ),
        texels_per_px=jnp.float32(config.texels_per_px),
        duty=draw.uniform(config.min_duty, config.max_duty),
        sub_frames=jnp.int32(config.sub_frames),
        shot_noise=config.max_shot_noise * draw.uniform() ** 2,
        read_noise=config.max_read_noise * draw.uniform() ** 2,
        averages_encoded=jnp.zeros((), bool),
        layers_shown=layers_shown,
    )
    scene = _with_random_speed(draw, scene, config)
    scene = scene._replace(averages_encoded=draw.uniform() < config.encoded_share)
    if config.softest_texels_per_px is None:
        return scene
    return scene._replace(texels_per_px=draw.log_uniform(config.softest_texels_per_px, config.texels_per_px))


def _random_paths(draw: "_Draws", config: SceneConfig) -> MotionPath:
    """Hand-held motion: a drift, and waves of like speed from 0.1 to 1.6 rad a frame (0.5 to 8 Hz at 30 frames a
    second), all in all about a pixel a frame.

    A turn moves the corners a good deal less than the shifts do, a zoom less still.
    """
    radius_px = math.hypot(config.height, config.width) / 2
    wave_speeds = jnp.array([1.0, 1.0, 0.3 / radius_px, 0.15 / radius_px])
    drift_speeds = jnp.array([1.5, 1.5, 0.2 / radius_px, 0.0])
    frequency = draw.log_uniform(0.1, 1.6)
    return MotionPath(
        drift=drift_speeds[None] * draw.bell()[..., 0],
        amplitude=wave_speeds[None, :, None] * draw.bell() / frequency,
        frequency=frequency,
        phase=draw.uniform(0.0, 2 * math.pi),
    )


def _with_random_speed(draw: "_Draws", scene: Scene, config: SceneConfig) -> Scene:
    draw_layer = draw.shaped(*scene.parallax.shape)
    speed_px = config.max_speed_px * draw.uniform(config.min_speed_share, 1.2)
    speed_px *= jnp.where(draw.uniform() < config.still_share, 0.02, 1.0)
    # A camera at rest before moving objects comes up too.
    camera_share = draw.uniform(0.5, 1.0) * jnp.where(draw.uniform() < 0.1, 0.0, 1.0)
    own_share = (1 - camera_share) * draw_layer.uniform()

    still_camera = scene._replace(camera=scene.camera.scaled(jnp.zeros(())))
    still_layers = scene._replace(own=scene.own.scaled(jnp.zeros_like(scene.parallax)))
    tiny_px = 1e-6  # the background's own path is zero
    own_speed_px = jnp.maximum(corner_speeds_px(still_camera, config), tiny_px)
    camera_speed_px = jnp.maximum(jnp.max(corner_speeds_px(still_layers, config)), tiny_px)
    scene = scene._replace(
        camera=scene.camera.scaled(speed_px * camera_share / camera_speed_px),
        own=scene.own.scaled(speed_px * own_share / own_speed_px),
    )

    # Turns and zooms do not add up like shifts, nor is their motion proportional to them: measure and correct.
    def slow_down(_: int | jax.Array, scene: Scene) -> Scene:
        over = jnp.max(corner_speeds_px(scene, config)) / (0.98 * config.max_speed_px + tiny_px)
        factor = 1 / jnp.maximum(over, 1.0)
        return scene._replace(
            camera=scene.camera.scaled(factor),
            own=scene.own.scaled(jnp.full(scene.parallax.shape, factor)),
        )

    scene = jax.lax.fori_loop(0, 3, slow_down, scene)
    blur_px = scene.duty * jnp.max(corner_speeds_px(scene, config))
    sub_frames = jnp.ceil(3 + 1.5 * blur_px).astype(jnp.int32)
    return scene._replace(sub_frames=jnp.minimum(sub_frames, config.sub_frames))


def corner_speeds_px(scene: Scene, config: SceneConfig) -> Float[Array, "_l"]:
    """Fastest motion of each layer's plane in the frame, pixels a frame, measured between `config.sub_frames`.

    A similarity moves no point of the frame further than some corner, so corners are all that is looked at; the
    frames are those of the clip and MAX_EXTRA_FRAMES at either end.
    """
    height, width = config.height, config.width
    corner_x = jnp.array([0.0, width - 1.0, 0.0, width - 1.0])
    corner_y = jnp.array([0.0, 0.0, height - 1.0, height - 1.0])
    step = scene.duty / config.sub_frames
    frames = jnp.arange(-MAX_EXTRA_FRAMES, config.frames + MAX_EXTRA_FRAMES, dtype=jnp.float32)
    starts = jnp.arange(config.sub_frames, dtype=jnp.float32) + 0.5 - config.sub_frames / 2
    times = (frames[:, None] - (config.frames - 1) / 2 + step * starts[None, :]).reshape(-1)

    def speed(time: jax.Array) -> jax.Array:
        before = texture_to_frame(scene, time, height, width)
        move = texture_to_frame(scene, time + step, height, width).after(before.inverse())
        x, y = jax.vmap(lambda one: one.apply(corner_x, corner_y))(move)
        return jnp.max(jnp.hypot(x - corner_x[None], y - corner_y[None]), axis=-1) / step

    return jnp.max(jax.vmap(speed)(times), axis=0)


def _random_layers(
    key: jax.Array, draw: "_Draws", config: SceneConfig, photographs: Photographs | None
) -> tuple[jax.Array, jax.Array]:
    """Textures of all layers, and how many of them are shown."""
    size = config.texture_size
    colour_key, matte_key = jax.random.split(key)
    if photographs is None:
        colour = functools.partial(draw_texture, size=size)
    else:
        colour = functools.partial(_crop_photograph, photographs=jnp.asarray(photographs), size=size)
    if photographs is not None and config.drawn_share:
        colour = functools.partial(_drawn_or_cropped, crop=colour, size=size, drawn_share=config.drawn_share)
    brightness = jnp.exp(draw.uniform(-0.5, 0.2))
    shown = draw.index(config.objects + 1) if config.objects else jnp.int32(0)

    def texture(args: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        number, of_colour, of_matte = args
        alpha = jnp.ones((size, size, 1))
        if config.objects:
            alpha = jnp.where(number == 0, alpha, _draw_matte(of_matte, size=size, config=config)[..., None])
        return jnp.concatenate([brightness * colour(of_colour) * alpha, alpha], axis=-1)

    def texture_if_shown(args: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return jax.lax.cond(args[0] <= shown, texture, lambda _: jnp.zeros((size, size, 4)), args)

    numbers = jnp.arange(1 + config.objects)
    matte_keys = jax.random.split(matte_key, max(config.objects, 1))[jnp.maximum(numbers - 1, 0)]
    colour_keys = jax.random.split(colour_key, 1 + config.objects)
    return jax.lax.map(texture_if_shown, (numbers, colour_keys, matte_keys)), 1 + shown


def _draw_matte(key: jax.Array, *, size: int, config: SceneConfig) -> jax.Array:
    """Three rounded boxes grown together, with an edge from crisp to out of focus."""
    draw = _Draws(key, 32)
    draw_part = draw.shaped(3)
    reach = config.texels_per_px * min(config.height, config.width) * draw.log_uniform(0.06, 0.28)
    softness = 1.2 + 8 * draw.uniform() ** 4
    around = jnp.array([0.0, 0.6, 0.6])
    half_u, half_v = reach * draw_part.log_uniform(0.12, 0.8), reach * draw_part.log_uniform(0.12, 0.8)
    parts = (
        reach * around * draw_part.uniform(-1.0, 1.0),
        reach * around * draw_part.uniform(-1.0, 1.0),
        draw_part.uniform(0.0, math.pi),
        half_u,
        half_v,
        jnp.minimum(half_u, half_v) * draw_part.uniform(),
    )
    y, x = jnp.indices((size, size), dtype=jnp.float32) - (size - 1) / 2

    def grow(distance: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        part_x, part_y, angle, *box = part
        u, v = _turned(x - part_x, y - part_y, angle)
        return jnp.minimum(distance, _rounded_box_distance(u, v, *box)), None

    distance, _ = jax.lax.scan(grow, jnp.full((size, size), jnp.inf), parts)
    return jnp.clip(0.5 - distance / softness, 0, 1)


def _drawn_or_cropped(
    key: jax.Array, *, crop: Callable[[jax.Array], jax.Array], size: int, drawn_share: float
) -> jax.Array:
    which_key, texture_key = jax.random.split(key)
    is_drawn = jax.random.uniform(which_key) < drawn_share
    return jax.lax.cond(is_drawn, functools.partial(draw_texture, size=size), crop, texture_key)


def _crop_photograph(key: jax.Array, *, photographs: jax.Array, size: int) -> jax.Array:
    draw = _Draws(key, 4)
    count, photograph_size = photographs.shape[:2]
    index, row, column = (draw.index(n) for n in (count, photograph_size - size + 1, photograph_size - size + 1))
    crop = jax.lax.dynamic_slice(photographs, (index, row, column, 0), (1, size, size, 3))[0]
    crop = jnp.where(draw.uniform() < 0.5, crop[:, ::-1], crop)
    levels = srgb_to_linear(jnp.arange(256, dtype=jnp.float32) / 255)
    return jnp.take(levels, crop.astype(jnp.int32))


def _check_photographs(photographs: Photographs, config: SceneConfig) -> None:
    shape = photographs.shape
    if shape[0] == 0 or shape[1] < config.texture_size:
        raise ValueError(
            f"photographs has shape {tuple(shape)}; expected (N, S, S, 3) with N at least 1 and S at least the "
            f"texture size of {config.texture_size}: load_photographs(folder, config.texture_size)"
        )


# --- Drawn textures ---


class Stamps(NamedTuple):
    """Rotated rounded boxes to paint in order: discs if square and round, lines and capsules if thin."""

    x: Float[Array, "_n"]  # centre, texels
    y: Float[Array, "_n"]
    half_u: Float[Array, "_n"]  # half sides, texels
    half_v: Float[Array, "_n"]
    radius: Float[Array, "_n"]  # of the corners
    angle: Float[Array, "_n"]
    outline: Float[Array, "_n"]  # half width of the rim if only that is painted, or 0
    cut: Float[Array, "_n"]  # what has v below this is left out: a cut rim is an arc
    softness: Float[Array, "_n"]  # width of the edge
    colour_from: Float[Array, "_n 3"]  # linear light, fading along u to the other
    colour_to: Float[Array, "_n 3"]
    stripes: Float[Array, "_n"]  # stripes a texel instead of one fade, or 0
    grain: Float[Array, "_n"]  # standard deviation of log light from the grain map


def draw_texture(key: jax.Array, *, size: int) -> Float[Array, "_s _s 3"]:
    """An opaque texture with detail at all scales, linear light: dead leaves, writing, thin lines.

    After Lee, Mumford and Huang, "Occlusion models for natural images" (2001), where leaves of all sizes fall in any
    order. Here the small ones fall last and most of them in clusters: fine detail stays in sight, between quieter
    parts, and is painted through small windows.
    """
    grain_key, number_key = jax.random.split(key)
    area = (size / 256) ** 2
    windows = [(size, round(12 * area)), (72, round(60 * area)), (28, round(130 * area)), (14, round(240 * area))]
    windows = [(min(window, size), count) for window, count in windows]
    blocks, line_count = max(1, round(1.2 * area)), round(6 * area)
    leaf_count = sum(count for _, count in windows)
    draw = _Draws(number_key, 48 * (leaf_count + line_count) + 1600 * blocks + 512)
    palette = _random_palette(draw)
    grain = _grain_map(grain_key, size)
    y, x = jnp.indices((size, size), dtype=jnp.float32) / size - 0.5
    fade = jnp.clip(_turned(x, y, draw.uniform(0.0, 2 * math.pi))[0] + 0.5, 0, 1)[..., None]
    ends = srgb_to_linear(palette[:2])
    image = (1 - fade) * ends[0][None, None] + fade * ends[1][None, None]

    leaves = iter(_leaves(draw, windows, size, palette))
    image = _paint(image, grain, next(leaves), size)
    image = _paint(image, grain, next(leaves), 72)
    panels, strokes = _writing(draw, blocks, size)
    lines = _lines(draw, line_count, size, palette)
    image = _paint(image, grain, _joined(panels, lines), size)
    image = _paint(image, grain, _joined(strokes, next(leaves)), 28)
    return _paint(image, grain, next(leaves), 14)


def _random_palette(draw: "_Draws") -> jax.Array:
    """(6, 3) gamma-encoded colours, most of them muted."""
    draw_colour = draw.shaped(6, 1)
    grey, saturation = draw_colour.uniform(0.05, 0.95), 0.2 * draw_colour.uniform() ** 1.5
    return jnp.clip(grey + saturation * draw.shaped(6, 3).bell(), 0.02, 0.98)


def _grain_map(key: jax.Array, size: int) -> jax.Array:
    """Noise of equal power in every octave (1 / f), near unit variance."""
    sizes = [max(2, size >> octave) for octave in range(6)]
    noise = jax.random.normal(key, (sum(coarse**2 for coarse in sizes),))
    octaves = jnp.split(noise, np.cumsum([coarse**2 for coarse in sizes])[:-1])
    total = jnp.zeros((size, size, 1))
    for coarse, octave in zip(sizes, octaves):
        total += resize_bilinear(octave.reshape(coarse, coarse, 1), size, size, align_corners=False)
    return total[..., 0] / math.sqrt(len(sizes))


def _leaves(draw: "_Draws", windows: list[tuple[int, int]], size: int, palette: jax.Array) -> list[Stamps]:
    """Stamps that fit their windows, for each (window, count); more than half of them in clusters."""
    counts = [count for _, count in windows]
    total = sum(counts)
    clusters = draw.shaped(5, 2).uniform(0.0, size)
    draw = draw.shaped(total)
    near = clusters[draw.index(len(clusters))]
    spread = 0.1 * size
    clustered = draw.uniform() < 0.75
    x, y = (jnp.where(clustered, near[:, axis] + spread * draw.bell(), draw.uniform(0.0, size)) for axis in (0, 1))
    window = np.repeat([float(window) for window, _ in windows], counts).astype(np.float32)
    reach = (window / 2 - 2) * jnp.exp2(-1.2 * draw.uniform())
    diagonal = draw.uniform(0.08, math.pi / 2 - 0.08)
    half_u, half_v = reach * jnp.cos(diagonal), reach * jnp.sin(diagonal)
    striped = draw.uniform() < 0.2
    colour_from, colour_to = _leaf_colours(draw, palette, striped)
    leaves = Stamps(
        x=x,
        y=y,
        half_u=half_u,
        half_v=half_v,
        radius=jnp.clip(draw.uniform(-0.5, 1.5), 0, 1) * jnp.minimum(half_u, half_v),
        angle=draw.uniform(0.0, math.pi),
        outline=jnp.where(draw.uniform() < 0.15, jnp.clip(0.06 * reach, 0.7, 3.0), 0.0),
        cut=jnp.full(total, -jnp.inf),
        softness=jnp.where(draw.uniform() < 0.1, 1 + 0.15 * reach, 1.0),
        colour_from=colour_from,
        colour_to=colour_to,
        stripes=jnp.where(striped, 1 / draw.log_uniform(4.5, 16.0), 0.0),
        grain=0.5 * draw.uniform() ** 2,
    )
    ends = np.cumsum(counts)
    return [jax.tree.map(lambda field, i=end - count, j=end: field[i:j], leaves) for end, count in zip(ends, counts)]


def _leaf_colours(draw: "_Draws", palette: jax.Array, striped: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both colours of each leaf, linear light: one of the palette, changed a little, and a lighter or darker one."""
    picked = palette[draw.index(len(palette))] + 0.1 * draw.bell()[:, None]
    colour_from = picked + 0.08 * jnp.stack([draw.bell() for _ in range(3)], axis=-1)
    colour_to = colour_from + (jnp.where(striped, 0.3, 0.1) * draw.bell())[:, None]
    # A few are lamps, brighter than white: they leave the streaks that saturated highlights leave.
    brightness = jnp.where(draw.uniform() < 0.01, 4.0, 1.0)[:, None]
    from_linear, to_linear = (srgb_to_linear(jnp.clip(c, 0.02, 0.98)) for c in (colour_from, colour_to))
    return brightness * from_linear, brightness * to_linear


def _lines(draw: "_Draws", count: int, size: int, palette: jax.Array) -> Stamps:
    draw = draw.shaped(count)
    colour, _ = _leaf_colours(draw, palette, jnp.zeros(count, bool))
    zeros = jnp.zeros(count)
    half_v = draw.uniform(0.5, 1.6)
    return Stamps(
        x=draw.uniform(0.0, size),
        y=draw.uniform(0.0, size),
        half_u=size * draw.uniform(0.1, 0.6),
        half_v=half_v,
        radius=half_v,
        angle=draw.uniform(0.0, math.pi),
        outline=zeros,
        cut=zeros - jnp.inf,
        softness=zeros + 1,
        colour_from=colour,
        colour_to=colour,
        stripes=zeros,
        grain=zeros,
    )


def _writing(draw: "_Draws", blocks: int, size: int) -> tuple[Stamps, Stamps]:
    """Rows of glyphs, each of two strokes or arcs, on panels: the panels, and the strokes."""
    rows, columns, strokes = 4, 14, 2
    draw = draw.shaped(blocks)
    pitch = draw.log_uniform(7.0, 14.0)
    x, y = draw.uniform(0.2 * size, 0.8 * size), draw.uniform(0.2 * size, 0.8 * size)
    angle = 0.2 * draw.bell()
    stroke = pitch * draw.uniform(0.06, 0.11)
    grey = draw.uniform(0.05, 0.95)
    ink_grey = jnp.where(grey > 0.5, 0.6 * (grey - 0.5), grey + 0.4)
    paper, ink = (
        srgb_to_linear(jnp.stack([jnp.clip(tone + 0.06 * draw.bell(), 0.02, 0.98) for _ in range(3)], axis=-1))
        for tone in (grey, ink_grey)
    )
    zeros = jnp.zeros(blocks)
    panels = Stamps(
        x=x,
        y=y,
        half_u=pitch * (columns + 1) / 2,
        half_v=0.75 * pitch * (rows + 0.5),
        radius=pitch * draw.uniform(),
        angle=angle,
        outline=zeros,
        cut=zeros - jnp.inf,
        softness=zeros + 1,
        colour_from=paper,
        colour_to=0.8 * paper,
        stripes=zeros,
        grain=zeros + 0.1,
    )

    shape = (blocks, rows, columns, strokes)
    total = math.prod(shape)
    block, row, column, _ = np.indices(shape).reshape(4, total)
    blank = draw.shaped(*shape[:3]).uniform() < 0.15
    draw = draw.shaped(total)
    kind = draw.index(4)
    upright, level, slanted, arc = (kind == k for k in range(4))
    pitch, angle, stroke = pitch[block], angle[block], stroke[block]
    # In units of the pitch, from the middle of the glyph.
    offset_u = jnp.where(upright, draw.uniform(-0.28, 0.28), 0.0)
    offset_v = jnp.where(level, 0.4 * (draw.index(3) - 1).astype(jnp.float32), 0.0)
    length_u = jnp.where(level | arc, 0.28, 0.0)
    length_v = jnp.where(level, 0.0, jnp.where(arc, 0.34, 0.42))
    tilt = jnp.where(slanted, draw.uniform(-0.6, 0.6), 0.0)
    quarter_turn = math.pi / 2 * draw.index(4).astype(jnp.float32)
    u = pitch * ((column - (columns - 1) / 2).astype(np.float32) + offset_u)
    v = pitch * ((1.5 * (row - (rows - 1) / 2)).astype(np.float32) + offset_v)
    dx, dy = _turned(u, v, -angle)
    half_u = pitch * length_u + jnp.where(arc, 0.0, stroke)
    zeros = jnp.zeros(total)
    return panels, Stamps(
        x=x[block] + dx,
        y=y[block] + dy,
        half_u=half_u,
        half_v=pitch * length_v + jnp.where(level, stroke, 0.0),
        radius=jnp.where(arc, half_u, 0.0),
        angle=angle + jnp.where(arc, quarter_turn, tilt),
        outline=jnp.where(arc, stroke, 0.0),
        cut=jnp.where(blank[block, row, column], jnp.inf, jnp.where(arc, -0.1 * pitch, -jnp.inf)),
        softness=zeros + 1,
        colour_from=ink[block],
        colour_to=ink[block],
        stripes=zeros,
        grain=zeros,
    )


def _joined(first: Stamps, second: Stamps) -> Stamps:
    return jax.tree.map(lambda *fields: jnp.concatenate(fields), first, second)


def _paint(image: jax.Array, grain: jax.Array, stamps: Stamps, window: int) -> jax.Array:
    """Paints stamps in order, each within a window x window part of the image around its centre."""
    size = image.shape[0]
    window = min(window, size)
    steps = jnp.arange(window, dtype=jnp.float32)

    def paint_one(image: jax.Array, stamp: Stamps) -> tuple[jax.Array, None]:
        row, column = (
            jnp.clip(jnp.round(centre - window / 2), 0, size - window).astype(jnp.int32)
            for centre in (stamp.y, stamp.x)
        )
        x = (column.astype(jnp.float32) - stamp.x + steps)[None, :]
        y = (row.astype(jnp.float32) - stamp.y + steps)[:, None]
        u, v = _turned(x, y, stamp.angle)
        distance = _rounded_box_distance(u, v, stamp.half_u, stamp.half_v, stamp.radius)
        distance = jnp.where(stamp.outline > 0, jnp.abs(distance) - stamp.outline, distance)
        distance = jnp.maximum(distance, stamp.cut - v)
        coverage = jnp.clip(0.5 - distance / stamp.softness, 0, 1)[..., None]
        wave = 0.5 + 0.5 * jnp.clip(2 * jnp.sin(2 * math.pi * stamp.stripes * u), -1, 1)
        fade = jnp.clip(0.5 + 0.5 * u / stamp.half_u, 0, 1)
        mix = jnp.where(stamp.stripes > 0, wave, fade)[..., None]
        colour = (1 - mix) * stamp.colour_from[None, None] + mix * stamp.colour_to[None, None]
        grain_patch = jax.lax.dynamic_slice(grain, (row, column), (window, window))
        colour *= jnp.exp(stamp.grain * grain_patch)[..., None]
        patch = jax.lax.dynamic_slice(image, (row, column, 0), (window, window, 3))
        patch += coverage * (colour - patch)
        return jax.lax.dynamic_update_slice(image, patch, (row, column, 0)), None

    return jax.lax.scan(paint_one, image, stamps)[0]


def _rounded_box_distance(
    u: jax.Array, v: jax.Array, half_u: jax.Array, half_v: jax.Array, radius: jax.Array
) -> jax.Array:
    """Signed distance to a box around the origin, negative inside."""
    beyond_u, beyond_v = jnp.abs(u) - half_u + radius, jnp.abs(v) - half_v + radius
    outside = jnp.sqrt(jnp.maximum(beyond_u, 0) ** 2 + jnp.maximum(beyond_v, 0) ** 2)
    return outside + jnp.minimum(jnp.maximum(beyond_u, beyond_v), 0) - radius


def _turned(x: jax.Array, y: jax.Array, angle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coordinates along axes turned by angle."""
    return jnp.cos(angle) * x + jnp.sin(angle) * y, jnp.cos(angle) * y - jnp.sin(angle) * x


class _Draws:
    """Random numbers, shape after shape, from a stock drawn at once: a call for each takes a minute to compile.

    Args:
        key: of the stock.
        total: how many numbers there are in it.
    """

    def __init__(self, key: jax.Array, total: int) -> None:
        self._stock = [jax.random.uniform(key, (total,))]
        self._shape: tuple[int, ...] = ()

    def shaped(self, *shape: int) -> "_Draws":
        """The same stock, handed out in this shape."""
        other = copy.copy(self)
        other._shape = shape
        return other

    def _next(self) -> jax.Array:
        taken, self._stock[0] = jnp.split(self._stock[0], [math.prod(self._shape)])
        return taken.reshape(self._shape)

    def uniform(self, low: float | int = 0.0, high: float | int = 1.0) -> jax.Array:
        return low + (high - low) * self._next()

    def log_uniform(self, low: float, high: float) -> jax.Array:
        return jnp.exp(self.uniform(math.log(low), math.log(high)))

    def bell(self) -> jax.Array:
        """Near normal, unit variance, within 3: the sum of three, quicker to compile than the inverse normal."""
        return 2 * (self._next() + self._next() + self._next()) - 3

    def index(self, count: int) -> jax.Array:
        return jnp.floor(self.uniform(0.0, count)).astype(jnp.int32)


# --- Photographs in, video folders out ---


def load_photographs(folder: StrPath, size: int, *, crops_per_photograph: int = 4) -> UInt8[np.ndarray, "_n _s _s 3"]:
    """Cuts the most detailed size x size crops out of every photograph of a folder, sorted by name.

    Large photographs are reduced first, by whole factors in linear light, until their short side is under four times
    the size: at the camera's full resolution they are soft. Crops are taken by mean absolute gradient, none covering
    the centre of another.

    Args:
        folder: of images; other files are passed over.
        size: height and width of a crop, pixels.
        crops_per_photograph: most crops from one photograph.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: a photograph is damaged, or smaller than a crop; the message names it. Or no crops are asked for.
    """
    if crops_per_photograph < 1:
        raise ValueError(f"crops_per_photograph is {crops_per_photograph}; expected 1 or more")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of photographs")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_KINDS)
    if not paths:
        raise FileNotFoundError(f"{folder}: no photographs here; expected files ending in {', '.join(IMAGE_KINDS)}")
    crops: list[np.ndarray] = []
    for path in paths:
        photograph = read_rgb_u8(path)
        short_side = min(photograph.shape[:2])
        if short_side < size:
            raise ValueError(
                f"{path}: {photograph.shape[1]}x{photograph.shape[0]} pixels, but crops of {size}x{size} are "
                "wanted; remove it, or render smaller frames"
            )
        photograph = _reduced(photograph, max(1, short_side // (2 * size)))
        crops += _detailed_crops(photograph, size, crops_per_photograph)
    return np.stack(crops)


def _reduced(photograph: np.ndarray, factor: int) -> np.ndarray:
    height, width = (extent // factor * factor for extent in photograph.shape[:2])
    blocks = photograph[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    if factor == 1:
        return photograph
    levels = np.arange(256) / 255
    levels = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    linear = levels.astype(np.float32)[blocks].mean(axis=(1, 3))
    return np.asarray(jnp.round(255 * linear_to_srgb(linear)), np.uint8)


def _detailed_crops(photograph: np.ndarray, size: int, count: int) -> list[np.ndarray]:
    grey = photograph.astype(np.float32).mean(axis=-1)
    energy = np.abs(np.diff(grey, axis=0))[:, 1:] + np.abs(np.diff(grey, axis=1))[1:]
    # Summed-area table, so that each candidate costs four reads.
    table = np.pad(energy.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    stride = max(1, size // 8)
    rows, columns = (
        np.unique(np.append(np.arange(0, extent - size + 1, stride), extent - size)) for extent in grey.shape
    )
    top, left = np.ix_(rows, columns)
    sums = (
        table[top + size - 1, left + size - 1]
        - table[top, left + size - 1]
        - table[top + size - 1, left]
        + table[top, left]
    )
    crops: list[np.ndarray] = []
    while len(crops) < count and np.max(sums) >= 0:
        i, j = np.unravel_index(np.argmax(sums), sums.shape)
        row, column = rows[i], columns[j]
        crops.append(photograph[row : row + size, column : column + size])
        sums[(np.abs(top - row) < size / 2) & (np.abs(left - column) < size / 2)] = -1
    return crops


def write_video_folder(
    root: StrPath,
    split: str,
    clips: int,
    seed: int,
    config: SceneConfig,
    *,
    photographs: Photographs | None = None,
) -> None:
    """Renders clips 0 ... clips - 1 of the data set `seed` to <root>/<split>/<clip>/{blur,sharp}/<frame>.png.

    A clip's folder appears when it is whole; those already there are kept, so that an interrupted call can be
    repeated as it was. What they were rendered from is in <root>/<split>.scenes.json.

    Args:
        root: of the video folder.
        split: "train", "val" or another; give each its own seed.
        clips: how many.
        seed: of the data set.
        config: what the clips are like.
        photographs: as for `render_clip`.

    Raises:
        ValueError: clips is not positive, or the split was begun with another seed, config or photographs.
        OSError: the folder cannot be written.
    """
    if clips < 1:
        raise ValueError(f"clips is {clips}; expected at least 1")
    root = Path(root)
    recipe = {
        "seed": seed,
        "config": dataclasses.asdict(config),
        "photographs_crc32": None if photographs is None else zlib.crc32(np.asarray(photographs).tobytes()),
    }
    recipe_path = root / f"{split}.scenes.json"
    if recipe_path.exists():
        begun = json.loads(recipe_path.read_text())
        if begun != recipe:
            raise ValueError(f"{root / split} was begun with {begun}, not with {recipe}; choose another root or split")
    (root / split).mkdir(parents=True, exist_ok=True)
    recipe_path.write_text(json.dumps(recipe, indent=2) + "\n")
    for index in range(clips):
        clip_folder = root / split / f"{index:05d}"
        if not clip_folder.exists():
            _write_clip(clip_folder, _render_clip_jit(scene_key(seed, index), config, photographs=photographs))


_render_clip_jit = jit(render_clip, static_argnames=("config", "past", "future"))


def _write_clip(clip_folder: Path, batch: Batch) -> None:
    # A leading dot keeps readers of the split away from it.
    partial = clip_folder.with_name(f".{clip_folder.name}.partial-{os.getpid()}")
    try:
        for name, frames in {"blur": batch["blurred"], "sharp": batch["sharp"]}.items():
            (partial / name).mkdir(parents=True)
            for index, frame_u8 in enumerate(np.round(255 * np.asarray(frames)).astype(np.uint8)):
                write_image(partial / name / f"{index:05d}.png", ImageFile(frame_u8))
        partial.rename(clip_folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
