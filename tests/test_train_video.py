"""Networks that start from a flow network: trained, gone on with, scored and explained, as a user does it."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from test_train_flow import run
from tiny_video import smooth_frames, write_video_file

from jaxdeblur import cli
from jaxdeblur.checkpoint import load_model

CDVD = (
    "--config=configs/cdvd.py:smoke",
    "--config.model.flow=zero",  # a flow network takes most of the time to compile; test_config has it start from one
    "--config.model.channels=4",
    "--config.data.crop_px=32",
    "--config.evaluation.protocol=cdvd",
)
SVRNN = ("--config=configs/svrnn.py:smoke", "--config.model.width=0.1", "--config.evaluation.protocol=svrnn")
VDFLOW = (
    "--config=configs/vdflow.py:smoke",
    "--config.model.width=0.03125",
    "--config.objective.turn_updates=3",
    "--config.optimizer.plateau.patience=1",
    "--config.optimizer.plateau.tolerance=0.9",  # so that the learning rate falls at a branch's second check
    "--config.training.evaluate_every=2",
)
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


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((CDVD, 2, 4, (2, 3)), id="cdvd"),
        pytest.param((SVRNN, 2, 4, range(5)), id="svrnn", marks=pytest.mark.exhaustive),
        # Stopped in the flow branch's turn, 3 to 5.
        pytest.param((VDFLOW, 5, 8, range(6)), id="vdflow", marks=pytest.mark.exhaustive),
    ],
)
def trained(request, tmp_path_factory):
    """A run's options and workdir, after which update to stop, how many there are, and the frames that are scored."""
    recipe, stop, steps, scored = request.param
    recipe = (recipe[0], *QUICK, *recipe[1:])
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run("train.py", *recipe, f"--workdir={workdir}", f"--config.training.steps={steps}")
    return recipe, workdir, stop, steps, scored


@pytest.mark.slow
@pytest.mark.exhaustive  # test_train has it of one recipe
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, trained):
    recipe, workdir, stop, steps, _ = trained
    stopped = tmp_path / "stopped"
    gone = "--config.initial.flow_workdir=gone"
    run("train.py", *recipe, f"--workdir={stopped}", f"--config.training.steps={stop}", gone)
    shutil.rmtree(stopped / "pictures")
    run("train.py", *recipe, f"--workdir={stopped}", f"--config.training.steps={steps}")
    assert (stopped / "losses.csv").read_text() == (workdir / "losses.csv").read_text()
    _, undisturbed = load_model(workdir / "checkpoints" / str(steps))
    jax.tree.map(np.testing.assert_array_equal, load_model(stopped / "checkpoints" / str(steps))[1], undisturbed)


@pytest.mark.slow
def test_from_training_to_a_restored_video(tmp_path, trained):
    recipe, workdir, _, _, scored = trained
    run("evaluate.py", *recipe, f"--workdir={workdir}", f"--out={tmp_path / 'scores'}")
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert [(frame["clip"], frame["frame"]) for frame in scores["frames"]] == [
        (clip, frame) for clip in ("test_000", "test_001") for frame in scored
    ]
    assert np.isfinite(scores["mean"]["psnr_restored_db"])

    if recipe[0] == VDFLOW[0]:
        check_turns(workdir)
        run("evaluate.py", *recipe, f"--workdir={workdir}", "--task=flow", f"--out={tmp_path / 'flow'}")
        flow = json.loads((tmp_path / "flow" / "scores.json").read_text())
        assert len(flow["pairs"]) == 8 * 5  # of eight scenes, unless told otherwise
        assert np.isfinite(flow["mean"]["end_point_error_px"])

    write_video_file(tmp_path / "in.mp4", smooth_frames(3), pts=[0, 40, 80])
    command = ["deblur", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), f"--checkpoint={workdir}"]
    assert cli.main([*command, f"--explain={tmp_path / 'sheets'}"]) == 0
    assert (tmp_path / "out.mp4").exists()
    assert len(list((tmp_path / "sheets").iterdir())) == 3


def check_turns(workdir):
    """Each update has its branch's loss; every other one of the flow branch is of true flow."""
    with (workdir / "losses.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert ["deblur" if row["loss_deblur"] else "flow" for row in rows] == ["deblur"] * 3 + ["flow"] * 3 + [
        "deblur"
    ] * 2
    assert [bool(row["end_point_error_next_px"]) for row in rows[3:6]] == [True, False, True]
    assert [bool(row["warping_error"]) for row in rows[3:6]] == [False, True, False]
    # Checked after updates 2 (deblur), 4 and 6 (flow) and 8.
    assert [float(row["learning_rate_scale"]) for row in rows] == [1.0] * 6 + [0.5] * 2
