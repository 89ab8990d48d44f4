"""Exported files against the models they are of, and against a NumPy loop."""

import io
import json
import os
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from identity_model import IdentityModel
from test_clip import TinyModel, noise, restored_by_loop, variables
from tiny_video import smooth_frames

from jaxdeblur import cli, create_model, restore
from jaxdeblur.data.image_io import ImageFile, read_rgb_u8, write_image
from jaxdeblur.models import initial_variables
from jaxdeblur.restoration import export as export_module
from jaxdeblur.restoration import steps
from jaxdeblur.restoration.export import (
    DifferentResultsError,
    ExportedModel,
    export_model,
    load_exported,
    load_restorer,
)

MTU = {"channels": 4, "residual_blocks": 0, "match_radius": 2, "weight_init": "he"}
CDVD = {"channels": 4, "residual_blocks": 1, "flow_width": 0.05, "weight_init": "pass"}
SVRNN = {"width": 0.1, "weight_init": "pass"}
NAFNET = {"width": 4, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1), "training_px": 48}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A file of the model of test_clip, for every platform."""
    path = tmp_path_factory.mktemp("exported") / "tiny.zip"
    assert export_model(path, TinyModel(), variables()) < 1e-6
    return path


def test_restores_as_the_definition_says(tiny):
    exported = load_exported(tiny)
    for count, height, width in ((6, 7, 9), (1, 1, 1), (3, 4, 8), (2, 40, 33)):
        frames = noise(count, height, width)
        np.testing.assert_allclose(restore(frames, *exported), restored_by_loop(frames, TinyModel()), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, jnp.bfloat16])
def test_restores_every_kind_of_frame(tiny, dtype):
    frames = noise() if jnp.issubdtype(dtype, jnp.floating) else np.rint(noise() * np.iinfo(dtype).max)
    frames = frames.astype(dtype)
    restored = restore(frames, *load_exported(tiny))
    assert restored.dtype == dtype
    np.testing.assert_array_equal(restored, restore(frames, TinyModel(), variables()))


def test_what_a_model_looks_at_is_kept(tmp_path):
    model = TinyModel(past_frames=2, future_frames=0, size_multiple=3, beyond_ends="alternate", padding="zeros")
    export_model(tmp_path / "m.zip", model, variables())
    frames = noise(5, 8, 10)
    restored = restore(frames, *load_exported(tmp_path / "m.zip"))
    np.testing.assert_allclose(restored, restored_by_loop(frames, model), atol=1e-6)


def test_streams_and_counts(tiny):
    frames, counts = noise(5), []
    streamed = restore(iter(frames), *load_exported(tiny), progress=counts.append)
    np.testing.assert_allclose(np.stack(list(streamed)), restored_by_loop(frames, TinyModel()), atol=1e-6)
    assert counts == [1, 2, 3, 4, 5]


def test_tiles_are_as_of_the_model(tiny):
    frames, tiling = noise(3, 90, 100), steps.Tiling(80, 80, 8)
    expected = restore(frames, TinyModel(), variables(), tiling=tiling)
    np.testing.assert_allclose(restore(frames, *load_exported(tiny), tiling=tiling), expected, atol=1e-6)


def test_one_compilation_per_size(tiny):
    exported = load_exported(tiny)
    before = steps.step._cache_size()
    for frames in (noise(5, 6, 6), noise(2, 6, 6), noise(3, 9, 5)):
        restore(frames, *exported)
    assert steps.step._cache_size() == before + 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mtu2", MTU),
        ("deblurgan", {"width": 0.1, "blocks": 1}),
        ("nafnet32", NAFNET),
        ("mtu1", {**MTU, "scales": 3}),
        *(
            pytest.param(name, options, marks=pytest.mark.exhaustive)
            for name, options in (
                ("mtu1", {**MTU, "compute_dtype": "bfloat16"}),
                ("mtu4", MTU),
                ("mtu2", {**MTU, "first_frame": "zero", "motion_module": False}),
                ("dbn", {"width": 0.1}),
                ("dbn", {"width": 0.1, "sees": "single", "compute_dtype": "float16"}),
                ("deblurgan", {"width": 0.1, "blocks": 2, "dropout_seed": 1}),
                ("maxim", {"stages": 1, "features": 4, "groups": 1, "bottleneck_blocks": 1}),
                ("nafnet32", {**NAFNET, "local": False, "compute_dtype": "bfloat16"}),
                ("estrnn", {"features": 4, "blocks": 2}),
                ("vdflow", {"width": 0.05}),
                ("vdflow", {"width": 0.05, "flow_networks": "separate"}),
                ("svrnn", SVRNN),
                ("svrnn", {**SVRNN, "recurrence": "decoder", "sees": "both"}),
                ("svrnn", {**SVRNN, "recurrence": "none"}),
                ("cdvd_tsp", {**CDVD, "stages": 1}),
                ("cdvd_tsp", {**CDVD, "stages": 1, "flow": "flownet2"}),
                ("cdvd_tsp", {**CDVD, "flow": "zero"}),
                ("cdvd_tsp", {**CDVD, "flow": "none"}),
            )
        ),
    ],
)
def test_every_model_restores_the_same_from_a_file(tmp_path, name, options):
    """Beside the two sizes of float frames that `export_model` compares itself, a third, of integers."""
    model, rng = create_model(name, **options), np.random.default_rng(0)
    given = initial_variables(jax.random.key(0), model)
    given = jax.tree.map(lambda x: x + 0.02 * rng.standard_normal(x.shape, np.float32), given)
    # FlowNet2's random flows magnify the last bit of a frame's values to 2e-4, in the model alone.
    tolerance = 5e-4 if options.get("flow") == "flownet2" else 2e-6
    assert export_model(tmp_path / "m.zip", model, given) < tolerance
    frames = smooth_frames(4, height=38, width=70)
    expected = restore(frames, model, given)
    assert np.mean((expected > 0) & (expected < 255) & (expected != frames)) > 0.01
    restored = restore(frames, *load_exported(tmp_path / "m.zip"))
    assert np.max(np.abs(restored.astype(int) - expected)) <= 1  # where float32's error meets a half
    assert np.mean(restored != expected) < 2 * 255 * tolerance


def test_a_file_is_for_the_platforms_it_names(tmp_path):
    path = tmp_path / "m.zip"
    assert export_model(path, TinyModel(), variables(), platforms=["tpu", "cuda"]) is None
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("manifest.json"))["platforms"] == ["tpu", "cuda"]
    with pytest.raises(ValueError, match=r"m\.zip: is for tpu, cuda, and this machine is cpu; .*--platforms=cpu"):
        load_exported(path)
    export_model(path, TinyModel(), variables())
    exported, _ = load_exported(path)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert {function.platforms for function in exported.functions.values()} == {("cpu", "cuda", "tpu")}


def test_a_file_says_what_it_holds_and_nothing_of_where_it_was_made(tmp_path, tiny):
    exported, _ = load_exported(tiny)
    assert len(repr(exported)) < 300
    export_model(tmp_path / "again.zip", TinyModel(), variables(0.5))
    assert repr(load_exported(tmp_path / "again.zip")[0]) == repr(exported)
    export_model(tmp_path / "other.zip", TinyModel(past_frames=2), variables())
    assert repr(load_exported(tmp_path / "other.zip")[0]) != repr(exported)
    with zipfile.ZipFile(tiny) as archive:
        assert not any(b".py" in archive.read(name) for name in archive.namelist())


def test_what_cannot_be_exported_says_so(tmp_path):
    path = tmp_path / "m.zip"
    with pytest.raises(ValueError, match=r"m\.onnx: expected a name that ends in \.zip"):
        export_model(tmp_path / "m.onnx", TinyModel(), variables())
    with pytest.raises(ValueError, match="platforms are gpu, metal; expected one or more of cpu, cuda, tpu, rocm"):
        export_model(path, TinyModel(), variables(), platforms=["gpu", "metal"])
    with pytest.raises(ValueError, match="platforms are none; expected"):
        export_model(path, TinyModel(), variables(), platforms=[])
    with pytest.raises(ValueError, match="PWCNet is no deblurring model; expected one that restores frames"):
        export_model(path, create_model("pwcnet"), {})
    with pytest.raises(OSError, match="nowhere"):
        export_model(tmp_path / "nowhere" / "m.zip", TinyModel(), variables())
    assert os.listdir(tmp_path) == []


def test_a_file_that_would_restore_otherwise_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "m.zip"
    path.write_bytes(b"what was there")
    load = export_module.load_exported

    def loads_others(path):
        exported, found = load(path)
        return exported, {name: value + 0.01 for name, value in found.items()}

    monkeypatch.setattr(export_module, "load_exported", loads_others)
    with pytest.raises(
        DifferentResultsError, match=r"m\.zip: what was exported restores frames that differ .* by 0\.0"
    ):
        export_model(path, TinyModel(), variables())
    with pytest.raises(ValueError, match=r"frame 0 cannot be restored: .* not finite; its weights are damaged"):
        export_model(path, TinyModel(), variables(np.nan))
    assert os.listdir(tmp_path) == ["m.zip"]
    assert path.read_bytes() == b"what was there"


def rewritten(path, other, **members):
    """A copy of the file with other contents in some of its members."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(other, "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, members.get(name.partition(".")[0], archive.read(name)))
    return other


def test_damaged_and_foreign_files_are_named(tmp_path, tiny):
    def refused(path):
        with pytest.raises(ValueError) as caught:
            load_exported(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    whole = tiny.read_bytes()
    broken = tmp_path / "broken.zip"
    for data in (b"", b"nothing", whole[: len(whole) // 2], whole[:-30]):
        broken.write_bytes(data)
        assert "damaged, too new, or not written by jaxdeblur export" in refused(broken)
    middle = len(whole) // 2
    broken.write_bytes(
        whole[:middle] + bytes(byte ^ 255 for byte in whole[middle : middle + 40]) + whole[middle + 40 :]
    )
    assert "damaged" in refused(broken)
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("readme.txt", "something else")
    assert "no item named 'manifest.json'" in refused(broken)
    manifest = json.loads(zipfile.ZipFile(tiny).read("manifest.json"))
    for other in ("[]", "{", "{}", json.dumps({**manifest, "platforms": 3})):
        assert "damaged" in refused(rewritten(tiny, broken, manifest=other))
    newer = json.dumps({**manifest, "format": 2})
    assert "format is 2, expected 1: update jaxdeblur" in refused(rewritten(tiny, broken, manifest=newer))
    later = rewritten(tiny, broken, manifest=json.dumps({**manifest, "jax": "99"}), step=b"a form of the future")
    assert "cannot read what jax 99 has written" in refused(later)
    with pytest.raises(FileNotFoundError):
        load_exported(tmp_path / "none.zip")


def test_no_file_can_bring_code_along(tmp_path, tiny):
    stream = io.BytesIO()
    np.savez(stream, **{"params/gain": np.array(object(), object)})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_exported(rewritten(tiny, tmp_path / "m.zip", variables=stream.getvalue()))


# --- the command line ---


@pytest.fixture
def checkpoint(monkeypatch):
    """A module in the place of jaxdeblur.checkpoint, whose every model lifts values by an eighth; what was asked."""
    asked = []

    def load_model(path, **options):
        asked.append((path, options))
        return IdentityModel(lift=0.125), {}

    monkeypatch.setitem(sys.modules, "jaxdeblur.checkpoint", types.SimpleNamespace(load_model=load_model))
    return asked


def test_the_command_writes_a_file_that_deblurs(tmp_path, checkpoint, capsys):
    path = tmp_path / "m.zip"
    assert cli.main(["export", str(path), "--checkpoint=/"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{path}: {path.stat().st_size / 1e6:.2f} MB, for cpu, cuda, tpu"
    assert told[1] == "values in [0, 1] differ from the model's by at most 0 (0.002 would pass)"

    source = tmp_path / "in"
    source.mkdir()
    rgb = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    write_image(source / "1.png", ImageFile(rgb))
    asked = list(checkpoint)
    assert cli.main(["deblur", str(source), str(tmp_path / "out"), f"--checkpoint={path}"]) == 0
    lifted = np.minimum(np.rint(rgb + 0.125 * 255), 255)
    np.testing.assert_allclose(read_rgb_u8(tmp_path / "out" / "1.png"), lifted, atol=1)
    assert checkpoint == asked == [("/", {})]

    command = ["deblur", str(source), str(tmp_path / "again"), f"--checkpoint={path}"]
    assert cli.main([*command, "--precision=float16"]) == 2
    assert "m.zip: is an exported model, of which compute_dtype can no longer be changed" in capsys.readouterr().err
    assert cli.main([*command, f"--explain={tmp_path / 'sheets'}"]) == 2
    assert "ExportedModel has no pictures to explain its frames with" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["in", "m.zip", "out"]


def test_the_command_takes_platforms_and_precision(tmp_path, checkpoint, capsys):
    command = ["export", str(tmp_path / "m.zip"), "--checkpoint=/"]
    assert cli.main([*command, "--platforms=tpu", "--precision=bfloat16"]) == 0
    assert checkpoint == [("/", {"compute_dtype": "bfloat16"})]
    told = capsys.readouterr().out
    assert "MB, for tpu\nnot compared with the model, since this machine is none of these\n" in told
    assert cli.main([*command, "--platforms=abacus", "--overwrite"]) == 2
    assert "platforms are abacus; expected one or more of" in capsys.readouterr().err


def test_the_command_leaves_nothing_where_results_differ(tmp_path, checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    assert cli.main(["export", str(tmp_path / "m.zip"), "--checkpoint=/"]) == 1
    assert "differ from the model's by 0, of values in [0, 1]" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_checkpoints_are_read_as_before(checkpoint, tmp_path):
    model, _ = load_restorer(str(tmp_path), compute_dtype="float16")
    assert isinstance(model, IdentityModel)
    assert not isinstance(model, ExportedModel)
    assert checkpoint == [(str(tmp_path), {"compute_dtype": "float16"})]
