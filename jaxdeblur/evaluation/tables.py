"""Scores for people and programs: a table on the terminal, JSON and CSV."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxdeblur.data.image_io import replacing
from jaxdeblur.evaluation.scores import ClipScore, FrameScore


def table(rows: list[ClipScore], *, title: str) -> Table:
    """One row a clip, the mean last."""
    result = Table(title=title)
    result.add_column("clip", no_wrap=True)
    for heading in ("frames", "blurred dB", "restored dB", "gain dB", "blurred SSIM", "restored SSIM"):
        result.add_column(heading, justify="right")
    for row in rows:
        result.add_row(
            row.clip,
            str(row.frames),
            f"{row.psnr_blurred_db:.2f}",
            f"{row.psnr_restored_db:.2f}",
            f"{row.gain_db:+.2f}",
            f"{row.ssim_blurred:.4f}",
            f"{row.ssim_restored:.4f}",
            end_section=row is rows[-2] if len(rows) > 1 else False,
        )
    return result


def write_json(path: Path, rows: list[ClipScore], frames: list[FrameScore], about: dict[str, Any]) -> None:
    """{**about, "mean": {...}, "clips": [...], "frames": [...]}."""
    *clips, mean = (dataclasses.asdict(row) for row in rows)
    document = {
        **about,
        "mean": mean,
        "clips": clips,
        "frames": [dataclasses.asdict(frame) for frame in frames],
    }
    with replacing(path) as partial:
        partial.write_text(json.dumps(document, indent=1) + "\n")


def write_csv(path: Path, rows: list[ClipScore]) -> None:
    """A line a clip, the mean last."""
    with replacing(path) as partial, partial.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in dataclasses.fields(ClipScore)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
