"""What a run writes down: metrics as CSV and for TensorBoard. Both go on seamlessly when a run goes on."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from jaxdeblur.data.own_files import replacing


class Records:
    """`<workdir>/<name>.csv`, a row a record, and TensorBoard events beside them.

    Args:
        first_step: rows at later steps, left by a run that was killed after its last checkpoint, are dropped.
    """

    def __init__(self, workdir: Path, first_step: int) -> None:
        self._workdir = workdir
        self._first_step = first_step
        self._columns: dict[str, list[str]] = {}
        self._opened: set[str] = set()
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, name: str, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Appends rows (step, values) to <name>.csv and shows the last in TensorBoard.

        What a row has no value for stays empty; a value of a new name makes a new column.
        """
        file = self._workdir / f"{name}.csv"
        columns = self._columns.get(name, [])
        new = [key for key in dict.fromkeys(key for _, values in rows for key in values) if key not in columns]
        if new or name not in self._columns:
            columns = self._columns[name] = self._open(file, new)
        with file.open("a", newline="") as stream:
            lines = [[step, *(repr(values[c]) if c in values else "" for c in columns)] for step, values in rows]
            csv.writer(stream).writerows(lines)
        step, values = rows[-1]
        for key, value in values.items():
            self._board.add_scalar(f"{name}/{key}", value, step)

    def picture(self, name: str, step: int, image_u8: np.ndarray) -> None:
        """Shows an (H, W, 3) image in TensorBoard."""
        self._board.add_image(name, image_u8, step, dataformats="HWC")

    def close(self) -> None:
        self._board.close()

    def _open(self, file: Path, needed: list[str]) -> list[str]:
        """Rewrites the file with what columns it lacks; returns all it has."""
        header, rows = ["step"], []
        if file.exists():
            with file.open(newline="") as stream:
                header, *rows = list(csv.reader(stream)) or [header]
        # A row cut short by the end of a process has no full set of columns.
        opened = file.name in self._opened
        kept = [row for row in rows if len(row) == len(header) and (opened or int(row[0]) <= self._first_step)]
        self._opened.add(file.name)
        new = [column for column in needed if column not in header]
        with replacing(file) as partial, partial.open("w", newline="") as stream:
            csv.writer(stream).writerows([[*header, *new], *([*row, *[""] * len(new)] for row in kept)])
        return [*header[1:], *new]
