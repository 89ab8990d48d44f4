"""Scores for people and programs: a table on the terminal, JSON and CSV."""

import csv
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxdeblur.data.image_io import replacing
from jaxdeblur.evaluation.scores import ClipScore


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


def write_json(path: Path, document: dict[str, Any]) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(document, indent=1) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """A line a row, under a line of the first row's names."""
    with replacing(path) as partial, partial.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
