"""Reblur2Deblur's recipe: what it resolves to, what it reads, and a run as a user makes it."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image
from test_config import load
from test_train_flow import run
from tiny_networks import DEBLURGAN, FLOWNETS, save_networks

import jaxdeblur.config as parts
from jaxdeblur.checkpoint import find_checkpoint, load_config, load_flow_network, load_model
from jaxdeblur.objectives.reblur import ReblurObjective, TunedParams
from jaxdeblur.training.sharding import make_mesh


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return save_networks(tmp_path_factory.mktemp("networks"))


def write_clip(folder, count):
    rng = np.random.default_rng(0)
    for side in ("blur", "sharp"):
        (folder / side).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).save(folder / side / f"{number}.png")


def recipe(networks, variant="scenes"):
    config = load(variant, "reblur")
    config.initial.checkpoint = str(networks / "deblurgan")
    config.initial.flow_checkpoint = str(networks / "flownets")
    return config


@pytest.mark.parametrize("data", ["", "gopro", "dvd", "scenes"])
def test_every_variant_names_what_it_tunes_and_the_papers_schedule(networks, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = recipe(networks, data)
    if data in ("gopro", "dvd"):
        for split in ("train", "test"):
            for clip in ("a", "b"):
                write_clip(tmp_path / "data" / data / split / clip, 8)
    config = parts.resolve(config)
    assert config.model.to_dict() == {"name": "deblurgan", **DEBLURGAN}
    assert config.flow_net.to_dict() == {"name": "flownets", **FLOWNETS}
    objective = parts.build_objective(config, parts.build_model(config))
    assert isinstance(objective, ReblurObjective)
    assert (objective.alpha, objective.exposure, objective.light, objective.flow_gradient) == (
        0.1,
        1.0,
        "encoded",
        True,
    )
    assert config.data.unlabelled.source == config.data.source
    # 12 frames of two videos with a neighbour on either side; 12 clips of 7 frames, 8 in the place of the paper's.
    frames = {"gopro": 12, "dvd": 12, "scenes": 60, "": 40}[data]
    a_pass = -(-frames // 5)
    assert config.training.steps == 200 * a_pass
    assert config.optimizer.boundaries == (30 * a_pass, 50 * a_pass, 100 * a_pass)
    assert set(parts.build_optimizers(config, objective)) == {"total"}

    quick = parts.resolve(recipe(networks, f"{data},quick"))
    assert (quick.training.steps, quick.optimizer.schedule) == (200, "constant")


def test_both_halves_of_a_batch_come_from_their_folders(networks, tmp_path):
    for split in ("train", "test"):
        for clip in ("a", "b"):
            write_clip(tmp_path / split / clip, 6)
    config = recipe(networks, "gopro")
    for part in (config.data.video_folder, config.data.unlabelled):
        part.root = str(tmp_path)
    config.data.batch_size, config.data.unlabelled.batch_size, config.data.crop_px = 2, 4, 8
    config.data.unlabelled.only = ("b",)
    config = parts.resolve(config)
    mesh = make_mesh(jax.devices()[:1])
    turns = parts.build_turns(config, parts.build_model(config))
    batches = parts.training_batches(config, turns, mesh)
    batch = next(batches(0))
    assert batch["blurred"].shape == (2, 1, 8, 8, 3)
    assert batch["unlabelled"].shape == (4, 3, 8, 8, 3)
    stream = batches(0)
    next(stream)
    np.testing.assert_array_equal(next(stream)["unlabelled"], next(batches(1))["unlabelled"])
    (clip,) = parts.build_evaluation(config, parts.build_model(config), mesh, held_out="test", task="deblur").clips
    assert clip.name == "b"
    config.data.unlabelled.only = ("c",)
    with pytest.raises(ValueError, match=r"data\.unlabelled\.only names c, of which there is no clip; there are a, b"):
        parts.training_batches(config, turns, mesh)


def test_what_is_missing_is_named(networks):
    config = recipe(networks)
    config.initial.checkpoint = ""
    with pytest.raises(ValueError, match=r"initial\.checkpoint is empty"):
        parts.build_model(parts.resolve(config))
    config = recipe(networks)
    config.initial.flow_checkpoint = ""
    config = parts.resolve(config)
    with pytest.raises(ValueError, match=r"initial\.flow_checkpoint is empty; name a flow network's run"):
        parts.build_objective(config, parts.build_model(config))
    config.initial.flow_checkpoint = str(networks / "deblurgan")
    with pytest.raises(ValueError, match="is a deblurgan; expected a flow network"):
        parts.resolve(config)


@pytest.fixture(scope="module")
def options(networks):
    return [
        "--config=configs/reblur.py:scenes,quick",
        f"--config.initial.checkpoint={networks / 'deblurgan'}",
        f"--config.initial.flow_checkpoint={networks / 'flownets'}",
        "--config.data.batch_size=2",
        "--config.data.unlabelled.batch_size=2",
        "--config.data.crop_px=32",
        "--config.data.unlabelled.clip_px=40",
        "--config.data.scenes.distinct_clips=4",
        "--config.training.log_every=1",
        "--config.training.checkpoint_every=2",
        "--config.training.evaluate_every=2",
        "--config.evaluation.clips=2",
        "--config.evaluation.frames=4",
    ]


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """The workdir of a run of four updates."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    run("train.py", *options, f"--workdir={workdir}", "--config.training.steps=4")
    return workdir


@pytest.mark.slow
@pytest.mark.exhaustive  # test_adaptation has it of these losses, test_train of the command
def test_a_stopped_run_goes_on_as_if_it_had_not_been(options, whole, tmp_path):
    run("train.py", *options, f"--workdir={tmp_path / 'stopped'}", "--config.training.steps=2")
    run("train.py", *options, f"--workdir={tmp_path / 'stopped'}", "--config.training.steps=4")
    assert (tmp_path / "stopped" / "losses.csv").read_text() == (whole / "losses.csv").read_text()
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "stopped")[1], load_model(whole)[1])


@pytest.mark.slow
def test_a_run_from_its_networks_to_its_scores(networks, options, whole, tmp_path):
    with (whole / "validation.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["0", "2", "4"]
    assert set(rows[0]) == {"step", "truth_psnr_db", "truth_psnr_gain_db", "truth_ssim", "reblur_psnr_db"}
    # The best is the one that reblurs best, whatever the truth says.
    best = max(rows, key=lambda row: float(row["reblur_psnr_db"]))["step"]
    assert find_checkpoint(whole).name == best
    assert load_config(find_checkpoint(whole))["flow_net"] == {"name": "flownets", **FLOWNETS}
    _, flow, _ = load_flow_network(whole / "checkpoints" / "4")
    before = load_model(networks / "flownets")[1]
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (flow, before)), strict=True))
    # A tuned run can be tuned on, with the flow network beside it.
    again = parts.tuned_variables(parts.resolve(recipe_of(whole)))
    assert isinstance(again["params"], TunedParams)

    said = run("evaluate.py", *options, f"--workdir={whole}", f"--out={tmp_path / 'scores'}")
    assert "the very clips that were tuned on without their truth" in " ".join(said.split())
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert [(frame["clip"], frame["frame"]) for frame in scores["frames"]] == [
        (clip, frame) for clip in ("test_000", "test_001") for frame in range(4)
    ]
    only = "--config.data.unlabelled.only=('test_009',)"
    with pytest.raises(AssertionError, match=r"data\.unlabelled\.only names test_009"):
        run("train.py", *options, f"--workdir={tmp_path / 'x'}", "--config.training.steps=2", only)


def recipe_of(run_folder):
    config = load("scenes,quick", "reblur")
    config.initial.checkpoint = config.initial.flow_checkpoint = str(run_folder)
    return config
