"""Configurations: variants, what they resolve to, and their faults."""

import dataclasses
import importlib.util
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import jaxdeblur.config as parts
from jaxdeblur.checkpoint import save_model
from jaxdeblur.data.flow_io import write_flow
from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.data.scenes import draw_symmetry, turned
from jaxdeblur.models import MODELS, create_model, example_inputs, initial_variables
from jaxdeblur.objectives.cdvd_tsp import CDVDTSPObjective
from jaxdeblur.objectives.optical_flow import OpticalFlowObjective
from jaxdeblur.objectives.svrnn import SVRNNObjective
from jaxdeblur.objectives.vdflow import branches
from jaxdeblur.ops.warp import warp_backward
from jaxdeblur.training.loss_scale import LossScale
from jaxdeblur.training.optimizers import make_schedule
from jaxdeblur.training.plateau import Plateau
from jaxdeblur.training.sharding import make_mesh
from jaxdeblur.training.state import init_state
from jaxdeblur.variables import load_weights

ROOT = Path(__file__).parent.parent


def load(variant, file="mtu"):
    spec = importlib.util.spec_from_file_location(file, ROOT / "configs" / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def count(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
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
        ("cdvd_tsp", 16_187_045),
        ("pwcnet", 9_374_274),
        ("flownet2", 162_518_834),
        ("flownet2s_small", 5_462_674),
        ("svrnn", 8_281_696),
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


def test_the_recipe_of_the_packages_weights_builds_them():
    config = parts.resolve(load("", "pretrained"))
    model = parts.build_model(config)
    assert set(parts.build_optimizers(config, parts.build_objective(config, model))) == {"deblur"}
    shipped, variables = load_weights()
    assert model.config == dataclasses.replace(shipped.config, weight_init="edges")
    fresh = initial_variables(jax.random.key(0), model)["params"]
    assert parts.initial_params(config, model, fresh) is fresh
    with config.unlocked():
        config.initial.checkpoint = "default"
    jax.tree.map(np.testing.assert_array_equal, parts.initial_params(config, model, fresh), variables["params"])
    with config.unlocked():
        config.model.channels = 6
    smaller = parts.build_model(config)
    with pytest.raises(ValueError, match="default does not fit"):
        parts.initial_params(config, smaller, initial_variables(jax.random.key(0), smaller)["params"])


def test_scenes_are_rendered_as_the_recipe_says(monkeypatch):
    config = load("smoke", "pretrained")
    config.seed = 7
    options = {"photographs": "pictures", "crops_per_photograph": 5, "choose_from": 3, "ends_share": 0.4}
    config.data.scenes.update({**options, "distinct_clips": 0, "max_shot_noise": 0.25, "softest_texels_per_px": 0.75})
    config.data.scenes.compression.h264_share = 0.6
    config = parts.resolve(config)
    turns, mesh = parts.build_turns(config, parts.build_model(config)), make_mesh(jax.devices()[:2])
    asked, reads = {}, []

    def load_photographs(folder, size, **options):
        reads.append(folder)
        asked.update(folder=folder, size=size, **options)
        return np.full((1, size, size, 3), 9, np.uint8)

    def batch_renderer(scene, **options):
        asked.update(scene=scene, **options)
        return lambda seed, first_index: {"rendered": (seed, first_index)}

    def compressed(batch, fields, *, seed, first_index):
        return {**batch, "fields": fields, "compressed": (seed, first_index)}

    def clip_cutter(mesh, **options):
        asked.update(cut_on=mesh, cut=options)
        return lambda batch, *numbers: {**batch, "cut": numbers}

    parts._photographs.cache_clear()
    monkeypatch.setattr(parts, "load_photographs", load_photographs)
    monkeypatch.setattr(parts, "clip_cutter", clip_cutter)
    monkeypatch.setattr(parts, "batch_renderer", batch_renderer)
    monkeypatch.setattr(parts, "compressed", compressed)
    batch = next(parts.training_batches(config, turns, mesh)(5))
    assert tuple(batch) == ("rendered", "fields", "compressed", "cut")  # in this order
    assert batch["rendered"] == batch["compressed"] == batch["cut"] == (7, 10)
    assert batch["fields"].h264_share == 0.6
    assert (asked["folder"], asked["crops_per_photograph"], asked["size"]) == (
        "pictures",
        5,
        asked["scene"].texture_size,
    )
    assert (asked["cut_on"], asked["cut"]) == (mesh, {"share": 0.4, "past": 2})
    assert (asked["choose_from"], asked["batch_size"]) == (3, 2)
    assert (asked["past"], asked["future"], asked["mesh"]) == (2, 2, mesh)
    assert asked["photographs"].sharding.is_fully_replicated
    assert (asked["scene"].max_shot_noise, asked["scene"].softest_texels_per_px) == (0.25, 0.75)
    parts.training_batches(config, turns, mesh, held_out=True)
    assert reads == ["pictures"]
    parts._photographs.cache_clear()
    with config.unlocked():
        config.data.crop_px = 40
    with pytest.raises(ValueError, match=r"data\.crop_px is 40; expected a multiple of 16, as mtu1 takes it"):
        parts.training_batches(config, turns, mesh)
    with config.unlocked():
        config.data.crop_px = 64
        config.model = ConfigDict({"name": "svrnn"})
    with pytest.raises(ValueError, match=r"ends_share is 0\.4; expected 0, since .* svrnn takes others"):
        parts.training_batches(config, turns, mesh)


@pytest.mark.parametrize("variant", ["", "dvd", "gopro", "scenes", "smoke"])
def test_every_variant_of_cdvd_builds(variant):
    config = parts.resolve(load(variant, "cdvd"))
    objective = parts.build_objective(config, parts.build_model(config))
    assert isinstance(objective, CDVDTSPObjective)
    assert set(parts.build_optimizers(config, objective)) == {"total"}
    assert parts.load_frozen(config) == {}
    if variant != "smoke":
        assert count(objective.model) == 16_187_045
        schedule = make_schedule(
            config.optimizer.learning_rates.flow,
            **{field: config.optimizer[field] for field in ("boundaries", "factor")},
            kind=config.optimizer.schedule,
            steps=config.training.steps,
        )
        # DVD: 5,262 windows, 657.75 updates of eight; GoPro: 1,955 four times over, 977.5.
        half, quarter, end = (195_500, 391_000, 488_750) if variant == "gopro" else (131_550, 263_100, 328_875)
        rates = [float(schedule(step)) for step in (0, half - 1, half, quarter - 1, quarter, end)]
        np.testing.assert_allclose(rates, [1e-6, 1e-6, 5e-7, 5e-7, 2.5e-7, 2.5e-7], rtol=1e-5)
        assert (config.training.steps, config.training.checkpoint_every, config.training.evaluate_every) == (
            (end, 978, 9_775) if variant == "gopro" else (end, 658, 6_578)
        )


@pytest.mark.parametrize(
    ("variant", "source"),
    [("", "scenes"), ("chairs", "flying_chairs"), ("sintel", "sintel"), ("small", "scenes"), ("smoke", "scenes")],
)
def test_every_variant_of_pwcnet_builds(variant, source):
    config = parts.resolve(load(variant, "pwcnet"))
    assert config.data.source == source
    objective = parts.build_objective(config, parts.build_model(config))
    assert isinstance(objective, OpticalFlowObjective)
    assert set(parts.build_optimizers(config, objective)) == {"total"}
    if variant not in ("small", "smoke"):
        assert count(objective.model) == 9_374_274


@pytest.mark.parametrize("variant", ["", "release", "paper", "dvd", "scenes", "smoke"])
def test_every_variant_of_svrnn_builds(variant):
    config = parts.resolve(load(variant, "svrnn"))
    objective = parts.build_objective(config, parts.build_model(config))
    assert isinstance(objective, SVRNNObjective)
    assert (objective.past_frames, objective.future_frames) == (0, 1)
    assert set(parts.build_optimizers(config, objective)) == {"total"}
    if variant == "smoke":
        return
    assert count(objective.model) == 8_281_696
    options = config.optimizer
    schedule = make_schedule(
        options.learning_rates.all, kind=options.schedule, steps=config.training.steps, decay_steps=options.decay_steps
    )
    paper = variant == "paper"
    assert float(schedule(500_000)) == pytest.approx(1e-3 if paper else 0.81e-4)
    assert objective.frozen_biases == (variant == "release")
    assert (config.data.batch_size, options.clip_norm) == ((20, None) if paper else (10, 5000.0))


@pytest.mark.parametrize(
    ("file", "variant", "parameters", "batch", "steps"),
    [
        ("maxim", "gopro", 22_212_795, 16, 300_000),
        ("maxim", "smoke", None, 2, 24),
        ("nafnet", "gopro", 17_111_907, 32, 200_000),
        ("nafnet", "gopro64", 67_888_835, 64, 400_000),
        ("nafnet", "reds", 67_888_835, 64, 400_000),
        ("nafnet", "smoke", None, 2, 24),
        ("estrnn", "bsd", 2_467_931, 8, 348_750),
        ("estrnn", "gopro", 2_467_931, 8, None),
        ("estrnn", "smoke", None, 2, None),
    ],
)
def test_networks_with_released_weights_have_their_recipes(file, variant, parameters, batch, steps):
    config = parts.resolve(load(variant, file))
    objective = parts.build_objective(config, parts.build_model(config))
    assert type(objective).__name__.lower() == f"{file}objective"
    assert set(parts.build_optimizers(config, objective)) == {"all"}
    assert config.data.batch_size == batch
    if steps is not None:
        assert config.training.steps == steps
    if parameters is not None:
        assert count(objective.model) == parameters
    if file == "nafnet" and variant != "smoke":  # AdamW, and gradients clipped hard
        options = config.optimizer
        assert (options.b1, options.b2, options.decoupled_decay, options.clip_norm) == (0.9, 0.9, 1e-3, 0.01)


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


def test_another_variant_of_the_data_than_the_recipes_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "gopro"
    folder.mkdir(parents=True)
    record = {"name": "gopro", "variant": "blur_gamma", "splits": ["train", "test"], "partial": False}
    (folder / "dataset.json").write_text(json.dumps(record))
    assert parts.resolve(load("gopro")).data.note == ""
    assert parts.scored_on(load("gopro"), "deblur") == "gopro, blur_gamma"
    (folder / "dataset.json").write_text(json.dumps({**record, "variant": "blur"}))
    assert "ARE gopro's blur, THE RECIPE IS OF blur_gamma" in parts.resolve(load("gopro")).data.note


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
        ("evaluation.protocol", "CDVD", "evaluation.protocol is 'CDVD'; expected one of common, su2017, cdvd"),
        ("data.video_folder.augment", "flip", "augment is 'flip'; expected one of none, mtu, flips"),
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
    config.objective = {}
    with pytest.raises(ValueError, match=r"LiteFlowNet gives no flow by levels.*train one of pwcnet"):
        parts.build_objective(config, create_model("liteflownet"))


def filled(model, value):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, np.float32), shapes)


def test_the_flow_network_starts_from_a_checkpoint_or_says_that_it_does_not(tmp_path, caplog):
    config = parts.resolve(load("smoke", "cdvd"))
    config.initial.flow_workdir = str(tmp_path / "none")
    model = parts.build_model(config)
    params = filled(model, 1.0)
    with caplog.at_level(logging.WARNING):
        assert parts.initial_params(config, model, params) is params
    assert "RANDOM WEIGHTS" in caplog.text
    assert "--config.initial.flow_checkpoint=FILE" in caplog.text
    assert "--config=configs/pwcnet.py:smoke --config.model.name=pwcnet_cdvd --config.model.width=0.125" in caplog.text

    flow_net = create_model("pwcnet_cdvd", width=config.model.flow_width)
    options = {"name": "pwcnet_cdvd", "options": {"width": config.model.flow_width}}
    save_model(tmp_path / "flow", **options, variables={"params": filled(flow_net, 2.0)})
    config.initial.flow_checkpoint = str(tmp_path / "flow")
    started = parts.initial_params(config, model, params)
    assert {float(np.max(leaf)) for leaf in jax.tree.leaves(started["flow_net"])} == {2.0}
    assert started["restoration"] is params["restoration"]

    wider = create_model("pwcnet_cdvd", width=0.25)
    save_model(
        tmp_path / "wider", name="pwcnet_cdvd", options={"width": 0.25}, variables={"params": filled(wider, 2.0)}
    )
    config.initial.flow_checkpoint = str(tmp_path / "wider")
    with pytest.raises(ValueError, match=r"wider does not fit: context/conv_1/bias is \(32,\), not \(16,\)"):
        parts.initial_params(config, model, params)
    mtu = create_model("mtu1", channels=2, residual_blocks=0)
    save_model(
        tmp_path / "mtu",
        name="mtu1",
        options={"channels": 2, "residual_blocks": 0},
        variables={"params": filled(mtu, 0)},
    )
    config.initial.flow_checkpoint = str(tmp_path / "mtu")
    with pytest.raises(ValueError, match="mtu is a MultiTaskUnits; expected a pwcnet_cdvd for the flow network"):
        parts.initial_params(config, model, params)


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
    turns = parts.build_turns(config, parts.build_model(config))
    one = parts.training_batches(config, turns, make_mesh(jax.devices()[:1]))
    four = parts.training_batches(config, turns, make_mesh(jax.devices()[:4]))
    begun_at_0 = one(0)
    batches = [next(begun_at_0) for _ in range(3)]
    later = next(four(1))
    for name in ("blurred", "sharp"):
        assert batches[1][name].dtype == np.float32
        assert 0.5 < np.max(batches[1][name]) <= 1
    for name in batches[1]:
        np.testing.assert_allclose(np.asarray(later[name], float), np.asarray(batches[1][name], float), atol=1.01 / 255)
    # Eight distinct clips: the third batch of four is the first again, the second is another.
    np.testing.assert_array_equal(batches[2]["sharp"], batches[0]["sharp"])
    assert np.abs(np.asarray(batches[1]["sharp"]) - np.asarray(batches[0]["sharp"])).mean() > 0.01
    # Turned, each in a way that follows from its number.
    config.data.scenes.turned = True
    again = next(parts.training_batches(config, turns, make_mesh(jax.devices()[:1]))(2))
    expected = turned(batches[0], draw_symmetry(config.seed, 2))
    jax.tree.map(np.testing.assert_array_equal, dict(again), dict(expected))


@pytest.mark.parametrize("motion_loss", [False, True])
def test_motion_that_nobody_reads_is_not_kept(monkeypatch, motion_loss):
    clips = {"blurred": np.zeros((2, 7, 32, 32, 3)), "sharp": np.zeros((2, 3, 32, 32, 3))}
    motion = {"flow_cur_to_prev": np.zeros((2, 3, 32, 32, 2)), "valid_cur_to_prev": np.ones((2, 3, 32, 32), bool)}
    monkeypatch.setattr(parts, "_scene_renderer", lambda *_, **__: lambda *_: clips | motion)
    config = load("smoke", "pretrained")
    config.objective.motion_loss = motion_loss
    turns = parts.build_turns(config, parts.build_model(config))
    batch = next(parts.training_batches(config, turns, make_mesh(jax.devices()[:1]))(0))
    assert set(batch) == set(clips | motion if motion_loss else clips)


def test_the_flow_network_of_svrnn_starts_in_pixels_of_its_grids(tmp_path, caplog):
    config = parts.resolve(load("smoke", "svrnn"))
    config.initial.flow_workdir = str(tmp_path / "none")
    model = parts.build_model(config)
    params = filled(model, 1.0)
    with caplog.at_level(logging.WARNING):
        assert parts.initial_params(config, model, params) is params
    assert "--config.model.name=flownet2s_small --config.model.width=0.09375" in caplog.text

    small = create_model("flownet2s_small", width=0.09375)
    variables = {"params": filled(small, 2.0)}
    save_model(tmp_path / "flow", name="flownet2s_small", options={"width": 0.09375}, variables=variables)
    config.initial.flow_checkpoint = str(tmp_path / "flow")
    flow_net = parts.initial_params(config, model, params)["flow_net"]
    assert np.all(flow_net["conv6_1"]["kernel"] == 2)
    assert np.all(flow_net["deconv1"]["kernel"] == 1)  # which that network does not have
    np.testing.assert_allclose(flow_net["predict_flow2"]["kernel"], 2 * 20 / 4)
    np.testing.assert_allclose(flow_net["upsampled_flow6_to_5"]["kernel"], 2 * 64 / 20)
    np.testing.assert_allclose(flow_net["upsampled_flow6_to_5"]["bias"], 2)

    without = parts.resolve(load("smoke", "svrnn"))
    without.model.recurrence, without.objective.flow_loss = "none", False
    model = parts.build_model(without)
    params = filled(model, 1.0)
    assert parts.initial_params(without, model, params) is params


@pytest.mark.parametrize(
    ("sees", "anew"),
    [
        ("current", {"conv1"}),
        (
            "both",
            {"conv1", "deconv2", "deconv3", "deconv4"}
            | {f"predict_flow{level}" for level in range(2, 7)}
            | {f"upsampled_flow{level}_to_{level - 1}" for level in range(3, 7)},
        ),
    ],
)
@pytest.mark.parametrize("found_in", ["flow_checkpoint", "flow_workdir"])
def test_layers_of_svrnns_flow_network_that_see_other_frames_start_anew(tmp_path, caplog, sees, anew, found_in):
    small = create_model("flownet2s_small", width=0.09375)
    folder = tmp_path / "run" / "checkpoints" / "7"
    variables = {"params": filled(small, 2.0)}
    save_model(folder, name="flownet2s_small", options={"width": 0.09375}, variables=variables)
    config = parts.resolve(load("smoke", "svrnn"))
    config.model.sees, config.objective.flow_loss = sees, sees == "both"
    config.initial[found_in] = str(tmp_path / "run")
    model = parts.build_model(config)
    params = filled(model, 1.0)
    with caplog.at_level(logging.WARNING):
        flow_net = parts.initial_params(config, model, params)["flow_net"]
    started = {layer for layer in variables["params"] if np.all(flow_net[layer]["bias"] == 1)}
    assert started == anew
    (record,) = caplog.records
    assert set(record.getMessage().partition("start anew: ")[2].split(", ")) == anew
    assert jax.tree.map(np.shape, flow_net) == jax.tree.map(np.shape, params["flow_net"])

    config.model.width = 0.5  # another size is another network, of which nothing fits
    wider = parts.build_model(config)
    with pytest.raises(ValueError, match=r"run does not fit: .*conv6_1/kernel is"):
        parts.initial_params(config, wider, filled(wider, 1.0))


NETWORKS = {"": ("vdflow", 58_575_003), "noalign": ("dbn", 15_305_291), "single": ("dbn", 15_305_291)}
NETWORKS["flownets"] = ("flownets", 38_675_536)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("data", ["", "dvd", "scenes", "smoke"])
def test_every_variant_of_vdflow_builds(data, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(f"{data},{network}", "vdflow")
    assert importlib.import_module("configs.vdflow").VARIANTS.count(f"{data},{network}".rstrip(",")) == 1
    config = parts.resolve(config)
    model = parts.build_model(config)
    name, parameters = NETWORKS[network]
    assert config.model.name == name
    turns = parts.build_turns(config, model)
    groups = [objective.groups for objective in turns.objectives]
    assert groups == [("deblur",), ("flow",)] if network == "" else groups == [tuple(branches(model))]
    for objective in turns.objectives:
        assert set(parts.build_optimizers(config, objective)) == set(objective.groups)
    assert parts.tasks(model) == {"": ("deblur", "flow"), "flownets": ("flow",)}.get(network, ("deblur",))
    assert parts.build_plateau(config) == Plateau()
    if data == "":
        labelled = "none" if name == "dbn" else "scenes"
        assert (config.data.source, config.data.labelled) == ("scenes", labelled)
        assert "NOT ON THE PAPER'S DATA" in config.data.note
        assert ("NOT OF SINTEL" in config.data.note) == (labelled == "scenes")
    if data != "smoke":
        assert count(model) == parameters
        assert turns.updates == 12_000
        window = {"": (2, 2), "noalign": (2, 2), "single": (0, 0), "flownets": (1, 1)}[network]
        assert (turns.objectives[0].past_frames, turns.objectives[0].future_frames) == window


def blank_variables(model):
    """Zeros in place of what a minute's compilation would draw."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    return jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)


def small_vdflow(**fields):
    config = load("smoke", "vdflow")
    config.unlock()
    config.model.width = 1 / 32
    config.data.batch_size = 2
    config.data.scenes.distinct_clips = 8
    config.data.scenes.turned = False
    config.objective.turn_updates = 3
    for field, value in fields.items():
        config.update_from_flattened_dict({field.replace("__", "."): value})
    return parts.resolve(config)


@pytest.mark.slow
def test_turns_take_their_batches_in_order_from_wherever_they_begin():
    config, mesh = small_vdflow(), make_mesh(jax.devices()[:1])
    turns = parts.build_turns(config, parts.build_model(config))
    batches = parts.training_batches(config, turns, mesh)
    drawn = batches(0)
    first = [next(drawn) for _ in range(10)]
    kinds = ["flow" if "flow_cur_to_next" in batch else "clip" for batch in first]
    # Turns of three: deblur, flow, deblur, flow; in the flow branch's every other batch, counted over its turns.
    assert kinds == ["clip"] * 3 + ["flow", "clip", "flow"] + ["clip"] * 3 + ["clip"]
    assert all(set(batch) == {"blurred", "sharp"} for batch, kind in zip(first, kinds, strict=True) if kind == "clip")
    for begin in (4, 5, 8):
        again = batches(begin)
        for number in range(begin, 10):
            jax.tree.map(np.testing.assert_array_equal, dict(next(again)), dict(first[number]))
    without = small_vdflow(data__labelled="none")
    unlabelled = parts.training_batches(without, turns, mesh)(3)
    assert all(set(next(unlabelled)) == {"blurred", "sharp"} for _ in range(3))
    with pytest.raises(ValueError, match="flow_folders serves evaluation only"):
        parts.training_batches(small_vdflow(data__labelled="flow_folders"), turns, mesh)


def write_sintel(root):
    """Two scenes of six frames that move by whole pixels, (3, -2) a frame."""
    texture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    for scene in ("alley_1", "cave_2"):
        for number in range(1, 7):
            name = f"{scene}/frame_{number:04d}"
            frame = texture[20 + 2 * number :][:100, 40 - 3 * number :][:, :140]
            (root / "training" / "final" / scene).mkdir(parents=True, exist_ok=True)
            write_image(root / "training" / "final" / f"{name}.png", ImageFile(frame))
            if number < 6:
                (root / "training" / "flow" / scene).mkdir(parents=True, exist_ok=True)
                write_flow(root / "training" / "flow" / f"{name}.flo", np.full((100, 140, 2), (3, -2), np.float32))


def test_sintel_gives_five_frames_with_the_true_flow_to_the_next(tmp_path, monkeypatch):
    write_sintel(tmp_path / "sintel")
    config = small_vdflow(
        data__labelled="sintel",
        data__flow_pairs__root=str(tmp_path / "sintel"),
        data__flow_pairs__held_out_scenes=("cave_2",),
        data__flow_pairs__lowest_scale=1.0,
    )
    turns = parts.build_turns(config, parts.build_model(config))
    for held_out in (False, True):
        batches = parts.training_batches(config, turns, make_mesh(jax.devices()[:1]), held_out=held_out)(3)
        batch = next(batches)
        assert {name: x.shape for name, x in batch.items()} == {
            "blurred": (2, 5, 64, 64, 3),
            "flow_cur_to_next": (2, 1, 64, 64, 2),
            "valid_cur_to_next": (2, 1, 64, 64),
        }
        frames = np.asarray(batch["blurred"], np.float32)
        # Turned or not, the flow brings every frame where the one before is: the scene moves evenly.
        for t in range(4):
            warped, inside = warp_backward(frames[:, t + 1], batch["flow_cur_to_next"][:, 0], border="zeros")
            np.testing.assert_array_equal(np.asarray(warped)[inside], frames[:, t][inside])
    # FlowNetS alone sees three of the five frames; its loss takes them, the way back by warping.
    alone = load("smoke,flownets", "vdflow")
    alone.unlock()
    alone.model.width, alone.data = 1 / 32, config.data
    turns = parts.build_turns(alone, parts.build_model(alone))
    batch = next(parts.training_batches(alone, turns, make_mesh(jax.devices()[:1]))(0))
    assert batch["blurred"].shape == (2, 3, 64, 64, 3)
    (objective,) = turns.objectives
    loss = jax.jit(objective.held_out_loss)(blank_variables(objective.model)["params"], {}, batch)
    assert np.isfinite(loss)
    # Held-out scenes are for scoring, all of them but while training; there are no more than five pairs a scene.
    model = parts.build_model(config)
    evaluation = parts.build_evaluation(config, model, make_mesh(jax.devices()[:1]), held_out="test", task="flow")
    assert [scene.name for scene in evaluation.scenes] == ["cave_2"]
    (truths,) = (list(scene.pairs()) for scene in evaluation.scenes)
    assert len(truths) == 5
    np.testing.assert_array_equal(truths[0].window[[0, 1]], truths[0].window[[2, 2]])
    assert all(np.array_equal(truth.window[3], truth.image_0) for truth in truths)

    # Where Sintel is, it is taken.
    config = load("", "vdflow")
    config.data.flow_pairs.root = str(tmp_path / "sintel")
    monkeypatch.chdir(tmp_path)
    assert parts.resolve(config).data.labelled == "sintel"


@pytest.mark.slow
def test_the_held_out_loss_is_of_the_branch_whose_turn_it_was_and_always_the_same():
    config, mesh = small_vdflow(), make_mesh(jax.devices()[:1])
    model = parts.build_model(config)
    turns = parts.build_turns(config, model)
    loss_of = parts.held_out_loss(config, turns, mesh)
    state = init_state(jax.random.key(0), blank_variables(model), {}, ema=False)

    def after(step):
        return loss_of(dataclasses.replace(state, step=jax.numpy.int32(step)))

    losses = {step: after(step) for step in (3, 4, 6, 7)}
    assert losses[3] == losses[7] > 0
    assert losses[4] == losses[6] > 0
    assert losses[3] != losses[4]
    # Of the held-out scenes: by hand, the first turn's first batches.
    batches = parts.training_batches(config, turns, mesh, held_out=True)(0)
    by_hand = jax.jit(turns.objectives[0].held_out_loss)
    each = [by_hand(state.params, state.statistics, next(batches)) for _ in range(3)]
    np.testing.assert_allclose(losses[3], np.mean(each), rtol=1e-5)


def test_vdflows_flow_branches_start_as_flownets(tmp_path):
    flownets = create_model("flownets", width=1 / 32)
    variables = jax.tree.map(lambda x: x + 0.5, blank_variables(flownets))
    save_model(tmp_path / "flow", name="flownets", options={"width": 1 / 32}, variables=variables)
    for options in ({}, {"model__flow_networks": "separate"}):
        config = small_vdflow(
            initial__flow_workdir="nowhere", initial__flow_checkpoint=str(tmp_path / "flow"), **options
        )
        model = parts.build_model(config)
        params = blank_variables(model)["params"]
        started = parts.initial_params(config, model, params)
        branches_started = [name for name in started if name.startswith("flow_net")]
        assert len(branches_started) == (2 if options else 1)
        for name in branches_started:
            for layer, values in variables["params"].items():
                for leaf, value in values.items():
                    found = started[name][layer][leaf]
                    assert found.shape == params[name][layer][leaf].shape
                    if found.ndim == 4:
                        seen = value.shape[-2]
                        np.testing.assert_array_equal(found[:, :, seen:], 0)
                        found = found[:, :, :seen]
                    np.testing.assert_array_equal(found, value)
        jax.tree.map(np.testing.assert_array_equal, started["deblur"], params["deblur"])
    other = small_vdflow(model__width=1 / 16, initial__flow_checkpoint=str(tmp_path / "flow"))
    model = parts.build_model(other)
    with pytest.raises(ValueError, match="flow does not fit"):
        parts.initial_params(other, model, blank_variables(model)["params"])


def test_a_run_in_turns_keeps_when_it_is_validated_and_has_a_constant_schedule():
    config = small_vdflow()
    saved = parts.to_json(config)
    config.training.log_every = 7
    parts.check_same_run(saved, config)
    config.training.evaluate_every = 100
    with pytest.raises(ValueError, match=r"training\.evaluate_every: 250 -> 100"):
        parts.check_same_run(saved, config)
    config.optimizer.schedule = "cosine"
    with pytest.raises(ValueError, match="each branch would count its own turns"):
        parts.build_turns(config, parts.build_model(config))


def scored(file, variant, *given, task="deblur", **fields):
    """What scoring a run of a recipe says to the same recipe with fields set by hand."""
    saved = parts.to_json(parts.resolve(load(variant, file)))
    config = load(variant, file)
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    parts.check_scored_run(saved, parts.resolve(config), [*fields, *given], task)


@pytest.mark.parametrize(
    ("file", "variant", "task", "field", "value"),
    [
        ("mtu", "smoke", "deblur", "model.match_radius", 5),
        ("mtu", "smoke", "deblur", "model.weight_init", "he"),
        ("cdvd", "smoke", "deblur", "model.stages", 1),
        ("cdvd", "smoke", "deblur", "model.prior", False),
        ("svrnn", "smoke", "deblur", "model.sees", "both"),
        ("svrnn", "smoke", "deblur", "objective.flow_loss", False),
        ("mtu", "smoke", "deblur", "optimizer.clip_norm", 7.0),
        ("mtu", "smoke", "deblur", "training.steps", 7),
        ("mtu", "smoke", "deblur", "data.frames", 7),
        ("mtu", "smoke", "deblur", "data.scenes.turned", True),
        ("mtu", "smoke", "deblur", "data.scenes.validation_seed", 7),
        ("mtu", "smoke", "deblur", "data.video_folder.root", "elsewhere"),
        ("mtu", "dvd", "deblur", "data.scenes.sub_frames", 7),
        ("mtu", "dvd", "deblur", "evaluation.frames", 7),
        ("mtu", "dvd", "deblur", "data.crop_px", 64),
        ("vdflow", "smoke", "flow", "evaluation.clips", 7),
        ("vdflow", "smoke", "deblur", "evaluation.flow_clips", 7),
        ("pwcnet", "sintel", "flow", "data.flow_pairs.crop_px", (64, 64)),
        ("pwcnet", "chairs", "flow", "data.flow_pairs.render_pass", "clean"),
    ],
)
def test_scoring_refuses_what_it_would_not_do(file, variant, task, field, value):
    way_out = rf"give --config\.{field}=" if field.startswith("model.") else rf"leave out --config\.{field}, or train"
    with pytest.raises(ValueError, match=rf"^{field}: .* -> .*: these fields are not .*: {way_out}"):
        scored(file, variant, task=task, **{field: value})


@pytest.mark.parametrize(
    ("file", "variant", "task", "field", "value"),
    [
        ("mtu", "smoke", "deblur", "model.compute_dtype", "bfloat16"),
        ("mtu", "smoke", "deblur", "model.match_radius", 3),  # as it was trained
        ("mtu", "smoke", "deblur", "training.steps", 60),
        ("mtu", "smoke", "deblur", "evaluation.clips", 7),
        ("mtu", "smoke", "deblur", "evaluation.protocol", "cdvd"),
        ("mtu", "smoke", "deblur", "evaluation.motion", True),
        ("mtu", "smoke", "deblur", "data.scenes.max_speed_px", 9.0),
        ("mtu", "smoke", "deblur", "data.source", "video_folder"),
        ("mtu", "dvd", "deblur", "data.video_folder.root", "elsewhere"),
        ("vdflow", "smoke", "flow", "evaluation.flow_clips", 7),
        ("pwcnet", "sintel", "flow", "data.flow_pairs.render_pass", "clean"),
        ("pwcnet", "smoke", "flow", "objective.images", "sharp"),
    ],
)
def test_scoring_does_what_it_can(file, variant, task, field, value):
    scored(file, variant, task=task, **{field: value})


def test_scoring_by_another_recipe_of_the_network_takes_data_from_it():
    saved = parts.to_json(parts.resolve(load("scenes")))
    parts.check_scored_run(saved, parts.resolve(load("dvd")), [], "deblur")  # but for what nobody asked by hand
    parts.check_scored_run({"model": {"name": "mtu2"}}, parts.resolve(load("dvd")), [], "deblur")
    with pytest.raises(ValueError, match=r"model\.channels: 26 -> 6; .*model\.residual_blocks: 8 -> 1"):
        parts.check_scored_run({"model": {"name": "mtu2"}}, parts.resolve(load("smoke")), [], "deblur")
    with pytest.raises(ValueError, match=r"optimizer\.clip_norm: None -> 1\.0"):
        parts.check_scored_run(
            {"model": {"name": "mtu2"}}, parts.resolve(load("dvd")), ["optimizer.clip_norm"], "deblur"
        )


def test_sintel_can_be_trained_on_whole(tmp_path):
    """As the papers do; then validations are of what was trained on, which is said."""
    write_sintel(tmp_path)
    config = load("sintel", "pwcnet")
    config.data.flow_pairs.root = str(tmp_path)
    config.data.flow_pairs.held_out_scenes = ()
    config.data.flow_pairs.crop_px = (64, 64)
    config = parts.resolve(config)
    assert "NO SCENE OF SINTEL IS HELD OUT" in config.data.note
    assert parts.scored_on(config, "flow") == "sintel, final, no scene held out"
    for held_out in (False, True):
        assert {pair.scene for pair in parts.flow_pairs(config, held_out=held_out)} == {"alley_1", "cave_2"}
    mesh = make_mesh(jax.devices()[:1])
    names = [scene.name for scene in parts.flow_scenes(config, mesh, held_out="validation", windows=False)]
    assert names == ["alley_1", "cave_2"]

    config = small_vdflow(
        data__labelled="sintel", data__flow_pairs__root=str(tmp_path), data__flow_pairs__held_out_scenes=()
    )
    assert "NO SCENE OF SINTEL IS HELD OUT" in config.data.note
    turns = parts.build_turns(config, parts.build_model(config))
    next(parts.training_batches(config, turns, mesh, held_out=True)(3))

    config.data.flow_pairs.held_out_scenes = ("alley_1", "cave_2")
    with pytest.raises(ValueError, match=r"names every scene there is.*or none, '\(\)'"):
        parts.flow_pairs(config, held_out=False)


def test_a_run_from_before_the_warping_error_had_a_choice_goes_on_only_as_it_was():
    config = parts.resolve(load("smoke", "vdflow"))
    saved = parts.to_json(config)
    del saved["objective"]["outside"]
    with pytest.raises(ValueError, match=r"objective\.outside: 'masked' -> 'clamped'"):
        parts.check_same_run(saved, config)
    config.objective.outside = "masked"
    parts.check_same_run(saved, config)
    parts.check_same_run(parts.to_json(parts.resolve(load("smoke"))), parts.resolve(load("smoke")))


def test_only_float16_has_a_scale_of_the_loss_that_follows():
    config = load("smoke")
    assert parts.build_loss_scale(config) == 1.0
    config.training.loss_scale = 256.0
    config.model.compute_dtype = "bfloat16"
    assert parts.build_loss_scale(config) == 256.0
    config.model.compute_dtype = "float16"
    assert parts.build_loss_scale(config) == LossScale(256.0)
    tuned = load("scenes", "reblur")
    tuned.unlock()
    tuned.flow_net.compute_dtype = "float16"
    assert parts.build_loss_scale(tuned) == LossScale(1024.0)
