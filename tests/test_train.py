"""train.py, evaluate.py and the command on its checkpoint, as a user runs them."""

import contextlib
import csv
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdeblur.checkpoint import load_model, save_model
from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.models import create_model, initial_variables

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def environment():
    return {**os.environ, "JAX_PLATFORMS": "cpu"}


def command(script, *arguments):
    return [sys.executable, str(ROOT / script), *arguments]


def run(environment, script, *arguments, check=True, cwd=ROOT):
    done = subprocess.run(
        command(script, *arguments), env=environment, cwd=cwd, capture_output=True, text=True, timeout=600
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def smoke(workdir, *more):
    return ("--config=configs/mtu.py:smoke", f"--workdir={workdir}", *more)


@pytest.fixture(scope="session")
def undisturbed(environment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run(environment, "train.py", *smoke(workdir))
    return workdir, done.stdout


def table(file):
    return list(csv.DictReader(file.read_text().splitlines()))


def losses(workdir):
    return (workdir / "losses.csv").read_text()


@pytest.mark.slow
def test_smoke_run_leaves_what_a_run_should(undisturbed):
    workdir, printed = undisturbed
    assert "step 60/60" in printed
    assert "images/s" in printed
    assert "left" in printed
    rows = table(workdir / "losses.csv")
    assert [int(row["step"]) for row in rows] == list(range(3, 61, 3))
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    validation = table(workdir / "validation.csv")
    assert [int(row["step"]) for row in validation] == [30, 60]
    assert (workdir / "pictures" / "step_00000060.png").is_file()
    assert any((workdir / "tensorboard").iterdir())
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["source"] == "scenes"
    assert config["model"]["channels"] == 6
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    assert {48, 60} <= kept
    assert len(kept) <= 3


@pytest.mark.slow
def test_evaluation_writes_scores_and_strips(undisturbed, environment, tmp_path):
    workdir, _ = undisturbed
    network = create_model("flownets", width=0.03125)
    still = jax.tree.map(np.zeros_like, initial_variables(jax.random.key(0), network))  # sees no motion anywhere
    save_model(tmp_path / "flow", name="flownets", options={"width": 0.03125}, variables=still)
    extras = ["--config.evaluation.motion", "--protocol=mtu_inloop", f"--flow_checkpoint={tmp_path / 'flow'}"]
    page = tmp_path / "page.html"
    done = run(environment, "evaluate.py", *smoke(workdir), f"--out={tmp_path}", f"--html={page}", *extras)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["protocol"], list(scores["other_protocols"])) == ("mtu_inloop", ["common"])
    assert len(scores["clips"]) == 2
    assert len(scores["frames"]) == 6
    mean = scores["mean"]
    assert mean["gain_db"] == pytest.approx(mean["psnr_restored_db"] - mean["psnr_blurred_db"])
    assert mean["gain_db"] == pytest.approx(
        np.mean([frame["psnr_restored_db"] - frame["psnr_blurred_db"] for frame in scores["frames"]])
    )
    common = scores["other_protocols"]["common"]
    assert common["mean"]["gain_db"] == pytest.approx(np.mean([clip["gain_db"] for clip in common["clips"]]))
    assert [clip["clip"] for clip in scores["warping_error_x1000"]] == ["test_000", "test_001", "mean"]
    text = page.read_text()
    for shown in (
        "mtu_inloop",
        "common",
        "warping error",
        "validation: psnr_db",
        "losses: loss_deblur",
        "data:image/webp",
    ):
        assert shown in text
    assert 0 < scores["motion_accuracy"]["psnr_db"] < 100
    rows = table(tmp_path / "scores.csv")
    assert [row["clip"] for row in rows] == ["test_000", "test_001", "mean"] * 2
    for name in ("best", "median", "worst"):
        assert (tmp_path / f"{name}.png").is_file()
    assert "gain dB" in done.stdout


@pytest.mark.exhaustive  # the next test has a kill, too
def test_a_run_killed_at_any_moment_ends_like_one_never_stopped(environment, tmp_path):
    """SIGKILL, whatever is under way: starting, training, saving, validating."""
    more = "--config.training.steps=210"
    whole, workdir = tmp_path / "undisturbed", tmp_path / "killed"
    run(environment, "train.py", *smoke(whole, more))
    moments = random.Random(7)
    for kill in range(5):
        with subprocess.Popen(
            command("train.py", *smoke(workdir, more)),
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            if kill == 0:  # at some moment of starting
                time.sleep(moments.uniform(0.5, 4))
            else:  # soon after new rows, so that the run gets on but never to its end
                written = modified(workdir / "losses.csv")
                while modified(workdir / "losses.csv") == written:
                    assert process.poll() is None
                    time.sleep(0.01)
                time.sleep(moments.uniform(0, 0.5))
            assert process.poll() is None, "the run ended before it could be killed"
            process.kill()
    run(environment, "train.py", *smoke(workdir, more))
    assert losses(workdir) == losses(whole)
    assert (workdir / "validation.csv").read_text() == (whole / "validation.csv").read_text()


def modified(file):
    return file.stat().st_mtime_ns if file.exists() else None


@pytest.mark.slow
def test_killed_while_it_starts_and_told_to_end_later_a_run_goes_on(undisturbed, environment, tmp_path):
    """SIGKILL leaves nothing that is in the way; SIGTERM saves and leaves; in the end nothing is to be seen of it."""
    workdir = tmp_path / "run"
    with subprocess.Popen(
        command("train.py", *smoke(workdir)), env=environment, cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        while not (workdir / "config.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert not (workdir / "losses.csv").exists()
    with subprocess.Popen(
        command("train.py", *smoke(workdir)), env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (workdir / "losses.csv").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "stopped at step" in errors
    saved = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    assert f"stopped at step {max(saved)} of 60" in errors
    assert 0 < max(saved) < 60
    run(environment, "train.py", *smoke(workdir))
    assert losses(workdir) == losses(undisturbed[0])
    assert (workdir / "validation.csv").read_text() == (undisturbed[0] / "validation.csv").read_text()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_by_name_and_step(environment, tmp_path):
    workdir = tmp_path / "run"
    done = run(
        environment,
        "train.py",
        *smoke(workdir, "--config.optimizer.learning_rates.deblur=1e30", "--config.training.checkpoint_every=3"),
        check=False,
    )
    assert done.returncode != 0
    assert "is not finite at step" in done.stderr
    assert "Traceback" not in done.stderr
    # Whatever has been saved can still be read, and is finite.
    from jaxdeblur.checkpoint import find_checkpoint, load_model

    if any(path.name.isdigit() for path in (workdir / "checkpoints").iterdir()):
        import jax

        _, variables = load_model(find_checkpoint(workdir))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


@pytest.mark.slow
def test_a_workdir_of_another_configuration_is_refused(undisturbed, environment):
    done = run(environment, "train.py", *smoke(undisturbed[0], "--config.optimizer.clip_norm=0.5"), check=False)
    assert done.returncode != 0
    assert "optimizer.clip_norm: 1.0 -> 0.5" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_folder_with_other_things_is_no_workdir(environment, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    done = run(environment, "train.py", *smoke(tmp_path), check=False)
    assert done.returncode != 0
    assert "is not empty and holds no run" in done.stderr


@pytest.mark.slow
def test_an_unknown_field_names_the_near_one(environment, tmp_path):
    done = run(environment, "train.py", *smoke(tmp_path, "--config.optimizer.clip_nrom=2.0"), check=False)
    assert done.returncode != 0
    assert 'Did you mean "clip_norm"' in done.stderr


@pytest.mark.slow
def test_evaluating_another_models_checkpoint_says_which(undisturbed, environment, tmp_path):
    done = run(environment, "evaluate.py", "--config=configs/mtu.py:demo", f"--workdir={undisturbed[0]}", check=False)
    assert done.returncode != 0
    assert "is a mtu2, the configuration asks for mtu1" in done.stderr


@pytest.fixture(scope="session")
def quick(environment):
    """For runs that compile much and compute little: a second process never reads the cache of compiled programs."""
    return {**environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@contextlib.contextmanager
def two_processes(environment, *arguments):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    flags = (f"--coordinator=127.0.0.1:{port}", "--processes=2")
    processes = [
        subprocess.Popen(
            command("train.py", *arguments, *flags, f"--process={number}"),
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def outputs_of(processes):
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    return outputs


def checkpoint_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_close_losses(workdir, reference, *, steps, tolerance):
    rows, expected = (table(folder / "losses.csv") for folder in (workdir, reference))
    assert [int(row["step"]) for row in rows] == list(range(3, steps + 1, 3))
    for row, expected_row in zip(rows, expected):
        numbers, expected_numbers = ({k: float(v) for k, v in one.items()} for one in (row, expected_row))
        assert numbers == pytest.approx(expected_numbers, rel=tolerance)


@pytest.mark.exhaustive
def test_two_processes_train_as_one_does(undisturbed, quick, tmp_path):
    workdir = tmp_path / "run"
    with two_processes(quick, *smoke(workdir, "--config.training.steps=6")) as processes:
        first, second = outputs_of(processes)
    assert "2 devices" in first
    assert "step 6/6" in first
    assert "step 6/6" not in second
    # The reference was compiled with all optimisations: up to 1e-3 in the gradient of the motion loss.
    assert_close_losses(workdir, undisturbed[0], steps=6, tolerance=1e-2)
    assert [row["step"] for row in table(workdir / "validation.csv")] == ["6"]
    assert checkpoint_steps(workdir) == [6]
    model, variables = load_model(workdir)
    assert model.config.channels == 6
    assert variables["params"]


DARKER_BY = {"train": {"alley": 10, "bridge": 40}, "test": {"canal": 20, "dune": 30}}


@pytest.fixture(scope="session")
def folder_run(quick, tmp_path_factory):
    """A run on a video folder whose blurred frames are the sharp ones, darker."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    root = tmp_path_factory.mktemp("videos")
    generator = np.random.default_rng(0)
    for split, clips in DARKER_BY.items():
        for clip, darker_by in clips.items():
            frames = generator.integers(40, 256, (4, 24, 28, 3), np.uint8)
            for side, images in (("blur", frames - np.uint8(darker_by)), ("sharp", frames)):
                (root / split / clip / side).mkdir(parents=True)
                for number, image in enumerate(images):
                    write_image(root / split / clip / side / f"{number}.png", ImageFile(image))
    options = (
        "--config.data.source=video_folder",
        f"--config.data.video_folder.root={root}",
        "--config.data.crop_px=16",
        "--config.training.steps=30",
        "--config.objective.motion_loss=False",
    )
    workdir = tmp_path_factory.mktemp("on_folder") / "run"
    run(quick, "train.py", *smoke(workdir, *options))
    return workdir, options


@pytest.mark.slow
def test_a_run_on_a_video_folder_is_scored_on_its_test_clips(folder_run, quick):
    workdir, options = folder_run
    rows = table(workdir / "losses.csv")
    assert [int(row["step"]) for row in rows] == list(range(3, 31, 3))
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    run(quick, "evaluate.py", *smoke(workdir, *options))
    out = workdir / "evaluation"
    scores = json.loads((out / "scores.json").read_text())
    assert scores["data"] == "video_folder"
    assert {clip["clip"]: clip["frames"] for clip in scores["clips"]} == {"canal": 4, "dune": 4}
    for clip in scores["clips"]:
        darker_by = DARKER_BY["test"][clip["clip"]]
        assert clip["psnr_blurred_db"] == pytest.approx(20 * np.log10(255 / darker_by), abs=1e-3)
        assert clip["gain_db"] > 1
    (validated,) = table(workdir / "validation.csv")
    assert scores["mean"]["psnr_restored_db"] == pytest.approx(float(validated["psnr_db"]), abs=1e-3)
    assert [row["clip"] for row in table(out / "scores.csv")] == ["canal", "dune", "mean"]
    for name in ("best", "median", "worst"):
        assert (out / f"{name}.png").is_file()


@pytest.mark.exhaustive
def test_sigterm_to_one_of_two_processes_stops_both_and_the_run_goes_on(folder_run, quick, tmp_path):
    reference, options = folder_run
    workdir = tmp_path / "run"
    with two_processes(quick, *smoke(workdir, *options)) as processes:
        while not (workdir / "losses.csv").exists():
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
        processes[1].send_signal(signal.SIGTERM)
        stopped = [re.search(r"stopped at step (\d+) of 30 and saved", output) for output in outputs_of(processes)]
    assert all(stopped)
    first, second = (int(match[1]) for match in stopped)
    assert first == second == checkpoint_steps(workdir)[-1]
    with two_processes(quick, *smoke(workdir, *options)) as processes:
        assert all(f"going on at step {first} of 30" in output for output in outputs_of(processes))
    assert_close_losses(workdir, reference, steps=30, tolerance=1e-4)
