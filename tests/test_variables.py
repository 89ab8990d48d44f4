"""Files of weights: what goes in comes out, and what is no such file is refused."""

import json

import jax
import numpy as np
import pytest

import jaxdeblur
from jaxdeblur.checkpoint import find_checkpoint, load_config, load_model, save_model
from jaxdeblur.cli import main
from jaxdeblur.models import create_model, initial_variables
from jaxdeblur.restoration.export import load_restorer
from jaxdeblur.variables import load_weights, save_weights

OPTIONS = {"name": "mtu1", "channels": 4, "residual_blocks": 1, "match_radius": 2}


@pytest.fixture(scope="module")
def variables():
    return initial_variables(jax.random.key(0), create_model(**OPTIONS))


@pytest.fixture
def weights(tmp_path, variables):
    save_weights(tmp_path / "mine.npz", OPTIONS, variables)
    return tmp_path / "mine.npz"


@pytest.mark.parametrize("load", [load_weights, load_model, load_restorer])
def test_what_was_saved_is_read_by_everything(weights, variables, load):
    model, found = load(weights)
    assert model == create_model(**OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    assert load(weights, compute_dtype="bfloat16")[0].config.compute_dtype == "bfloat16"


def test_batch_statistics_come_along(tmp_path):
    options = {"name": "dbn"}
    model = create_model(**options)
    variables = initial_variables(jax.random.key(1), model)
    assert "batch_stats" in variables
    save_weights(tmp_path / "dbn.npz", options, variables)
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "dbn.npz")[1], variables)


def test_the_same_weights_are_the_same_bytes(weights, tmp_path, variables):
    save_weights(tmp_path / "again.npz", OPTIONS, variables)
    assert (tmp_path / "again.npz").read_bytes() == weights.read_bytes()


def test_a_checkpoint_becomes_a_file_of_weights(tmp_path, variables, capsys):
    options = dict(OPTIONS)
    save_model(tmp_path / "saved", name=options.pop("name"), options=options, variables=variables)
    target = tmp_path / "out.npz"
    assert main(["export", str(target), f"--checkpoint={tmp_path / 'saved'}"]) == 0
    assert "mtu1" in capsys.readouterr().out
    model, found = load_weights(target)
    assert model == create_model(**OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    assert load_config(find_checkpoint(target))["model"]["name"] == "mtu1"
    assert main(["export", str(target), f"--checkpoint={tmp_path / 'saved'}", "--size=64x64"]) == 2
    assert "every size" in capsys.readouterr().err


def test_other_names_and_other_networks_are_refused(tmp_path, variables):
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        save_weights(tmp_path / "mine.bin", OPTIONS, variables)
    with pytest.raises(ValueError, match="does not fit"):
        save_weights(tmp_path / "mine.npz", {**OPTIONS, "channels": 5}, variables)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", "whole but another", "pickled"])
def test_damaged_files_are_named(tmp_path, weights, content):
    path = tmp_path / "bad.npz"
    if content == "whole but another":
        np.savez(path, model=np.array(json.dumps({"no": "name"})))
    elif content == "pickled":
        np.savez(path, model=np.array([{"name": "mtu1"}], object))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npz: damaged, or no file of weights"):
        load_weights(path)
    path.write_bytes(weights.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"bad\.npz: damaged, or no file of weights"):
        load_weights(path)
    with pytest.raises(ValueError, match="no such file"):
        load_weights(tmp_path / "missing.npz")
    with pytest.raises(ValueError, match="expected a file of weights"):
        load_weights(tmp_path / "mine.bin")


def test_restore_takes_both_or_neither(variables):
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="go together"):
        jaxdeblur.restore(frames, create_model(**OPTIONS))
    with pytest.raises(ValueError, match="go together"):
        jaxdeblur.restore(frames, variables=variables)
