"""Networks with their official weights on real pairs: what they gain and what they take; a table in Markdown.

    python -m benchmarks.networks PAIRS [--checkpoints=default,maxim] [--side=256] [--clips=NAME,...] [--out=FOLDER]

Of every frame with truth in PAIRS (`real_clips`) the middle side x side pixels, cut out before anything is restored, as
the authors of single-image networks measure; gains are in dB of PSNR, protocol `common`. Multiply-accumulates are those
of convolutions and products for a frame of 1280x720. Checkpoints are what `--checkpoint` takes elsewhere. --out is for
pictures of the first frame of every clip: blurred, restored by each, sharp.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.real_clips import Clip, add_singles_option, read_clips, restored
from benchmarks.restoration import first_carry, frame_step
from jaxdeblur.checkpoint import load_model
from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.evaluation.pictures import stack, strip
from jaxdeblur.evaluation.protocols import common

_FRAME = 720, 1280


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--checkpoints", default="default,maxim")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--clips", default="", help="some of PAIRS; default: all")
    add_singles_option(parser)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    print(f"{measure.machine()}, {arguments.side}x{arguments.side} pixels of each frame\n")
    chosen = arguments.clips.split(",") if arguments.clips else None
    clips = [
        _middle(clip, arguments.side)
        for clip in read_clips(arguments.pairs, arguments.singles.split(","))
        if chosen is None or clip.name in chosen
    ]
    names = [f"{clip.name}, {sum(clip.has_truth)} frames" for clip in clips]
    print(f"| checkpoint | parameters | G multiply-accumulates | s a crop | {' | '.join(names)} |")
    print("|---" * (4 + len(clips)) + "|", flush=True)
    pictures = [[clip.blurred[clip.has_truth.index(True)]] for clip in clips]
    for checkpoint in arguments.checkpoints.split(","):
        model, variables = load_model(checkpoint)
        cells, frames, seconds = [], 0, 0.0
        restored(clips[0].blurred[:1], model, variables)  # compiles
        for number, clip in enumerate(clips):
            start = time.perf_counter()
            found = restored(clip.blurred, model, variables, alone=clip.alone).free
            seconds, frames = seconds + time.perf_counter() - start, frames + len(found)
            known = np.array(clip.has_truth)
            gains = [
                _psnr_db(after, truth) - _psnr_db(before, truth)
                for before, after, truth in zip(clip.blurred[known], found[known], clip.sharp, strict=True)
            ]
            cells.append(f"{np.mean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f})")
            pictures[number].append(found[clip.has_truth.index(True)])
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        about = f"{parameters:,} | {_macs(model, variables) / 1e9:.0f} | {seconds / frames:.1f}"
        print(f"| {checkpoint} | {about} | {' | '.join(cells)} |", flush=True)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        rows = [strip([*images, clip.sharp[0]]) for images, clip in zip(pictures, clips, strict=True)]
        write_image(arguments.out / "networks.png", ImageFile(stack(rows)))


def _middle(clip: Clip, side: int) -> Clip:
    height, width = clip.blurred.shape[1:3]
    side = min(side, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    blurred, sharp = (
        np.ascontiguousarray(images[:, top : top + side, left : left + side]) for images in (clip.blurred, clip.sharp)
    )
    return clip._replace(blurred=blurred, sharp=sharp)


def _psnr_db(image_u8: np.ndarray, truth_u8: np.ndarray) -> float:
    image, truth = (x.astype(np.float32) / np.float32(255) for x in (image_u8, truth_u8))
    return float(common(image, truth)[0])


def _macs(model: Any, variables: Any) -> int:
    """For a frame of 1280x720; nothing is computed."""
    frames = model.past_frames + 1 + model.future_frames
    window = jax.ShapeDtypeStruct((1, frames, *_FRAME, 3), jnp.float32)
    carry = jax.eval_shape(functools.partial(first_carry, model, variables), window)
    return measure.multiply_accumulates(frame_step(model, variables), carry, window)


if __name__ == "__main__":
    main()
