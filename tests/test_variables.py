"""Files of weights: what goes in comes out, and what is no such file is refused."""

import io
import json
import zipfile

import jax
import numpy as np
import pytest

import jaxdeblur
from jaxdeblur import cli
from jaxdeblur.checkpoint import find_checkpoint, is_checkpoint, load_config, load_model, save_model
from jaxdeblur.cli import main
from jaxdeblur.interop.files import read_flow_network
from jaxdeblur.models import create_model, initial_variables
from jaxdeblur.restoration.export import load_restorer
from jaxdeblur.variables import DEFAULT, load_weights, save_weights

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


LOADERS = pytest.mark.parametrize("load", [load_weights, load_model, load_restorer])


def about(**options):
    return np.array(json.dumps(options))


@LOADERS
@pytest.mark.parametrize(
    "members",
    [
        pytest.param({"model": about(no="name")}, id="no name"),
        pytest.param({"model": about(name=5)}, id="a number for a name"),
        pytest.param({"model": np.array([{"name": "mtu1"}], object)}, id="pickled"),
        pytest.param({"model": about(**OPTIONS)}, id="no parameters"),
        pytest.param({"model": about(**OPTIONS), "params": np.zeros(1), "params/a": np.zeros(1)}, id="leaf and branch"),
        pytest.param({"model": about(**OPTIONS), "params/a": np.zeros(1, np.int8)}, id="integers"),
        pytest.param({"model": np.array(2**19 * "long")}, id="a long description"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path, load, members):
    path = tmp_path / "bad.npz"
    np.savez(path, **members)
    with pytest.raises(ValueError, match=r"bad\.npz: damaged, or no file of weights"):
        load(path)


@LOADERS
def test_damaged_and_missing_files_are_named(tmp_path, weights, load):
    path = tmp_path / "bad.npz"
    for content in (b"", b"PK\x03\x04 cut short", weights.read_bytes()[:-200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.npz: damaged, or no file of weights"):
            load(path)
    with pytest.raises(ValueError, match=r"missing\.npz: there is no such file of weights"):
        load(tmp_path / "missing.npz")
    with pytest.raises(ValueError, match=r"mine\.bin"):
        load(tmp_path / "mine.bin")


@LOADERS
def test_weights_of_a_network_that_is_not_known_yet_say_so(tmp_path, load):
    np.savez(tmp_path / "newer.npz", model=about(**OPTIONS, not_yet_invented=3))
    with pytest.raises(ValueError, match=r"newer\.npz: its network is unknown to this version.*not_yet_invented"):
        load(tmp_path / "newer.npz")


def test_sizes_that_only_a_header_claims_take_no_memory(tmp_path, weights):
    """An array is read only after its header has been found to be what the network wants."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(weights, "a") as archive:
        archive.writestr("params/huge.npy", header.getvalue())
    with pytest.raises(ValueError, match="does not fit MultiTaskUnits: unexpected huge"):
        load_weights(weights)


def test_narrow_floats_become_float32_but_for_float16(tmp_path, variables):
    for narrow, kept in (("bfloat16", "float32"), ("float16", "float16")):
        save_weights(tmp_path / "narrow.npz", OPTIONS, jax.tree.map(lambda x, d=narrow: x.astype(d), variables))
        _, found = load_weights(tmp_path / "narrow.npz")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {kept}
        jax.tree.map(
            lambda a, b, d=narrow: np.testing.assert_array_equal(a, b.astype(d).astype(a.dtype)), found, variables
        )


def test_a_folder_called_default_is_not_in_the_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").mkdir()
    assert load_restorer()[0] == load_weights()[0] == load_model("default")[0]
    assert cli.DEFAULT == DEFAULT
    with pytest.raises(ValueError, match="holds no checkpoint"):
        load_model("./default")


def test_weights_of_a_flow_network_are_such(tmp_path):
    options = {"name": "flownets", "width": 1 / 16}
    network = create_model(**options)
    save_weights(tmp_path / "flow.npz", options, initial_variables(jax.random.key(0), network))
    assert read_flow_network(tmp_path / "flow.npz", "pwcnet")[0] == network
    np.savez(tmp_path / "caffe.npz", **{"conv1.weight": np.zeros(1)})
    assert not is_checkpoint(tmp_path / "caffe.npz")


def test_restore_takes_both_or_neither(variables):
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="go together"):
        jaxdeblur.restore(frames, create_model(**OPTIONS))
    with pytest.raises(ValueError, match="go together"):
        jaxdeblur.restore(frames, variables=variables)
