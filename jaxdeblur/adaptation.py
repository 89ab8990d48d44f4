"""Tunes a network on blurry videos of the user's own, of which no sharp ones exist: `jaxdeblur adapt`.

Reblur2Deblur's objective (`objectives.reblur`), its supervised half from rendered scenes. No error of every fifth frame
of the videos is ever tuned on, though its neighbours see it; how well those frames are reblurred says when to stop, and
whether anything was gained at all, of which only looking tells whether it is sharper. The folder written is a training
run's: it goes on when it was interrupted, and `deblur --checkpoint` takes it, at the step that reblurs best, which is
the network as it was if nothing was gained.
"""

import csv
import dataclasses
import functools
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from jaxdeblur.checkpoint import (
    find_checkpoint,
    is_checkpoint,
    is_run_with_checkpoint,
    load_config,
    load_flow_network,
    load_model,
)
from jaxdeblur.compilation import jit
from jaxdeblur.data.image_io import StrPath
from jaxdeblur.data.own_files import replacing
from jaxdeblur.data.scenes import SceneConfig, batch_renderer, scene_batches
from jaxdeblur.data.unlabelled import (
    UnlabelledWindow,
    choose_windows,
    crop_of_sample,
    cut_out,
    half_labelled,
    unlabelled_batches,
    windows_of_clip,
)
from jaxdeblur.data.video_folder import read_frames
from jaxdeblur.evaluation.pictures import stack, strip, write_picture
from jaxdeblur.interop.files import read_flow_network
from jaxdeblur.models.windows import memory_frames
from jaxdeblur.objectives.reblur import FRAMES, REBLUR_METRIC, Estimated, ReblurObjective, TunedParams, to_psnr_db
from jaxdeblur.ops.reblur import LARGEST_FLOW_PX
from jaxdeblur.restoration.saliency import saliency_sheet
from jaxdeblur.training import loop
from jaxdeblur.training.loss_scale import LossScale, loss_scale_of
from jaxdeblur.training.optimizers import make_optimizer, make_schedule
from jaxdeblur.training.sharding import make_mesh, replicate, shard_batch
from jaxdeblur.training.state import TrainState, init_state
from jaxdeblur.training.step import make_train_step
from jaxdeblur.types import Batch, PyTree

logger = logging.getLogger(__name__)

EXPOSURES = (0.25, 0.5, 0.75, 1.0)
"""The small grid for which the reblur error is reported."""

_FILE = "adaptation.json"
_HELD_BACK_EVERY = 5
_HELD_BACK_CROPS = 16
_MOST_BYTES = 2**30
"""Of frames held in memory; of longer videos windows are drawn at random."""
_SQUARE_CROPS = 2
"""Of larger frames a square of so many crops' sides is kept."""
_CLIPPED_SHARE = 0.05
"""Of flows longer than reblurring can follow: more are warned of."""
_SCENES = 64
"""Rendered once, and turned or mirrored each time they come round."""
_PICTURED_CROPS = 3
_ASKED_PX = 8
"""Side of the square of restored pixels whose saliency is shown."""


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """How a network is tuned.

    Attributes:
        steps: most updates.
        exposure: tau, see `ops.reblur.reblur`: 0.5 for a shutter that never closes, less for a shorter exposure.
        light: see `ReblurObjective`.
        alpha: the weight of the self-supervised half.
        learning_rate: Adam's.
        tune_flow: tune the flow network, too.
        batch_size: of either half; rounded up to a multiple of the devices.
        crop_px: of either half; smaller where the videos are.
        evaluate_every: updates between two looks at the held-back frames.
        patience: ends when so many looks in a row have not been the best.
        seed: of crops, scenes and their order.
    """

    steps: int = 200
    exposure: float = 0.5
    light: Literal["encoded", "linear"] = "linear"
    alpha: float = 3.0
    learning_rate: float = 2e-4
    tune_flow: bool = False
    batch_size: int = 4
    crop_px: int = 128
    evaluate_every: int = 20
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        least = dict.fromkeys(("steps", "batch_size", "crop_px", "evaluate_every", "patience"), 1)
        if low := [
            f"{name} is {getattr(self, name)}" for name, lowest in least.items() if getattr(self, name) < lowest
        ]:
            raise ValueError(f"{', '.join(low)}; expected at least 1")
        for name in ("learning_rate", "alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")

    def objective(self, model: Any, flow_net: Any) -> ReblurObjective:
        """Of tuning a network, with a flow network beside it."""
        return ReblurObjective(
            model,
            flow_net,
            alpha=self.alpha,
            exposure=self.exposure,
            light=self.light,
            flow_gradient=False,  # or the network learns to mislead the flow network
            tune_flow=self.tune_flow,
            batch_statistics=False,  # those of a few crops of one video would be no good for anything else
        )

    def optimizers(self, objective: ReblurObjective) -> dict[str, optax.GradientTransformation]:
        """Adam at one learning rate, by the objective's groups."""
        constant = make_schedule(self.learning_rate, kind="constant", steps=self.steps)
        return {
            group: make_optimizer(
                {"model": constant, "flow_net": constant},
                functools.partial(objective.learning_rate_name, group),
                adam={"b1": 0.9, "b2": 0.999, "eps": 1e-8},
            )
            for group in objective.groups
        }


@dataclasses.dataclass(frozen=True)
class Adapted:
    """What came of it. Reblur errors are PSNR, in decibel, of reblurred against blurred held-back frames: more is
    better."""

    steps: int
    """Updates made."""
    best_step: int
    """Of them, those behind the network that is kept. 0: nothing was gained, it is as it was."""
    finished: bool
    """False where it was interrupted; the same call goes on."""
    before_db: float
    after_db: float
    held_back: bool
    """False where the videos are too short to hold frames back, so that errors are of frames that were tuned on."""
    grid_db: dict[float, tuple[float, float]]
    """By exposure, before and after; empty where it was interrupted."""


def adapt(
    sources: Sequence[StrPath],
    out: str | Path,
    *,
    checkpoint: str | Path,
    flow_checkpoint: str | Path,
    flow_name: str = "flownets",
    settings: Adaptation = Adaptation(),
) -> Adapted:
    """Tunes a network on the blurry frames of videos or folders of images.

    Args:
        sources: videos or folders of images, each of 3 frames or more.
        out: the run's folder, new or empty, or one that the same call has begun.
        checkpoint: of the network to tune, a run or a checkpoint.
        flow_checkpoint: of a flow network; or an official file of the network flow_name.
    Raises:
        ValueError, OSError: what is given cannot be used; the message says what and why.
    """
    out, flow_path = Path(out).absolute(), Path(flow_checkpoint).absolute()
    if is_checkpoint(flow_path):
        flow_path = find_checkpoint(flow_path)
    checkpoint = find_checkpoint(checkpoint)
    about = {
        **dataclasses.asdict(settings),
        "sources": [str(Path(source).absolute()) for source in sources],
        "checkpoint": str(checkpoint),
        "flow_checkpoint": str(flow_path),
        "flow_name": flow_name,
    }
    _check_out(out, about)
    model, variables = load_model(checkpoint)
    saved = load_config(checkpoint)["model"]
    flow_net, flow_variables, flow_saved = read_flow_network(flow_path, flow_name)
    objective = settings.objective(model, flow_net)
    windows = read_windows(sources, objective, side_px=_SQUARE_CROPS * settings.crop_px, seed=settings.seed)
    tuned_on, held_back = hold_back(windows)
    crop_px = fitting_crop_px(windows, settings.crop_px, model.size_multiple)

    mesh = make_mesh()
    devices = mesh.devices.size
    batch_size = -(-settings.batch_size // devices) * devices
    batches = _mixed_batches(objective, tuned_on, crop_px=crop_px, batch_size=batch_size, seed=settings.seed, mesh=mesh)
    judged = held_back or tuned_on
    crops = np.stack(
        [crop_of_sample(judged, n, crop_px=crop_px, seed=settings.seed + 1) for n in range(_HELD_BACK_CROPS)]
    )
    optimizers = settings.optimizers(objective)
    start = {**variables, "params": TunedParams(variables["params"], flow_variables)}
    scale = loss_scale_of(model, flow_net)
    scaling = scale.init() if isinstance(scale, LossScale) else None
    state = init_state(jax.random.key(settings.seed), start, optimizers, ema=False, loss_scale=scaling)
    train_step = make_train_step(objective, optimizers, loss_scale=scale, mesh=mesh)
    estimate = _estimate(objective, crops)

    def evaluate(state: TrainState) -> loop.Evaluation:
        found = estimate(*jax.tree.map(lambda x: x.addressable_data(0), (state.params, state.statistics)))
        return {REBLUR_METRIC: _reblur_psnr_db(objective, found)}, _picture(objective, found)

    if crop_px < settings.crop_px:
        logger.warning("crops are of %d px, not %d, since frames are smaller", crop_px, settings.crop_px)
    before = estimate(start["params"], variables.get("batch_stats", {}))
    clipped = np.mean([np.abs(found.flow_next_to_cur) > LARGEST_FLOW_PX for found in before])
    if clipped > _CLIPPED_SHARE:
        logger.warning(
            "%.0f %% of the motion is longer than the %d px that reblurring follows; a smaller video may tune better",
            100 * clipped,
            LARGEST_FLOW_PX,
        )
    logger.info(
        "tuning on %d frames in crops of %d px, %s",
        len(tuned_on),
        crop_px,
        f"{len(held_back)} held back" if held_back else "too few to hold any back",
    )
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / _FILE) as partial:
        partial.write_text(json.dumps(about, indent=1) + "\n")
    state = loop.train(
        replicate(state, mesh),
        lambda _: train_step,
        batches,
        frozen={},
        workdir=out,
        config={"model": saved, "flow_net": flow_saved, "adaptation": about},
        steps=settings.steps,
        updates_per_batch=1,
        log_every=settings.evaluate_every,
        checkpoint_every=settings.evaluate_every,
        evaluate_every=settings.evaluate_every,
        evaluate=evaluate,
        show_picture=write_picture,
        validate_first=True,
        enough=lambda step: _has_not_been_best(_scores(out, step), settings.patience),
    )
    scores = _scores(out, int(state.step))
    best_step = max(scores, key=lambda step: scores[step])
    finished = int(state.step) >= settings.steps or _has_not_been_best(scores, settings.patience)
    grid_db: dict[float, tuple[float, float]] = {}
    if not finished:
        return Adapted(int(state.step), best_step, False, scores[0], scores[best_step], bool(held_back), grid_db)
    _, after = load_model(out)
    _, flow_after, _ = load_flow_network(out)
    each = [before, estimate(TunedParams(after["params"], flow_after), after.get("batch_stats", {}))]
    for exposure in sorted({*EXPOSURES, settings.exposure}):
        other = dataclasses.replace(objective, exposure=exposure)
        before_db, after_db = (_reblur_psnr_db(other, found) for found in each)
        grid_db[exposure] = (before_db, after_db)
    try:
        # The window of the middle frame, which is what was held back, of the crop with the most to see. Of all restored
        # pixels together the saliency of a network that hands its input through is one colour; of a few it is a shape.
        window = crops[np.argmax(np.std(crops, axis=(1, 2, 3, 4)))][: -(FRAMES // 2)]
        middle = np.zeros((crop_px, crop_px), bool)
        at = slice((crop_px - _ASKED_PX) // 2, (crop_px + _ASKED_PX) // 2)
        middle[at, at] = True
        sheet = saliency_sheet(model, {"before": variables, "after": after}, window, region=middle)
        write_picture(out / "pictures" / "saliency.png", sheet)
    except ValueError as error:
        logger.warning("no picture of the saliency: %s", error)
    return Adapted(int(state.step), best_step, True, scores[0], scores[best_step], bool(held_back), grid_db)


def read_windows(
    sources: Sequence[StrPath], objective: ReblurObjective, *, side_px: int, seed: int
) -> list[UnlabelledWindow]:
    """Squares of the windows of all videos, of each as many as its share of the memory allows."""
    before, after = objective.frames_before, objective.frames_after
    windows: list[UnlabelledWindow] = []
    console = Console(stderr=True)
    for source in sources:
        title, hidden = f"reading {escape(str(source))}", not console.is_terminal
        frames = track(read_frames(source), title, console=console, transient=True, disable=hidden)
        every = windows_of_clip(
            str(source), frames, before=before, after=after, beyond_ends=objective.model.beyond_ends
        )
        squares = (cut_out(window, side_px, seed=seed) for window in every)
        windows += choose_windows(squares, most_bytes=_MOST_BYTES // len(sources), seed=seed)
    if not windows:
        raise ValueError(
            f"{', '.join(map(str, sources))}: no frame has a neighbour on either side; tuning needs 3 frames or more"
        )
    return windows


def hold_back(windows: Sequence[UnlabelledWindow]) -> tuple[list[UnlabelledWindow], list[UnlabelledWindow]]:
    """Those that are tuned on, and every fifth, which never is; of fewer than three none is held back."""
    held = [window for number, window in enumerate(windows) if number % _HELD_BACK_EVERY == 2]
    return [window for number, window in enumerate(windows) if number % _HELD_BACK_EVERY != 2], held


def fitting_crop_px(windows: Sequence[UnlabelledWindow], crop_px: int, multiple: int) -> int:
    """The largest crop, no larger than asked for, that fits into all frames and the network."""
    smallest = min(min(window.frames[0].shape[:2]) for window in windows)
    fitting = min(crop_px, smallest) // multiple * multiple
    if not fitting:
        raise ValueError(
            f"frames of {smallest} px, or crops of {crop_px}, are too small for the network, which takes multiples of "
            f"{multiple} px"
        )
    return fitting


def _estimate(objective: ReblurObjective, crops: np.ndarray) -> Callable[[TunedParams, PyTree], list[Estimated]]:
    """(params, statistics) -> what the networks make of every crop, one after another for memory's sake."""
    run = jit(functools.partial(objective.estimate, train=False))
    return lambda params, statistics: [run(params, statistics, crop[None])[0] for crop in crops]


def _reblur_psnr_db(objective: ReblurObjective, each: Sequence[Estimated]) -> float:
    return to_psnr_db([_error(objective, found) for found in each])


@jit(static_argnums=0)
def _error(objective: ReblurObjective, found: Estimated) -> jax.Array:
    return objective.reblur_error(found)


def _picture(objective: ReblurObjective, each: Sequence[Estimated]) -> np.ndarray:
    """The first crops: blurred, restored, reblurred."""
    rows = [
        (found.blurred, found.restored[:, FRAMES // 2], objective.reblurred(found)) for found in each[:_PICTURED_CROPS]
    ]
    return stack([strip([_to_u8(np.asarray(image[0])) for image in row]) for row in rows])


def _to_u8(image: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _mixed_batches(
    objective: ReblurObjective,
    windows: Sequence[UnlabelledWindow],
    *,
    crop_px: int,
    batch_size: int,
    seed: int,
    mesh: Any,
) -> Callable[[int], Iterator[Batch]]:
    # A network with a memory is to have one where it is supervised, too.
    frames = 1 + memory_frames(objective.model)
    scene = SceneConfig(frames=frames, height=crop_px, width=crop_px)
    past, future = objective.past_frames, objective.future_frames
    render = batch_renderer(scene, batch_size=batch_size, mesh=mesh, past=past, future=future)
    distinct = -(-_SCENES // batch_size) * batch_size
    scenes = scene_batches(render, seed=seed, batch_size=batch_size, distinct_clips=distinct, turned_anew=True)

    def batches(first: int) -> Iterator[Batch]:
        clips = unlabelled_batches(windows, batch_size=batch_size, crop_px=crop_px, seed=seed, first_batch=first)
        return half_labelled(scenes(first), (shard_batch(unlabelled, mesh) for unlabelled in clips))

    return batches


def _check_out(out: Path, about: dict[str, Any]) -> None:
    """Raises unless the folder is new or empty, or holds what the same call has begun, but for the number of steps."""
    file = out / _FILE
    if file.exists() and is_run_with_checkpoint(out):
        saved = json.loads(file.read_text())
        changed = [
            f"{name}: {saved.get(name)!r} -> {about[name]!r}" for name in about if about[name] != saved.get(name)
        ]
        if changed := [change for change in changed if not change.startswith("steps")]:
            raise ValueError(f"{out} holds another tuning; name another folder, or restore {'; '.join(changed)}")
    elif not file.exists() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and holds no tuning; name a new folder")


def _scores(out: Path, made: int) -> dict[int, float]:
    """Step -> how well held-back frames were reblurred. Later rows than the updates made are of a run that was killed
    before it saved them."""
    with (out / "validation.csv").open(newline="") as stream:
        rows = [(int(row["step"]), float(row[REBLUR_METRIC])) for row in csv.DictReader(stream) if row[REBLUR_METRIC]]
    return {step: value for step, value in rows if step <= made}


def _has_not_been_best(scores: dict[int, float], patience: int) -> bool:
    """Whether the last so many scores are all below an earlier one."""
    values = [scores[step] for step in sorted(scores)]
    return len(values) > patience and max(values[:-patience]) >= max(values[-patience:])
