"""Scores a deblurring network on clips with truth: briefly while it trains, in full when it is done."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from rich.console import Console
from rich.progress import track

from jaxdeblur.evaluation.motion import mean_motion_accuracy
from jaxdeblur.evaluation.pictures import stack, strip, write_picture
from jaxdeblur.evaluation.protocols import Protocol
from jaxdeblur.evaluation.scores import EvaluationClip, FrameScore, clip_scores, frames_of, score_clip
from jaxdeblur.evaluation.tables import table, write_csv, write_json
from jaxdeblur.restoration.clip import restore
from jaxdeblur.types import Variables

_CLIPS_IN_PICTURE = 4


@dataclasses.dataclass(frozen=True)
class DeblurringEvaluation:
    """Clips, and how they are scored.

    motion: whether the motion a model estimates is scored, too (multi-task units).
    picture_frame: the frame of each clip (its last, if it is shorter) that `validate` shows.
    prefix: of the metrics' names in `validate`, where no checkpoint may be ranked by them.
    """

    model: nn.Module
    clips: list[EvaluationClip]
    protocol: Protocol
    motion: bool = False
    picture_frame: int = 2
    prefix: str = ""

    def validate(self, variables: Variables) -> tuple[dict[str, float], np.ndarray]:
        """Mean metrics over all clips, and a picture of the first ones: a frame blurred, restored and sharp."""
        run = self._restore(variables)
        scores = (score for clip in self.clips for score in score_clip(clip, run, self.protocol))
        mean = clip_scores(scores, self.protocol)[-1]
        metrics = {"psnr_db": mean.psnr_restored_db, "psnr_gain_db": mean.gain_db, "ssim": mean.ssim_restored}
        strips = [
            strip(frames_of(clip, run, self.protocol, self.picture_frame)) for clip in self.clips[:_CLIPS_IN_PICTURE]
        ]
        return {f"{self.prefix}{name}": value for name, value in metrics.items()}, stack(strips)

    def report(self, variables: Variables, out: Path, about: dict[str, Any], console: Console) -> None:
        """Writes scores.json, scores.csv and strips of the best, the median and the worst frame; prints the table."""
        run = self._restore(variables)
        scores: list[FrameScore] = []
        for clip in track(self.clips, "scoring", console=console, disable=not console.is_terminal):
            scores += score_clip(clip, run, self.protocol)
        rows = clip_scores(scores, self.protocol)

        out.mkdir(parents=True, exist_ok=True)
        about = {**about, "protocol": self.protocol.name}
        if self.motion:
            psnr_db, ssim = mean_motion_accuracy(self.clips, self.model, variables)
            about["motion_accuracy"] = {"psnr_db": psnr_db, "ssim": ssim}
            console.print(f"motion: the previous sharp frame on the current one, {psnr_db:.2f} dB, SSIM {ssim:.4f}")
        *clips, mean = columns = [dataclasses.asdict(row) for row in rows]
        frames = [dataclasses.asdict(score) for score in scores]
        write_json(out / "scores.json", {**about, "mean": mean, "clips": clips, "frames": frames})
        write_csv(out / "scores.csv", columns)
        ranked = sorted(scores, key=lambda score: score.gain_db)
        by_name = {clip.name: clip for clip in self.clips}
        for word, score in (("worst", ranked[0]), ("median", ranked[len(ranked) // 2]), ("best", ranked[-1])):
            write_picture(out / f"{word}.png", strip(frames_of(by_name[score.clip], run, self.protocol, score.frame)))
            console.print(f"{word}: {score.clip} frame {score.frame}, {score.gain_db:+.2f} dB: {out / f'{word}.png'}")
        console.print(table(rows, title=f"{about['model']['name']}, protocol {self.protocol.name}"))
        console.print(f"{out / 'scores.json'}, {out / 'scores.csv'}")

    def _restore(self, variables: Variables) -> Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]:
        return functools.partial(restore, model=self.model, variables=variables)
