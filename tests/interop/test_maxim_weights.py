"""MAXIM's released file, and the npm package of TensorFlow.js: what they hold, and what is refused."""

import gzip
import io
import json
import re
import shutil
import tarfile

import jax
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur.interop import TABLES, from_torch, maxim, tfjs
from jaxdeblur.interop.files import load_maxim, read_weights

ABSENT = tuple(f"stage_2_output_conv_{scale}/{kind}" for scale in (1, 2) for kind in ("kernel", "bias"))
GRAPH = "StatefulPartitionedCall/jax2tf_"


def official_shapes():
    return load_case("maxim", "case_a")[1]["state_dict"]


def test_each_array_lands_where_it_belongs():
    rows = {
        "stage_0_input_conv_2": "stage_0/input_2",
        "stage_1_input_fuse_sam_0/Conv_1": "stage_1/fuse_0/conv_y",
        "stage_1_encoder_block_1/Conv_1": "stage_1/encoder_1/down",
        "stage_2_encoder_block_0/cross_gating_block/out_project_x": "stage_2/encoder_0/gating/project_out_x",
        # Three names that look alike.
        "stage_0_encoder_block_2/channel_attention_block_10/conv2": "stage_0/encoder_2/channel_attention_0/conv2",
        "stage_0_decoder_block_0/UNetEncoderBlock_0/channel_attention_block_11/conv1": (
            "stage_0/decoder_0/channel_attention_1/conv1"
        ),
        "stage_2_global_block_1/channel_attention_block_1_0/channel_mixing/Dense_1": (
            "stage_2/bottleneck_1/channel_attention_0/dense2"
        ),
        "stage_1_global_block_0/SplitHeadMultiAxisGmlpLayer_1/BlockGmlpLayer/BlockGatingUnit/Dense_0": (
            "stage_1/bottleneck_0/multi_axis_1/block/mix"
        ),
        "stage_0_cross_gating_block_1/SplitHeadMultiAxisGating_y/Dense_0": "stage_0/gating_1/gate_y/mix_grid",
        "stage_0_cross_gating_block_1/SplitHeadMultiAxisGating_y/Dense_1": "stage_0/gating_1/gate_y/mix_block",
        "stage_1_supervised_attention_module_2/Conv_1": "stage_1/attention_2/conv_output",
        # Numbered as they are made: coarse scales first, the gates' with coarse sources first.
        "UpSampleRatio_0/Conv_0": "stage_0/encoded_0_at_2/conv",
        "UpSampleRatio_2/Conv_0": "stage_0/encoded_2_at_2/conv",
        "UpSampleRatio_10/Conv_0": "stage_0/gated_1_at_2/conv",
        "UpSampleRatio_33/Conv_0": "stage_1/gated_2_at_0/conv",
        "UpSampleRatio_53/Conv_0": "stage_2/gated_0_at_0/conv",
    }
    found = {name: tensor.path for name, tensor in TABLES["maxim"]({}).items()}
    for theirs, ours in rows.items():
        assert found[f"opt/target/{theirs}/kernel"] == (*ours.split("/"), "kernel")
    assert len(set(found.values())) == len(found) == 2_754


def test_the_released_file_is_read_without_the_optimisers_arrays(tmp_path):
    shapes = official_shapes()
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    name = "opt/target/stage_0_cross_gating_block_1/ConvTranspose_0/kernel"
    arrays[name] = np.arange(2 * 2 * 128 * 64, dtype=np.float32).reshape(2, 2, 128, 64)
    others = {"opt/state/step": np.array([{"pickled": "never"}], object), "config": np.ones(3, np.int64)}
    np.savez(tmp_path / "checkpoint.npz", **arrays, **others)
    params = read_weights("maxim", tmp_path / "checkpoint.npz")["params"]
    np.testing.assert_array_equal(params["stage_0"]["gating_1"]["up"]["kernel"], arrays[name])
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_212_795
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz: holds no array called opt/target/\.\.\., as MAXIM's released"):
        read_weights("maxim", tmp_path / "other.npz")
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights\.pth: expected the checkpoint\.npz of google-research/maxim, or"):
        read_weights("maxim", tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match="there is no such file of weights of maxim"):
        read_weights("maxim", tmp_path / "nowhere.tgz")


def test_another_networks_weights_are_told_in_a_few_lines(tmp_path):
    arrays = {f"opt/target/{number}": np.zeros(1, np.float32) for number in range(100)}
    with pytest.raises(ValueError, match=r"2754 missing: .*, \.\.\.\n100 unexpected: ") as caught:
        from_torch("maxim", arrays)
    assert len(str(caught.value)) < 10_000


# --- the package ---


def graph_name(name, number):
    """What the graph calls the released array, the number-th by path."""
    module, _, kind = name.rpartition("/")
    layer = module.rpartition("/")[2]
    inside = f"{GRAPH}apply_/Wrapper/backbone/{module}"
    if "norm" in layer.lower():
        return f"{inside}/Reshape_{2 if kind == 'scale' else 3}"
    if kind == "bias":
        return f"{inside}/Reshape"
    if re.match(r"Conv|conv|input_proj|stage_\d_(in|out)put_conv", layer):
        return f"{inside}/transpose_{4 if layer == 'ConvTranspose_0' else 3}"
    return f"{GRAPH}arg_{number}/ReadVariableOp"


def as_in_the_graph(name, array):
    if "ConvTranspose_0/kernel" in name:
        return array.transpose(0, 1, 3, 2)[::-1, ::-1]
    return array.reshape(1, 1, 1, -1) if array.ndim == 1 else array


def graph_arrays(official):
    """The package's arrays of released ones, and some of the graph's constants."""
    names = [name.removeprefix("opt/target/") for name in official_shapes()]
    arrays = {
        graph_name(name, number): as_in_the_graph(name, np.asarray(official[f"opt/target/{name}"], np.float32))
        for number, name in enumerate(names)
        if name not in ABSENT
    }
    module = f"{GRAPH}apply_/Wrapper/backbone/stage_0_encoder_block_0"
    constants = {
        f"{module}/channel_attention_block_10/LayerNorm/Const_1": np.array(3, np.int32),
        f"{module}/channel_attention_block_10/LayerNorm/Reshape/shape/3": np.array(32, np.int32),
        f"{module}/Conv_0/transpose_3/perm": np.array([0, 1, 2, 3], np.int32),
        "StatefulPartitionedCall/Const_7363": np.array(0.5, np.float32),
    }
    return {**constants, **arrays}


def package(arrays, *, shard_bytes=2**22):
    """Files of a TensorFlow.js graph by name."""
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    shards = [content[begin : begin + shard_bytes] for begin in range(0, len(content), shard_bytes)]
    names = [f"group1-shard{number}of{len(shards)}.bin" for number in range(1, len(shards) + 1)]
    weights = [{"name": name, "shape": list(array.shape), "dtype": array.dtype.name} for name, array in arrays.items()]
    model = {"format": "graph-model", "modelTopology": {}, "weightsManifest": [{"paths": names, "weights": weights}]}
    return {**dict(zip(names, shards, strict=True)), "model.json": json.dumps(model).encode()}


def write_tgz(path, files, *, folder="package/models", compresslevel=1):
    with tarfile.open(path, "w:gz", compresslevel=compresslevel) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_folder(path, files):
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)


def test_the_packages_arrays_are_the_released_ones_under_other_names():
    official = seeded_state_dict(load_case("maxim", "case_a")[1])
    found = maxim.from_graph(graph_arrays(official))
    assert found.keys() == official.keys()
    for name, array in found.items():
        if name.removeprefix("opt/target/") in ABSENT:
            np.testing.assert_array_equal(array, np.zeros(official[name].shape))
        else:
            np.testing.assert_array_equal(array, np.float32(official[name]))
    assert sum(array.size for name, array in found.items() if name.removeprefix("opt/target/") not in ABSENT) == (
        22_207_605
    )


def test_a_package_is_read_packed_and_unpacked(tmp_path):
    arrays = graph_arrays({name: np.zeros(shape, np.float32) for name, shape in official_shapes().items()})
    name = f"{GRAPH}apply_/Wrapper/backbone/stage_0_input_conv_0/transpose_3"
    arrays[name] = np.random.default_rng(0).random((3, 3, 3, 32), np.float32)
    files = package(arrays)
    write_tgz(tmp_path / "p.tgz", files)
    params = read_weights("maxim", tmp_path / "p.tgz")["params"]
    np.testing.assert_array_equal(params["stage_0"]["input_0"]["kernel"], arrays[name])
    assert not np.any(params["stage_2"]["output_2"]["kernel"])
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_212_795
    assert [path.name for path in tmp_path.iterdir()] == ["p.tgz"]
    # As it comes out of the archive, and as it lies in node_modules.
    write_folder(tmp_path / "out" / "package" / "models", files)
    for folder in (tmp_path / "out", tmp_path / "out" / "package", tmp_path / "out" / "package" / "models"):
        np.testing.assert_array_equal(load_maxim(folder)["opt/target/stage_0_input_conv_0/kernel"], arrays[name])


def test_a_package_of_another_network_is_told(tmp_path):
    files = package({"StatefulPartitionedCall/dense/kernel": np.zeros((2, 3), np.float32)})
    write_tgz(tmp_path / "p.tgz", files)
    with pytest.raises(ValueError, match="these are not the weights of maxim:\n2750 missing: "):
        read_weights("maxim", tmp_path / "p.tgz")


SMALL = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([True, False, True]),
    "c": np.array(-7, np.int32),
    "d": np.arange(5, dtype=np.float32),
    "e": np.zeros((0, 3), np.float32),
}


def test_arrays_of_every_kind_come_out_as_they_went_in(tmp_path):
    write_tgz(tmp_path / "p.tgz", package(SMALL, shard_bytes=7))
    write_folder(tmp_path / "p", package(SMALL, shard_bytes=1000))
    for place in ("p.tgz", "p"):
        found = tfjs.load_graph(tmp_path / place)
        assert found.keys() == SMALL.keys()
        for name, array in SMALL.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def refused(path):
    with pytest.raises(ValueError) as caught:
        tfjs.load_graph(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.pop("weightsManifest"), r"model\.json is damaged, or of no TensorFlow\.js graph"),
        (lambda model: model["weightsManifest"][0].pop("weights"), "damaged"),
        (lambda model: model.update(weightsManifest=3), "damaged"),
        (lambda model: model["weightsManifest"][0]["weights"][0].pop("name"), "damaged"),
        (lambda model: model["weightsManifest"][0]["weights"][0].update(shape=[2, -3]), r"a has shape \[2, -3\]"),
        (lambda model: model["weightsManifest"][0]["weights"][0].update(shape=["2"]), "a has shape"),
        (lambda model: model["weightsManifest"][0]["weights"][0].update(shape=7), "damaged"),
        (
            lambda model: model["weightsManifest"][0]["weights"][0].update(dtype="string"),
            "a is string; expected one of",
        ),
        (
            lambda model: model["weightsManifest"][0]["weights"][0].update(quantization={"dtype": "uint8", "min": 0}),
            "a is quantised; expected one of float32, int32, bool",
        ),
        (lambda model: model["weightsManifest"][0]["weights"][0].update(shape=[2, 4]), "hold 51 bytes, and .* 59"),
        (lambda model: model["weightsManifest"][0]["paths"].append("more.bin"), r"lacks more\.bin, which model\.json"),
        (lambda model: model["weightsManifest"][0].update(paths=["../secret.bin"]), "expected one beside it"),
        (lambda model: model["weightsManifest"][0].update(paths=["/etc/passwd"]), "expected one beside it"),
        (lambda model: model["weightsManifest"][0].update(paths=["..\\secret.bin"]), "expected one beside it"),
        (lambda model: model["weightsManifest"][0].update(paths=[".."]), "expected one beside it"),
        (lambda model: model["weightsManifest"][0].update(paths=[5]), "expected one beside it"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path, change, message):
    files = package(SMALL)
    model = json.loads(files["model.json"])
    change(model)
    files["model.json"] = json.dumps(model).encode()
    (tmp_path / "secret.bin").write_bytes(b"51 bytes".ljust(51))
    write_folder(tmp_path / "p", files)
    write_tgz(tmp_path / "p.tgz", files)
    for place in ("p", "p.tgz"):
        assert re.search(message, refused(tmp_path / place))


def test_damage_is_told(tmp_path):
    files = package(SMALL, shard_bytes=20)
    path = tmp_path / "p.tgz"
    write_tgz(path, files, compresslevel=0)
    whole = path.read_bytes()
    place = whole.index(SMALL["a"].tobytes()[:20])
    changed = whole[:place] + b"\xff" + whole[place + 1 :]
    for damaged in (b"", b"nothing", whole[: len(whole) // 2], whole[:-6], changed, gzip.compress(b"no archive")):
        path.write_bytes(damaged)
        assert "is no .tgz of an npm package, or is damaged or cut short" in refused(path)
    for name, message in (("group1-shard2of3.bin", "lacks group1-shard2of3.bin"), ("model.json", "model.json")):
        some = {other: content for other, content in files.items() if other != name}
        shutil.rmtree(tmp_path / "p", ignore_errors=True)
        write_folder(tmp_path / "p", some)
        write_tgz(path, some)
        assert message in refused(tmp_path / "p")
        assert message in refused(path)
    for content in (b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000):
        write_tgz(path, {**files, "model.json": content})
        assert "damaged, or of no TensorFlow.js graph" in refused(path)


def test_links_are_not_followed_and_sizes_are_bounded(tmp_path, monkeypatch):
    files = package(SMALL)
    shard = next(iter(files))
    path = tmp_path / "p.tgz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo(f"package/models/{shard}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        member = tarfile.TarInfo("package/models/model.json")
        member.size = len(files["model.json"])
        archive.addfile(member, io.BytesIO(files["model.json"]))
    assert f"lacks {shard}" in refused(path)
    monkeypatch.setattr(tfjs, "_MOST_BYTES", 100)
    write_tgz(path, files)
    assert "unpacks to more than 100 bytes" in refused(path)
