"""What is wrong with a run is found before anything is compiled, and nothing is left behind."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxdeblur.config as parts
from jaxdeblur import run_command
from jaxdeblur.checkpoint import save_model
from jaxdeblur.interop.files import read_weights
from jaxdeblur.models import create_model, example_inputs

ROOT = Path(__file__).parent.parent


def module(path):
    spec = importlib.util.spec_from_file_location(f"module_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def config(file, variant):
    return module(ROOT / "configs" / f"{file}.py").get_config(variant)


@pytest.fixture(scope="module")
def train():
    return module(ROOT / "train.py")  # its flags are defined once


def test_workdirs_are_checked_and_left_as_they_are(train, tmp_path):
    smoke = parts.resolve(config("mtu", "smoke"))
    for name, message in (
        ("file", "is a file; --workdir names a folder"),
        ("file/below", "cannot be written, since .*file cannot"),
        ("full", "is not empty and holds no run"),
        ("torn", r"config\.json is damaged \("),
        ("other", r"seed: 3 -> 0"),
    ):
        (tmp_path / "full").mkdir(exist_ok=True)
        (tmp_path / "full" / "thesis.tex").write_text("precious")
        (tmp_path / "file").write_text("precious")
        for run, text in (("torn", '{"model": '), ("other", json.dumps({**parts.to_json(smoke), "seed": 3}))):
            (tmp_path / run / "checkpoints" / "5").mkdir(parents=True, exist_ok=True)
            (tmp_path / run / "config.json").write_text(text)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=message):
            train.check_workdir(tmp_path / name, smoke)
        assert sorted(tmp_path.rglob("*")) == before
    train.check_workdir(tmp_path / "new" / "run", smoke)
    assert not (tmp_path / "new").exists()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{")  # without a checkpoint a run has not begun
    train.check_workdir(tmp_path / "begun", smoke)


def test_what_a_run_starts_from_is_checked_without_drawing_anything(tmp_path):
    started = parts.resolve(config("pretrained", ""))
    with started.unlocked():
        started.initial.checkpoint = str(tmp_path / "nowhere")
    model = parts.build_model(started)
    with pytest.raises(ValueError, match=r"there is no checkpoint folder .*nowhere"):
        parts.load_initial(started, model)
    started.initial.checkpoint = "default"
    found = parts.load_initial(started, model)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    started.model.channels = 6
    with pytest.raises(ValueError, match="default does not fit"):
        parts.load_initial(started, parts.build_model(started))
    assert parts.load_initial(parts.resolve(config("mtu", "smoke")), create_model("mtu1")) is None


def test_what_nothing_is_found_for_is_drawn(tmp_path):
    svrnn = parts.resolve(config("svrnn", "smoke"))
    small = create_model("flownet2s_small", width=0.09375)
    shapes = jax.eval_shape(small.init, jax.random.key(0), *example_inputs(small))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 2, np.float32), shapes)
    save_model(tmp_path / "flow", name="flownet2s_small", options={"width": 0.09375}, variables=variables)
    svrnn.initial.flow_workdir = str(tmp_path / "none")
    model = parts.build_model(svrnn)
    assert parts.load_initial(svrnn, model) is None
    svrnn.initial.flow_checkpoint = str(tmp_path / "flow")
    found = parts.load_initial(svrnn, model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    drawn = jax.tree.map(lambda leaf: np.full(leaf.shape, 1, np.float32), shapes)
    merged = parts.with_drawn(found, drawn)
    np.testing.assert_array_equal(merged["flow_net"]["conv6_1"]["kernel"], 2)
    np.testing.assert_array_equal(merged["flow_net"]["deconv1"]["kernel"], 1)
    np.testing.assert_array_equal(merged["d_conv0"]["kernel"], 1)
    assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, drawn)


def test_a_missing_file_of_weights_is_said_before_pytorch_is_asked_for(tmp_path):
    for name in ("weights.pth", "weights.npz"):
        with pytest.raises(FileNotFoundError, match=rf"{name}: there is no such file of weights of liteflownet"):
            read_weights("liteflownet", tmp_path / name)


def test_a_platform_that_does_not_start_is_said_in_one_line(monkeypatch):
    def fail():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(ValueError, match=r"^JAX cannot be started: there is no cuda\. JAX_PLATFORMS=cpu"):
        run_command.check_devices()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/mtu.py:dvd", "--config.objective.motion_loss=False"], "no folder 'data/dvd'"),
        (["--config=configs/mtu.py:dvd"], "the motion loss needs optical flow"),
        (["--config=configs/mtu.py:smoke", "--config.objective.teacher_checkpoint=nowhere.pth"], "nowhere.pth"),
        (["--config=configs/pretrained.py:smoke", "--config.initial.checkpoint=nowhere"], "no checkpoint folder"),
        (["--config=configs/reblur.py:scenes", "--config.initial.checkpoint=default"], "flow_checkpoint is empty"),
        (["--config=configs/mtu.py:smoke", "--coordinator=nowhere", "--processes=1", "--process=0"], "HOST:PORT"),
    ],
)
def test_faults_end_in_one_line_and_leave_nothing(tmp_path, flags, message):
    workdir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *flags, f"--workdir={workdir}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("train.py: error: ")
    assert message in line
    assert not workdir.exists()
