"""Scores a deblurring network on clips with truth: briefly while it trains, in full when it is done."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from jaxdeblur.evaluation.consistency import Consistency, ConsistencyScore, mean_consistency
from jaxdeblur.evaluation.motion import mean_motion_accuracy
from jaxdeblur.evaluation.pictures import stack, strip, write_picture
from jaxdeblur.evaluation.protocols import PROTOCOLS, Protocol
from jaxdeblur.evaluation.report import Example, Report, write_report
from jaxdeblur.evaluation.scores import (
    ClipScore,
    EvaluationClip,
    FrameScore,
    Restore,
    clip_scores,
    frames_of,
    score_clip,
)
from jaxdeblur.evaluation.tables import table, write_csv, write_json
from jaxdeblur.printable import printable
from jaxdeblur.restoration.clip import restore
from jaxdeblur.types import Variables

_CLIPS_IN_PICTURE = 4


@dataclasses.dataclass(frozen=True)
class DeblurringEvaluation:
    """Clips, and how they are scored.

    protocol: by which a run is judged.
    others: by which `report` scores, too; `common` always is.
    motion: whether the motion a model estimates is scored, too (multi-task units).
    picture_frame: the frame of each clip (its last, if it is shorter) that `validate` shows.
    prefix: of the metrics' names in `validate`, where no checkpoint may be ranked by them.
    """

    model: nn.Module
    clips: list[EvaluationClip]
    protocol: Protocol
    others: tuple[Protocol, ...] = ()
    motion: bool = False
    picture_frame: int = 2
    prefix: str = ""

    def validate(self, variables: Variables) -> tuple[dict[str, float], np.ndarray]:
        """Mean metrics over all clips, and a picture of the first ones: a frame blurred, restored and sharp."""
        run = self._restore(variables)
        scores = (score for clip in self.clips for _, score in score_clip(clip, run, [self.protocol]))
        mean = clip_scores(scores, self.protocol)[-1]
        metrics = {"psnr_db": mean.psnr_restored_db, "psnr_gain_db": mean.gain_db, "ssim": mean.ssim_restored}
        strips = [
            strip(frames_of(clip, run, self.protocol, self.picture_frame)) for clip in self.clips[:_CLIPS_IN_PICTURE]
        ]
        return {f"{self.prefix}{name}": value for name, value in metrics.items()}, stack(strips)

    def report(
        self,
        variables: Variables,
        out: Path,
        about: dict[str, Any],
        console: Console,
        *,
        consistency: Consistency | None = None,
        html: Path | None = None,
        workdir: Path | None = None,
    ) -> None:
        """Writes scores.json, scores.csv and strips of the best, the median and the worst frame; prints the tables.

        Args:
            consistency: scores the temporal consistency, too.
            html: where to write all of it as a page.
            workdir: of the training run, whose curves the page shows.
        """
        if self.motion:
            psnr_db, ssim = mean_motion_accuracy(self.clips, self.model, variables)
            about = {**about, "motion_accuracy": {"psnr_db": psnr_db, "ssim": ssim}}
            console.print(f"motion: the previous sharp frame on the current one, {psnr_db:.2f} dB, SSIM {ssim:.4f}")
        report_scores(
            self.clips,
            self._restore(variables),
            with_common(self.protocol, *self.others),
            out,
            about,
            console,
            title=about["model"]["name"],
            consistency=consistency,
            html=html,
            workdir=workdir,
        )

    def _restore(self, variables: Variables) -> Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]:
        return functools.partial(restore, model=self.model, variables=variables)


def with_common(*protocols: Protocol) -> tuple[Protocol, ...]:
    """The protocols, each once, and `common` among them."""
    return tuple(dict.fromkeys([*protocols, PROTOCOLS["common"]]))


def report_scores(
    clips: Sequence[EvaluationClip],
    restore: Restore | None,
    protocols: Sequence[Protocol],
    out: Path | None,
    about: dict[str, Any],
    console: Console,
    *,
    title: str,
    consistency: Consistency | None = None,
    html: Path | None = None,
    workdir: Path | None = None,
) -> None:
    """Scores clips by protocols, the first of which says what is best and worst; prints a table each.

    Args:
        restore: what restores them; None takes what the clips have. If that is nothing, frames are scored as they are.
        out: gets scores.json, scores.csv and pictures; None: nothing is written.
        html: where to write a page of it all.
        workdir: of the training run, whose curves the page shows.
    Raises:
        ValueError: no frame was scored by the first protocol.
    """
    scores: dict[Protocol, list[FrameScore]] = {protocol: [] for protocol in protocols}
    flicker: list[ConsistencyScore] = []
    restored = restore is not None or any(clip.restored is not None for clip in clips)
    see = None if consistency is None else consistency.see
    for clip in track(clips, "scoring", console=console, disable=not console.is_terminal):
        for protocol, score in score_clip(clip, restore, protocols, see=see):
            scores[protocol].append(score)
        if consistency is not None and (found := consistency.end(clip.name)):
            flicker.append(found)
    flicker += [mean_consistency(flicker)] if flicker else []
    named, *_ = protocols
    rows = {protocol: clip_scores(of, protocol) for protocol, of in scores.items() if of}
    if named not in rows:  # what others say is not lost
        for protocol in rows:
            console.print(table(rows[protocol], protocol, title=title, restored=restored))
        clip_scores([], named)
    examples = list(_examples(clips, restore, named, scores[named], restored=restored))
    if out is not None:
        _write(out, rows, scores, {**about, "protocol": named.name}, flicker, examples, console)
    for protocol in reversed(protocols):  # the named one last, where it is seen
        if protocol in rows:
            console.print(table(rows[protocol], protocol, title=title, restored=restored))
        else:
            console.print(f"protocol {protocol.name}: scores no frame of these clips")
    if flicker:
        console.print(_flicker_table(flicker))
    elif consistency is not None:
        console.print("warping error: by this flow network nothing stays in sight from one frame to the next")
    if html is not None:
        write_report(html, Report(title, about, rows, examples, flicker, restored), workdir=workdir)
        console.print(f"page: {html}")


def _write(
    out: Path,
    rows: dict[Protocol, list[ClipScore]],
    scores: dict[Protocol, list[FrameScore]],
    about: dict[str, Any],
    flicker: list[ConsistencyScore],
    examples: list[Example],
    console: Console,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    documents = {}
    for protocol, (*clips, mean) in rows.items():
        frames = [dataclasses.asdict(score) for score in scores[protocol]]
        documents[protocol.name] = {"mean": dataclasses.asdict(mean), "clips": list(map(dataclasses.asdict, clips))}
        documents[protocol.name]["frames"] = frames
    named, *others = documents
    document = {**about, **documents[named], "other_protocols": {name: documents[name] for name in others}}
    if flicker:
        document["warping_error_x1000"] = [dataclasses.asdict(score) for score in flicker]
    write_json(out / "scores.json", document)
    write_csv(
        out / "scores.csv",
        [{"protocol": of.name, **dataclasses.asdict(row)} for of, of_protocol in rows.items() for row in of_protocol],
    )
    for example in examples:
        path = out / f"{example.word}.png"
        write_picture(path, strip(list(example.images.values())))
        said = f"{example.word}: {example.clip} frame {example.frame}, {example.score}: {path}"
        console.print(printable(said), markup=False)
    console.print(f"{out / 'scores.json'}, {out / 'scores.csv'}")


def _examples(
    clips: Sequence[EvaluationClip],
    restore: Restore | None,
    protocol: Protocol,
    scores: Sequence[FrameScore],
    *,
    restored: bool,
) -> Iterator[Example]:
    """The worst, the median and the best frame, by gain, or where nothing was restored by PSNR. Each frame once."""
    by_name = {clip.name: clip for clip in clips}
    ranked = sorted(scores, key=lambda score: score.gain_db if restored else score.psnr_blurred_db)
    chosen = {id(ranked[place]): word for word, place in (("median", len(ranked) // 2), ("best", -1), ("worst", 0))}
    for score in ranked:
        if word := chosen.get(id(score)):
            frames = frames_of(by_name[score.clip], restore, protocol, score.frame)
            images = dict(zip(("blurred", "restored", "sharp"), frames))
            if not restored:
                del images["restored"]
            figure = f"{score.gain_db:+.2f} dB" if restored else f"{score.psnr_blurred_db:.2f} dB"
            yield Example(word, score.clip, score.frame, figure, images)


def _flicker_table(scores: list[ConsistencyScore]) -> Table:
    result = Table(
        title="warping error x 1000",
        caption="change along the motion of the sharp frames, where it stays in sight; squared, values in [0, 1]",
    )
    result.add_column("clip", no_wrap=True)
    for heading in ("pairs", "blurred", "restored", "sharp"):
        result.add_column(heading, justify="right")
    for score in scores:
        cells = (f"{value:.3f}" for value in (score.blurred, score.restored, score.sharp))
        result.add_row(
            escape(printable(score.clip)), str(score.pairs), *cells, end_section=len(scores) > 1 and score is scores[-2]
        )
    return result
