"""Tuning on one's own video: what is held back, when it ends, what it leaves, and the command."""

import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from tiny_networks import DEBLURGAN, FLOWNETS, save_networks
from tiny_video import smooth_frames, write_video_file

from jaxdeblur import create_model
from jaxdeblur.adaptation import (
    Adaptation,
    _check_out,
    _has_not_been_best,
    _scores,
    adapt,
    fitting_crop_px,
    hold_back,
    read_windows,
)
from jaxdeblur.checkpoint import load_flow_network, load_model
from jaxdeblur.cli import _parser, main
from jaxdeblur.data.unlabelled import UnlabelledWindow
from jaxdeblur.objectives.reblur import ReblurObjective

QUICK = Adaptation(steps=4, batch_size=8, crop_px=16, evaluate_every=2, learning_rate=1e-3)


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return save_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture
def place(tmp_path, networks):
    """A video of 12 frames and the networks."""
    write_video_file(tmp_path / "in.mp4", smooth_frames(12))
    shutil.copytree(networks, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(place, out="out", **changes):
    return adapt(
        [place / "in.mp4"],
        place / out,
        checkpoint=place / "deblurgan",
        flow_checkpoint=place / "flownets",
        settings=dataclasses.replace(QUICK, **changes),
    )


def params_of(path):
    return load_model(path)[1]["params"]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def rows(place, name, out="out"):
    with (place / out / f"{name}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_fifth_frame_is_held_back_and_never_tuned_on():
    windows = [UnlabelledWindow("a", t, ()) for t in range(1, 13)]
    tuned_on, held = hold_back(windows)
    assert [window.frame for window in held] == [3, 8]
    assert sorted(window.frame for window in tuned_on + held) == list(range(1, 13))
    assert hold_back(windows[:2]) == (windows[:2], [])


def test_crops_fit_the_frames_and_the_network():
    windows = [UnlabelledWindow("a", 1, (np.zeros((90, 200, 3), np.uint8),))]
    assert fitting_crop_px(windows, 128, 8) == 88
    assert fitting_crop_px(windows, 64, 8) == 64
    with pytest.raises(ValueError, match=r"frames of 90 px, or crops of 32, are too small .* multiples of 64 px"):
        fitting_crop_px(windows, 32, 64)


@pytest.mark.parametrize(
    ("values", "over"),
    [([5], False), ([5, 4], False), ([5, 4, 3], True), ([5, 6, 4], False), ([5, 6, 4, 6], True), ([4, 5, 5.5], False)],
)
def test_it_ends_when_two_looks_in_a_row_are_not_the_best(values, over):
    assert _has_not_been_best(dict(enumerate(map(float, values))), 2) == over


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    (tmp_path / "out" / "adaptation.json").write_text("{}")
    _check_out(tmp_path / "out", {"alpha": 1.0})
    (tmp_path / "out" / "adaptation.json").unlink()
    with pytest.raises(ValueError, match="exists and holds no tuning"):
        _check_out(tmp_path / "out", {"alpha": 1.0})


def test_rows_of_updates_that_were_never_saved_do_not_count(tmp_path):
    lines = ["step,reblur_psnr_db", "0,30.0", "20,31.5", "40,29.0", "60"]
    (tmp_path / "validation.csv").write_text("\n".join(lines))
    assert _scores(tmp_path, 20) == {0: 30.0, 20: 31.5}
    assert _scores(tmp_path, 60) == {0: 30.0, 20: 31.5, 40: 29.0}


def test_a_run_leaves_what_deblur_takes(place):
    found = run(place)
    assert found.finished
    assert found.held_back
    scores = {int(row["step"]): float(row["reblur_psnr_db"]) for row in rows(place, "validation")}
    assert next(iter(scores)) == 0
    assert found.before_db == scores[0]
    assert found.after_db == max(scores.values()) == scores[found.best_step]
    assert list(found.grid_db) == [0.25, 0.5, 0.75, 1.0]
    assert found.grid_db[0.5] == pytest.approx((found.before_db, found.after_db), abs=1e-3)
    assert (place / "out" / "pictures" / "saliency.png").is_file()
    assert (place / "out" / "pictures" / "step_00000000.png").is_file()
    same_flow = same(load_flow_network(place / "out")[1], load_model(place / "flownets")[1])
    assert same_flow  # which is not tuned unless asked for
    command = ["deblur", str(place / "in.mp4"), str(place / "sharp.mp4"), f"--checkpoint={place / 'out'}"]
    assert main(command) == 0
    # A finished run given again is left as it is.
    again = run(place)
    assert (again.best_step, again.after_db) == (found.best_step, found.after_db)
    assert len(rows(place, "validation")) == len(scores)


@pytest.mark.exhaustive  # test_train has it of the same loop
@pytest.mark.parametrize("tune_flow", [False, True])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(place, tune_flow):
    whole = run(place, tune_flow=tune_flow)
    run(place, out="part", tune_flow=tune_flow, steps=2)
    shutil.rmtree(place / "part" / "pictures")
    resumed = run(place, out="part", tune_flow=tune_flow)
    assert rows(place, "losses", "part") == rows(place, "losses")
    assert rows(place, "validation", "part") == rows(place, "validation")
    assert resumed == whole
    assert same(params_of(place / "part"), params_of(place / "out"))


def test_where_nothing_is_gained_the_network_stays_as_it_was(place):
    """A learning rate at which every update does harm."""
    found = run(place, learning_rate=3.0, steps=40, patience=2)
    assert found.best_step == 0
    assert found.steps == 4  # and it ended early
    assert found.after_db == found.before_db
    assert same(params_of(place / "out"), params_of(place / "deblurgan"))


def test_the_command_says_what_came_of_it(place, capsys):
    command = ["adapt", str(place / "in.mp4"), f"--checkpoint={place / 'deblurgan'}"]
    assert main([*command, f"--flow-checkpoint={place / 'flownets'}", "--steps=1", "--learning-rate=3"]) == 0
    said = capsys.readouterr().out
    assert "held-back frames: reblurred against blurred, PSNR dB" in said
    assert f"{place / 'in_adapted'}: nothing was gained in 1 updates; it holds the network as it was" in said
    assert json.loads((place / "in_adapted" / "adaptation.json").read_text())["learning_rate"] == 3.0

    anew = f"--out={place / 'x'}"
    for wrong, message in (
        ([f"--flow-checkpoint={place / 'deblurgan'}", anew], "is a deblurgan; expected a flow network, such as pwcnet"),
        ([f"--flow-checkpoint={place / 'flownets'}", "--alpha=2"], "holds another tuning; name another folder"),
        ([f"--flow-checkpoint={place / 'flownets'}", f"--out={place / 'flownets'}"], "exists and holds no tuning"),
        ([f"--flow-checkpoint={place / 'flownets'}", "--steps=0"], "steps is 0; expected at least 1"),
        ([f"--flow-checkpoint={place / 'flownets'}", "--exposure=3", anew], "exposure is 3.0"),
        ([f"--flow-checkpoint={place / 'flownets'}", "--alpha=nan", anew], "alpha is nan; expected a number above 0"),
        ([f"--flow-checkpoint={place / 'gone'}", anew], "gone: no such file or folder"),
    ):
        assert main([*command, *wrong]) != 0
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("jaxdeblur: error: ")
        assert message in error
    assert not (place / "x").exists()


def test_the_commands_defaults_are_those_of_python():
    given = _parser().parse_args(["adapt", "in.mp4", "--checkpoint=a", "--flow-checkpoint=b"])
    named = {field: value for field, value in dataclasses.asdict(Adaptation()).items() if hasattr(given, field)}
    assert len(named) == 7
    assert {field: getattr(given, field) for field in named} == named


def test_a_video_of_two_frames_is_refused(tmp_path):
    write_video_file(tmp_path / "in.mp4", smooth_frames(2))
    objective = ReblurObjective(create_model("deblurgan", **DEBLURGAN), create_model("flownets", **FLOWNETS))
    with pytest.raises(ValueError, match=r"in\.mp4: no frame has a neighbour on either side; tuning needs 3"):
        read_windows([tmp_path / "in.mp4"], objective, side_px=64, seed=0)
