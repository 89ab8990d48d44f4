"""What networks take, and what they gain with official weights on real pairs: tables in Markdown.

    python -m benchmarks.networks cost [NAME ...] [--runs=3]
    python -m benchmarks.networks gain PAIRS [--checkpoints=default,maxim] [--side=256] [--clips=NAME,...] [--out=DIR]
    python -m benchmarks.networks steady PAIRS [--checkpoints=default,maxim] [--side=256] [--clips=NAME,...]
    ... --output=docs/networks.md --record

cost: parameters, multiply-accumulates of convolutions and products, and seconds for a frame of 1280x720, in a stream,
with weights drawn at random; the median of so many runs.

gain: of every frame with truth in PAIRS (`real_clips`), the middle side x side pixels, cut out before anything is
restored, as authors of single-image networks measure. Gains are decibels of PSNR, protocol `common`: mean, and from
the least to the most. Checkpoints are what `--checkpoint` takes elsewhere. --out is for a picture of the first frame of
every clip: blurred, restored by each, sharp.

steady: what `deblur --steady` changes, on the same pixels of clips all of whose frames have truth: PSNR, and flicker,
the warping error along the motion of the sharp frames (`evaluation.consistency`) by Lucas and Kanade's flow.

--output writes the table between the two comments of its kind. --record keeps the figures for `jaxdeblur models`.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.accelerator_cases import drawn_network
from benchmarks.real_clips import Clip, add_clips_option, add_singles_option, read_clips, restored
from benchmarks.restoration import first_carry, frame_step
from jaxdeblur.checkpoint import load_model
from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.evaluation.consistency import Consistency, ConsistencyScore
from jaxdeblur.evaluation.pictures import stack, strip
from jaxdeblur.evaluation.protocols import common
from jaxdeblur.ops.lucas_kanade import lucas_kanade_flow
from jaxdeblur.restoration.steadying import Steadied
from jaxdeblur.restoration.steps import start, step
from jaxdeblur.sources import MEASURED, SOURCES
from jaxdeblur.variables import DEFAULT

HEIGHT, WIDTH = 720, 1280


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cost", "gain", "steady"))
    parser.add_argument("names", nargs="*", help="networks; otherwise the folder PAIRS")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--checkpoints", default="default,maxim")
    parser.add_argument("--side", type=int, default=256)
    add_clips_option(parser)
    add_singles_option(parser)
    parser.add_argument("--out", type=Path, help="folder for a picture")
    parser.add_argument("--output", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--record", action="store_true", help=f"keep the figures in {MEASURED.name}")
    arguments = parser.parse_args()
    if arguments.what != "cost" and len(arguments.names) != 1:
        parser.error(f"{arguments.what} needs the folder PAIRS")
    ways = {"cost": _cost, "gain": _gain, "steady": _steady}
    table, figures = ways[arguments.what](arguments)
    if arguments.output is not None:
        marks = f"<!-- {arguments.what} -->", f"<!-- end of {arguments.what} -->"
        measure.write_table("\n".join(table), arguments.output, marks)
    if arguments.record:
        kept = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
        for name, values in figures.items():
            kept[name] = kept.get(name, {}) | values
        MEASURED.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def _print(table: list[str], line: str) -> None:
    print(line, flush=True)
    table.append(line)


def _cost(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    table: list[str] = []
    figures: dict[str, Any] = {}
    _print(table, f"{measure.machine()}, 1280x720\n")
    _print(table, "| network | parameters | G multiply-accumulates a frame | s a frame |\n|---|---|---|---|")
    for name in arguments.names or [DEFAULT, *SOURCES]:
        model, variables = load_model(name) if name == DEFAULT else drawn_network(name)
        variables = jax.device_put(variables)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        gmacs = _macs(model, variables) / 1e9
        seconds = _seconds(model, variables, arguments.runs)
        _print(table, f"| {name} | {parameters:,} | {gmacs:.0f} | {seconds:.2g} |")
        figures[name] = {
            "parameters": parameters,
            "gmacs_720p": round(gmacs),
            "seconds_720p": float(f"{seconds:.2g}"),
            "machine": measure.machine(),
        }
        jax.clear_caches()
    return table, figures


def _macs(model: Any, variables: Any) -> int:
    """Nothing is computed."""
    frames = model.past_frames + 1 + model.future_frames
    window = jax.ShapeDtypeStruct((1, frames, HEIGHT, WIDTH, 3), jnp.float32)
    carry = jax.eval_shape(functools.partial(first_carry, model, variables), window)
    return measure.multiply_accumulates(frame_step(model, variables), carry, window)


def _seconds(model: Any, variables: Any, runs: int) -> float:
    rng, frames = np.random.default_rng(0), model.past_frames + 1 + model.future_frames
    window = tuple(jax.device_put(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)) for _ in range(frames))
    carry = jax.tree.map(jnp.copy, start(model, variables, window))
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        carry, image, _ = step(model, variables, carry, window)
        jax.block_until_ready(image)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])  # the first compiles


def _gain(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    table: list[str] = []
    figures: dict[str, Any] = {}
    clips = _clips(arguments)
    _print(table, f"{measure.machine()}, {arguments.side}x{arguments.side} pixels of each frame\n")
    names = [f"{clip.name}, {len(clip.sharp)} frames" for clip in clips]
    _print(table, f"| checkpoint | s a crop | {' | '.join(names)} |\n{'|---' * (2 + len(clips))}|")
    pictures = [[clip.blurred[clip.has_truth.index(True)]] for clip in clips]
    for checkpoint in arguments.checkpoints.split(","):
        model, variables = load_model(checkpoint)
        variables = jax.device_put(variables)
        gains_db: dict[str, list[float]] = {}
        frames, seconds = 0, 0.0
        restored(clips[0].blurred[:1], model, variables)  # compiles
        for number, clip in enumerate(clips):
            begin = time.perf_counter()
            found = restored(clip.blurred, model, variables, alone=clip.alone).free
            seconds, frames = seconds + time.perf_counter() - begin, frames + len(found)
            known = np.array(clip.has_truth)
            gains_db[clip.name] = [
                _psnr_db(after, truth) - _psnr_db(before, truth)
                for before, after, truth in zip(clip.blurred[known], found[known], clip.sharp, strict=True)
            ]
            pictures[number].append(found[clip.has_truth.index(True)])
        cells = [f"{np.mean(each):+.2f} ({min(each):+.2f} to {max(each):+.2f})" for each in gains_db.values()]
        _print(table, f"| {checkpoint} | {seconds / frames:.1f} | {' | '.join(cells)} |")
        figures[checkpoint] = {"gain_db": {name: round(float(np.mean(each)), 2) for name, each in gains_db.items()}}
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        rows = [strip([*images, clip.sharp[0]]) for images, clip in zip(pictures, clips, strict=True)]
        write_image(arguments.out / "networks.png", ImageFile(stack(rows)))
    return table, figures


def _steady(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    table: list[str] = []
    clips = [clip for clip in _clips(arguments) if all(clip.has_truth) and not clip.alone]
    _print(table, f"{measure.machine()}, {arguments.side}x{arguments.side} pixels of each frame\n")
    _print(
        table,
        "| checkpoint | clip | restored, dB | steadied | flicker of blurred frames | restored | steadied | sharp |\n"
        "|---|---|---|---|---|---|---|---|",
    )
    for checkpoint in arguments.checkpoints.split(","):
        model, variables = load_model(checkpoint)
        variables = jax.device_put(variables)
        for clip in clips:
            psnr_db, flicker = [], []
            for restorer in (model, Steadied(model)):
                found = restored(clip.blurred, restorer, variables).free
                psnr_db.append(
                    np.mean([_psnr_db(after, truth) for after, truth in zip(found, clip.sharp, strict=True)])
                )
                flicker.append(_flicker(clip, found))
            _print(
                table,
                f"| {checkpoint} | {clip.name} | {psnr_db[0]:.2f} | "
                f"{psnr_db[1]:.2f} ({psnr_db[1] - psnr_db[0]:+.2f}) | "
                f"{flicker[0].blurred:.2f} | {flicker[0].restored:.2f} | {flicker[1].restored:.2f} | "
                f"{flicker[0].sharp:.2f} |",
            )
    return table, {}


@dataclasses.dataclass(frozen=True)
class _LucasKanade:
    """As a flow network without weights."""

    def apply(self, variables: Any, image_0: jax.Array, image_1: jax.Array) -> jax.Array:
        del variables
        return lucas_kanade_flow(image_0, image_1)


def _flicker(clip: Clip, found: np.ndarray) -> ConsistencyScore:
    seen: Any = Consistency(_LucasKanade(), {})  # type: ignore[arg-type]
    for frames in zip(clip.blurred, found, clip.sharp, strict=True):
        seen.see(*(frame.astype(np.float32) / np.float32(255) for frame in frames))
    score = seen.end(clip.name)
    assert score is not None
    return score


def _clips(arguments: argparse.Namespace) -> list[Clip]:
    singles = arguments.singles.split(",")
    return list(read_clips(Path(arguments.names[0]), singles, arguments.clips, arguments.side))


def _psnr_db(image_u8: np.ndarray, truth_u8: np.ndarray) -> float:
    image, truth = (x.astype(np.float32) / np.float32(255) for x in (image_u8, truth_u8))
    return float(common(image, truth)[0])


if __name__ == "__main__":
    main()
