"""Careless commands: one line at once, before a network or even JAX is loaded, and nothing is written over."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from identity_model import IdentityModel
from PIL import Image
from tiny_video import smooth_frames, write_video_file

from jaxdeblur import cli
from jaxdeblur.data.image_io import ImageFile, count_pages, read_image, write_image
from jaxdeblur.data.video_io import VideoReader
from jaxdeblur.restoration.jobs import Job, journal_folder, plan_jobs

WITHOUT_JAX = """
import sys
sys.modules["jax"] = None  # importing it fails
from jaxdeblur.cli import main
sys.exit(main())
"""


def rgb(seed=0, bits=8, size=(9, 14)):
    return np.random.default_rng(seed).integers(0, 2**bits, (*size, 3)).astype(f"u{bits // 8}")


@pytest.fixture
def folder(tmp_path):
    write_video_file(tmp_path / "a.mp4", smooth_frames(3))
    write_video_file(tmp_path / "b.mp4", smooth_frames(3))
    (tmp_path / "frames").mkdir()
    for number in range(3):
        write_image(tmp_path / "frames" / f"{number}.png", ImageFile(rgb(number)))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").touch()
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    def load(*_, **__):
        raise AssertionError("a network was loaded")

    monkeypatch.setattr("jaxdeblur.restoration.export.load_restorer", load)


@pytest.fixture
def identity(monkeypatch):
    monkeypatch.setattr("jaxdeblur.restoration.export.load_restorer", lambda *_, **__: (IdentityModel(), {}))


def run(folder, capsys, *arguments, monkeypatch):
    monkeypatch.chdir(folder)
    code = cli.main(["deblur", *arguments])
    return code, capsys.readouterr().err


CARELESS = {
    "a.mp4 b.mp4": "b.mp4: exists already; name another file, or replace it with --overwrite",
    "a.mp4 a.mp4": "a.mp4: is the input itself",
    "a.mp4 a.mp4 --overwrite": "a.mp4: is the input itself",
    "a.mp4 c.mp4 --compare=b.mp4": "b.mp4: exists already",
    "a.mp4 c.mp4 --explain=used": "used: exists and is not an empty folder; name a new folder",
    "a.mp4 b.mp4 used --compare --skip-existing --overwrite": "give one of them",
    "frames used": "used: exists and is not an empty folder",
    "frames used --overwrite": "used: exists and is not an empty folder",
    "frames/0.png frames/1.png": "frames/1.png: exists already",
    "frames/0.png frames/0.png": "frames/0.png: is the input itself",
    "frames/0.png frames/1.png frames/2.png": "frames/2.png: of 2 pictures, the last name is a new folder",
    "frames/0.png frames/1.png b.mp4": "b.mp4: of 2 pictures, the last name is a new folder",
    "frames/0.png frames/1.png c.mp4": "name a new folder, and --compare=c.mp4 for a video beside it",
    "frames/0.png c.mp4": "name a new folder, and --compare=c.mp4 for a video beside it",
    "frames/0.png c.gif": "c.gif: unknown image suffix '.gif'; use one of .png, .jpg",
    "frames/0.png a.mp4 new": "frames/0.png is a picture and a.mp4 is none; restore pictures and videos one after",
    "frames/0.png used new": "frames/0.png is a picture and used is none",
    "frames/0.png c.png --codec=h264": "frames/0.png: is a picture, for which there is no --codec",
    "frames new --lossless": "frames: is a folder of frames, for which there is no --lossless",
    "frames new.mp4": "new.mp4: a folder of frames becomes a folder; name a new one, and --compare=new.mp4",
    "a.mp4 c.png": "c.png: is the name of a picture, and a.mp4 is none of .png",
    "a.mp4 c.avi": "c.avi: unknown video suffix '.avi'; use one of .mp4",
    "a.mp4 c": "c: unknown video suffix ''",
    "c.mp4 d.mp4": "c.mp4: no such file or folder",
    "a.mp4 nowhere/c.mp4": "nowhere/c.mp4: there is no folder",
    "frames nowhere/new": "nowhere/new: there is no folder",
    "a.mp4 c.mp4 --compare=nowhere/d.mp4": "nowhere/d.mp4: there is no folder",
    "a.mp4 b.mp4 nowhere/new": "nowhere/new: there is no folder",
    "a.mp4 c.mp4 --checkpoint=nothing": "--checkpoint is nothing: no such file or folder",
    "a.mp4 c.mp4 --memory=4": "is '4', which is 4 bytes, too few for any network; did you mean --memory=4G?",
    "a.mp4 c.mp4 --crf=99": "crf is 99; expected 0 (finest) to 51 for h264",
    "a.mp4 c.webm --crf=64": "crf is 64; expected 0 (finest) to 63 for vp9",
    "a.mp4 b.mp4 new --crf=99": "crf is 99; expected 0 (finest) to 51 for h264",
    "frames new --compare --crf=99": "crf is 99; expected 0 (finest) to 51 for h264",
    "a.mp4 c.mp4 --start=5 --end=3": "the start is 5 s and the end 3 s",
    "a.mp4 c.mp4 --start=99": "no frames from 99 s on",
    "a.mp4 c.webm --codec=h264": "a .webm file holds vp9 or av1, not h264",
    "a.mp4 c.mp4 --codec=mpeg2": "codec is 'mpeg2'; expected one of h264",
    f"a.mp4 {'n' * 252}.mp4": "the name is longer than 255 bytes",
}


@pytest.mark.parametrize("command", CARELESS)
def test_one_line_and_nothing_happens(folder, no_network, monkeypatch, capsys, command):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, errors = run(folder, capsys, *command.split(), monkeypatch=monkeypatch)
    (line,) = errors.splitlines()
    assert code == 2
    assert CARELESS[command] in line
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["a.mp4 b.mp4", "c.mp4 d.mp4", "a.mp4 c.mp4 --memory=4", "a.mp4 c.mp4 --start=99"])
def test_it_takes_no_jax_and_no_time(folder, command):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    best_s = np.inf
    for _ in range(2):  # the machine may be busy
        began_s = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_JAX, "deblur", *command.split()],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        best_s = min(best_s, time.monotonic() - began_s)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert any(said in done.stderr for key, said in CARELESS.items() if key == command)
    assert best_s < 2


def test_a_device_that_is_not_there(folder):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "abacus"}
    command = [sys.executable, "-m", "jaxdeblur.cli", "deblur", "a.mp4", "c.mp4"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("jaxdeblur: error: JAX_PLATFORMS is 'abacus', and JAX finds no such device here")
    assert line.endswith("unset it, or set JAX_PLATFORMS=cpu")


def test_overwrite_replaces(folder, identity, monkeypatch, capsys):
    before = (folder / "b.mp4").read_bytes()
    for _ in range(2):
        assert run(folder, capsys, "a.mp4", "b.mp4", "--compare", "--overwrite", monkeypatch=monkeypatch)[0] == 0
    assert (folder / "b.mp4").read_bytes() != before
    assert not (folder / ".b.mp4.jaxdeblur").exists()


def test_a_file_that_comes_while_a_video_is_restored_stays(folder, identity, monkeypatch, capsys):
    from jaxdeblur.restoration import files

    finish = files._finish

    def another_was_faster(*arguments):
        (folder / "c.mp4").write_bytes(b"mine")
        return finish(*arguments)

    monkeypatch.setattr(files, "_finish", another_was_faster)
    code, errors = run(folder, capsys, "a.mp4", "c.mp4", monkeypatch=monkeypatch)
    assert code == 1
    assert "c.mp4: exists already" in errors
    assert (folder / "c.mp4").read_bytes() == b"mine"
    monkeypatch.setattr(files, "_finish", finish)
    monkeypatch.setattr(files, "restore_stream", None)  # what was restored is not restored again
    assert run(folder, capsys, "a.mp4", "c.mp4", monkeypatch=monkeypatch)[0] == 2
    assert (folder / "c.mp4").read_bytes() == b"mine"
    assert run(folder, capsys, "a.mp4", "c.mp4", "--overwrite", monkeypatch=monkeypatch)[0] == 0
    assert (folder / "c.mp4").read_bytes() != b"mine"
    assert not journal_folder(folder / "c.mp4").exists()


@pytest.mark.parametrize(
    "command", ["a.mp4 b.mp4", "frames used", "a.mp4 c.mp4 --compare=b.mp4", "a.mp4 c.mp4 --explain=used"]
)
def test_a_restart_that_is_refused_loses_nothing(folder, no_network, monkeypatch, capsys, command):
    """Nor is a network loaded for it; without --restart, what is there may be of the interrupted run."""
    waiting = journal_folder(folder / command.split()[1])
    waiting.mkdir()
    (waiting / "segment").touch()
    code, errors = run(folder, capsys, *command.split(), "--restart", monkeypatch=monkeypatch)
    assert code == 2
    assert "exists" in errors
    assert (waiting / "segment").exists()
    with pytest.raises(AssertionError, match="a network was loaded"):
        run(folder, capsys, *command.split(), monkeypatch=monkeypatch)


def test_names_of_255_bytes(folder, identity, monkeypatch, capsys):
    for long in ("n" * 251 + ".mp4", "ü" * 125 + ".mp4", "m" * 255):
        source = "frames" if long.startswith("m") else "a.mp4"
        assert run(folder, capsys, source, long, monkeypatch=monkeypatch)[0] == 0
        assert (folder / long).exists()
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    assert len({journal_folder(folder / ("n" * 240 + str(number))).name for number in range(10)}) == 10


def test_no_empty_bar_before_an_error(folder, identity, monkeypatch, capsys):
    def fails(*_, **__):
        raise ValueError("no")

    monkeypatch.setattr("jaxdeblur.restoration.batch.deblur_video", fails)
    code, errors = run(folder, capsys, "a.mp4", "c.mp4", monkeypatch=monkeypatch)
    assert (code, errors) == (2, "jaxdeblur: error: no\n")


def test_pictures_are_the_frames_of_a_clip(folder):
    images = [folder / "frames" / f"{number}.png" for number in (0, 1, 2)]
    (job,) = plan_jobs(images, folder / "new", Path(), None)
    assert job == Job(images[0], folder / "new", folder / "new-compare.mp4", None, tuple(images))
    (job,) = plan_jobs(images[:1], folder / "c.tif", Path(), None)
    assert job.target_is_image
    assert job.compare == folder / "c-compare.mp4"


def test_exactly_these_pictures_in_the_order_of_their_numbers(folder, identity, monkeypatch, capsys):
    write_image(folder / "frames" / "10.png", ImageFile(rgb(10)))
    names = ["frames/0.png", "frames/10.png", "frames/2.png"]
    assert run(folder, capsys, *names, "new", "--compare", monkeypatch=monkeypatch)[0] == 0
    assert sorted(os.listdir(folder / "new")) == ["0.png", "10.png", "2.png"]
    for number in (0, 2, 10):
        np.testing.assert_array_equal(read_image(folder / "new" / f"{number}.png").rgb, rgb(number))
    assert (folder / "new-compare.mp4").exists()
    (folder / "other").mkdir()
    write_image(folder / "other" / "0.png", ImageFile(rgb()))
    code, errors = run(folder, capsys, "frames/0.png", "other/0.png", "new2", monkeypatch=monkeypatch)
    assert code == 2
    assert "frames/0.png and other/0.png would become one file" in errors


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_a_picture_becomes_a_picture(tmp_path, identity, monkeypatch, capsys, caplog, suffix, bits):
    y, x = np.mgrid[:9, :14] * 2 ** (bits - 8)
    smooth = np.stack([9 * y, 9 * x, 7 * (x + y)], -1).astype(f"u{bits // 8}")
    write_image(tmp_path / "in.png", ImageFile(smooth))
    assert run(tmp_path, capsys, "in.png", f"out{suffix}", "--no-gate", monkeypatch=monkeypatch)[0] == 0
    found = read_image(tmp_path / f"out{suffix}")
    if bits == 16 and suffix in (".jpg", ".webp"):
        smooth = (smooth / 257 + 0.5).astype(np.uint8)
        assert "file holds 8 of the 16 bits of" in caplog.text
    np.testing.assert_allclose(found.rgb.astype(int), smooth, atol=6 if suffix == ".jpg" else 0)
    assert found.rgb.dtype == smooth.dtype
    assert sorted(os.listdir(tmp_path)) == ["in.png", f"out{suffix}"]


def test_alpha_is_not_lost_for_a_jpeg(tmp_path, no_network, monkeypatch, capsys):
    write_image(tmp_path / "in.png", ImageFile(rgb(), rgb()[..., 0].copy()))
    code, errors = run(tmp_path, capsys, "in.png", "out.jpg", monkeypatch=monkeypatch)
    assert code == 2
    assert "out.jpg: a .jpg file cannot hold 8-bit RGB with alpha; use .png or .tif instead" in errors


@pytest.mark.parametrize(("source", "target"), [("in/a.tif", "b.tif"), ("in/a.tif", "new"), ("in", "new")])
def test_all_pages_of_a_tiff_are_restored(tmp_path, identity, monkeypatch, capsys, source, target):
    (tmp_path / "in").mkdir()
    first, *others = (Image.fromarray(rgb(number)) for number in range(4))
    first.save(tmp_path / "in" / "a.tif", save_all=True, append_images=others)
    assert run(tmp_path, capsys, source, target, monkeypatch=monkeypatch)[0] == 0
    result = tmp_path / target if target.endswith(".tif") else tmp_path / target / "a.tif"
    assert count_pages(result) == 4
    for number in range(4):
        np.testing.assert_array_equal(read_image(result, number).rgb, rgb(number))
    for suffix in (".png", ".jpg"):
        code, errors = run(tmp_path, capsys, "in/a.tif", f"c{suffix}", monkeypatch=monkeypatch)
        assert code == 2
        assert f"c{suffix}: a {suffix} file cannot hold 4 pages; name a folder, or a .tif" in errors


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("still", ["0.png", "z.tif", "z.webp"])
def test_animations_beside_other_pictures_of_a_folder(tmp_path, identity, monkeypatch, capsys, suffix, still):
    (tmp_path / "in").mkdir()
    first, *others = (Image.fromarray(rgb(number)) for number in range(3))
    options = {"lossless": True} if suffix == ".webp" else {}
    first.save(tmp_path / "in" / f"a{suffix}", save_all=True, append_images=others, duration=40, **options)
    write_image(tmp_path / "in" / still, ImageFile(rgb(5)))
    assert run(tmp_path, capsys, "in", "out", monkeypatch=monkeypatch)[0] == 0
    assert count_pages(tmp_path / "out" / f"a{suffix}") == 3
    np.testing.assert_array_equal(read_image(tmp_path / "out" / f"a{suffix}", 2).rgb, rgb(2))
    np.testing.assert_array_equal(read_image(tmp_path / "out" / still).rgb, rgb(5))


def test_pages_that_a_file_of_a_folder_cannot_hold(tmp_path, identity, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    first, *others = (Image.fromarray(rgb(number)) for number in range(3))
    first.save(tmp_path / "in" / "0.png", save_all=True, append_images=others, duration=40)
    first.save(tmp_path / "in" / "a.png", "TIFF", save_all=True, append_images=others)
    code, errors = run(tmp_path, capsys, "in", "out", monkeypatch=monkeypatch)
    assert code == 2
    assert "a.png: a .png file cannot hold 3 pages; rename in/a.png to .tif" in errors
    (tmp_path / "in" / "a.png").rename(tmp_path / "in" / "a.tif")
    assert run(tmp_path, capsys, "in", "out", monkeypatch=monkeypatch)[0] == 0
    assert count_pages(tmp_path / "out" / "a.tif") == 3


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_animations_stay_animations(tmp_path, identity, monkeypatch, capsys, suffix):
    first, *others = (Image.fromarray(rgb(number)) for number in range(3))
    options = {"lossless": True} if suffix == ".webp" else {}
    options |= {"duration": [40, 80, 120], "loop": 3}
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=others, **options)
    assert run(tmp_path, capsys, f"a{suffix}", f"b{suffix}", monkeypatch=monkeypatch)[0] == 0
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert image.info["loop"] == 3
    for number in range(3):
        page = read_image(tmp_path / f"b{suffix}", number)
        np.testing.assert_array_equal(page.rgb, rgb(number))
        assert page.metadata.duration_ms == 40 * (number + 1)


def test_frames_on_their_side_of_one_folder(tmp_path, identity, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    upright = rgb(size=(14, 9))
    for orientation, turns in ((1, 0), (6, 1), (3, 2), (8, 3)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.rot90(upright, turns).copy()).save(tmp_path / "in" / f"{orientation}.png", exif=exif)
    assert run(tmp_path, capsys, "in", "out", monkeypatch=monkeypatch)[0] == 0
    for name in ("1.png", "3.png", "6.png", "8.png"):
        with Image.open(tmp_path / "out" / name) as image:
            np.testing.assert_array_equal(np.asarray(image), upright)
            assert image.getexif().get(0x0112, 1) == 1


def test_pages_survive_an_interruption(tmp_path, monkeypatch):
    from jaxdeblur.restoration.files import deblur_pictures

    first, *others = (Image.fromarray(rgb(number)) for number in range(12))
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    monkeypatch.setattr("jaxdeblur.restoration.files.segment_frames", lambda form: 4)

    def stop(done, total):
        if done == 9:
            raise KeyboardInterrupt

    job = [tmp_path / "a.tif"], tmp_path / "b.tif", IdentityModel(), {}
    with pytest.raises(KeyboardInterrupt):
        deblur_pictures(*job, is_file=True, save_every_s=0.0, progress=stop)
    seen = []
    deblur_pictures(*job, is_file=True, save_every_s=0.0, progress=lambda done, total: seen.append(done))
    assert seen[0] == 9
    assert sorted(os.listdir(tmp_path)) == ["a.tif", "b.tif"]
    for number in range(12):
        np.testing.assert_array_equal(read_image(tmp_path / "b.tif", number).rgb, rgb(number))


def test_no_picture_of_a_gif_is_lost(tmp_path, identity, monkeypatch, capsys):
    first, *others = (Image.fromarray(rgb(number, size=(48, 64))) for number in range(4))
    first.save(tmp_path / "timeless.gif", save_all=True, append_images=others)
    first.save(tmp_path / "timed.gif", save_all=True, append_images=others, duration=50)
    code, errors = run(tmp_path, capsys, "timeless.gif", "a.mp4", monkeypatch=monkeypatch)
    assert code == 2
    assert "timeless.gif: holds 4 pictures and does not say how long each is shown" in errors
    assert run(tmp_path, capsys, "timed.gif", "a.mp4", monkeypatch=monkeypatch)[0] == 0
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert sum(1 for _ in reader) == 4


def test_nothing_to_do_takes_no_network(folder, no_network, monkeypatch, capsys):
    assert run(folder, capsys, "a.mp4", "b.mp4", "--skip-existing", monkeypatch=monkeypatch) == (0, "")
