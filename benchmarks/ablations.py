"""What the parts of a network are good for: its variants, trained alike and scored on the same held-out scenes.

    python -m benchmarks.ablations cdvd     CDVD-TSP with one and with two stages (the paper's Table 3)
    python -m benchmarks.ablations svrnn    SVRNN and without its recurrence, steering or flow (rows of its Table IV)
    python -m benchmarks.ablations vdflow   DBN on one and on five frames, and VDFlow (the paper's Table 1); flows with
                                            and without the deblurring branch (its Table 2)

    [--out FOLDER] [--steps N] [--clips 24]

Trains the flow network inside first, then every variant from it by the :smoke recipe, all by train.py, and scores them
by evaluate.py: what is there already is not done again, what was stopped goes on. A variant whose flow network sees
other frames starts from it, too, but for the layers that do not fit, which train.py names. The tables are also written
to FOLDER/table.txt; FOLDER is runs/ablations_cdvd, for instance, if not given.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent


class Variant(NamedTuple):
    config: str
    options: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("deblur",)


class Experiment(NamedTuple):
    flow_network: tuple[str, ...]  # options of configs/pwcnet.py:smoke
    variants: Mapping[str, Variant]


EXPERIMENTS = {
    "cdvd": Experiment(
        (),
        {
            "one stage": Variant("configs/cdvd.py:smoke", ("--config.model.stages=1", "--config.data.frames=1")),
            "two stages": Variant("configs/cdvd.py:smoke", ("--config.model.stages=2", "--config.data.frames=3")),
        },
    ),
    "svrnn": Experiment(
        ("--config.model.name=flownet2s_small", "--config.model.width=0.09375"),
        {
            "full": Variant("configs/svrnn.py:smoke"),
            "without recurrence": Variant(
                "configs/svrnn.py:smoke", ("--config.model.recurrence=none", "--config.objective.flow_loss=False")
            ),
            "concatenated weights": Variant("configs/svrnn.py:smoke", ("--config.model.recurrence=concatenated",)),
            "without flow": Variant(
                "configs/svrnn.py:smoke", ("--config.model.sees=current", "--config.objective.flow_loss=False")
            ),
        },
    ),
    # All get the same number of updates: VDFlow a third of them for its flow branch, DBN all for deblurring, as in the
    # paper; FlowNetS alone as many as the flow branch inside VDFlow.
    "vdflow": Experiment(
        ("--config.model.name=flownets",),
        {
            "DBN+SINGLE": Variant("configs/vdflow.py:smoke,single"),
            "DBN+NOALIGN": Variant("configs/vdflow.py:smoke,noalign"),
            "VDFlow": Variant("configs/vdflow.py:smoke", tasks=("deblur", "flow")),
            "FlowNetS": Variant("configs/vdflow.py:smoke,flownets", tasks=("flow",)),
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
    steps = arguments.steps
    if arguments.experiment == "vdflow":
        steps = steps or 3000
    run("train.py", "--config=configs/pwcnet.py:smoke", f"--workdir={flow}", *experiment.flow_network)

    scores: dict[str, dict[str, Any]] = {"deblur": {}, "flow": {}}
    for name, variant in experiment.variants.items():
        folder = out / name.replace(" ", "_")
        common = [
            f"--config={variant.config}",
            f"--workdir={folder}",
            f"--config.initial.flow_workdir={flow}",
            *variant.options,
        ]
        if arguments.experiment == "vdflow":  # a third of VDFlow's updates is its flow branch's
            turn = steps // 3
            common.append(f"--config.objective.turn_updates={turn}")
            common.append(f"--config.training.steps={turn if name == 'FlowNetS' else 3 * turn}")
        elif steps is not None:
            common.append(f"--config.training.steps={steps}")
        run("train.py", *common)
        for task in variant.tasks:
            limit = f"--config.evaluation.{'flow_clips' if task == 'flow' else 'clips'}={arguments.clips}"
            result = folder / f"scores_{task}"
            run("evaluate.py", *common, limit, f"--task={task}", f"--out={result}")
            scores[task][name] = json.loads((result / "scores.json").read_text())

    about = f"{arguments.clips} held-out scenes"
    tables = [deblurring_table(scores["deblur"], title=f"{arguments.experiment}; {about}")]
    if arguments.experiment == "vdflow":
        tables = [video_table(scores["deblur"], title=f"PSNR dB / SSIM; {about}"), *tables]
        tables.append(flow_table(scores["flow"], title=about))
    with (out / "table.txt").open("w") as file:
        for console in (Console(), Console(file=file, width=110)):
            for table in tables:
                console.print(table)


def deblurring_table(scores: Mapping[str, Any], *, title: str) -> Table:
    """A row a variant: means over all clips."""
    table = Table(title=title)
    table.add_column("variant", no_wrap=True)
    for heading in ("PSNR dB", "gain dB", "clips that gain", "SSIM"):
        table.add_column(heading, justify="right")
    mean = next(iter(scores.values()))["mean"]
    blurred = (f"{mean['psnr_blurred_db']:.2f}", "", "", f"{mean['ssim_blurred']:.4f}")
    table.add_row("blurred", *blurred, end_section=True)
    for name, scored in scores.items():
        mean, clips = scored["mean"], scored["clips"]
        table.add_row(
            name,
            f"{mean['psnr_restored_db']:.2f}",
            f"{mean['gain_db']:+.2f}",
            f"{sum(clip['gain_db'] > 0 for clip in clips)}/{len(clips)}",
            f"{mean['ssim_restored']:.4f}",
        )
    return table


def video_table(scores: Mapping[str, Any], *, title: str) -> Table:
    """A row a clip, a column a variant, and the mean."""
    table = Table(title=title)
    table.add_column("clip", no_wrap=True)
    for name in ("blurred", *scores):
        table.add_column(name, justify="right")
    lists = [[*scored["clips"], scored["mean"]] for scored in scores.values()]
    for number, rows in enumerate(zip(*lists, strict=True), start=1):
        first = rows[0]
        blurred = f"{first['psnr_blurred_db']:.2f} / {first['ssim_blurred']:.3f}"
        restored = (f"{row['psnr_restored_db']:.2f} / {row['ssim_restored']:.3f}" for row in rows)
        table.add_row(first["clip"], blurred, *restored, end_section=number == len(lists[0]) - 1)
    return table


def flow_table(scores: Mapping[str, Any], *, title: str) -> Table:
    """A row a network: end-point error and outliers over all scenes."""
    table = Table(title=title)
    table.add_column("network", no_wrap=True)
    for heading in ("end-point error px", "outliers %"):
        table.add_column(heading, justify="right")
    for name, scored in scores.items():
        mean = scored["mean"]
        table.add_row(name, f"{mean['end_point_error_px']:.3f}", f"{mean['outliers_percent']:.2f}")
    return table


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
