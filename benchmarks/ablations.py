"""What the parts of a network are good for: its variants, trained alike and scored on the same held-out scenes.

    python -m benchmarks.ablations cdvd     CDVD-TSP with one and with two stages (the paper's Table 3)
    python -m benchmarks.ablations svrnn    SVRNN and without its recurrence, steering or flow (rows of its Table IV)

    [--out FOLDER] [--steps N] [--clips 24]

Trains the flow network inside first, then every variant from it by the :smoke recipe, all by train.py, and scores them
by evaluate.py: what is there already is not done again, what was stopped goes on. The table is also written to
FOLDER/table.txt; FOLDER is runs/ablations_cdvd or runs/ablations_svrnn if not given.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent


class Experiment(NamedTuple):
    config: str
    flow_network: tuple[str, ...]  # options of configs/pwcnet.py:smoke
    variants: dict[str, tuple[str, ...]]


EXPERIMENTS = {
    "cdvd": Experiment(
        "configs/cdvd.py:smoke",
        (),
        {
            "one stage": ("--config.model.stages=1", "--config.data.frames=1"),
            "two stages": ("--config.model.stages=2", "--config.data.frames=3"),
        },
    ),
    "svrnn": Experiment(
        "configs/svrnn.py:smoke",
        ("--config.model.name=flownet2s_small", "--config.model.width=0.09375"),
        {
            "full": (),
            "without recurrence": ("--config.model.recurrence=none", "--config.objective.flow_loss=False"),
            "concatenated weights": ("--config.model.recurrence=concatenated",),
            "without flow": ("--config.model.sees=current", "--config.objective.flow_loss=False"),
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, help="updates of each variant; the recipe's own number if not given")
    parser.add_argument("--clips", type=int, default=24, help="held-out clips to score on")
    arguments = parser.parse_args()
    experiment = EXPERIMENTS[arguments.experiment]
    out = (arguments.out or ROOT / "runs" / f"ablations_{arguments.experiment}").absolute()
    flow = out / "flow"
    run("train.py", "--config=configs/pwcnet.py:smoke", f"--workdir={flow}", *experiment.flow_network)

    table = Table(title=f"{experiment.config}; {arguments.clips} held-out scenes")
    table.add_column("variant", no_wrap=True)
    for heading in ("PSNR dB", "gain dB", "clips that gain", "SSIM"):
        table.add_column(heading, justify="right")
    for number, (name, options) in enumerate(experiment.variants.items()):
        folder = out / name.replace(" ", "_")
        common = (
            f"--config={experiment.config}",
            f"--workdir={folder}",
            f"--config.initial.flow_workdir={flow}",
            *(() if arguments.steps is None else (f"--config.training.steps={arguments.steps}",)),
            *options,
        )
        run("train.py", *common)
        run("evaluate.py", *common, f"--config.evaluation.clips={arguments.clips}", f"--out={folder / 'scores'}")
        scores = json.loads((folder / "scores" / "scores.json").read_text())
        mean = scores["mean"]
        if number == 0:
            blurred = (f"{mean['psnr_blurred_db']:.2f}", "", "", f"{mean['ssim_blurred']:.4f}")
            table.add_row("blurred", *blurred, end_section=True)
        gaining = sum(clip["gain_db"] > 0 for clip in scores["clips"])
        table.add_row(
            name,
            f"{mean['psnr_restored_db']:.2f}",
            f"{mean['gain_db']:+.2f}",
            f"{gaining}/{len(scores['clips'])}",
            f"{mean['ssim_restored']:.4f}",
        )
    Console().print(table)
    with (out / "table.txt").open("w") as file:
        Console(file=file, width=100).print(table)


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
