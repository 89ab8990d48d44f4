"""What tuning on blurry clips alone is worth: a network trained on slow scenes, tuned on fast ones without their truth.

    python -m benchmarks.adaptation [--out FOLDER] [--clips 8] [--steps 200]

Trains by train.py a flow network, and DBN+SINGLE on scenes that move up to 5 px a frame; what is there already is not
trained again. Then tunes the network on clips of 128 x 128 px that move up to 12 px, with the objective, alpha and
learning rate of `jaxdeblur adapt`, but for a fixed number of updates, nothing held back and half its batch: on each
clip alone (individual), and on all together (group). "labelled half alone" is the same number of updates without the
reblur error: what is gained there, training longer would have gained anyway. Prints PSNR of all frames against the
hidden truth, losers included, and writes table.txt and a picture a clip to FOLDER, which is runs/adaptation if not
given.
"""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.ablations import ROOT, run
from jaxdeblur.adaptation import Adaptation
from jaxdeblur.checkpoint import load_model
from jaxdeblur.data.scenes import SceneConfig, batch_renderer, scene_batches
from jaxdeblur.data.unlabelled import UnlabelledWindow, half_labelled, unlabelled_batches, windows_of_clip
from jaxdeblur.evaluation.pictures import strip, write_picture
from jaxdeblur.evaluation.protocols import common
from jaxdeblur.objectives.reblur import ReblurObjective, TunedParams
from jaxdeblur.restoration.clip import restore
from jaxdeblur.training.sharding import make_mesh
from jaxdeblur.training.state import init_state
from jaxdeblur.training.step import make_train_step
from jaxdeblur.types import Batch, Variables

SIZE_PX = 128
FRAMES = 7
TEST_SEED = 1_000_002
BATCH_SIZE = 2

SOURCE = ("--config.data.scenes.max_speed_px=5.0", "--config.data.scenes.min_speed_share=0.3")
LABELLED = SceneConfig(
    frames=1,
    height=SIZE_PX,
    width=SIZE_PX,
    sub_frames=12,
    max_speed_px=5.0,
    min_speed_share=0.3,
    min_duty=0.7,
    still_share=0.0,
)
UNLABELLED = dataclasses.replace(
    LABELLED, frames=FRAMES, sub_frames=14, max_speed_px=12.0, min_speed_share=0.5, min_duty=0.9, max_shot_noise=2e-5
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "adaptation")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--steps", type=int, default=Adaptation().steps)
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    settings = dataclasses.replace(Adaptation(), steps=arguments.steps)
    run("train.py", "--config=configs/pwcnet.py:small", f"--workdir={out / 'flow'}")
    run("train.py", "--config=configs/vdflow.py:smoke,single", f"--workdir={out / 'source'}", *SOURCE)
    model, before = load_model(out / "source")
    flow_net, flow_variables = load_model(out / "flow")

    mesh = make_mesh(jax.local_devices()[:1])
    render = batch_renderer(UNLABELLED, batch_size=1, mesh=mesh)
    clips = [jax.tree.map(lambda x: np.asarray(x[0]), render(TEST_SEED, number)) for number in range(arguments.clips)]
    blurred = [np.rint(255 * clip["blurred"]).astype(np.uint8) for clip in clips]
    sharp = [clip["sharp"] for clip in clips]

    def tune(seen: Sequence[int], alpha: float) -> Variables:
        objective = dataclasses.replace(settings.objective(model, flow_net), alpha=alpha)
        return tuned(objective, before, flow_variables, windows_of(objective, [blurred[i] for i in seen]), settings)

    def psnr_db(variables: Variables | None, number: int) -> float:
        frames = blurred[number] if variables is None else restore(blurred[number], model, variables)
        return float(np.mean([common(f / np.float32(255), s)[0] for f, s in zip(frames, sharp[number], strict=True)]))

    everything = range(len(clips))
    control, group = tune(everything, 0.0), tune(everything, settings.alpha)
    rows = []
    for number in track(everything, "individual"):
        alone = tune([number], settings.alpha)
        rows.append([psnr_db(variables, number) for variables in (None, before, control, group, alone)])
        pictures = [restore(blurred[number], model, variables)[FRAMES // 2] for variables in (before, alone)]
        truth = np.rint(255 * sharp[number][FRAMES // 2]).astype(np.uint8)
        write_picture(out / f"clip_{number:02d}.png", strip([blurred[number][FRAMES // 2], *pictures, truth]))

    title = f"PSNR dB; {settings.steps} updates, alpha {settings.alpha:g}, learning rate {settings.learning_rate:g}"
    with (out / "table.txt").open("w") as file:
        for console in (Console(), Console(file=file, width=110)):
            console.print(table(np.array(rows), title))
    print(f"{out}: table.txt; clip_NN.png: blurred, before, after (individual), sharp")


def table(psnr_db: np.ndarray, title: str) -> Table:
    """A row a clip: blurred, before, and what each way of tuning gains over that; means, and how many clips gain."""
    found = Table(title=title)
    for heading in ("clip", "blurred", "before", "labelled half alone", "group", "individual"):
        found.add_column(heading, justify="right")
    last = len(psnr_db) - 1
    for number, (blurred, before, *after) in enumerate(psnr_db):
        gains = [f"{value - before:+.2f}" for value in after]
        found.add_row(str(number), f"{blurred:.2f}", f"{before:.2f}", *gains, end_section=number == last)
    gains_db = psnr_db[:, 2:] - psnr_db[:, 1:2]
    means = [f"{value:.2f}" for value in psnr_db[:, :2].mean(0)]
    found.add_row("mean", *means, *(f"{value:+.2f}" for value in gains_db.mean(0)))
    found.add_row("clips that gain", "", "", *(f"{count}/{len(psnr_db)}" for count in np.sum(gains_db > 0, axis=0)))
    return found


def windows_of(objective: ReblurObjective, clips_u8: Sequence[np.ndarray]) -> list[UnlabelledWindow]:
    before, after = objective.frames_before, objective.frames_after
    return [
        window
        for number, frames in enumerate(clips_u8)
        for window in windows_of_clip(str(number), frames, before=before, after=after)
    ]


def tuned(
    objective: ReblurObjective,
    variables: Variables,
    flow_variables: Variables,
    windows: Sequence[UnlabelledWindow],
    settings: Adaptation,
) -> Variables:
    """The network's variables after so many updates; nothing is held back, and the last ones are taken."""
    optimizers, step = optimizers_and_step(objective, settings)
    start = {**variables, "params": TunedParams(variables["params"], flow_variables)}
    # The step donates its state.
    state = init_state(jax.random.key(0), jax.tree.map(jnp.array, start), optimizers, ema=False)
    clips = unlabelled_batches(windows, batch_size=BATCH_SIZE, crop_px=SIZE_PX, seed=0)
    for batch in itertools.islice(half_labelled(labelled_batches(objective)(0), clips), settings.steps):
        state, _ = step(state, batch, {})
    return state.variables


@functools.cache
def optimizers_and_step(objective: ReblurObjective, settings: Adaptation) -> tuple[Any, Any]:
    optimizers = settings.optimizers(objective)
    return optimizers, make_train_step(objective, optimizers)


@functools.cache
def labelled_batches(objective: ReblurObjective) -> Callable[[int], Iterator[Batch]]:
    mesh = make_mesh(jax.local_devices()[:1])
    past, future = objective.past_frames, objective.future_frames
    render = batch_renderer(LABELLED, batch_size=BATCH_SIZE, mesh=mesh, past=past, future=future)
    return scene_batches(render, seed=0, batch_size=BATCH_SIZE, distinct_clips=64, turned_anew=True)


if __name__ == "__main__":
    main()
