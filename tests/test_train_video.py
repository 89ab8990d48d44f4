"""Networks that start from a flow network: trained, gone on with, scored and explained, as a user does it."""

import json
import shutil

import numpy as np
import pytest
from test_train_flow import run
from tiny_video import smooth_frames, write_video_file

from jaxdeblur import cli

CDVD = (
    "--config=configs/cdvd.py:smoke",
    "--config.model.flow=zero",  # a flow network takes most of the time to compile; test_config has it start from one
    "--config.model.channels=4",
    "--config.data.crop_px=32",
    "--config.evaluation.protocol=cdvd",
)
SVRNN = ("--config=configs/svrnn.py:smoke", "--config.model.width=0.1", "--config.evaluation.protocol=svrnn")
QUICK = (
    "--config.data.batch_size=2",
    "--config.data.scenes.distinct_clips=4",
    "--config.optimizer.schedule=constant",  # a cosine's shape depends on when the run is to end
    "--config.training.log_every=2",
    "--config.training.checkpoint_every=2",
    "--config.training.evaluate_every=4",
    "--config.evaluation.clips=2",
    "--config.evaluation.frames=6",
)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "scored"), [(CDVD, (2, 3)), (SVRNN, range(5))], ids=["cdvd", "svrnn"])
def test_from_training_to_a_restored_video(tmp_path, recipe, scored):
    recipe = (*recipe, *QUICK)
    workdir = tmp_path / "run"
    run("train.py", *recipe, f"--workdir={workdir}", "--config.training.steps=4")
    stopped = tmp_path / "stopped"
    run("train.py", *recipe, f"--workdir={stopped}", "--config.training.steps=2", "--config.initial.flow_workdir=gone")
    shutil.rmtree(stopped / "pictures")
    run("train.py", *recipe, f"--workdir={stopped}", "--config.training.steps=4")
    assert (stopped / "losses.csv").read_text() == (workdir / "losses.csv").read_text()

    run("evaluate.py", *recipe, f"--workdir={workdir}", f"--out={tmp_path / 'scores'}")
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert [(frame["clip"], frame["frame"]) for frame in scores["frames"]] == [
        (clip, frame) for clip in ("test_000", "test_001") for frame in scored
    ]
    assert np.isfinite(scores["mean"]["psnr_restored_db"])

    write_video_file(tmp_path / "in.mp4", smooth_frames(3), pts=[0, 40, 80])
    command = ["deblur", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), f"--checkpoint={workdir}"]
    assert cli.main([*command, f"--explain={tmp_path / 'sheets'}"]) == 0
    assert (tmp_path / "out.mp4").exists()
    assert len(list((tmp_path / "sheets").iterdir())) == 3
