"""The --config flag of train.py and evaluate.py, and how they say what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from jaxdeblur import run_command
from jaxdeblur.config import build_model, resolve
from jaxdeblur.models import MODELS, create_model, option_types

ROOT = Path(__file__).parent.parent


def parsed(monkeypatch, config, *flags):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config={config}", *flags])
    return run_command._ConfigParser().parse(config)


@pytest.mark.parametrize(
    ("config", "flag", "field", "default"),
    [
        ("configs/mtu.py", "--config.model.match_radius=5", "match_radius", 10),
        ("configs/mtu.py:demo", "--config.model.match_radius=5", "match_radius", 10),
        ("configs/mtu.py", "--config.model.units=3", "units", 2),
        ("configs/pretrained.py", "--config.model.match_radius=5", "match_radius", 10),
        ("configs/pwcnet.py", "--config.model.mask_threshold=0.5", "mask_threshold", 0.999),
        ("configs/pwcnet.py", "-config.model.pyramid_channels=(1,2)", "pyramid_channels", (16, 32, 64, 96, 128, 196)),
        ("configs/vdflow.py", "--noconfig.model.deblur_reads_flow_at_8", "deblur_reads_flow_at_8", True),
    ],
)
def test_every_field_of_the_models_configuration_can_be_set(monkeypatch, config, flag, field, default):
    assert parsed(monkeypatch, config, flag).model[field] == default  # which the flag then takes the place of


def test_the_named_model_says_which_fields_there_are_and_what_they_are(monkeypatch):
    for flags in (["--config.model.name=mtu10l"], ["--config.model.name", "mtu10l"]):
        config = parsed(monkeypatch, "configs/mtu.py", *flags, "--config.model.channels=40")
        assert config.model.channels == 48
    with pytest.raises(ValueError, match=r"no field config\.model\.mask_threshold\. config\.model has compute_dtype"):
        parsed(monkeypatch, "configs/pwcnet.py", "--config.model.name=flownets", "--config.model.mask_threshold=0.5")
    with pytest.raises(ValueError, match="no model is called 'mtu3'; did you mean 'mtu"):
        parsed(monkeypatch, "configs/mtu.py", "--config.model.name=mtu3")


def test_fields_that_nobody_sets_stay_out_of_the_configuration(monkeypatch):
    assert "match_radius" not in parsed(monkeypatch, "configs/mtu.py").model


def test_what_is_set_reaches_the_model():
    config = ConfigDict({"model": {"name": "mtu2"}})
    run_command.prepare_overrides(config, ["--config.model.match_radius=5", "--config.model.scales=2"])
    config.model.update(match_radius=5, scales=2)
    assert (build_model(config).config.match_radius, build_model(config).config.scales) == (5, 2)


@pytest.mark.parametrize("name", [name for name in MODELS if hasattr(create_model(name), "config")])
def test_every_option_has_a_type_that_a_flag_can_have(name):
    for field, kind in option_types(name).items():
        assert kind in (int, float, bool, str, tuple)
        default = getattr(create_model(name).config, field)
        assert default is None or isinstance(default, kind)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--config.model.match_radus=5",
            r'no field config\.model\.match_radus\. Did you mean "match_radius" in config\.model\?',
        ),
        ("--config.optimizer.clip_nrom=2", r'Did you mean "clip_norm" in config\.optimizer\?'),
        ("--config.batch_size=2", r'Did you mean "config\.data\.batch_size"\?'),
        ("--config.training.zeal=2", r"config\.training has .*microbatches"),
        ("--config.seed.deep=2", r"no field config\.seed\.deep\. config\.seed has no fields"),
    ],
)
def test_an_unknown_field_names_those_nearby(monkeypatch, flag, message):
    with pytest.raises(ValueError, match=message):
        parsed(monkeypatch, "configs/mtu.py:smoke", flag)


def test_faults_of_the_file_are_said_without_a_traceback(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"there is no file configs/mtuu\.py; did you mean configs/mtu\.py\?"):
        parsed(monkeypatch, "configs/mtuu.py")
    with pytest.raises(ValueError, match=r"^configs/mtu\.py has no variant 'tiny'; variants: dvd"):
        parsed(monkeypatch, "configs/mtu.py:tiny")
    for text, message in (
        ("x = ", "cannot be loaded: SyntaxError"),
        ("x = 1", "has no get_config"),
    ):
        (tmp_path / "own.py").write_text(text)
        with pytest.raises(ValueError, match=message):
            parsed(monkeypatch, str(tmp_path / "own.py"))


@pytest.mark.parametrize("config", ["mtu", "cdvd", "svrnn", "vdflow", "pwcnet", "pretrained"])
def test_configurations_take_every_field_of_their_model(monkeypatch, config):
    found = parsed(monkeypatch, f"configs/{config}.py")
    flags = [f"--config.model.{field}=0" for field in option_types(found.model.name)]
    found = parsed(monkeypatch, f"configs/{config}.py", *flags)
    assert set(found.model) == {"name", *option_types(found.model.name)}
    build_model(resolve(found))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("train.py", ["--config=configs/mtu.py:smoke", "--config.model.match_radus=5"], '"match_radius"'),
        ("evaluate.py", ["--config=configs/mtu.py:smoke", "--config.model.match_radus=5"], '"match_radius"'),
        ("train.py", ["--config=configs/mtu.py:tiny"], "variants: dvd"),
        ("train.py", ["--config=configs/mtu.py:smoke", "--config.training.steps=ten"], "steps=ten"),
        ("train.py", ["--config=configs/mtu.py:smoke", "--wrokdir=x"], "wrokdir"),
        ("train.py", ["--config=configs/mtu.py:smoke", "more"], "unexpected arguments more"),
        ("train.py", [], "--config must"),
    ],
)
def test_commands_say_in_one_line_what_is_wrong(script, flags, message):
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script}: error: ")
    assert message in line
