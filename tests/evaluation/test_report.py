import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxdeblur.data.image_io import decode_image, read_rgb_u8
from jaxdeblur.evaluation.consistency import ConsistencyScore
from jaxdeblur.evaluation.pictures import error_map, map_to_colour, sharpness_map
from jaxdeblur.evaluation.protocols import PROTOCOLS
from jaxdeblur.evaluation.report import Example, Report, write_report
from jaxdeblur.evaluation.scores import ClipScore

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def images(height=96, width=160):
    """Of one colour each, so that a screenshot tells which is seen."""
    colours = {"blurred": (200, 40, 40), "restored": (40, 200, 40), "sharp": (40, 40, 200)}
    return {name: np.full((height, width, 3), colour, np.uint8) for name, colour in colours.items()}


def report(**changes):
    rows = [ClipScore("clip<1>", 3, 20.0, 22.5, 2.5, 0.5, 0.625), ClipScore("mean", 3, 20.0, 22.5, 2.5, 0.5, 0.625)]
    fields = {
        "title": "mtu2 & friends",
        "about": {"checkpoint": "runs/<mtu2>", "model": {"name": "mtu2", "width": 0.5}},
        "rows": {PROTOCOLS["cdvd"]: rows, PROTOCOLS["common"]: rows},
        "examples": [Example("worst", "clip<1>", 2, "+2.50 dB", images())],
        "flicker": [ConsistencyScore("mean", 2, 1.0, 0.5, 0.25)],
        "restored": True,
    }
    return Report(**{**fields, **changes})


def page_of(tmp_path, **changes):
    write_report(tmp_path / "new" / "page.html", report(**changes))
    return (tmp_path / "new" / "page.html").read_text()


class Tags(HTMLParser):
    """Checks that what is opened is closed, but for what HTML closes by itself."""

    OPEN = ("meta", "img", "input", "br", "th", "td", "tr", "rect", "polyline")

    def __init__(self):
        super().__init__()
        self.stack, self.links = [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.OPEN:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.OPEN:
            assert self.stack.pop() == tag


def test_it_is_one_page_that_needs_nothing_else(tmp_path):
    tags = Tags()
    tags.feed(page_of(tmp_path))
    assert tags.stack == []
    assert len(tags.links) == 3 + 5
    assert all(link.startswith("data:image/") for link in tags.links)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_it_shows_every_protocol_and_whatever_names_hold(tmp_path):
    page = page_of(tmp_path)
    for text in ("mtu2 &amp; friends", "runs/&lt;mtu2&gt;", "clip&lt;1&gt;", "name mtu2, width 0.5", "<b>cdvd</b>"):
        assert text in page
    assert "clip<1>" not in page
    assert page.count("+2.50") == 2 * 3 + 1  # a summary and two rows a protocol, and the example
    assert PROTOCOLS["common"].about.split(";")[0] in page
    assert "<td>1.000<td>0.500<td>0.250" in page  # warping errors


def test_frames_are_kept_exactly(tmp_path):
    noise = {name: np.random.default_rng(k).integers(0, 256, (8, 9, 3), np.uint8) for k, name in enumerate(images())}
    page = page_of(tmp_path, examples=[Example("best", "a", 0, "", noise)])
    import base64

    found = re.findall(r"data-name=(\w+) alt='\w+' src='data:image/webp;base64,([^']+)'", page)
    assert [name for name, _ in found] == list(noise)
    for name, data in found:
        np.testing.assert_array_equal(decode_image(base64.b64decode(data), name).rgb, noise[name])


def test_without_restored_frames_there_are_none(tmp_path):
    two = {name: image for name, image in images().items() if name != "restored"}
    page = page_of(tmp_path, restored=False, examples=[Example("best", "a", 0, "20.00 dB", two)])
    body = page[page.index("<body>") : page.index("<script>")]
    assert "restored" not in body.replace(PROTOCOLS["common"].about, "").replace(PROTOCOLS["cdvd"].about, "").replace(
        "<th>restored", ""
    )


def test_curves_of_a_run(tmp_path):
    (tmp_path / "losses.csv").write_text("step,loss_total\n" + "".join(f"{n},{1000 / n}\n" for n in range(1, 1001)))
    (tmp_path / "validation.csv").write_text("step,psnr_db,ssim\n100,20,\n200,22,\n300,nan,0.5\n")
    write_report(tmp_path / "page.html", report(), workdir=tmp_path)
    page = (tmp_path / "page.html").read_text()
    charts = re.findall(r"<svg[^>]*aria-label='([^']+)'>.*?points='([^']+)'", page, re.DOTALL)
    # A single point is no curve; a thousand are thinned.
    assert [(name, len(points.split())) for name, points in charts] == [
        ("validation: psnr_db", 2),
        ("losses: loss_total", 334),
    ]
    assert "20 to 22, last 22; steps 100 to 200" in page
    assert "(logarithmic)" in page
    write_report(tmp_path / "page.html", report(), workdir=tmp_path / "nowhere")
    assert "Training" not in (tmp_path / "page.html").read_text()


def test_a_page_is_there_whole_or_not_at_all(tmp_path):
    (tmp_path / "page.html").write_text("old")
    broken = Example("best", "a", 0, "", {**images(), "sharp": np.zeros((96, 160, 4), np.uint8)})
    with pytest.raises(ValueError, match="rgb has shape"):
        write_report(tmp_path / "page.html", report(examples=[broken]))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page.html", "old")]


def test_maps_show_what_they_say():
    step = np.zeros((9, 12, 3), np.uint8)
    step[:, 6:] = 50
    sharpness = sharpness_map(step)
    # A single column of differences of 50, seen by windows of 5 columns.
    np.testing.assert_allclose(sharpness[4], [0] * 3 + [50 / np.sqrt(5)] * 5 + [0] * 4, rtol=1e-6)
    np.testing.assert_array_equal(error_map(step, step), 0)
    np.testing.assert_allclose(error_map(step + np.uint8(3), step), 3)
    colours = map_to_colour(np.array([[0.0, 5.0, 10.0, 99.0]]), 10.0)
    assert np.all(np.diff(colours.astype(int).sum(-1)[0, :3]) > 0)
    np.testing.assert_array_equal(colours[0, 2], colours[0, 3])


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("steps", ["", "cut(20)", "cut(70); sharp.click()"])
def test_a_browser_shows_it_and_the_line_can_be_moved(tmp_path, steps):
    """Left of the line the blurred frame, right of it the chosen one; no network is asked for anything."""
    page = page_of(tmp_path)
    script = f"""<script>
    const range = document.querySelector("input"), sharp = document.querySelectorAll("button")[1];
    const cut = (value) => {{ range.value = value; range.dispatchEvent(new Event("input")); }};
    for (const above of document.querySelectorAll("h1, dl, h2, details, body > p")) above.remove();
    {steps};
    </script></body>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", script))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,400",
        f"--screenshot={tmp_path / 'shot.png'}", (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    shot = read_rgb_u8(tmp_path / "shot.png").astype(int)
    frames = {name: image[0, 0] for name, image in images().items()}
    seen = {name: np.all(np.abs(shot - colour) <= 3, axis=-1) for name, colour in frames.items()}
    right = "sharp" if "sharp" in steps else "restored"
    hidden = "restored" if "sharp" in steps else "sharp"
    share = {"": 0.5, "cut(20)": 0.2}.get(steps, 0.7)
    # Frames of 160 px are shown 480 px wide; the line and the names of both cover a little.
    assert abs(seen["blurred"].sum() / (seen["blurred"].sum() + seen[right].sum()) - share) < 0.06
    columns = {name: np.flatnonzero(mask.any(axis=0)) for name, mask in seen.items()}
    assert columns["blurred"].max() < columns[right].min()
    assert columns[right].max() - columns["blurred"].min() == pytest.approx(479, abs=2)
    assert seen[hidden].sum() == 0
