import csv
import io
import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxdeblur.data.image_io import read_rgb_u8
from jaxdeblur.evaluation.flow import FlowEvaluation, FlowScene, FlowScore, FlowTruth, scene_scores


class OnePixelRight(nn.Module):
    """Always the same flow, (1, 0)."""

    def __call__(self, image_1, image_0):
        return jnp.broadcast_to(jnp.array([1.0, 0.0]), (*image_1.shape[:-1], 2))


def truth(flow, valid=None):
    height, width, _ = flow.shape
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return FlowTruth(image, image, flow.astype(np.float32), np.ones((height, width), bool) if valid is None else valid)


def constant(u, v, shape=(6, 8)):
    return np.broadcast_to(np.array([u, v], np.float32), (*shape, 2)).copy()


def evaluation(*scenes):
    return FlowEvaluation(OnePixelRight(), [FlowScene(name, lambda pairs=pairs: iter(pairs)) for name, pairs in scenes])


def test_errors_are_over_valid_pixels_and_outliers_over_both_bounds():
    half = np.zeros((6, 8), bool)
    half[:3] = True
    unknown = constant(1, 0)
    unknown[3:] = np.nan
    scored = evaluation(
        ("near", [truth(constant(1, 0)), truth(unknown, half), truth(constant(1, 2))]),
        ("far", [truth(constant(4.5, 0)), truth(constant(81, 0))]),  # 3.5 px of 4.5; 80 px of 81
        ("long", [truth(constant(101, 0) * 0 + constant(1, 4))]),
        ("nothing known", [truth(constant(1, 0), np.zeros((6, 8), bool))]),
    )
    metrics, picture = scored.validate({})
    rows = scene_scores([score for scene in scored.scenes for score in scored._scores(scene, {})])
    assert [(row.scene, row.pixels) for row in rows] == [("near", 120), ("far", 96), ("long", 48), ("mean", 264)]
    np.testing.assert_allclose([row.end_point_error_px for row in rows[:3]], [0.8, (3.5 + 80) / 2, 4.0], rtol=1e-5)
    np.testing.assert_allclose([row.outliers_percent for row in rows[:3]], [0, 100, 100])
    np.testing.assert_allclose(metrics["end_point_error_px"], rows[-1].end_point_error_px)
    np.testing.assert_allclose(metrics["outliers_percent"], 100 * 144 / 264)
    assert picture.dtype == np.uint8


def test_a_small_share_of_a_long_flow_is_no_outlier():
    metrics, _ = evaluation(("a", [truth(constant(1, 0) + np.float32(0)), truth(constant(1, 0))])).validate({})
    assert metrics["outliers_percent"] == 0
    # An error of 4 px in 100 is within 5 %: the network's flow is fixed, so the truth moves instead.
    near = FlowEvaluation(HundredRight(), [FlowScene("a", lambda: iter([truth(constant(96, 0))]))])
    assert near.validate({})[0] == {"end_point_error_px": pytest.approx(4.0), "outliers_percent": 0.0}


class HundredRight(nn.Module):
    def __call__(self, image_1, image_0):
        return jnp.broadcast_to(jnp.array([100.0, 0.0]), (*image_1.shape[:-1], 2))


def test_report_writes_tables_and_pictures(tmp_path):
    scored = evaluation(("alley", [truth(constant(1, 0)), truth(constant(1, 3))]), ("cave", [truth(constant(6, 0))]))
    scored.report({}, tmp_path, {"model": {"name": "still"}}, Console(file=io.StringIO()))
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [scene["scene"] for scene in scores["scenes"]] == ["alley", "cave"]
    assert scores["mean"]["end_point_error_px"] == pytest.approx(8 / 3)
    assert [pair["pair"] for pair in scores["pairs"]] == [0, 1, 0]
    with (tmp_path / "scores.csv").open() as stream:
        assert [row["scene"] for row in csv.DictReader(stream)] == ["alley", "cave", "mean"]
    best, worst = (read_rgb_u8(tmp_path / f"{name}.png") for name in ("best", "worst"))
    assert best.shape == worst.shape == (6, 3 * 8 + 2 * 4, 3)
    # Image, estimated flow, true flow: the same colours where the two agree.
    np.testing.assert_array_equal(best[:, 12:20], best[:, 24:])
    assert np.any(worst[:, 12:20] != worst[:, 24:])


def test_nothing_scored_is_an_error():
    with pytest.raises(ValueError, match="no pair with true flow was scored"):
        scene_scores([])
    one = FlowScore("a", 0, 4, 1.0, 50.0, 9.0, 2.0, 3.0)
    assert scene_scores([one])[-1] == FlowScore("mean", None, 4, 1.0, 50.0, 9.0, 2.0, 3.0)


def test_differences_are_those_of_the_second_image_warped_by_truth_and_estimate():
    rng = np.random.default_rng(1)
    image_0 = rng.integers(0, 256, (6, 8, 3), np.uint8)
    image_1 = np.roll(image_0, -2, axis=1)  # image_1(x) = image_0(x + 2), where that lies inside
    valid = np.ones((6, 8), bool)
    valid[5] = False
    pair = FlowTruth(image_1, image_0, constant(2, 0), valid)
    (score,) = evaluation(("a", [pair]))._scores(FlowScene("a", lambda: iter([pair])), {})
    # The last two columns lead out of the frame; the estimate is a pixel short.
    seen = (slice(0, 5), slice(0, 6))
    as_float = image_1.astype(float)
    assert score.warped_by_truth_levels == 0
    np.testing.assert_allclose(score.unwarped_levels, np.abs(image_0 - as_float)[seen].mean(), rtol=1e-5)
    short = np.abs(np.roll(image_0, -1, axis=1) - as_float)[seen].mean()
    np.testing.assert_allclose(score.warped_by_estimate_levels, short, rtol=1e-5)


class TellsItsWindow(nn.Module):
    """Flows whose horizontal part is each frame's first value, in levels, weighted by place."""

    size_multiple = 4
    padding = "zeros"

    def flows(self, window):
        levels = 255 * window[:, :, 0, 0, 0]
        value = jnp.sum(levels * 10.0 ** jnp.arange(5.0)[None], axis=1)
        flow = jnp.broadcast_to(value[:, None, None, None], (1, *window.shape[2:4], 2))
        return -flow, flow


def test_networks_of_windows_see_the_frames_around_or_those_of_the_pair_repeated():
    def estimate(window):
        pair = FlowTruth(
            np.full((6, 7, 3), 4, np.uint8), np.full((6, 7, 3), 6, np.uint8), constant(0, 0, (6, 7)),
            np.ones((6, 7), bool), window,
        )  # fmt: skip
        return np.asarray(FlowEvaluation(TellsItsWindow(), [])._estimate(pair, {}))

    frames = np.stack([np.full((6, 7, 3), value, np.uint8) for value in (1, 2, 3, 4, 5)])
    np.testing.assert_allclose(estimate(frames), np.full((6, 7, 2), 54321), rtol=1e-5)
    np.testing.assert_allclose(estimate(None), np.full((6, 7, 2), 66444), rtol=1e-5)
