"""What a training clip costs the processor: PNG, JPEG and packed frames through `video_folder_batches`.

    python -m benchmarks.input_pipeline

A clip is 5 frames of 256x256 out of 1280x720, the geometry of the multi-task-unit recipe included. A sample
of the pipeline has two of them, blurred and sharp; figures are per clip. CPU time of all threads is what
counts: on a machine with other work the wall time says little. Beside it stands what the decoder (the copy
out of the memory map) costs when called alone, frame after frame, so that the pipeline's overhead is a ratio.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxdeblur.data.clips import WindowSpec
from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.data.pack import open_packed, pack_video_folder
from jaxdeblur.data.pipeline import import_tensorflow, video_folder_batches
from jaxdeblur.data.transforms import MTU_AUGMENTATION
from jaxdeblur.data.video_folder import SIDES, index_video_folder

SIZE_PX = (720, 1280)
CROP_PX = (256, 256)
CLIP_FRAMES = 5
VIDEO_FRAMES = 12
BATCH_SIZE = 4
BATCHES = 6
RUNS = 5
CLIPS_A_SAMPLE = len(SIDES)
EARLIER_CPU_MS = {"PNG": 91.0, "JPEG": 13.0, "packed": 3.0}
"""Decoding alone (PNG whole, JPEG crop, memory-mapped crop), as measured when the pipeline was planned."""
PNG_SHARE, PACKED_RATIO = 0.8, 10.0
"""PNG is to reach this share of the earlier speed, and packed frames to cost this many times less."""


def textured_frame_u8(key: np.random.Generator) -> np.ndarray:
    """Noise of all scales, 1/f as in photographs, and a little sensor noise: (720, 1280, 3)."""
    frame = np.zeros((*SIZE_PX, 3))
    for octave in range(8):
        cell = 2**octave
        coarse = key.standard_normal((SIZE_PX[0] // cell + 2, SIZE_PX[1] // cell + 2, 3))
        rows, columns = (np.arange(size) / cell for size in SIZE_PX)
        # Bilinear, one axis after the other.
        low, weight = rows.astype(int), (rows % 1)[:, None, None]
        tall = coarse[low] * (1 - weight) + coarse[low + 1] * weight
        low, weight = columns.astype(int), (columns % 1)[None, :, None]
        frame += 1.2 * cell**0.8 * (tall[:, low] * (1 - weight) + tall[:, low + 1] * weight)
    return np.clip(128 + frame, 0, 255).astype(np.uint8)


def write_folder(root: Path, suffix: str) -> None:
    for side in SIDES:
        folder = root / "train" / "clip" / side
        folder.mkdir(parents=True)
        for number in range(VIDEO_FRAMES):
            frame_u8 = textured_frame_u8(np.random.default_rng(number))
            write_image(folder / f"{number:04d}{suffix}", ImageFile(frame_u8))


def measure_pipeline_ms(root: Path) -> tuple[float, float]:
    """Median CPU and wall milliseconds a clip."""
    batches = video_folder_batches(
        index_video_folder(root, "train"),
        window=WindowSpec(frames=CLIP_FRAMES, past=0, future=0, mode="sliding"),
        batch_size=BATCH_SIZE,
        crop_px=CROP_PX,
        seed=0,
        augmentation=MTU_AUGMENTATION,
    )
    # The first batches fill the queues.
    return measure_ms(lambda: next(batches), BATCHES, BATCH_SIZE * CLIPS_A_SAMPLE)


def measure_ms(call: Callable[[], object], calls: int, clips_a_call: int) -> tuple[float, float]:
    for _ in range(calls):
        call()
    cpu_ms, wall_ms = [], []
    for _ in range(RUNS):
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        for _ in range(calls):
            call()
        cpu_ms.append((time.process_time() - cpu_s) * 1000 / (calls * clips_a_call))
        wall_ms.append((time.perf_counter() - wall_s) * 1000 / (calls * clips_a_call))
    return statistics.median(cpu_ms), statistics.median(wall_ms)


def measure_decoder_ms(root: Path, kind: str) -> float:
    """Median CPU milliseconds for 5 frames, without a pipeline."""
    tf = import_tensorflow()
    (clip,) = index_video_folder(root, "train")
    corners_px = itertools.cycle([(0, 0), (464, 1024), (232, 512), (464, 0), (0, 1024)])

    def read_clip() -> None:
        top_px, left_px = next(corners_px)
        for frame in range(CLIP_FRAMES):
            if kind == "packed":
                frames_u8 = open_packed(str(root / "packed" / "train" / "clip"), "blur")
                box = np.s_[top_px : top_px + CROP_PX[0], left_px : left_px + CROP_PX[1]]
                np.ascontiguousarray(frames_u8[frame][box])
            elif kind == "PNG":
                tf.io.decode_png(tf.io.read_file(clip.blur_paths[frame]), channels=3)
            else:
                contents = tf.io.read_file(clip.blur_paths[frame])
                tf.image.decode_and_crop_jpeg(contents, [top_px, left_px, *CROP_PX], channels=3)

    return measure_ms(read_clip, BATCHES, 1)[0]


def main() -> None:
    console = Console()
    table = Table(
        "frames", "MB a frame", "CPU ms a clip", "wall ms", "decoder alone, CPU ms", "ratio", "earlier figure"
    )
    cpu_ms = {}
    with tempfile.TemporaryDirectory() as folder:
        roots = {"PNG": Path(folder, "png"), "JPEG": Path(folder, "jpeg")}
        for kind, suffix in (("PNG", ".png"), ("JPEG", ".jpg")):
            write_folder(roots[kind], suffix)
        for kind in ("PNG", "JPEG", "packed"):
            root = roots["PNG" if kind == "packed" else kind]
            if kind == "packed":
                pack_video_folder(root)
                frame_mb = 3 * SIZE_PX[0] * SIZE_PX[1] / 1e6
            else:
                sizes = [path.stat().st_size for path in root.glob("train/clip/blur/*")]
                frame_mb = statistics.mean(sizes) / 1e6
            cpu_ms[kind], wall_ms = measure_pipeline_ms(root)
            alone_ms = measure_decoder_ms(root, kind)
            table.add_row(
                kind,
                f"{frame_mb:.2f}",
                f"{cpu_ms[kind]:.1f}",
                f"{wall_ms:.1f}",
                f"{alone_ms:.1f}",
                f"{cpu_ms[kind] / alone_ms:.2f}",
                f"{EARLIER_CPU_MS[kind]:.0f}",
            )
    console.print(f"a clip: {CLIP_FRAMES} frames of 256x256 from 1280x720; medians of {RUNS} runs")
    console.print(table)
    share = EARLIER_CPU_MS["PNG"] / cpu_ms["PNG"]
    console.print(f"PNG: {share:.0%} of the earlier speed (bar: {PNG_SHARE:.0%})")
    console.print(f"packed: {cpu_ms['PNG'] / cpu_ms['packed']:.1f} times PNG (bar: {PACKED_RATIO:.0f})")


if __name__ == "__main__":
    main()
