"""docs/protocols.md says what the command says."""

import re
from pathlib import Path

import numpy as np

from benchmarks.protocols import BLURRED, SHARP, changed, scores
from jaxdeblur.data.image_io import read_rgb_u8
from jaxdeblur.evaluation.protocols import PROTOCOLS

PAGE = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()


def rows_of(table_number):
    tables = re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    _, _, *rows = tables[table_number].strip().splitlines()
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)}


def test_the_tables_figures_are_the_commands():
    sharp = read_rgb_u8(SHARP)
    found = scores(changed(read_rgb_u8(BLURRED), sharp), sharp)
    printed = rows_of(0)
    assert list(printed) == list(found) == list(PROTOCOLS)
    for name, cells in printed.items():
        figures = np.array([[float(part) for part in cell.split(" / ")] for cell in cells])
        np.testing.assert_allclose(figures[:, 0], [psnr_db for psnr_db, _ in found[name]], atol=0.006)
        np.testing.assert_allclose(figures[:, 1], [ssim for _, ssim in found[name]], atol=6e-5)


def test_every_protocol_is_explained():
    explained = rows_of(1)
    assert set(explained) == set(PROTOCOLS)
    for name, protocol in PROTOCOLS.items():
        assert explained[name][-1] == protocol.over
