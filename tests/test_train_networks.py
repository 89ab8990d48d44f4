"""Networks with released weights as their users run them: trained by their configuration, scored, and at work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdeblur.data.image_io import ImageFile, read_rgb_u8, write_image

ROOT = Path(__file__).parent.parent
SMALLER = {
    "maxim": ["--config.model.stages=1"],
    "nafnet": ["--config.model.encoder_blocks=(1,1)", "--config.model.decoder_blocks=(1,1)"],
    "estrnn": [],
}


def run(*command):
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["nafnet", "estrnn", pytest.param("maxim", marks=pytest.mark.exhaustive)]
)  # MAXIM's takes minutes to compile
def test_a_smoke_run_is_scored_and_restores_frames(tmp_path, name):
    options = [f"--config=configs/{name}.py:smoke", f"--workdir={tmp_path / 'run'}", *SMALLER[name]]
    short = ["training.steps=2", "training.log_every=1", "training.checkpoint_every=2", "training.evaluate_every=2"]
    run("train.py", *options, *(f"--config.{field}" for field in short))
    rows = (tmp_path / "run" / "losses.csv").read_text().splitlines()
    assert len(rows) == 3
    assert np.all(np.isfinite([float(value) for row in rows[1:] for value in row.split(",")]))
    run("evaluate.py", *options, f"--out={tmp_path / 'scores'}", *(f"--config.{field}" for field in short))
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores
    frames, out = tmp_path / "frames", tmp_path / "out"
    frames.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        write_image(frames / f"{number}.png", ImageFile(rng.integers(0, 256, (50, 70, 3), np.uint8)))
    run("-m", "jaxdeblur.cli", "deblur", str(frames), str(out), f"--checkpoint={tmp_path / 'run'}", "--no-gate")
    restored = [read_rgb_u8(path) for path in sorted(out.iterdir())]
    assert [image.shape for image in restored] == [(50, 70, 3)] * 3
    assert any(np.any(image != read_rgb_u8(frames / f"{n}.png")) for n, image in enumerate(restored))
