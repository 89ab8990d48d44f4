"""Scores a flow network on pairs with true flow: end-point error and outliers, scene by scene, and pictures."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxdeblur.compilation import jit
from jaxdeblur.evaluation import tables
from jaxdeblur.evaluation.pictures import stack, strip, write_picture
from jaxdeblur.losses.flow import end_point_error
from jaxdeblur.ops.flow import flow_to_colour
from jaxdeblur.ops.resample import pad_to_multiple, unpad
from jaxdeblur.ops.warp import warp_backward
from jaxdeblur.types import Array, Flow, Mask, Variables

OUTLIER_PX, OUTLIER_SHARE = 3.0, 0.05
"""A pixel is an outlier if its error is over both, the second times the length of its true flow (KITTI 2015)."""

_SCENES_IN_PICTURE = 4


@dataclasses.dataclass(frozen=True)
class FlowTruth:
    """Two frames (H, W, 3) uint8 and the flow from the first to the second."""

    image_1: np.ndarray
    image_0: np.ndarray
    flow_1to0: np.ndarray  # (H, W, 2), pixels; anything where it is not valid
    valid_1to0: np.ndarray  # (H, W)
    window: np.ndarray | None = None  # (5, H, W, 3) uint8, the frames around image 1, for networks that see them


@dataclasses.dataclass(frozen=True)
class FlowScene:
    """Pairs that are scored together. `pairs()` yields them from the first each time."""

    name: str
    pairs: Callable[[], Iterator[FlowTruth]]


@dataclasses.dataclass(frozen=True)
class FlowScore:
    """Of a pair, a scene (`pair` is None) or everything (scene "mean"): over all valid pixels.

    The last three are mean absolute differences to image 1, in 8-bit levels: of image 0 as it is, warped by the true
    flow (which says how good truth and frames are) and warped by the estimate, over valid pixels that the true flow
    leads into the frame.
    """

    scene: str
    pair: int | None
    pixels: int
    end_point_error_px: float
    outliers_percent: float
    unwarped_levels: float
    warped_by_truth_levels: float
    warped_by_estimate_levels: float


@dataclasses.dataclass(frozen=True)
class FlowEvaluation:
    """Scenes with true flow for a flow network, or for a network that has `flows` of windows of frames (VDFlow)."""

    model: nn.Module
    scenes: list[FlowScene]

    def validate(self, variables: Variables) -> tuple[dict[str, float], np.ndarray]:
        """Metrics over all pairs, and a picture: the first pair of each of the first scenes with its flow."""
        mean = scene_scores([score for scene in self.scenes for score in self._scores(scene, variables)])[-1]
        strips = [self._picture(next(scene.pairs()), variables) for scene in self.scenes[:_SCENES_IN_PICTURE]]
        metrics = {"end_point_error_px": mean.end_point_error_px, "outliers_percent": mean.outliers_percent}
        return metrics, stack(strips)

    def report(self, variables: Variables, out: Path, about: dict[str, Any], console: Console) -> None:
        """Writes scores.json, scores.csv and pictures of the best, the median and the worst pair; prints the table."""
        scores: list[FlowScore] = []
        for scene in track(self.scenes, "scoring", console=console, disable=not console.is_terminal):
            scores += self._scores(scene, variables)
        rows = scene_scores(scores)
        out.mkdir(parents=True, exist_ok=True)
        *scenes, mean = columns = [_columns(row) for row in rows]
        pairs = [dataclasses.asdict(score) for score in scores]
        tables.write_json(out / "scores.json", {**about, "mean": mean, "scenes": scenes, "pairs": pairs})
        tables.write_csv(out / "scores.csv", columns)
        ranked = sorted(scores, key=lambda score: score.end_point_error_px)
        by_name = {scene.name: scene for scene in self.scenes}
        for word, score in (("best", ranked[0]), ("median", ranked[len(ranked) // 2]), ("worst", ranked[-1])):
            truth = next(pair for number, pair in enumerate(by_name[score.scene].pairs()) if number == score.pair)
            write_picture(out / f"{word}.png", self._picture(truth, variables))
            console.print(
                f"{word}: {score.scene} pair {score.pair}, {score.end_point_error_px:.2f} px: {out / f'{word}.png'}"
            )
        console.print("pictures: first image, estimated flow, true flow")
        console.print(_table(rows, title=about["model"]["name"]))
        console.print(f"{out / 'scores.json'}, {out / 'scores.csv'}")

    def _scores(self, scene: FlowScene, variables: Variables) -> Iterator[FlowScore]:
        for number, truth in enumerate(scene.pairs()):
            flow = self._estimate(truth, variables)
            pixels, error_px, outliers = map(float, _sums(flow, truth.flow_1to0, truth.valid_1to0))
            if pixels:
                levels = map(float, _levels(flow, *(jnp.asarray(x) for x in dataclasses.astuple(truth)[:4])))
                yield FlowScore(scene.name, number, int(pixels), error_px / pixels, 100 * outliers / pixels, *levels)

    def _estimate(self, truth: FlowTruth, variables: Variables) -> Flow:
        if not hasattr(self.model, "flows"):
            return _flow_of_pair(self.model, variables, truth.image_1, truth.image_0)
        window = truth.window
        if window is None:
            window = np.stack([truth.image_1] * 3 + [truth.image_0] * 2)
        return _flow_of_window(self.model, variables, window)

    def _picture(self, truth: FlowTruth, variables: Variables) -> np.ndarray:
        flow = np.asarray(self._estimate(truth, variables))
        true_flow = np.where(truth.valid_1to0[..., None], truth.flow_1to0, 0)
        longest_px = max(1.0, float(np.max(np.linalg.norm(true_flow, axis=-1))))
        colours = [np.rint(255 * np.asarray(flow_to_colour(f, max_px=longest_px))) for f in (flow, true_flow)]
        return strip([truth.image_1, *(colour.astype(np.uint8) for colour in colours)])


def scene_scores(scores: Sequence[FlowScore]) -> list[FlowScore]:
    """A row a scene, in order of appearance, and last the mean, each over all its valid pixels."""
    if not scores:
        raise ValueError("no pair with true flow was scored")
    by_scene: dict[str, list[FlowScore]] = {}
    for score in scores:
        by_scene.setdefault(score.scene, []).append(score)
    return [*(_mean(name, pairs) for name, pairs in by_scene.items()), _mean("mean", scores)]


def _mean(name: str, scores: Sequence[FlowScore]) -> FlowScore:
    pixels = [score.pixels for score in scores]
    means = {
        field.name: float(np.average([getattr(score, field.name) for score in scores], weights=pixels))
        for field in dataclasses.fields(FlowScore)[3:]
    }
    return FlowScore(name, None, sum(pixels), **means)


@jit(static_argnames="model")
def _flow_of_window(model: Any, variables: Variables, window: Array) -> Flow:
    padded, size = pad_to_multiple(
        window.astype(jnp.float32)[None] / jnp.float32(255), model.size_multiple, model.padding
    )
    _, flow_to_next = model.apply(variables, padded, method="flows")
    return unpad(flow_to_next, size)[0]


@jit(static_argnames="model")
def _flow_of_pair(model: Any, variables: Variables, image_1: Array, image_0: Array) -> Flow:
    image_1, image_0 = (image.astype(jnp.float32)[None] / jnp.float32(255) for image in (image_1, image_0))
    return model.apply(variables, image_1, image_0)[0]


@jit
def _sums(flow: Flow, true_flow: Flow, valid: Mask) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Number of valid pixels, sum of their errors in pixels, number of outliers among them."""
    true_flow = jnp.where(valid[..., None], true_flow, 0.0)
    error_px = jnp.where(valid, end_point_error(flow, true_flow), 0.0)
    outlier = (error_px > OUTLIER_PX) & (error_px > OUTLIER_SHARE * jnp.linalg.norm(true_flow, axis=-1))
    return jnp.sum(valid, dtype=jnp.float32), jnp.sum(error_px), jnp.sum(outlier & valid, dtype=jnp.float32)


@jit
def _levels(flow: Flow, image_1: Array, image_0: Array, true_flow: Flow, valid: Mask) -> tuple[jax.Array, ...]:
    """Mean absolute differences to image 1: of image 0, warped by the truth, warped by the flow."""
    true_flow = jnp.where(valid[..., None], true_flow, 0.0)
    image_1, image_0 = image_1.astype(jnp.float32), image_0.astype(jnp.float32)
    by_truth, inside = warp_backward(image_0, true_flow, border="edge")
    by_estimate, _ = warp_backward(image_0, flow, border="edge")
    seen = valid & inside
    count = 3 * jnp.maximum(jnp.sum(seen, dtype=jnp.float32), 1.0)
    differences = [jnp.abs(image - image_1) for image in (image_0, by_truth, by_estimate)]
    return tuple(jnp.sum(jnp.where(seen[..., None], difference, 0.0)) / count for difference in differences)


def _columns(row: FlowScore) -> dict[str, Any]:
    columns = dataclasses.asdict(row)
    del columns["pair"]
    return columns


def _table(rows: list[FlowScore], *, title: str) -> Table:
    table = Table(title=title, caption="the last three: mean difference of image 0 to image 1, 8-bit levels")
    table.add_column("scene", no_wrap=True)
    for heading in ("end-point error px", "outliers %", "unwarped", "by truth", "by estimate"):
        table.add_column(heading, justify="right")
    for row in rows:
        last_scene = len(rows) > 1 and row is rows[-2]
        levels = (row.unwarped_levels, row.warped_by_truth_levels, row.warped_by_estimate_levels)
        table.add_row(
            row.scene,
            f"{row.end_point_error_px:.3f}",
            f"{row.outliers_percent:.2f}",
            *(f"{level:.2f}" for level in levels),
            end_section=last_scene,
        )
    return table
