"""What restoring videos takes and does, measured; each prints a table in Markdown.

    python -m benchmarks.video memory  --checkpoint=C [--size 3840x2160] [--frames 16] [--budgets 4G,6G,8G]
    python -m benchmarks.video latency --checkpoint=C [--sizes 640x360,1280x720] [--frames 30]
    python -m benchmarks.video overhead --checkpoint=C [--sizes 640x360,1280x720] [--frames 16] [--turns 3]
    python -m benchmarks.video reach   [MODEL ...]
    python -m benchmarks.video tiles   --checkpoint=C VIDEO... [--side 320] [--halos 0,16,32,64]
    python -m benchmarks.video gate    --checkpoint=C [--pairs FOLDER] [--middle 256] [--clips NAME,...] [VIDEO ...]

memory: what a process takes at most (VmHWM), against what it planned. latency: of `deblur --pipe`, and how soon the
first frame is there, with nothing compiled and with what the run before has kept. overhead: a frame of `deblur`, from
file to file, against the network's step alone, in turns. reach: how far networks look, as
published and untrained. tiles: how far a checkpoint looks, and the largest difference to whole frames. gate: on clips
with truth (`real_clips`) how sharp their frames are, what the gate leaves of the gain in PSNR, and what it saves of the
sharp frames (--middle: on so many pixels of their middle, cut out first); of the videos how near what comes out is to
what went in.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.real_clips import (
    add_clips_option,
    add_singles_option,
    first_frames,
    nearness_db,
    print_sharp_videos,
    read_clips,
    restored,
)
from jaxdeblur.checkpoint import load_model
from jaxdeblur.data.video_io import TimedFrame, VideoFormat
from jaxdeblur.data.video_writer import write_video
from jaxdeblur.models import create_model, initial_variables
from jaxdeblur.restoration.clip import restore
from jaxdeblur.restoration.files import deblur_video
from jaxdeblur.restoration.gate import sharpness
from jaxdeblur.restoration.memory import reach_px
from jaxdeblur.restoration.steps import Tiling, start, step

_WITH_PEAK = """
import re, sys
from jaxdeblur.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("memory", "latency", "overhead", "reach", "tiles", "gate"))
    parser.add_argument("names", nargs="*", help="videos, or models")
    parser.add_argument("--checkpoint")
    parser.add_argument("--pairs", type=Path)
    add_singles_option(parser)
    add_clips_option(parser)
    parser.add_argument("--middle", type=int, metavar="PX", help="look at the middle PX x PX pixels of the pairs alone")
    parser.add_argument("--size", default="3840x2160", help="width x height")
    parser.add_argument("--sizes", default="640x360,1280x720")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--budgets", default="4G,6G,8G")
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--halos", default="0,16,32,64")
    arguments = parser.parse_intermixed_args()
    if arguments.checkpoint is None and arguments.what != "reach":
        parser.error(f"{arguments.what} needs --checkpoint")
    arguments.videos = [Path(name) for name in arguments.names]
    print(f"{measure.machine()}\n")
    ways = {
        "memory": _memory,
        "latency": _latency,
        "overhead": _overhead,
        "reach": _reach,
        "tiles": _tiles,
        "gate": _gate,
    }
    ways[arguments.what](arguments)


def _memory(arguments: argparse.Namespace) -> None:
    print("| memory allowed | planned | taken | way | seconds a frame |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.mp4"
        _write_noise(source, *_size(arguments.size), arguments.frames)
        for budget in arguments.budgets.split(","):
            command = ["deblur", str(source), f"{folder}/out.mp4", f"--checkpoint={arguments.checkpoint}"]
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-c", _WITH_PEAK, *command, f"--memory={budget}"], capture_output=True, text=True
            )
            seconds = (time.monotonic() - began) / arguments.frames
            planned = re.search(
                r"(whole frames|tiles of \S+ with a halo of \d+ pixels).*at most (\S+ GiB)", done.stderr
            )
            if done.returncode or planned is None:
                print(f"| {budget} | {done.stderr.splitlines()[-1]} | | | |")
                continue
            taken = int(done.stdout.split()[-1]) / 2**20
            print(f"| {budget} | {planned[2]} | {taken:.2f} GiB | {planned[1]} | {seconds:.1f} |", flush=True)


def _latency(arguments: argparse.Namespace) -> None:
    print("| size | first frame, nothing compiled | and the second time | p50 | p99 |\n|---|---|---|---|---|")
    behind = load_model(arguments.checkpoint)[0].future_frames
    for size in arguments.sizes.split(","):
        height, width = _size(size)
        frames = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), np.uint8)
        command = ["deblur", "--pipe", f"--raw={size}", "--no-gate", f"--checkpoint={arguments.checkpoint}"]
        with tempfile.TemporaryDirectory() as cache:
            first_s = []
            for _ in range(2):
                began = time.monotonic()
                process = subprocess.Popen(
                    [sys.executable, "-m", "jaxdeblur.cli", *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**os.environ, "XDG_CACHE_HOME": cache},
                    bufsize=0,
                )
                assert process.stdin is not None
                assert process.stdout is not None
                ahead = 0
                for number in range(arguments.frames):
                    process.stdin.write(frames[number % 8].tobytes())
                    ahead += 1
                    if ahead > behind:
                        _read_exactly(process.stdout, frames[0].nbytes)
                        ahead -= 1
                        if number == behind:
                            first_s.append(time.monotonic() - began)
                process.stdin.close()
                process.stdout.read()
                assert process.stderr is not None
                said = process.stderr.read().decode()
                process.wait()
            found = re.search(r"p50 (\S+), p99 (\S+) ms", said)
            assert found is not None, said
            print(f"| {size} | {first_s[0]:.1f} s | {first_s[1]:.1f} s | {found[1]} ms | {found[2]} ms |", flush=True)


def _overhead(arguments: argparse.Namespace) -> None:
    print("| size | step alone, ms | a frame of deblur, ms | ratio |\n|---|---|---|---|")
    model, variables = load_model(arguments.checkpoint)
    variables = jax.device_put(variables)
    for size in arguments.sizes.split(","):
        height, width = _size(size)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "in.mp4"
            _write_noise(source, height, width, arguments.frames)
            look = model.past_frames + 1 + model.future_frames
            window = tuple(map(jax.device_put, first_frames(source, look)))
            carry = jax.tree.map(jnp.copy, start(model, variables, window))
            step_s: list[float] = []
            frame_s: list[float] = []
            for turn in range(arguments.turns + 1):
                began = time.perf_counter()
                for _ in range(arguments.frames):
                    carry, restored, _ = step(model, variables, carry, window)
                    restored.block_until_ready()
                step_s.append((time.perf_counter() - began) / arguments.frames)
                finished: list[float] = []
                deblur_video(
                    source,
                    Path(folder) / f"out{turn}.mp4",
                    model,
                    variables,
                    progress=lambda *_, finished=finished: finished.append(time.perf_counter()),
                )
                frame_s.append((finished[-1] - finished[0]) / (arguments.frames - 1))
        alone, whole = (statistics.median(times[1:]) for times in (step_s, frame_s))  # the first compiles
        print(f"| {size} | {1e3 * alone:.0f} | {1e3 * whole:.0f} | {whole / alone:.2f} |", flush=True)


def _read_exactly(stream: Any, count: int) -> None:
    while count:
        count -= len(stream.read(count))


def _reach(arguments: argparse.Namespace) -> None:
    print("| model | looks, pixels |\n|---|---|")
    published = ("mtu1", "mtu2", "mtu4", "mtu10", "dbn", "vdflow", "cdvd_tsp", "svrnn", "deblurgan", "nafnet32")
    for name in arguments.names or published:
        model = create_model(name)
        reach = reach_px(model, initial_variables(jax.random.key(0), model))
        print(f"| {name} | {'everywhere, or more than 512' if reach is None else reach} |", flush=True)


def _tiles(arguments: argparse.Namespace) -> None:
    model, variables = load_model(arguments.checkpoint)
    reach = reach_px(model, variables)
    print(f"the network looks {'more than 512' if reach is None else reach} pixels far\n")
    print("| video | halo | largest difference to whole frames |\n|---|---|---|")
    for video in arguments.videos:
        frames = first_frames(video, 5).astype(np.float32) / 255
        whole = restore(frames, model, variables)
        for halo in map(int, arguments.halos.split(",")):
            tiled = restore(frames, model, variables, tiling=Tiling(arguments.side, arguments.side, halo))
            print(f"| {video.name} | {halo} | {np.abs(tiled - whole).max():.1e} |", flush=True)


def _gate(arguments: argparse.Namespace) -> None:
    model, variables = load_model(arguments.checkpoint)

    if arguments.pairs is not None:
        print(
            "| clip | sharpness | gain, dB | with the gate | share "
            "| of sharp frames | against themselves, dB | with the gate | share |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for clip in read_clips(arguments.pairs, arguments.singles.split(","), arguments.clips, arguments.middle):
            known = np.array(clip.has_truth)
            of_blurred = restored(clip.blurred, model, variables, alone=clip.alone)
            of_sharp = restored(clip.sharp, model, variables, alone=clip.alone)
            before = nearness_db(clip.blurred[known], clip.sharp).mean()
            free, gated = (nearness_db(x[known], clip.sharp).mean() - before for x in of_blurred[:2])
            free_sharp, gated_sharp = (nearness_db(x, clip.sharp).mean() for x in of_sharp[:2])
            print(
                f"| {clip.name} | {_range(clip.blurred)} | {free:+.2f} | {gated:+.2f} | "
                f"{np.mean(of_blurred.share):.2f} | {_range(clip.sharp)} | "
                f"{free_sharp:.1f} | {gated_sharp:.1f} | {np.mean(of_sharp.share):.2f} |",
                flush=True,
            )
        print()
    if arguments.videos:
        print_sharp_videos(arguments.videos, model, variables)


def _range(frames: np.ndarray) -> str:
    found = [sharpness(frame) for frame in frames]
    return f"{min(found):.2f}-{max(found):.2f}"


def _write_noise(path: Path, height: int, width: int, count: int) -> None:
    """A coarse pattern that moves."""
    form = VideoFormat(height, width, Fraction(1, 25), Fraction(25))
    coarse = np.random.default_rng(0).integers(0, 256, (-(-height // 16), -(-width // 16), 3), np.uint8)
    picture = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    with write_video(path, form, crf=30) as writer:
        for number in range(count):
            writer.write(TimedFrame(np.roll(picture, 3 * number, 1), number, 1))


def _size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return height, width


if __name__ == "__main__":
    main()
