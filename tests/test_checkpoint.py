"""Checkpoints: round trips, what is kept, damage, other models."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest

from jaxdeblur.checkpoint import Checkpoints, find_checkpoint, load_model, save_model
from jaxdeblur.models import create_model, example_inputs
from jaxdeblur.variables import check_variables

TINY = {"channels": 4, "residual_blocks": 1, "match_radius": 2}


@pytest.fixture(scope="module")
def model():
    return create_model("mtu2", **TINY)


@pytest.fixture(scope="module")
def variables(model):
    return model.init(jax.random.key(0), *example_inputs(model))


def items(variables, step):
    params = jax.tree.map(lambda x: x + np.float32(step), variables["params"])
    return {"params": params, "training": {"step": np.int32(step) + jax.numpy.zeros((), jax.numpy.int32)}}


def config():
    return {"model": {"name": "mtu2", **TINY}}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_saved_model_comes_back_the_same(tmp_path, model, variables):
    save_model(tmp_path / "m", name="mtu2", options=TINY, variables=variables)
    loaded, loaded_variables = load_model(tmp_path / "m")
    assert loaded == model
    assert_same(loaded_variables, dict(variables))


def test_training_only_layers_may_be_missing_and_others_may_not(tmp_path, model, variables):
    params = {name: value for name, value in variables["params"].items() if name != "deblur_1"}
    save_model(tmp_path / "m", name="mtu2", options=TINY, variables={"params": params})
    _, loaded = load_model(tmp_path / "m")
    assert "deblur_1" not in loaded["params"]

    broken = {name: value for name, value in params.items() if name not in ("output_conv", "motion_conv")}
    broken["extra"] = params["output_conv"]
    with pytest.raises(ValueError, match=r"missing motion_conv/bias.*output_conv/kernel.*unexpected extra/bias"):
        check_variables(model, {"params": broken}, "a file")


def test_wrong_shapes_are_named_with_both_shapes(variables):
    with pytest.raises(ValueError, match=r"structure_conv/kernel is \(3, 3, 3, 4\), not \(3, 3, 3, 6\)"):
        check_variables(create_model("mtu2", **{**TINY, "channels": 6}), variables, "a file")


def test_statistics_are_saved_and_checked_like_parameters(tmp_path):
    options = {"width": 1 / 32}
    model = create_model("dbn", **options)
    variables = jax.jit(model.init)(jax.random.key(0), *example_inputs(model))
    stats = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
    variables = {"params": variables["params"], "batch_stats": stats}
    save_model(tmp_path / "m", name="dbn", options=options, variables=variables)
    assert_same(load_model(tmp_path / "m")[1], variables)

    # Of a run: beside the average of the parameters, of which there is none of the statistics.
    checkpoints = Checkpoints(tmp_path / "run")
    average = jax.tree.map(lambda x: 0.5 * x, variables["params"])
    checkpoints.save(1, {**variables, "ema": average}, {"model": {"name": "dbn", **options}})
    checkpoints.close()
    assert_same(load_model(tmp_path / "run")[1], {"params": average, "batch_stats": stats})

    without = {"params": variables["params"]}
    with pytest.raises(ValueError, match="missing batch_stats/deblur/D1/bn/mean"):
        save_model(tmp_path / "n", name="dbn", options=options, variables=without)
    assert not (tmp_path / "n").exists()


def test_saving_over_something_is_refused(tmp_path, variables):
    (tmp_path / "m").mkdir()
    with pytest.raises(FileExistsError, match="name a new folder"):
        save_model(tmp_path / "m", name="mtu2", options=TINY, variables=variables)


def test_the_newest_two_and_the_best_are_kept(tmp_path, variables):
    checkpoints = Checkpoints(tmp_path)
    for step, psnr in ((1, 20.0), (2, 30.0), (3, None), (4, 25.0), (5, None), (6, None)):
        checkpoints.save(step, items(variables, step), config(), None if psnr is None else {"psnr_db": psnr})
        checkpoints.wait()
        if step == 2:  # a run that goes on still knows how good its checkpoints are
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path)
    checkpoints.close()
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [2, 5, 6]
    # A workdir means its best checkpoint.
    assert find_checkpoint(tmp_path).name == "2"
    _, loaded = load_model(tmp_path)
    assert_same(loaded["params"], items(variables, 2)["params"])


def test_of_a_run_in_turns_a_workdir_means_its_newest_checkpoint(tmp_path, variables):
    checkpoints = Checkpoints(tmp_path)
    for step, psnr in ((1, 30.0), (2, 20.0)):
        in_turns = {**config(), "objective": {"turn_updates": 1}}
        checkpoints.save(step, items(variables, step), in_turns, {"psnr_db": psnr})
        checkpoints.wait()
    checkpoints.close()
    assert find_checkpoint(tmp_path).name == "2"


def test_without_validation_a_workdir_means_its_newest_checkpoint(tmp_path, variables):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, items(variables, step), config())
    checkpoints.close()
    assert find_checkpoint(tmp_path).name == "2"


def test_the_average_is_preferred_to_the_parameters(tmp_path, variables):
    checkpoints = Checkpoints(tmp_path)
    average = jax.tree.map(lambda x: 0.5 * x, variables["params"])
    checkpoints.save(1, {**items(variables, 1), "ema": average}, config())
    checkpoints.close()
    assert_same(load_model(tmp_path)[1]["params"], average)


@pytest.mark.parametrize("item", ["params", "training"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, variables, caplog, item):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, items(variables, step), config())
        checkpoints.wait()
    checkpoints.close()
    files = [p for p in (tmp_path / "checkpoints" / "2" / item).rglob("*") if p.is_file() and p.parent.name == "d"]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])

    checkpoints = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING):
        restored = checkpoints.restore(items(variables, 0))
    assert int(restored["training"]["step"]) == 1
    assert_same(restored["params"], items(variables, 1)["params"])
    assert any("2 cannot be read" in record.message and "damaged-2" in record.message for record in caplog.records)
    # Nothing is lost, and the step can be saved anew.
    assert (tmp_path / "checkpoints" / "damaged-2").is_dir()
    checkpoints.save(2, items(variables, 2), config())
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    assert int(checkpoints.restore(items(variables, 0))["training"]["step"]) == 2
    checkpoints.close()


def test_another_model_is_refused_and_not_set_aside(tmp_path, variables):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, items(variables, 1), config())
    checkpoints.wait()
    other = create_model("mtu1", **TINY)
    other_variables = other.init(jax.random.key(0), *example_inputs(other))
    with pytest.raises(ValueError, match=r"holds another model.*unexpected.*unit_2"):
        checkpoints.restore(items(other_variables, 0))
    checkpoints.close()
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_when_none_can_be_read_nothing_is_moved_and_the_run_does_not_start_over(tmp_path, variables, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, items(variables, step), config())
        checkpoints.wait()

    def fails(*arguments, **options):
        raise RuntimeError("the network disk is away")

    monkeypatch.setattr(checkpoints._manager, "restore", fails)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read; the newest, 2: the network disk is away"):
        checkpoints.restore(items(variables, 0))
    checkpoints.close()
    assert {"1", "2"} <= {path.name for path in (tmp_path / "checkpoints").iterdir()}


def test_memory_that_runs_out_is_no_damage(tmp_path, variables, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, items(variables, step), config())
        checkpoints.wait()

    def fails(*arguments, **options):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(checkpoints._manager, "restore", fails)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        checkpoints.restore(items(variables, 0))
    checkpoints.close()


def test_a_run_keeps_its_average_or_its_lack_of_one(tmp_path, variables):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, items(variables, 1), config())
    checkpoints.wait()
    with pytest.raises(ValueError, match="holds no average: keep ema_decay as it was"):
        checkpoints.restore({**items(variables, 0), "ema": variables["params"]})
    checkpoints.close()


def test_an_unfinished_save_is_no_checkpoint(tmp_path, variables):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, items(variables, 1), config())
    checkpoints.close()
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(items(variables, 0))["training"]["step"] == 1
    checkpoints.close()
    assert find_checkpoint(tmp_path).name == "1"


def test_paths_without_a_checkpoint_say_so(tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        load_model(tmp_path)


def test_a_folder_with_another_kind_of_config_says_so(tmp_path, variables):
    save_model(tmp_path / "m", name="mtu2", options=TINY, variables=variables)
    (tmp_path / "m" / "config" / "metadata").write_text(json.dumps({"hello": 1}))
    with pytest.raises(ValueError, match="is no jaxdeblur configuration"):
        load_model(tmp_path / "m")


def test_damaged_parameters_of_a_model_say_so(tmp_path, variables):
    save_model(tmp_path / "m", name="mtu2", options=TINY, variables=variables)
    for file in (tmp_path / "m" / "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(tmp_path / "m")
