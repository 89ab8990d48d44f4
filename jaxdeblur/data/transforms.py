"""Augmentation of training windows: one geometry for a whole window, noise for each frame.

Draws are pure functions of (seed, sample number), never of what was drawn before. The geometry is drawn and
applied on the host, to bytes; the noise needs floats and is added on the accelerator by `to_float_batch`,
inside the jitted step.
"""

import dataclasses
import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from jaxdeblur.data.streams import Stream
from jaxdeblur.types import Array, Batch, Clip


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a window. Weights are shares of the rotations (flips) that happen; they add to 1."""

    rotation_probability: float
    rotation_weights: tuple[float, float, float]
    """90 degrees counter-clockwise, 90 degrees clockwise, 180 degrees."""
    flip_probability: float
    flip_weights: tuple[float, float, float]
    """Up-down, left-right, both."""
    noise_probability: float
    """For each frame; blurred and sharp share the decision and have noise of their own."""
    noise_sigma: float
    """Standard deviation of the Gaussian noise, in units of the range [0, 1]."""
    lowest_scale: float = 1.0
    """Windows are cut larger and resized (triangle filter, antialiased) by a factor drawn uniformly from here to 1, but
    none so low that the frame is too small."""
    permute_colours: bool = False
    """One of the six orders of the channels, the same for the whole window."""

    def __post_init__(self) -> None:
        for field in ("rotation_probability", "flip_probability", "noise_probability"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} is a probability between 0 and 1, not {getattr(self, field)}")
        for field in ("rotation_weights", "flip_weights"):
            weights = getattr(self, field)
            if len(weights) != 3 or min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
                raise ValueError(f"{field} are three shares that add to 1, not {weights}")
        if not 0 < self.lowest_scale <= 1:
            raise ValueError(f"lowest_scale is a factor above 0 and up to 1, not {self.lowest_scale}")
        if self.noise_sigma < 0:
            raise ValueError(f"noise_sigma is a standard deviation >= 0, not {self.noise_sigma}")

    @property
    def swaps_axes(self) -> bool:
        """Whether a landscape frame may become a portrait one."""
        return self.rotation_probability > 0 and self.rotation_weights[0] + self.rotation_weights[1] > 0


MTU_AUGMENTATION = Augmentation(
    rotation_probability=0.5,
    rotation_weights=(0.3, 0.3, 0.4),
    flip_probability=0.5,
    flip_weights=(0.3, 0.3, 0.4),
    noise_probability=0.5,
    noise_sigma=1e-4,
)
"""The released recipe of Son et al., "Real-Time Video Deblurring via Lightweight Motion Compensation"
(2022)."""


FLIPS = Augmentation(
    rotation_probability=0.0,
    rotation_weights=(0.0, 0.0, 1.0),
    flip_probability=0.75,
    flip_weights=(1 / 3, 1 / 3, 1 / 3),
    noise_probability=0.0,
    noise_sigma=0.0,
)
"""As it is, up-down, left-right or both, equally often: for crops that do not fit the images turned by 90 degrees."""

QUARTER_TURNS_AND_FLIPS = Augmentation(
    rotation_probability=0.75,
    rotation_weights=(1 / 3, 1 / 3, 1 / 3),
    flip_probability=0.5,
    flip_weights=(0.0, 1.0, 0.0),
    noise_probability=0.0,
    noise_sigma=0.0,
)
"""Each of the eight ways to lay down a picture, equally often; the crop must fit upright and lying."""

SVRNN_AUGMENTATION = dataclasses.replace(QUARTER_TURNS_AND_FLIPS, lowest_scale=0.5, permute_colours=True)
"""Our reading of "random crop, resize, rotate, scale, colour permutation" in Zhang et al. (TCSVT 2021), which gives no
ranges."""

VDFLOW_AUGMENTATION = dataclasses.replace(QUARTER_TURNS_AND_FLIPS, lowest_scale=0.5)
"""Our reading of "scaling, rotation, flips" in Yan et al. (CVPRW 2020), which gives no ranges."""


@dataclass(frozen=True)
class Geometry:
    """A box of the stored frame, then its axes swapped or not, then its rows and its columns reversed or not, then its
    channels in another order; last it is resized to the crop, if it is not of that size.

    Every rotation by quarter turns with every flip is one of these eight, and a crop after them is a crop
    before them: so only the box need be decoded.
    """

    top_px: int
    left_px: int
    height_px: int
    width_px: int
    swap_axes: bool
    reverse_rows: bool
    reverse_columns: bool
    channels: tuple[int, ...] = (0, 1, 2)


def check_crop(
    clip_name: str,
    frame_size_px: tuple[int, int],
    crop_px: tuple[int, int],
    augmentation: Augmentation | None,
) -> None:
    """Raises ValueError if a (height, width) crop does not fit the clip's (height, width), however turned."""
    height_px, width_px = frame_size_px
    rotates = augmentation is not None and augmentation.swaps_axes
    sizes_px = [(height_px, width_px), (width_px, height_px)] if rotates else [(height_px, width_px)]
    if min(crop_px) < 1 or any(crop_px[0] > height or crop_px[1] > width for height, width in sizes_px):
        turned = " and is also turned by 90 degrees" if rotates else ""
        raise ValueError(
            f"a crop of {crop_px[1]}x{crop_px[0]} does not fit clip {clip_name!r}, whose frame is "
            f"{width_px}x{height_px}{turned}; choose a crop of 1x1 to "
            f"{min(size[1] for size in sizes_px)}x{min(size[0] for size in sizes_px)}"
        )


def draw_geometry(
    *,
    seed: int,
    sample: int,
    frame_size_px: tuple[int, int],
    crop_px: tuple[int, int],
    augmentation: Augmentation | None,
) -> Geometry:
    """The geometry of sample number `sample`: rotation, flip, scale, order of colours, and a crop at a uniformly random
    place.

    Args:
        seed: the run's, 0 to 2**32-1.
        sample: number of the sample in the run.
        frame_size_px: (height, width) as stored, portrait or landscape; `check_crop` says whether the crop
            fits.
        crop_px: (height, width) of the result.
        augmentation: None crops only, at the place that the same draw gives.
    """
    # One number each, always, so that no draw moves another. NumPy promises to keep the bits of Philox.
    bits = np.random.Philox(np.random.SeedSequence((Stream.GEOMETRY, seed, sample))).random_raw(8)
    rotate, rotation, flip, flip_kind, down, right, scale, colours = ((bits >> np.uint64(11)) * 2.0**-53).tolist()
    swap_axes = reverse_rows = reverse_columns = False
    if augmentation is not None and rotate < augmentation.rotation_probability:
        counter_clockwise, clockwise, _ = np.cumsum(augmentation.rotation_weights)
        swap_axes = bool(rotation < clockwise)
        # A quarter turn swaps the axes, then reverses rows (counter-clockwise) or columns (clockwise).
        reverse_rows = bool(rotation < counter_clockwise or rotation >= clockwise)
        reverse_columns = bool(rotation >= counter_clockwise)
    if augmentation is not None and flip < augmentation.flip_probability:
        up_down, left_right, _ = np.cumsum(augmentation.flip_weights)
        reverse_rows ^= bool(flip_kind < up_down or flip_kind >= left_right)
        reverse_columns ^= bool(flip_kind >= up_down)

    # A place drawn uniformly in the stored frame is one drawn uniformly in the turned frame.
    height_px, width_px = crop_px[::-1] if swap_axes else crop_px
    channels: tuple[int, ...] = (0, 1, 2)
    if augmentation is not None:
        factor = 1 - (1 - augmentation.lowest_scale) * scale
        factor = max(factor, height_px / frame_size_px[0], width_px / frame_size_px[1])
        height_px, width_px = round(height_px / factor), round(width_px / factor)
        if augmentation.permute_colours:
            channels = list(itertools.permutations(range(3)))[int(6 * colours)]
    return Geometry(
        top_px=int(down * (frame_size_px[0] - height_px + 1)),
        left_px=int(right * (frame_size_px[1] - width_px + 1)),
        height_px=height_px,
        width_px=width_px,
        swap_axes=swap_axes,
        reverse_rows=reverse_rows,
        reverse_columns=reverse_columns,
        channels=channels,
    )


def orient(cropped: np.ndarray, *, swap_axes: bool, reverse_rows: bool, reverse_columns: bool) -> np.ndarray:
    """The turns of a geometry, applied to its cropped box (..., h, w, C); a view."""
    if swap_axes:
        cropped = np.swapaxes(cropped, -3, -2)
    if reverse_rows:
        cropped = cropped[..., ::-1, :, :]
    if reverse_columns:
        cropped = cropped[..., ::-1, :]
    return cropped


def resize_to_crop(cropped: np.ndarray, crop_px: tuple[int, int]) -> np.ndarray:
    """Frames (T, h, w, 3) uint8 of a box, antialiased, at (height, width) of the crop; as they are if they have it."""
    if cropped.shape[1:3] == tuple(crop_px):
        return cropped
    size = (crop_px[1], crop_px[0])
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)) for frame in cropped])


def to_float_batch(
    batch_u8: dict[str, UInt8[Array, "_b _t _h _w 3"]],
    *,
    seed: int,
    first_sample: int | Integer[Array, ""],
    augmentation: Augmentation | None,
    past: int,
) -> Batch:
    """Bytes to floats in [0, 1], with the noise of the augmentation. Call it inside the jitted step.

    For each frame, with probability `noise_probability`: Gaussian noise is added to the blurred and, drawn
    anew, to the sharp frame; both are clipped to [0, 1]. Blurred frame past + i shares the decision with
    sharp frame i.

    Args:
        batch_u8: blurred (B, past+T+future, h, w, 3) and sharp (B, T, h, w, 3), as `video_folder_batches`
            yields them.
        seed: the run's.
        first_sample: number of the batch's first sample in the run: batch k of size B starts at k*B. May be
            traced.
        augmentation: whose noise is added; None adds none.
        past: blurred frames before the first that has a sharp partner.
    """
    blurred = jnp.asarray(batch_u8["blurred"]).astype(jnp.float32) / 255.0
    sharp = jnp.asarray(batch_u8["sharp"]).astype(jnp.float32) / 255.0
    if augmentation is None or augmentation.noise_probability == 0 or augmentation.noise_sigma == 0:
        return {"blurred": blurred, "sharp": sharp}
    probability, sigma = augmentation.noise_probability, augmentation.noise_sigma

    def add_noise(sample: jax.Array, blurred: Clip, sharp: Clip) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), sample)
        key_frames, key_blurred, key_sharp = jax.random.split(key, 3)
        noisy = jax.random.bernoulli(key_frames, probability, (blurred.shape[0], 1, 1, 1))
        return (
            _add_noise_where(key_blurred, blurred, noisy, sigma),
            _add_noise_where(key_sharp, sharp, noisy[past : past + sharp.shape[0]], sigma),
        )

    samples = jnp.asarray(first_sample).astype(jnp.uint32) + jnp.arange(blurred.shape[0], dtype=jnp.uint32)
    blurred, sharp = jax.vmap(add_noise)(samples, blurred, sharp)
    return {"blurred": blurred, "sharp": sharp}


def _add_noise_where(key: jax.Array, clip: Clip, noisy: jax.Array, sigma: float) -> jax.Array:
    noise = sigma * jax.random.normal(key, clip.shape, jnp.float32)
    return jnp.where(noisy, jnp.clip(clip + noise, 0.0, 1.0), clip)
