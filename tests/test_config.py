"""Configurations: variants, what they resolve to, and their faults."""

import importlib.util
import logging
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxdeblur.config as parts
from jaxdeblur.models import MODELS, create_model, example_inputs
from jaxdeblur.training.sharding import make_mesh

ROOT = Path(__file__).parent.parent


def load(variant):
    spec = importlib.util.spec_from_file_location("mtu", ROOT / "configs" / "mtu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def count(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mtu1", 538_073),
        ("mtu2", 1_038_732),
        ("mtu4", 2_040_050),
        ("mtu10", 5_044_004),
        ("mtu10l", 13_825_902),
        ("liteflownet", 5_381_969),
    ],
)
def test_every_model_has_the_papers_parameters(name, parameters):
    assert count(create_model(name)) == parameters
    assert name in MODELS


@pytest.mark.parametrize("variant", ["", "dvd", "gopro", "scenes", "demo", "smoke"])
def test_every_variant_builds(variant):
    config = parts.resolve(load(variant))
    model = parts.build_model(config)
    objective = parts.build_objective(config, model)
    optimizers = parts.build_optimizers(config, objective)
    assert set(optimizers) == {"deblur", "motion"}
    if variant not in ("demo", "smoke"):
        assert count(model) == 1_038_732
        assert (
            config.data.batch_size * config.data.frames * (config.training.steps // config.data.frames) == 8 * 1_300_000
        )


def test_an_unknown_variant_lists_the_known():
    with pytest.raises(ValueError, match="no variant 'tiny'; variants: dvd, gopro, scenes, demo, smoke"):
        load("tiny")


def test_an_unknown_field_cannot_be_set():
    config = load("smoke")
    with pytest.raises(AttributeError, match="clip_norm"):
        config.optimizer.clip_nrom = 1.0


def test_without_the_papers_data_it_says_loudly_that_it_takes_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parts.resolve(load(""))
    assert config.data.source == "scenes"
    assert "NOT ON THE PAPER'S DATA" in parts.to_json(config)["data"]["note"]


def test_with_the_papers_data_it_takes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "dvd" / "train").mkdir(parents=True)
    config = parts.resolve(load(""))
    assert config.data.source == "video_folder"
    assert config.data.note == ""


def test_the_motion_loss_without_flow_says_what_to_give():
    config = parts.resolve(load("dvd"))
    with pytest.raises(ValueError, match=r"teacher_checkpoint=FILE.*motion_loss=False"):
        parts.load_frozen(config)
    config.objective.motion_loss = False
    assert parts.load_frozen(config) == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.source", "folder", "expected one of auto, scenes, video_folder"),
        ("training.steps", 0, "training.steps is 0; expected at least 1"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    config = load("smoke")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        parts.resolve(config)


def test_a_network_that_nothing_trains_is_refused():
    config = parts.resolve(load("smoke"))
    config.model.name = "liteflownet"
    with pytest.raises(ValueError, match="'liteflownet' is no deblurring network"):
        parts.build_objective(config, create_model("liteflownet"))


def test_held_out_scenes_are_not_the_training_scenes():
    config = load("smoke")
    config.data.scenes.test_seed = config.seed
    config = parts.resolve(config)
    with pytest.raises(ValueError, match="test_seed is 0, as is the training's seed"):
        parts.evaluation_clips(config, make_mesh(jax.devices()[:1]), held_out="test")


def test_how_long_a_run_is_may_change_but_not_what_it_is(caplog):
    config = parts.resolve(load("smoke"))
    saved = parts.to_json(config)
    config.training.steps = 120
    parts.check_same_run(saved, config)
    config.data.crop_px = 64
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match=r"data\.crop_px: 32 -> 64"):
        parts.check_same_run(saved, config)


@pytest.mark.slow
def test_scene_batches_depend_on_their_number_and_on_no_device_count():
    config = load("smoke")
    config.data.batch_size = 4
    config.data.scenes.distinct_clips = 8
    config = parts.resolve(config)
    objective = parts.build_objective(config, parts.build_model(config))
    one = parts.training_batches(config, objective, make_mesh(jax.devices()[:1]))
    four = parts.training_batches(config, objective, make_mesh(jax.devices()[:4]))
    begun_at_0 = one(0)
    batches = [next(begun_at_0) for _ in range(3)]
    later = next(four(1))
    for name in batches[1]:
        np.testing.assert_allclose(np.asarray(later[name], float), np.asarray(batches[1][name], float), atol=1.01 / 255)
    # Eight distinct clips: the third batch of four is the first again, the second is another.
    np.testing.assert_array_equal(batches[2]["sharp"], batches[0]["sharp"])
    assert np.abs(np.asarray(batches[1]["sharp"]) - np.asarray(batches[0]["sharp"])).mean() > 0.01
