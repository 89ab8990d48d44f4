"""Training and scoring of a flow network on a data set of flow, as a user runs them."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdeblur.data.flow_io import write_flow
from jaxdeblur.data.image_io import ImageFile, write_image

ROOT = Path(__file__).parent.parent


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sintel(tmp_path_factory):
    """Two scenes of three frames, each moved by its own whole number of pixels."""
    root = tmp_path_factory.mktemp("sintel")
    rng = np.random.default_rng(0)
    for scene, (u, v) in {"alley": (2, 0), "cave": (0, 3)}.items():
        first = rng.integers(0, 256, (64, 80, 3), np.uint8)
        for number in range(3):
            for render_pass in ("clean", "final"):
                image = np.roll(first, (number * v, number * u), axis=(0, 1))
                folder = root / "training" / render_pass / scene
                folder.mkdir(parents=True, exist_ok=True)
                write_image(folder / f"frame_{number + 1:04d}.png", ImageFile(image))
            if number < 2:
                folder = root / "training" / "flow" / scene
                folder.mkdir(parents=True, exist_ok=True)
                flow = np.broadcast_to(np.array([u, v], np.float32), (64, 80, 2))
                write_flow(folder / f"frame_{number + 1:04d}.flo", flow)
    return root


@pytest.mark.slow
def test_a_flow_network_is_trained_on_sintel_and_scored_scene_by_scene(sintel, tmp_path):
    workdir = tmp_path / "run"
    options = (
        "--config=configs/pwcnet.py:sintel",
        f"--workdir={workdir}",
        "--config.model.name=flownet2s",
        "--config.model.width=0.03",
        f"--config.data.flow_pairs.root={sintel}",
        "--config.data.flow_pairs.held_out_scenes=('cave',)",
        "--config.data.flow_pairs.crop_px=(64,64)",
        "--config.data.flow_pairs.augment=flips",
        "--config.data.batch_size=2",
        "--config.training.steps=6",
        "--config.training.log_every=2",
        "--config.training.checkpoint_every=3",
        "--config.training.evaluate_every=3",
    )
    printed = run("train.py", *options)
    assert "end_point_error_px" in printed
    with (workdir / "validation.csv").open() as stream:
        validation = list(csv.DictReader(stream))
    assert [row["step"] for row in validation] == ["3", "6"]
    assert (workdir / "pictures" / "step_00000006.png").is_file()

    assert "outliers %" in run("evaluate.py", *options)
    scores = json.loads((workdir / "evaluation" / "scores.json").read_text())
    assert [scene["scene"] for scene in scores["scenes"]] == ["cave"]
    assert [pair["pair"] for pair in scores["pairs"]] == [0, 1]
    assert scores["mean"]["pixels"] == 2 * 64 * 80
    # The checkpoint that is scored is the one with the smaller error.
    best = min(float(row["end_point_error_px"]) for row in validation)
    assert scores["mean"]["end_point_error_px"] == pytest.approx(best, rel=1e-3)
    assert (workdir / "evaluation" / "worst.png").is_file()
