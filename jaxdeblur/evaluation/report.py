"""Scores as one page of HTML that needs nothing else: tables, pictures to slide over each other, maps, curves."""

import base64
import csv
import dataclasses
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxdeblur.data.image_io import ImageFile, encode_image
from jaxdeblur.data.own_files import replacing
from jaxdeblur.evaluation.consistency import ConsistencyScore
from jaxdeblur.evaluation.pictures import error_map, map_to_colour, sharpness_map
from jaxdeblur.evaluation.protocols import Protocol
from jaxdeblur.evaluation.scores import ClipScore
from jaxdeblur.evaluation.tables import columns_of, columns_shown, label

_BRIGHTEST_SHARE = 0.995
"""Of a map's pixels: what is the brightest colour."""
_MOST_POINTS = 400
_LOGARITHMIC_FROM = 30.0
_CHART_PX = (340, 150)


@dataclasses.dataclass(frozen=True)
class Example:
    """A frame to be shown, and why it is.

    images: "blurred", "restored" (if there is one) and "sharp", uint8 (H, W, 3).
    """

    word: str
    clip: str
    frame: int
    score: str
    images: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a page shows.

    about: whatever else there is to be said, by name.
    rows: of each protocol a row a clip and the mean.
    flicker: warping errors, if they were measured.
    restored: whether there are restored frames beside the blurred ones.
    """

    title: str
    about: dict[str, Any]
    rows: dict[Protocol, list[ClipScore]]
    examples: list[Example]
    flicker: list[ConsistencyScore]
    restored: bool


def write_report(path: Path, report: Report, *, workdir: Path | None = None) -> None:
    """Writes the page; it is there whole or not at all.

    Args:
        workdir: of a training run, whose losses.csv and validation.csv become curves, where they are there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text("\n".join(_page(report, workdir)) + "\n", encoding="utf-8")


def _page(report: Report, workdir: Path | None) -> Iterator[str]:
    yield _HEAD.format(title=escape(report.title))
    yield f"<h1>{escape(report.title)}</h1>"
    yield "<dl class=about>"
    for name, value in report.about.items():
        yield f"<dt>{escape(name)}</dt><dd>{escape(_shown(value))}</dd>"
    yield "</dl>"
    yield "<h2>Scores</h2>"
    for number, (protocol, rows) in enumerate(report.rows.items()):
        yield from _score_table(protocol, rows, restored=report.restored, is_open=number == 0)
    if report.flicker:
        yield from _flicker_table(report.flicker)
    yield "<h2>Frames</h2>"
    yield (
        "<p>Drag the line, or use the arrow keys. In the maps bright is much: of sharpness, the change from pixel to "
        "pixel; of error, the distance to the sharp frame. Those of a kind share their scale.</p>"
    )
    for example in report.examples:
        yield from _example(example)
    charts = [chart for name in ("validation", "losses") if workdir for chart in _charts(workdir / f"{name}.csv")]
    if charts:
        yield "<h2>Training</h2><div class=charts>"
        yield from charts
        yield "</div>"
    yield _TAIL


def _score_table(protocol: Protocol, rows: Sequence[ClipScore], *, restored: bool, is_open: bool) -> Iterator[str]:
    shown = columns_shown(restored=restored)
    mean = columns_of(rows[-1])
    yield f"<details{' open' if is_open else ''}><summary><b>{escape(protocol.name)}</b> "
    yield f"{', '.join(f'{mean[name]} {name}' for name in shown if name != 'frames')}</summary>"
    yield f"<p>{escape(protocol.about)}</p><div class=wide><table><thead><tr><th>clip"
    yield "".join(f"<th>{escape(name)}" for name in shown) + "</thead><tbody>"
    for row in rows:
        cells = columns_of(row)
        kind = " class=mean" if row is rows[-1] else ""
        yield f"<tr{kind}><th>{escape(label(row.clip, protocol))}" + "".join(f"<td>{cells[name]}" for name in shown)
    yield "</tbody></table></div></details>"


def _flicker_table(scores: Sequence[ConsistencyScore]) -> Iterator[str]:
    yield "<details open><summary><b>warping error x 1000</b></summary>"
    yield "<p>Change along the motion of the sharp frames, where it stays in sight: mean square, values in [0, 1].</p>"
    yield "<div class=wide><table><thead><tr><th>clip<th>pairs<th>blurred<th>restored<th>sharp</thead><tbody>"
    for score in scores:
        kind = " class=mean" if score is scores[-1] else ""
        values = "".join(f"<td>{value:.3f}" for value in (score.blurred, score.restored, score.sharp))
        yield f"<tr{kind}><th>{escape(score.clip)}<td>{score.pairs}{values}"
    yield "</tbody></table></div></details>"


def _example(example: Example) -> Iterator[str]:
    names, images = list(example.images), list(example.images.values())
    height, width, _ = images[0].shape
    yield f"<section><h3>{escape(example.word)}: {escape(example.clip)}, frame {example.frame}, {example.score}</h3>"
    yield f"<div class=compare style='--cut:50%;--most:{width}px'>"
    yield f"<div class=images style='aspect-ratio:{width}/{height}'>"
    for name, image in zip(names, images):
        kind = "left" if name == "blurred" else ("right" if name == names[1] else "right hidden")
        yield f"<img class='{kind}' data-name={name} alt='{name}' src='{_data_url(image)}'>"
    yield f"<span class=line></span><span class=tag>{names[0]}</span><span class='tag other'>{names[1]}</span></div>"
    yield "<input type=range min=0 max=100 value=50 aria-label='how much of the left picture is seen'>"
    if len(names) > 2:
        yield "<p class=choice>on the right: <button class=chosen>restored</button> <button>sharp</button></p>"
    yield "</div><div class=maps>"
    sharpness = [sharpness_map(image) for image in images]
    errors = [error_map(image, images[-1]) for image in images[:-1]]
    for what, maps in (("sharpness", sharpness), ("error", errors)):
        most = max(float(np.quantile(values, _BRIGHTEST_SHARE)) for values in maps)
        for name, values in zip(names, maps):
            caption = f"{what}, {name}: mean {values.mean():.2f}, brightest from {most:.0f} levels"
            source = _data_url(map_to_colour(values, most), ".jpg")
            yield f"<figure><img alt='{what} of {name}' src='{source}'><figcaption>{caption}</figcaption></figure>"
    yield "</div></section>"


def _data_url(image_u8: np.ndarray, suffix: str = ".webp") -> str:
    """Frames are kept exactly (WebP without loss); maps need not be."""
    data = encode_image(ImageFile(image_u8), suffix, "picture")
    return f"data:image/{'jpeg' if suffix == '.jpg' else 'webp'};base64,{base64.b64encode(data).decode()}"


def _charts(path: Path) -> Iterator[str]:
    """A curve a column."""
    if not path.is_file():
        return
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for name in [column for column in (rows[0] if rows else ()) if column != "step"]:
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        points = [(step, value) for step, value in points if math.isfinite(value)]
        if len(points) > 1:
            yield _chart(f"{path.stem}: {name}", _thinned(points))


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means over equal runs of points, so that there are not too many."""
    run = math.ceil(len(points) / _MOST_POINTS)
    parts = [points[i : i + run] for i in range(0, len(points), run)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _chart(title: str, points: list[tuple[int, float]]) -> str:
    steps, values = zip(*points)
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > _LOGARITHMIC_FROM
    heights = [math.log(value) for value in values] if logarithmic else list(values)
    width, height = _CHART_PX
    bottom, top = min(heights), max(heights)
    places = (
        (
            width * (step - steps[0]) / max(steps[-1] - steps[0], 1),
            height * (1 - (value - bottom) / (top - bottom if top > bottom else 1)),
        )
        for step, value in zip(steps, heights)
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    scale = " (logarithmic)" if logarithmic else ""
    return (
        f"<figure><svg viewBox='-2 -2 {width + 4} {height + 4}' role=img aria-label='{escape(title)}'>"
        f"<rect width={width} height={height} class=frame /><polyline points='{line}' /></svg>"
        f"<figcaption><b>{escape(title)}</b>{scale}<br>{low:.4g} to {high:.4g}, last {values[-1]:.4g}; "
        f"steps {steps[0]} to {steps[-1]}</figcaption></figure>"
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --soft: color-mix(in srgb, currentColor 14%, transparent); }}
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 1320px; margin: 0 auto; padding: 1rem 1.2rem 4rem; }}
h1 {{ margin: .4rem 0; }} h2 {{ margin: 2.2rem 0 .4rem; border-bottom: 1px solid var(--soft); }}
.about {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }}
.about dt {{ font-weight: 600; }} .about dd {{ margin: 0; overflow-wrap: anywhere; }}
details {{ margin: .5rem 0; border: 1px solid var(--soft); border-radius: 6px; padding: .4rem .8rem; }}
summary {{ cursor: pointer; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .15rem .9rem .15rem 0; text-align: right; white-space: nowrap; }}
th:first-child {{ text-align: left; font-weight: normal; }} thead th {{ font-weight: 600 !important; }}
.mean > * {{ border-top: 1px solid currentColor; font-weight: 600 !important; }}
section {{ margin: 1.5rem 0 2.5rem; }} h3 {{ margin: 0 0 .4rem; }}
.compare {{ max-width: max(var(--most), 480px); }}
.images {{ position: relative; overflow: hidden; touch-action: pan-y; cursor: ew-resize; }}
.images img {{ position: absolute; inset: 0; width: 100%; height: 100%; user-select: none; }}
.images .left {{ z-index: 1; clip-path: inset(0 calc(100% - var(--cut)) 0 0); }}
.images .line {{ position: absolute; z-index: 2; top: 0; bottom: 0; left: var(--cut); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 3px #000; }}
.tag {{ position: absolute; z-index: 3; top: 6px; left: 6px; padding: 0 .5em; color: #fff; background: #000a;
  border-radius: 4px; }}
.tag.other {{ left: auto; right: 6px; }}
.hidden {{ visibility: hidden; }}
.compare input {{ width: 100%; margin: .3rem 0 0; }}
.choice {{ margin: .2rem 0; }} button {{ font: inherit; }} .chosen {{ font-weight: 700; text-decoration: underline; }}
.maps, .charts {{ display: flex; flex-wrap: wrap; gap: .8rem; margin-top: .6rem; }}
figure {{ margin: 0; flex: 0 1 380px; }} figure img, figure svg {{ width: 100%; display: block; }}
figcaption {{ font-size: .85em; }}
.frame {{ fill: none; stroke: var(--soft); }} polyline {{ fill: none; stroke: currentColor; stroke-width: 1.5; }}
</style>
</head>
<body>"""

_TAIL = """<script>
for (const compare of document.querySelectorAll(".compare")) {
  const range = compare.querySelector("input"), images = compare.querySelector(".images");
  const cut = (value) => { range.value = value; compare.style.setProperty("--cut", range.value + "%"); };
  range.addEventListener("input", () => cut(range.value));
  const follow = (event) => {
    const box = images.getBoundingClientRect();
    cut(100 * (event.clientX - box.left) / box.width);
  };
  images.addEventListener("pointerdown", (event) => {
    event.preventDefault(); images.setPointerCapture(event.pointerId); follow(event);
  });
  images.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
  for (const button of compare.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      for (const other of compare.querySelectorAll("button")) other.classList.toggle("chosen", other === button);
      for (const image of compare.querySelectorAll(".right"))
        image.classList.toggle("hidden", image.dataset.name !== button.textContent);
      compare.querySelector(".other").textContent = button.textContent;
    });
  }
}
</script>
</body>
</html>"""
