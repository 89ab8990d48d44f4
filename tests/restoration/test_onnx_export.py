"""ONNX graphs against the models they are of, run by onnxruntime frame by frame."""

import os
import sys
import types

import jax
import numpy as np
import pytest
from identity_model import IdentityModel
from tiny_video import smooth_frames

from jaxdeblur import cli, create_model, restore
from jaxdeblur.data.clips import frame_windows
from jaxdeblur.models import initial_variables
from jaxdeblur.restoration import export
from jaxdeblur.restoration.export import DifferentResultsError
from jaxdeblur.restoration.onnx_export import export_onnx

MTU = {"channels": 4, "residual_blocks": 0, "match_radius": 2, "weight_init": "he"}


@pytest.fixture
def onnxruntime():
    pytest.importorskip("jax2onnx", reason='needs jax2onnx: pip install "jaxdeblur[onnx]"', exc_type=ImportError)
    return pytest.importorskip("onnxruntime", reason='needs onnxruntime: pip install "jaxdeblur[onnx]"')


def by_hand(onnxruntime, path, frames, model):
    """(T, H, W, 3) uint8 -> the same, as the head of the module says how."""
    step = onnxruntime.InferenceSession(path)
    start = path.with_name(path.stem + "-start.onnx")
    names = [value.name for value in step.get_outputs()]
    memory, restored = {}, []
    windows = frame_windows(frames, model.past_frames, model.future_frames, beyond_ends=model.beyond_ends)
    for window in windows:
        seen = np.stack(window)[None].astype(np.float32) / 255
        if not restored and start.exists():
            first = onnxruntime.InferenceSession(start)
            taken = {"window": seen} if first.get_inputs() else {}
            memory = dict(zip([value.name for value in first.get_outputs()], first.run(None, taken), strict=True))
        results = dict(zip(names, step.run(None, {"window": seen, **memory}), strict=True))
        restored.append(np.rint(255 * results["restored"][0].clip(0, 1)).astype(np.uint8))
        memory = {name: results[f"{name}_after"] for name in memory}
    return np.stack(restored)


@pytest.mark.filterwarnings("ignore")  # third parties', on import and while converting
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mtu2", MTU),
        ("dbn", {"width": 0.1}),
        pytest.param("mtu1", {**MTU, "scales": 3}, marks=pytest.mark.slow),
        pytest.param("deblurgan", {"width": 0.1, "blocks": 1}, marks=pytest.mark.slow),
        pytest.param(
            "maxim", {"stages": 1, "features": 4, "groups": 1, "bottleneck_blocks": 1}, marks=pytest.mark.slow
        ),
        pytest.param(
            "nafnet32",
            {"width": 4, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1), "training_px": 48},
            marks=pytest.mark.slow,
        ),
        pytest.param("estrnn", {"features": 4, "blocks": 2}, marks=pytest.mark.slow),
        pytest.param("vdflow", {"width": 0.05}, marks=pytest.mark.slow),
        pytest.param(
            "cdvd_tsp", {"channels": 4, "residual_blocks": 1, "flow_width": 0.05, "stages": 1}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_graph_restores_as_the_model_does(tmp_path, onnxruntime, name, options):
    model = create_model(name, **options)
    variables = initial_variables(jax.random.key(0), model)
    path = tmp_path / "m.onnx"
    assert export_onnx(path, model, variables, size=(64, 128)) < 2e-5
    frames = smooth_frames(4, height=64, width=128)
    difference = np.abs(by_hand(onnxruntime, path, frames, model).astype(int) - restore(frames, model, variables))
    # Where float32's error meets a half, or decides between displacements that match alike.
    assert difference.max() <= 1
    assert difference.mean() < 5e-3
    has_memory = bool(jax.tree.leaves(model.apply(variables, np.zeros((1, 5, 64, 128, 3), np.float32), method="start")))
    assert sorted(os.listdir(tmp_path)) == (["m-start.onnx", "m.onnx"] if has_memory else ["m.onnx"])


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_converted_or_run_says_so(tmp_path, onnxruntime, monkeypatch):
    path = tmp_path / "m.onnx"
    svrnn = create_model("svrnn", width=0.05)
    shapes = jax.eval_shape(svrnn.init, jax.random.key(0), np.zeros((1, 1, 64, 64, 3), np.float32))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    with pytest.raises(ValueError, match=r"m\.onnx: jax2onnx cannot convert SVRNN \(Reverse scan"):
        export_onnx(path, svrnn, zeros, size=(64, 64))
    with pytest.raises(ValueError, match="the size is 20x8; expected multiples of 8"):
        export_onnx(path, IdentityModel(), {}, size=(8, 20))
    with pytest.raises(ValueError, match=r"m\.zip: expected a name that ends in \.onnx"):
        export_onnx(tmp_path / "m.zip", IdentityModel(), {}, size=(8, 16))
    with pytest.raises(ValueError, match="PWCNet is no deblurring model"):
        export_onnx(path, create_model("pwcnet"), {}, size=(64, 64))
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(DifferentResultsError, match=r"m\.onnx: what was exported .* differ from the model's by 0"):
        export_onnx(path, IdentityModel(), {}, size=(8, 16))
    assert os.listdir(tmp_path) == []


@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_onnx(tmp_path, onnxruntime, monkeypatch, capsys):
    loads = types.SimpleNamespace(load_model=lambda path: (IdentityModel(lift=0.125), {}))
    monkeypatch.setitem(sys.modules, "jaxdeblur.checkpoint", loads)
    assert cli.main(["export", str(tmp_path / "m.onnx"), "--checkpoint=/", "--size=32x16"]) == 0
    assert f"{tmp_path / 'm.onnx'}: 0.00 MB, for frames of 32x16\n" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["m-start.onnx", "m.onnx"]


def test_without_the_converter_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r"m\.onnx needs jax2onnx: pip install \"jaxdeblur\[onnx\]\""):
        export_onnx(tmp_path / "m.onnx", IdentityModel(), {}, size=(8, 8))


@pytest.mark.parametrize("options", [["m.onnx"], ["m.zip", "--size=8x8"], ["m.onnx", "--size=8x8", "--platforms=cpu"]])
def test_the_command_tells_the_two_kinds_apart(options, capsys):
    assert cli.main(["export", *options, "--checkpoint=/"]) == 2
    assert "an .onnx is for frames of one --size and for no platform" in capsys.readouterr().err
