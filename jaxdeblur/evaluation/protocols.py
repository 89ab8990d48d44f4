"""How papers score restored frames. A figure means something only with its protocol; SSIM above all differs.

A score takes one restored and one sharp frame, float (H, W, 3) in [0, 1], and returns PSNR in decibel and SSIM. A
protocol (`PROTOCOLS`) adds which frames count, how they are turned and cut, and what is averaged. For one and the same
pair of frames `docs/protocols.md` shows what each prints.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.compilation import jit
from jaxdeblur.data.video_folder import DVD_TEST_VIDEOS
from jaxdeblur.ops.filters import correlate_axis, gaussian_taps
from jaxdeblur.ops.quality import GAUSSIAN_11, psnr_db, ssim, structural_similarity, window_mean
from jaxdeblur.ops.resample import downsample_area
from jaxdeblur.ops.warp import warp_blocks
from jaxdeblur.types import Displacement, Image, Scalars

LUMA = (0.299, 0.587, 0.114)
CDVD_BORDER_PX = 4


def round_u8(image: Image) -> Image:
    """The values an 8-bit file would hold, still in [0, 1]."""
    return jnp.round(jnp.clip(jnp.asarray(image, jnp.float32), 0.0, 1.0) * 255) / 255


@jit
def common(restored: Image, sharp: Image) -> tuple[Scalars, Scalars]:
    """What most of the field reports: 8-bit RGB, no border cut; PSNR over all values, SSIM per channel with the 11 x 11
    Gaussian window."""
    restored, sharp = round_u8(restored), round_u8(sharp)
    return psnr_db(restored, sharp), ssim(restored, sharp)


@jit
def mtu_inloop(restored: Image, sharp: Image) -> tuple[Scalars, Scalars]:
    """The multi-task units' Python evaluation: floats, not rounded; SSIM with a 7 x 7 uniform window and sample
    covariance, a border of 3 pixels left out."""
    restored, sharp = jnp.clip(jnp.asarray(restored, jnp.float32), 0, 1), jnp.asarray(sharp, jnp.float32)
    return psnr_db(restored, sharp), jnp.mean(_uniform_ssim(restored, sharp))


def _uniform_ssim(image: jax.Array, reference: jax.Array) -> jax.Array:
    return structural_similarity(image, reference, window_mean(np.full(7, 1 / 7)), covariance_scale=49 / 48)


@jit
def mtu_matlab(restored: Image, sharp: Image) -> tuple[Scalars, Scalars]:
    """The multi-task units' MATLAB script as shipped: 8-bit RGB; its SSIM takes the frame for a volume and filters
    along the colour axis, too (Gaussian, sigma 1.5, 11 taps, repeated border), and is higher than a per-channel one."""
    restored, sharp = round_u8(restored), round_u8(sharp)

    def mean(volume: jax.Array) -> jax.Array:
        for axis in (-3, -2, -1):
            pad = [(0, 0)] * volume.ndim
            pad[axis] = (5, 5)
            volume = correlate_axis(jnp.pad(volume, pad, mode="edge"), GAUSSIAN_11, axis)
        return volume

    return psnr_db(restored, sharp), jnp.mean(structural_similarity(restored, sharp, mean))


@jit
def estrnn(restored: Image, sharp: Image) -> tuple[Scalars, Scalars]:
    """ESTRNN's test script: 8-bit RGB, the restored values cut down to whole ones where others round; PSNR over all
    values, SSIM per channel with the 11 x 11 Gaussian window on the valid region."""
    # A hair is added so that values that come from 8-bit files, k / 255 in float32, stay what they are.
    levels = jnp.clip(jnp.asarray(restored, jnp.float32), 0.0, 1.0) * 255
    restored, sharp = round_u8(jnp.floor(levels + 1e-3) / 255), round_u8(sharp)
    return psnr_db(restored, sharp), ssim(restored, sharp)


@jit
def cdvd(restored: Image, sharp: Image) -> tuple[Scalars, Scalars]:
    """CDVD-TSP's inference script: 8-bit RGB, 4 pixels cut on each side, then PSNR over all values and SSIM per channel
    with the 11 x 11 Gaussian window on the valid region."""
    if min(restored.shape[:2]) <= 2 * CDVD_BORDER_PX:
        raise ValueError(
            f"frames of {restored.shape[1]}x{restored.shape[0]} have nothing left when {CDVD_BORDER_PX} pixels are cut "
            "on each side, as protocol cdvd does; choose another protocol"
        )
    inside = slice(CDVD_BORDER_PX, -CDVD_BORDER_PX)
    restored, sharp = (round_u8(image)[inside, inside] for image in (restored, sharp))
    return psnr_db(restored, sharp), ssim(restored, sharp)


def mtu_aligned(restored: Image, sharp: Image) -> tuple[float, float]:
    """Alignment-based (Koehler et al. 2012): 8-bit; gain that best fits the truth, then the whole-pixel circular shift
    of highest correlation; luma; SSIM of Wang et al. on the valid region."""
    psnr, similarity, _ = align_and_score(restored, sharp)
    return psnr, similarity


def align_and_score(restored: Image, sharp: Image) -> tuple[float, float, tuple[int, int]]:
    """As mtu_aligned; also the shift (rows, columns) that was applied to the restored frame."""
    result = np.asarray(round_u8(restored), np.float64) * 255
    truth = np.asarray(round_u8(sharp), np.float64) * 255
    energy = np.sum(result * result)
    if energy > 0:
        result = result * (np.sum(truth * result) / energy)
    height, width, _ = truth.shape
    spectrum = np.fft.fft2(truth.mean(-1)) * np.conj(np.fft.fft2(result.mean(-1)))
    peak = int(np.argmax(np.fft.ifft2(spectrum).real))
    rows, columns = (int((v + n // 2) % n - n // 2) for v, n in zip(divmod(peak, width), (height, width), strict=True))
    result = np.roll(result, (rows, columns), (0, 1))
    inside = np.zeros((height, width, 1))
    inside[max(rows, 0) : height + min(rows, 0), max(columns, 0) : width + min(columns, 0)] = 1
    luma_result, luma_truth = (np.sum(image * inside * LUMA, axis=-1, keepdims=True) for image in (result, truth))
    error = np.mean((luma_result - luma_truth) ** 2)
    size = min(11, height, width)
    mean = window_mean(gaussian_taps(size, 1.5))
    # In [0, 1] for float32's sake; SSIM does not depend on the scale.
    maps = structural_similarity(
        jnp.asarray(luma_result / 255, jnp.float32), jnp.asarray(luma_truth / 255, jnp.float32), mean
    )
    psnr = float(10 * np.log10(255**2 / error)) if error > 0 else float("inf")
    return psnr, float(jnp.mean(maps)), (rows, columns)


@jit(static_argnames="quarter")
def motion_accuracy(
    displacement_cur_to_prev: Displacement,
    sharp_previous: Image,
    sharp_current: Image,
    *,
    quarter: bool = True,
) -> tuple[Scalars, Scalars]:
    """How well whole displacements align the previous sharp frame: masked PSNR and SSIM (7 x 7 uniform window).

    The previous frame and an all-ones mask are moved at full resolution; then, with `quarter`, both and the current
    frame are brought to quarter resolution by area. PSNR = 10 log10(sum of mask / sum of mask * difference^2), over
    channels too.

    Args:
        displacement_cur_to_prev: (H/4, W/4, 2), quarter-resolution pixels.
        sharp_previous, sharp_current: (H, W, 3) in [0, 1].
    """
    previous, current = jnp.asarray(sharp_previous, jnp.float32), jnp.asarray(sharp_current, jnp.float32)
    moved, mask = (
        warp_blocks(image[None], displacement_cur_to_prev[None], block=4)[0]
        for image in (previous, jnp.ones_like(previous))
    )
    if quarter:
        moved, mask, current = (downsample_area(image, 4) for image in (moved, mask, current))
    psnr = 10 * jnp.log10(jnp.sum(mask) / jnp.sum(mask * jnp.square(moved - current)))
    pad = [(3, 3), (3, 3), (0, 0)]
    similarity = _uniform_ssim(jnp.pad(moved, pad, mode="symmetric"), jnp.pad(current, pad, mode="symmetric"))
    return psnr, jnp.sum(mask * similarity) / jnp.sum(mask)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A way to score frames, which frames of a clip count, and what is averaged.

    about: what it does and whose numbers are made so.
    over: "clips": mean of clip means; "frames": mean over all frames of all clips.
    skip_first, skip_last: frames at the start and the end of each clip that are not scored.
    frames: the places of those that are, counted from 0; None: all but those skipped.
    order: names of clips in the order of the papers' tables, whose numbers are printed.
    laid_down: frames higher than wide are transposed before they are restored, and scored that way.
    size_multiple: blurred and sharp frames lose rows at the bottom and columns at the right down to a multiple of it,
        before anything else.
    """

    name: str
    score: Callable[[Image, Image], tuple[Scalars | float, Scalars | float]]
    over: Literal["clips", "frames"]
    about: str
    skip_first: int = 0
    skip_last: int = 0
    frames: tuple[int, ...] | None = None
    order: tuple[str, ...] = ()
    laid_down: bool = False
    size_multiple: int = 1

    def scores(self, number: int) -> bool:
        """Whether the frame of this number counts, if it is not among the last to be skipped."""
        return number >= self.skip_first and (self.frames is None or number in self.frames)


SU_FRAMES = tuple(int(place) - 1 for place in np.floor(np.linspace(2, 97, 30)))
"""The 30 frames of each of DVD's test videos (of 100 frames) that its authors score: floor(linspace(2, 97, 30)), by
MATLAB counted from 1."""

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "common",
            common,
            "clips",
            "All frames, 8-bit RGB, nothing cut off; PSNR over all values; SSIM per channel with an 11 x 11 Gaussian "
            "window, where it lies inside; mean of the clips' means. BasicSR's and VRT's Python scripts (REDS4) do so.",
        ),
        Protocol(
            "su2017",
            mtu_aligned,
            "clips",
            "DVD's authors (Su et al. 2017, and tables after them): 30 frames a video by their list; gain and whole "
            "pixels of shift fitted (Koehler et al. 2012); PSNR and SSIM of luma; videos 1 to 10 in their order.",
            frames=SU_FRAMES,
            order=DVD_TEST_VIDEOS,
        ),
        Protocol(
            "cdvd",
            cdvd,
            "frames",
            "CDVD-TSP's inference script (Pan et al. 2020): sizes cut to multiples of 4; no frame without two "
            "neighbours on either side; 8-bit RGB, a border of 4 pixels cut off; SSIM per channel; mean of all frames.",
            skip_first=2,
            skip_last=2,
            size_multiple=4,
        ),
        Protocol(
            "mtu_inloop",
            mtu_inloop,
            "frames",
            "The multi-task units' Python evaluation (Son et al. 2022), by which they choose checkpoints: all frames, "
            "floats; SSIM with a uniform 7 x 7 window and sample covariance; mean of all frames.",
        ),
        Protocol(
            "mtu_matlab",
            mtu_matlab,
            "frames",
            "The multi-task units' MATLAB script as shipped: the first frame of each video left out; 8-bit RGB; "
            "MATLAB's ssim, which takes a colour frame for a volume; mean of all frames.",
            skip_first=1,
        ),
        Protocol(
            "mtu_aligned",
            mtu_aligned,
            "frames",
            "A part of that script that is commented out, by which the paper's tables are said to be made: the first "
            "frame left out; gain and whole pixels of shift fitted; luma; mean of all frames.",
            skip_first=1,
        ),
        Protocol(
            "svrnn",
            common,
            "clips",
            "The spatially variant RNN (Zhang et al. 2021): frames that have a successor, upright ones laid down; "
            "8-bit RGB; SSIM per channel (the paper does not say which).",
            skip_last=1,
            laid_down=True,
        ),
        Protocol(
            "reblur",
            common,
            "frames",
            "Reblur2Deblur (Chen et al. 2018), which says no more than PSNR and SSIM of all images of a set; read as "
            "8-bit RGB, nothing cut off, SSIM per channel, mean of all frames.",
        ),
        Protocol(
            "vrt",
            mtu_matlab,
            "frames",
            "VRT and RVRT (Liang et al. 2022) on DVD and GoPro, by the MATLAB script they name for final figures: all "
            "frames; 8-bit RGB; MATLAB's ssim, of the volume; mean of all frames.",
        ),
        Protocol(
            "nafnet",
            mtu_matlab,
            "frames",
            "NAFNet (Chen et al. 2022) on GoPro and REDS: 8-bit RGB, nothing cut off; SSIM of the volume as MATLAB's; "
            "mean of all frames. Of REDS it takes every tenth frame: 9, 19, ... 99.",
        ),
        Protocol(
            "estrnn",
            estrnn,
            "frames",
            "ESTRNN's test script (Zhong et al. 2020) on BSD and GoPro: no frame without two neighbours on either "
            "side; restored values cut down to 8 bits, not rounded; SSIM per channel; mean of all frames.",
            skip_first=2,
            skip_last=2,
        ),
    )
}


def protocols_named(names: Sequence[str]) -> list[Protocol]:
    """The protocols of these names; "all" stands for every one.

    Raises:
        ValueError: there is no protocol of a name.
    """
    unknown = [name for name in names if name not in PROTOCOLS and name != "all"]
    if unknown:
        raise ValueError(
            f"there is no protocol {', '.join(map(repr, unknown))}; expected {', '.join(PROTOCOLS)} or all"
        )
    return [PROTOCOLS[name] for name in (PROTOCOLS if "all" in names else dict.fromkeys(names))]
