"""Scores for people and programs: a table on the terminal, JSON and CSV."""

import csv
import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from jaxdeblur.data.own_files import replacing
from jaxdeblur.evaluation.protocols import Protocol
from jaxdeblur.evaluation.scores import ClipScore
from jaxdeblur.printable import printable


def table(rows: list[ClipScore], protocol: Protocol, *, title: str, restored: bool = True) -> Table:
    """One row a clip, the mean last, under what the protocol does.

    restored: whether there are restored frames beside the blurred ones.
    """
    result = Table(title=escape(f"{title}, protocol {protocol.name}"), caption=protocol.about, caption_justify="left")
    result.add_column("clip", no_wrap=True)
    shown = columns_shown(restored=restored)
    for heading in shown:
        result.add_column(heading, justify="right")
    for row in rows:
        cells = columns_of(row)
        result.add_row(
            escape(label(row.clip, protocol)),
            *(cells[heading] for heading in shown),
            end_section=len(rows) > 1 and row is rows[-2],
        )
    return result


COLUMNS = ("frames", "blurred dB", "restored dB", "gain dB", "blurred SSIM", "restored SSIM")


def columns_shown(*, restored: bool) -> list[str]:
    """Of COLUMNS; those of restored frames only if there are any."""
    return [name for name in COLUMNS if restored or name in ("frames", "blurred dB", "blurred SSIM")]


def columns_of(row: ClipScore) -> dict[str, str]:
    """Of COLUMNS, as they are printed."""
    return {
        "frames": str(row.frames),
        "blurred dB": f"{row.psnr_blurred_db:.2f}",
        "restored dB": f"{row.psnr_restored_db:.2f}",
        "gain dB": f"{row.gain_db:+.2f}",
        "blurred SSIM": f"{row.ssim_blurred:.4f}",
        "restored SSIM": f"{row.ssim_restored:.4f}",
    }


def label(clip: str, protocol: Protocol) -> str:
    """A clip's name, printable, with its number where the papers' tables number it."""
    return f"{protocol.order.index(clip) + 1} {clip}" if clip in protocol.order else printable(clip)


def write_json(path: Path, document: dict[str, Any]) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(document, indent=1) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """A line a row, under a line of the first row's names.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    with replacing(path) as partial, partial.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: _as_text(value) for name, value in row.items()} for row in rows)


def _as_text(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
