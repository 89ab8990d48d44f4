"""What each protocol prints for one and the same frame, blurred and otherwise not quite right.

    python -m benchmarks.protocols [BLURRED.png SHARP.png] [--markdown]

Every row is a protocol's formula on a single pair of frames, whichever frames of a video the protocol would take. The
columns between the first and the last change the sharp frame itself: rulers differ more in what they forgive than in
what they punish.
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxdeblur.data.image_io import read_rgb_u8
from jaxdeblur.evaluation.protocols import PROTOCOLS
from jaxdeblur.evaluation.scores import MAX_PSNR_DB, framed

REDS = Path(__file__).parent.parent / "demo" / "reds"
BLURRED, SHARP = REDS / "blur" / "0005.png", REDS / "sharp" / "0005.png"


def changed(blurred_u8: np.ndarray, sharp_u8: np.ndarray) -> dict[str, np.ndarray]:
    """What is scored against the sharp frame, in 8-bit levels, not rounded."""
    noise = 5 * np.random.default_rng(0).standard_normal(sharp_u8.shape)
    return {
        "blurred": blurred_u8,
        "sharp, 1 px aside": np.roll(sharp_u8, 1, axis=1),
        "sharp, 5 % darker": 0.95 * sharp_u8,
        "sharp, noise of 5 levels": sharp_u8 + noise,
        "blurred, levels + 0.6": blurred_u8 + 0.6,
    }


def scores(images: dict[str, np.ndarray], sharp_u8: np.ndarray) -> dict[str, list[tuple[float, float]]]:
    """Protocol -> (PSNR in decibel, SSIM) of each image."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, protocol in PROTOCOLS.items():
        found[name] = []
        for image in images.values():
            pair = (
                framed(np.clip(x, 0, 255).astype(np.float32) / np.float32(255), protocol) for x in (image, sharp_u8)
            )
            psnr_db, ssim = protocol.score(*pair)
            found[name].append((min(float(psnr_db), MAX_PSNR_DB), float(ssim)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blurred", type=Path, nargs="?", default=BLURRED)
    parser.add_argument("sharp", type=Path, nargs="?", default=SHARP)
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    sharp_u8 = read_rgb_u8(arguments.sharp)
    images = changed(read_rgb_u8(arguments.blurred), sharp_u8)
    rows = [
        [name, *(f"{psnr_db:.2f} / {ssim:.4f}" for psnr_db, ssim in found)]
        for name, found in scores(images, sharp_u8).items()
    ]
    headings = ["protocol", *images]
    if arguments.markdown:
        for cells in (headings, ["---"] * len(headings), *rows):
            print(f"| {' | '.join(cells)} |")
        return
    table = Table(*headings, title="PSNR dB / SSIM of one frame")
    for cells in rows:
        table.add_row(*cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
