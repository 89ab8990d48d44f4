"""Data parallelism: eight devices, and two processes of two devices, give one device's gradients."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdeblur.training.sharding import check_batch_size, make_mesh, replicate, shard_batch

sys.path.insert(0, str(Path(__file__).parent))
import sharded_gradients


@pytest.fixture(scope="module")
def one_device():
    return sharded_gradients.gradients_and_metrics(make_mesh(jax.devices()[:1]))


def assert_equal_trees(a, b, tolerance):
    for path, x in jax.tree_util.tree_leaves_with_path(a):
        y = b
        for entry in path:
            y = y[entry.key]
        scale = max(float(np.abs(x).max()), 1e-3)
        np.testing.assert_allclose(y, x, atol=tolerance * scale, rtol=0, err_msg=jax.tree_util.keystr(path))


def test_eight_devices_give_one_devices_gradients(one_device):
    eight = sharded_gradients.gradients_and_metrics(make_mesh())
    assert jax.device_count() == 8
    assert_equal_trees(one_device, eight, 1e-5)


def test_microbatches_on_two_devices_give_the_whole_batchs_gradients(one_device):
    parts = sharded_gradients.gradients_and_metrics(make_mesh(jax.devices()[:2]), microbatches=4)
    assert_equal_trees(one_device, parts, 1e-5)


@pytest.mark.slow
def test_two_processes_of_two_devices_give_one_devices_gradients(one_device, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    script = Path(sharded_gradients.__file__)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path.cwd())}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(port), str(rank), str(tmp_path / "gradients.npz")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    with np.load(tmp_path / "gradients.npz") as saved:
        for path, x in jax.tree_util.tree_leaves_with_path(one_device):
            name = jax.tree_util.keystr(path)
            scale = max(float(np.abs(x).max()), 1e-3)
            np.testing.assert_allclose(saved[name], x, atol=1e-5 * scale, rtol=0, err_msg=name)


def test_the_update_is_compiled_once_on_many_devices(caplog):
    with jax.log_compiles(), caplog.at_level("WARNING"):
        sharded_gradients.gradients_and_metrics(make_mesh(), updates=3)
    compiled = [record.message for record in caplog.records if record.message.startswith("Compiling jit(update)")]
    assert len(compiled) == 1, compiled


def test_a_batch_is_split_and_parameters_are_copied():
    mesh = make_mesh()
    batch = shard_batch({"x": np.arange(16.0).reshape(16, 1)}, mesh)["x"]
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 1)}
    np.testing.assert_array_equal(batch, np.arange(16.0).reshape(16, 1))
    weights = replicate({"w": np.arange(3.0)}, mesh)["w"]
    assert {shard.data.shape for shard in weights.addressable_shards} == {(3,)}


def test_a_batch_that_does_not_split_says_what_would():
    with pytest.raises(ValueError, match=r"batch_size is 12; expected a multiple of 16 = 8 devices x .*microbatches 2"):
        check_batch_size(12, make_mesh(), 2)
