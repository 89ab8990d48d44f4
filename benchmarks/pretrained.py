"""What the weights of the package are worth on real footage that they were never trained on; tables in Markdown.

    python -m benchmarks.pretrained PAIRS [VIDEO ...] [--checkpoint=default] [--scales=N] [--out=DIR]

PAIRS are clips with truth (`real_clips`); of a clip in --singles every frame stands alone. Protocol `common`, means
over a clip's frames. "gain" is the network's, "gated" what `jaxdeblur deblur` makes of it (see
`restoration.gate`). Beside it, tuned on every third frame of these very clips: the best unsharp mask, and the best
Wiener deconvolution with the mean kernel of the scenes of configs/pretrained.py. VIDEOs are sharp: how near what comes
out is to what went in. --scales restores at so many sizes, whatever the checkpoint was trained at. --out is for
pictures of the best, the median and the worst frame: blurred, restored, sharp.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.real_clips import Clip, Restored, add_singles_option, print_sharp_videos, read_clips, restored
from configs.pretrained import get_config
from jaxdeblur.checkpoint import load_model
from jaxdeblur.compilation import jit
from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.data.scenes import SceneConfig, random_scene, scene_key, texture_to_frame
from jaxdeblur.evaluation.pictures import stack, strip
from jaxdeblur.evaluation.protocols import common
from jaxdeblur.ops.filters import correlate_axis, gaussian_taps

_KERNEL_REACH_PX = 32
_SCENES = 64


class Pair(NamedTuple):
    """A frame with its truth and what was made of it."""

    clip: str
    blurred: np.ndarray
    sharp: np.ndarray
    restored: np.ndarray
    gated: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--scales", type=int)
    add_singles_option(parser)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_intermixed_args()
    print(f"{measure.machine()}\n")
    scales = {} if arguments.scales is None else {"scales": arguments.scales}
    model, variables = load_model(arguments.checkpoint, **scales)
    pairs: list[Pair] = []
    for clip in read_clips(arguments.pairs, arguments.singles.split(",")):
        pairs += _with_truth(clip, restored(clip.blurred, model, variables, alone=clip.alone))
    _print_gains(pairs)
    if arguments.out is not None:
        _write_pictures(arguments.out, pairs)
    if arguments.videos:
        print_sharp_videos(arguments.videos, model, variables)


def _with_truth(clip: Clip, found: Restored) -> Iterator[Pair]:
    known = np.array(clip.has_truth)
    for images in zip(clip.blurred[known], clip.sharp, found.free[known], found.gated[known], strict=True):
        yield Pair(clip.name, *images)


def _print_gains(pairs: Sequence[Pair]) -> None:
    unsharp, unsharp_name = _best(pairs, _unsharp_masks())
    wiener, wiener_name = _best(pairs, _wiener_filters(_mean_kernel()))
    ways = {
        "restored": [pair.restored for pair in pairs],
        "gated": [pair.gated for pair in pairs],
        "unsharp": unsharp,
        "Wiener": wiener,
    }
    before = _scores(pairs, [pair.blurred for pair in pairs])
    gains = {name: _scores(pairs, images) - before for name, images in ways.items()}
    print(f"Unsharp mask: {unsharp_name}. Wiener: {wiener_name}.\n")
    print("| clip | frames | blurred, dB / SSIM | gain, dB / SSIM | gated | unsharp mask | Wiener |")
    print("|---|---|---|---|---|---|---|")
    names = [pair.clip for pair in pairs]
    rows = {name: [other == name for other in names] for name in dict.fromkeys(names)}
    means = {}
    for name, chosen in rows.items():
        means[name] = [before[chosen].mean(0), *(gain[chosen].mean(0) for gain in gains.values())]
        _print_row(name, sum(chosen), means[name])
    _print_row("mean of clips", len(pairs), np.mean(list(means.values()), axis=0))
    print()


def _print_row(name: str, count: int, means: Sequence[np.ndarray]) -> None:
    blurred, *gains = means
    shown = " | ".join(f"{psnr_db:+.2f} / {ssim:+.3f}" for psnr_db, ssim in gains)
    print(f"| {name} | {count} | {blurred[0]:.2f} / {blurred[1]:.3f} | {shown} |", flush=True)


def _scores(pairs: Sequence[Pair], images: Sequence[np.ndarray]) -> np.ndarray:
    """(frames, 2): PSNR in decibel, SSIM."""
    return np.array([common(_unit(image), _unit(pair.sharp)) for pair, image in zip(pairs, images, strict=True)])


def _unit(image_u8: np.ndarray) -> np.ndarray:
    return image_u8.astype(np.float32) / np.float32(255)


def _write_pictures(out: Path, pairs: Sequence[Pair]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    gains = _scores(pairs, [pair.gated for pair in pairs]) - _scores(pairs, [pair.blurred for pair in pairs])
    order = np.argsort(gains[:, 0])
    for name, place in {"worst": 0, "median": len(order) // 2, "best": -1}.items():
        pair = pairs[order[place]]
        picture = strip([pair.blurred, pair.gated, pair.sharp])
        write_image(out / f"{name}.png", ImageFile(picture))
        print(f"{out / name}.png: {pair.clip}, {gains[order[place], 0]:+.2f} dB\n")
    singles = [next(pair for pair in pairs if pair.clip == name) for name in dict.fromkeys(p.clip for p in pairs)]
    write_image(out / "first_frames.png", ImageFile(stack([strip([p.blurred, p.gated, p.sharp]) for p in singles])))


# --- What needs no training ---

Filter = Callable[[jax.Array], jax.Array]


def _best(pairs: Sequence[Pair], filters: dict[str, Filter]) -> tuple[list[np.ndarray], str]:
    """What the filter makes of the frames that has the highest mean PSNR over clips, and its name."""
    some = pairs[::3]
    share = np.array([1 / sum(pair.clip == other.clip for other in some) for pair in some])

    def filtered(name: str, pairs: Sequence[Pair]) -> list[np.ndarray]:
        apply = jit(filters[name])
        return [np.asarray(jnp.rint(255 * jnp.clip(apply(_unit(p.blurred)), 0, 1)), np.uint8) for p in pairs]

    def psnr_db(name: str) -> float:
        errors = [
            np.mean(np.square(_unit(a) - _unit(p.sharp))) for a, p in zip(filtered(name, some), some, strict=True)
        ]
        return float(share @ (-10 * np.log10(errors)))

    best = max(filters, key=psnr_db)
    return filtered(best, pairs), best


def _unsharp_masks() -> dict[str, Filter]:
    def mask(sigma_px: float, amount: float) -> Filter:
        taps = gaussian_taps(2 * round(3 * sigma_px) + 1, sigma_px)

        def apply(image: jax.Array) -> jax.Array:
            reach = len(taps) // 2
            soft = jnp.pad(image, [(reach, reach), (reach, reach), (0, 0)], mode="edge")
            for axis in (-3, -2):
                soft = correlate_axis(soft, taps, axis)
            return image + amount * (image - soft)

        return apply

    grid = itertools.product((1.0, 2.0, 3.0, 5.0), (0.1, 0.25, 0.5, 1.0))
    return {f"sigma {sigma_px:g} px, amount {amount:g}": mask(sigma_px, amount) for sigma_px, amount in grid}


def _wiener_filters(kernel: np.ndarray) -> dict[str, Filter]:
    reach = _KERNEL_REACH_PX

    def deconvolution(noise: float) -> Filter:
        def apply(image: jax.Array) -> jax.Array:
            height, width, _ = image.shape
            padded = jnp.pad(image, [(reach, reach), (reach, reach), (0, 0)], mode="reflect")
            at_origin = jnp.zeros(padded.shape[:2]).at[: len(kernel), : len(kernel)].set(kernel)
            transfer = jnp.fft.rfft2(jnp.roll(at_origin, (-reach, -reach), (0, 1)))[..., None]
            spectrum = jnp.fft.rfft2(padded, axes=(0, 1)) * jnp.conj(transfer) / (jnp.abs(transfer) ** 2 + noise)
            # What the filter takes of the mean is given back.
            restored = (1 + noise) * jnp.fft.irfft2(spectrum, s=padded.shape[:2], axes=(0, 1))
            return restored[reach : reach + height, reach : reach + width]

        return apply

    return {f"noise over signal {noise:g}": deconvolution(noise) for noise in (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6)}


def _mean_kernel() -> np.ndarray:
    """How a point is smeared, on average over scenes and over the middle and the corners of their frames."""
    trained = get_config().data
    motion = {name: trained.scenes[name] for name in ("sub_frames", "max_speed_px", "min_speed_share", "still_share")}
    side = trained.crop_px
    config = SceneConfig(trained.frames, side, side, **motion, min_duty=trained.scenes.min_duty)
    size = 2 * _KERNEL_REACH_PX + 1
    x, y = (side - 1) * jnp.array([0.0, 1.0, 0.0, 1.0, 0.5]), (side - 1) * jnp.array([0.0, 0.0, 1.0, 1.0, 0.5])

    @jit
    def shifts_px(index: jax.Array) -> jax.Array:
        """(2, instants, places): rows and columns."""
        scene = random_scene(scene_key(0, index), config)
        back = texture_to_frame(scene, 0.0, side, side).inverse().of_layer(0)

        def shift(share: jax.Array) -> jax.Array:
            moved_x, moved_y = (
                texture_to_frame(scene, scene.duty * share, side, side).of_layer(0).after(back).apply(x, y)
            )
            return jnp.stack([moved_y - y, moved_x - x])

        return jax.vmap(shift, out_axes=1)((jnp.arange(32) + 0.5) / 32 - 0.5)

    kernel = np.zeros((size, size))
    for index in range(_SCENES):
        shifts = np.asarray(shifts_px(jnp.int32(index))).reshape(2, -1)
        inside = np.max(np.abs(shifts), axis=0) <= _KERNEL_REACH_PX
        np.add.at(kernel, tuple(np.rint(shifts[:, inside]).astype(int) + _KERNEL_REACH_PX), 1)
    return kernel / kernel.sum()


if __name__ == "__main__":
    main()
