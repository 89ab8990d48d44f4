"""The recipe of the package's weights: from photographs to a file of weights, from which a run goes on."""

import csv
import functools

import jax
import numpy as np
import pytest
from test_train_flow import run
from tiny_video import smooth_frames, write_video_file

from jaxdeblur import cli
from jaxdeblur.checkpoint import load_model
from jaxdeblur.data.image_io import ImageFile, write_image

RECIPE = (
    "--config=configs/pretrained.py:smoke",
    "--config.optimizer.schedule=constant",  # a cosine's shape depends on when the run is to end
    "--config.data.scenes.distinct_clips=4",
    "--config.training.log_every=2",
    "--config.training.checkpoint_every=2",
    "--config.training.evaluate_every=4",
)


@pytest.mark.exhaustive
def test_from_photographs_to_weights_and_on(tmp_path):
    photographs, workdir, stopped, weights = (
        tmp_path / name for name in ("photographs", "run", "stopped", "small.npz")
    )
    photographs.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (120, 150, 3), np.uint8)
        write_image(photographs / f"{number}.png", ImageFile(noise))
    recipe = (*RECIPE, f"--config.data.scenes.photographs={photographs}")
    run("train.py", *recipe, f"--workdir={workdir}", "--config.training.steps=4")
    for steps in (2, 4):
        run("train.py", *recipe, f"--workdir={stopped}", f"--config.training.steps={steps}")
    assert (stopped / "losses.csv").read_text() == (workdir / "losses.csv").read_text()
    with (workdir / "losses.csv").open() as stream:
        assert all(float(row["loss_deblur"]) < 1 for row in csv.DictReader(stream))  # of images in [0, 1]
    model, variables = load_model(workdir)
    jax.tree.map(np.testing.assert_array_equal, load_model(stopped)[1], variables)

    assert cli.main(["export", str(weights), f"--checkpoint={workdir}"]) == 0
    exported, exported_variables = load_model(weights)
    assert exported == model
    jax.tree.map(np.testing.assert_array_equal, exported_variables, variables)
    write_video_file(tmp_path / "in.mp4", smooth_frames(3), pts=[0, 40, 80])
    assert cli.main(["deblur", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), f"--checkpoint={weights}"]) == 0
    assert (tmp_path / "out.mp4").exists()

    further = (f"--workdir={tmp_path / 'further'}", f"--config.initial.checkpoint={weights}")
    run("train.py", *recipe, *further, "--config.training.steps=1", "--config.optimizer.learning_rates.deblur=0.0")
    # Nothing is learned at a rate of zero; the moving average rounds.
    assert_equal = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(assert_equal, load_model(tmp_path / "further")[1], variables)
