"""The training loop: batches in, checkpoints, records and a live line out; goes on where it was stopped."""

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdeblur.checkpoint import Checkpoints
from jaxdeblur.training.loss_scale import HOPELESS
from jaxdeblur.training.records import Records
from jaxdeblur.training.state import TrainState, from_items, to_items
from jaxdeblur.types import Batch, PyTree

logger = logging.getLogger(__name__)

Evaluation = tuple[dict[str, float], np.ndarray]
"""Metrics, among them one of checkpoint.RANKED_BY, and a picture (H, W, 3) uint8."""

TrainStep = Callable[[TrainState, Batch, PyTree], tuple[TrainState, dict[str, jax.Array]]]


class NonFiniteLossError(RuntimeError):
    """A loss or gradient stopped being a number."""


def train(
    state: TrainState,
    train_step_at: Callable[[int], TrainStep],
    batches: Callable[[int], Iterator[Batch]],
    *,
    frozen: PyTree,
    workdir: Path,
    config: dict[str, Any],
    steps: int,
    updates_per_batch: int,
    log_every: int,
    checkpoint_every: int,
    evaluate_every: int,
    evaluate: Callable[[TrainState], Evaluation],
    show_picture: Callable[[Path, np.ndarray], None],
    after_validation: Callable[[TrainState, dict[str, float]], TrainState] = lambda state, _: state,
    validate_first: bool = False,
    enough: Callable[[int], bool] = lambda _: False,
) -> TrainState:
    """Trains until `steps` updates have been made, from the newest checkpoint in the workdir if there is one.

    A run killed at any moment and started again makes the same updates as one never stopped: the batch is a function of
    the step. SIGTERM and Ctrl-C save and leave. Counts of steps are optimiser updates; all happen at the end of the
    batch in which they fall due.

    Args:
        state: before the first update, on the devices to be used; donated.
        train_step_at: updates made so far -> the compiled step for the next batch, which donates its state; see
            make_train_step.
        batches: number of the first batch -> batches on the devices.
        frozen: variables of networks that are not trained.
        config: saved with each checkpoint.
        evaluate: state -> metrics and a picture.
        show_picture: writes a picture to a path.
        after_validation: state and metrics -> the state to go on with.
        validate_first: also before the first update, whose checkpoint can then turn out to be the best one.
        enough: updates made -> whether to end before `steps`; asked after each validation, and when a run goes on.
    Returns:
        The final state.
    Raises:
        NonFiniteLossError: names the term and the step; nothing after the last good checkpoint is saved.
    """
    checkpoints = Checkpoints(workdir)
    stop = _StopRequest()
    try:
        restored = checkpoints.restore(to_items(state))
        if restored is not None:
            state = from_items(restored)
            logger.info("going on at step %d of %d", int(state.step), steps)
        step = int(state.step)
        main = jax.process_index() == 0
        records = Records(workdir, step) if main else None
        pending: list[dict[str, jax.Array]] = []
        images = 0
        saved = step if restored is not None else -1
        source = batches(step // updates_per_batch)

        def validate(line: _Line) -> dict[str, float]:
            try:
                scores, picture = evaluate(state)
            except Exception:  # whatever is wrong with the validation data must not cost the training
                if step:  # before the first update there is none
                    checkpoints.save(step, to_items(state), config)
                    checkpoints.wait()
                raise
            if records is not None:
                records.write("validation", [(step, scores)])
                records.picture("validation", step, picture)
                show_picture(workdir / "pictures" / f"step_{step:08d}.png", picture)
                line.say(step, scores, None)
            return scores

        with stop, _Line(steps, step, show=main) as line:
            if validate_first and restored is None:
                checkpoints.save(step, to_items(state), config, validate(line))
                saved = step
            over = enough(step)
            while step < steps and not over and not stop.requested():
                with line.waiting():
                    batch = next(source)
                images += _images(batch)
                state, metrics = train_step_at(step)(state, batch, frozen)
                before, step = step, step + updates_per_batch
                pending.append(metrics)
                done = step >= steps
                due = [
                    done or step // every > before // every for every in (log_every, checkpoint_every, evaluate_every)
                ]
                if any(due):
                    rows = _finite_rows(pending, step, updates_per_batch)
                    shown = _summary(rows)
                    pace = line.advance(step, images, shown)
                    pending, images = [], 0
                    if records is not None:
                        records.write("losses", rows)
                        line.say(step, shown, pace)
                scores = None
                if due[2]:
                    scores = validate(line)
                    if step // evaluate_every > before // evaluate_every:  # not because the run is over, as yet
                        state = after_validation(state, scores)
                    over = enough(step)
                if due[1] or due[2]:
                    checkpoints.save(step, to_items(state), config, scores)
                    saved = step
                if any(due):
                    line.resume()
            if pending and (rows := _finite_rows(pending, step, updates_per_batch)) and records is not None:
                records.write("losses", rows)
            if saved != step:
                checkpoints.save(step, to_items(state), config)
            checkpoints.wait()
        if step < steps and not over:
            logger.warning("stopped at step %d of %d and saved; the same command goes on from here", step, steps)
        if records is not None:
            records.close()
        return state
    finally:
        checkpoints.close()


def _images(batch: Batch) -> int:
    """How many frames a batch has losses of; a pair of images is two."""
    if "sharp" in batch:
        return math.prod(batch["sharp"].shape[:2]) + len(batch.get("unlabelled", ()))
    return 2 * len(batch["image_1"]) if "image_1" in batch else len(batch["blurred"])


Row = tuple[int, dict[str, float]]


def _finite_rows(pending: list[dict[str, jax.Array]], step: int, updates_per_batch: int) -> list[Row]:
    """The mean over each batch's updates, with the step the batch ended at; the last of them ended at `step`.

    Updates that were skipped, which only training in float16 does, count in "skipped" alone; "loss_scale" is the last.

    Raises:
        NonFiniteLossError: an update is not finite and was not skipped, or no scale of the loss is left to try.
    """
    rows = []
    for behind, metrics in zip(reversed(range(len(pending))), pending, strict=True):
        end = step - behind * updates_per_batch
        host = {name: np.atleast_1d(np.asarray(value, np.float64)) for name, value in metrics.items()}
        scale = host.pop("loss_scale", None)
        skipped = host.pop("skipped", np.zeros(updates_per_batch)) > 0
        bad = {name: ~np.isfinite(values) for name, values in host.items()}
        fatal = np.any([*bad.values()], axis=0) & ~skipped if scale is None else skipped & (scale < HOPELESS)
        if fatal.any():
            at = int(np.flatnonzero(fatal)[0])
            names = ", ".join(sorted(name for name, where in bad.items() if where[at])) or "what a frame hands on"
            tried = "" if scale is None else f", down to a loss scale of {2 * scale[at]:g}"
            raise NonFiniteLossError(
                f"{names} is not finite at step {end - updates_per_batch + 1 + at}{tried}; the last checkpoint before "
                "it is kept. Lower the learning rate, clip gradients, or train in float32"
            )
        kept = {name: float(values[~skipped].mean()) for name, values in host.items() if not skipped.all()}
        if scale is not None:
            kept |= {"skipped": float(skipped.sum()), "loss_scale": float(scale[-1])}
        rows.append((end, kept))
    return rows


def _summary(rows: list[Row]) -> dict[str, float]:
    """What the line shows of the batches since it was last shown: the last one, and what was skipped in all."""
    values = dict(rows[-1][1])
    if "skipped" in values:
        values["skipped"] = sum(row["skipped"] for _, row in rows)
    return values


class _StopRequest:
    """Turns SIGTERM and the first Ctrl-C into a request to stop after the batch at hand."""

    def __init__(self) -> None:
        self._requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True

    def requested(self) -> bool:
        if jax.process_count() == 1:
            return self._requested
        # All processes must stop at one step, whichever of them was told to.
        return bool(multihost_utils.process_allgather(np.array(self._requested)).any())


class _Pace(NamedTuple):
    """waited: the share of the time in which there was no batch yet."""

    images_a_second: float
    waited: float
    left_s: float


class _Line:
    """The live line on a terminal; plain lines elsewhere."""

    def __init__(self, steps: int, step: int, *, show: bool) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._live = show and self._console.is_terminal
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("", total=steps, completed=step, text="")
        self._steps, self._first_step = steps, step
        self._start: float | None = None
        self._last = time.monotonic()
        self._waited_s = 0.0

    def __enter__(self) -> "_Line":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for input."""
        start = time.monotonic()
        yield
        self._waited_s += time.monotonic() - start

    def advance(self, step: int, images: int, values: dict[str, float]) -> "_Pace":
        """How it went since the last call."""
        now = time.monotonic()
        interval_s = now - self._last
        rate, waited = images / interval_s, self._waited_s / interval_s
        if self._start is None:  # the first interval holds the compilation
            self._start, self._first_step = now, step
            left_s = math.nan
        else:  # a batch is used up, which may be beyond the last step
            left_s = (now - self._start) / (step - self._first_step) * max(0, self._steps - step)
        self._last, self._waited_s = now, 0.0
        text = f"{_main_loss(values)} {rate:.1f} images/s, {waited:.0%} waiting for input"
        self._progress.update(self._task, completed=min(step, self._steps), text=text)
        return _Pace(rate, waited, left_s)

    def resume(self) -> None:
        """Leaves what was done since the last call of advance (validation, saving) out of the pace."""
        self._last = time.monotonic()

    def say(self, step: int, values: dict[str, float], pace: "_Pace | None") -> None:
        parts = [f"step {step}/{self._steps}"]
        parts += [f"{name} {value:.5g}" for name, value in values.items() if not name.startswith("gradient_norm")]
        if pace is not None:
            parts += [f"{pace.images_a_second:.1f} images/s", f"{pace.waited:.0%} waiting for input"]
            if math.isfinite(pace.left_s):
                parts.append(f"{_clock(pace.left_s)} left")
        self._console.print("  ".join(parts))


def _main_loss(values: dict[str, float]) -> str:
    name = next((name for name in values if name.startswith("loss_") and name != "loss_scale"), None)
    return "skipped" if name is None else f"{name} {values[name]:.4g}"


def _clock(seconds: float) -> str:
    minutes, whole_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole_s:02d}" if hours else f"{minutes}:{whole_s:02d}"
