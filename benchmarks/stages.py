"""Does the cascade help? CDVD-TSP with one and with two stages, trained alike and scored on held-out scenes.

    python -m benchmarks.stages [--out stages_out] [--steps 400]

Trains a small PWC-Net first (configs/pwcnet.py:smoke), then both networks from it (configs/cdvd.py:smoke), all by
train.py, and scores them by evaluate.py: what is there already is not done again, what was stopped goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("stages_out"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--clips", type=int, default=24, help="held-out clips to score on")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    run("train.py", "--config=configs/pwcnet.py:smoke", f"--workdir={out / 'pwcnet'}")

    table = Table(title=f"{arguments.clips} held-out scenes, {arguments.steps} updates, protocol common")
    for heading in ("stages", "PSNR dB", "gain dB", "SSIM"):
        table.add_column(heading, justify="right")
    for stages in (1, 2):
        options = (
            "--config=configs/cdvd.py:smoke",
            f"--workdir={out / f'stages_{stages}'}",
            f"--config.model.stages={stages}",
            f"--config.data.frames={2 * stages - 1}",
            f"--config.initial.flow_workdir={out / 'pwcnet'}",
            f"--config.training.steps={arguments.steps}",
        )
        run("train.py", *options)
        run(
            "evaluate.py", *options, f"--config.evaluation.clips={arguments.clips}", f"--out={out / f'scores_{stages}'}"
        )
        mean = json.loads((out / f"scores_{stages}" / "scores.json").read_text())["mean"]
        if stages == 1:
            table.add_row("blurred", f"{mean['psnr_blurred_db']:.2f}", "", f"{mean['ssim_blurred']:.4f}")
        table.add_row(
            str(stages), f"{mean['psnr_restored_db']:.2f}", f"{mean['gain_db']:+.2f}", f"{mean['ssim_restored']:.4f}"
        )
    Console().print(table)


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
