"""Damaged, hostile and impossible input: one line that names it, a non-zero exit, and nothing left behind."""

import os
import resource
import struct
import sys
import types
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from identity_model import IdentityModel
from tiny_video import smooth_frames, write_sound_only, write_video_file

from jaxdeblur import cli
from jaxdeblur.data.image_io import ImageFile, encode_image, write_image


def video(path, **options):
    write_video_file(path, np.random.default_rng(0).integers(0, 256, (20, 32, 48, 3), np.uint8), **options)
    return path.read_bytes()


def empty(folder):
    (folder / "in.mp4").write_bytes(b"")


def text(folder):
    (folder / "in.mp4").write_text("a story about a video\n" * 50)


def noise(folder):
    (folder / "in.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))


def cut_before_its_header(folder):
    (folder / "in.mp4").write_bytes(video(folder / "in.mp4")[:-900])


def cut_in_the_middle(folder):
    data = video(folder / "in.mp4", faststart=True)
    (folder / "in.mp4").write_bytes(data[: len(data) * 2 // 3])
    return "in.mp4", "out.mp4", "--strict"


def header_alone(folder):
    data = video(folder / "in.mp4", faststart=True)
    (folder / "in.mp4").write_bytes(data[: data.index(b"mdat") + 4])


def zeros_for_pictures(folder):
    data = video(folder / "in.mp4", faststart=True)
    begin = data.index(b"mdat") + 4
    (folder / "in.mp4").write_bytes(data[:begin] + bytes(len(data) - begin))


def matroska_cut(folder):
    data = video(folder / "in.mkv")
    (folder / "in.mkv").write_bytes(data[:200])
    return "in.mkv", "out.mkv"


def sound_alone(folder):
    write_sound_only(folder / "in.m4a")
    return "in.m4a", "out.mp4"


def a_link_to_itself(folder):
    (folder / "in.mp4").symlink_to(folder / "in.mp4")


def a_link_to_nothing(folder):
    (folder / "in.mp4").symlink_to(folder / "gone.mp4")


def a_pipe(folder):
    os.mkfifo(folder / "in.mp4")


def a_device(folder):
    (folder / "in.mp4").symlink_to("/dev/zero")


def a_name_with_a_newline_that_is_not_there(folder):
    return "in\nanother: line.mp4", "out.mp4"


def a_name_with_a_newline_of_no_video(folder):
    (folder / "in\nTraceback.mp4").write_bytes(b"nothing")
    return "in\nTraceback.mp4", "out.mp4"


def a_name_that_is_too_long(folder):
    return "a" * 300 + ".mp4", "out.mp4"


def absurd_sizes(folder):
    (folder / "in.y4m").write_bytes(b"YUV4MPEG2 W2000000 H2000000 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(1000))
    return "in.y4m", "out.mp4"


def no_size(folder):
    (folder / "in.y4m").write_bytes(b"YUV4MPEG2 W0 H0 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(1000))
    return "in.y4m", "out.mp4"


def a_playlist(folder):
    video(folder / "part.ts")
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:1,", "part.ts", "#EXT-X-ENDLIST", ""]
    (folder / "in.mp4").write_text("\n".join(lines))


def a_playlist_of_the_network(folder):
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:1,", "http://127.0.0.1:9/part.ts", "#EXT-X-ENDLIST", ""]
    (folder / "in.m3u8").write_text("\n".join(lines))
    return "in.m3u8", "out.mp4"


def sizes_that_change(folder):
    with av.open(str(folder / "in.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        for number, height in enumerate([32, 32, 32, 64, 64]):
            packet = av.Packet(encode_image(ImageFile(smooth_frames(1, height, 48)[0]), ".jpg", "frame"))
            packet.pts = packet.dts = 100 * number
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 1000), True
            container.mux(packet)
    return "in.mkv", "out.mkv"


def a_folder_without_images(folder):
    (folder / "in").mkdir()
    (folder / "in" / "notes.txt").write_text("no image")
    return "in", "out"


def a_folder_of_videos(folder):
    (folder / "in").mkdir()
    video(folder / "in" / "a.mp4")
    return "in", "out"


def image_folder(folder, name, data):
    (folder / "in").mkdir()
    for number in range(3):
        write_image(folder / "in" / f"{number}.png", ImageFile(smooth_frames(1)[0]))
    (folder / "in" / name).write_bytes(data)
    return "in", "out"


def an_empty_image(folder):
    return image_folder(folder, "1.png", b"")


def a_cut_image(folder):
    return image_folder(folder, "1.png", encode_image(ImageFile(smooth_frames(1)[0]), ".png", "x")[:60])


def a_cut_photograph(folder):
    data = encode_image(ImageFile(smooth_frames(1)[0]), ".jpg", "x")
    return image_folder(folder, "1.jpg", data[: len(data) // 2])


def a_video_that_is_called_an_image(folder):
    return image_folder(folder, "1.png", video(folder / "a.mp4"))


def an_image_of_absurd_size(folder):
    header = struct.pack(">IIBBBBB", 2**30, 2**30, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(100)
    return image_folder(folder, "1.png", data)


def an_image_of_another_size(folder):
    return image_folder(folder, "1.png", encode_image(ImageFile(smooth_frames(1, 32, 50)[0]), ".png", "x"))


def output_is_input(folder):
    video(folder / "in.mp4")
    return "in.mp4", "in.mp4"


def output_where_no_folder_is(folder):
    video(folder / "in.mp4")
    return "in.mp4", "nowhere/out.mp4"


def output_in_a_file(folder):
    video(folder / "in.mp4")
    return "in.mp4", "in.mp4/out.mp4"


def output_of_no_known_kind(folder):
    video(folder / "in.mp4")
    return "in.mp4", "out.gif"


def output_folder_in_use(folder):
    (folder / "out").mkdir()
    (folder / "out" / "dear.png").write_bytes(b"old")
    return image_folder(folder, "2.png", encode_image(ImageFile(smooth_frames(1)[0]), ".png", "x"))


def a_start_after_the_end(folder):
    video(folder / "in.mp4")
    return "in.mp4", "out.mp4", "--start=1:00:00"


def a_time_that_is_none(folder):
    video(folder / "in.mp4")
    return "in.mp4", "out.mp4", "--end=soon"


def too_little_memory(folder):
    video(folder / "in.mp4")
    return "in.mp4", "out.mp4", "--memory=1M"


def memory_that_is_none(folder):
    video(folder / "in.mp4")
    return "in.mp4", "out.mp4", "--memory=much"


def two_of_one_name(folder):
    (folder / "other").mkdir()
    video(folder / "in.mp4")
    video(folder / "other" / "in.mp4")
    return "in.mp4", "other/in.mp4", "results"


CASES = [
    empty,
    text,
    noise,
    cut_before_its_header,
    cut_in_the_middle,
    header_alone,
    zeros_for_pictures,
    matroska_cut,
    sound_alone,
    a_link_to_itself,
    a_link_to_nothing,
    a_pipe,
    a_device,
    a_name_with_a_newline_that_is_not_there,
    a_name_with_a_newline_of_no_video,
    a_name_that_is_too_long,
    absurd_sizes,
    no_size,
    a_playlist,
    a_playlist_of_the_network,
    sizes_that_change,
    a_folder_without_images,
    a_folder_of_videos,
    an_empty_image,
    a_cut_image,
    a_cut_photograph,
    a_video_that_is_called_an_image,
    an_image_of_absurd_size,
    an_image_of_another_size,
    output_is_input,
    output_where_no_folder_is,
    output_in_a_file,
    output_of_no_known_kind,
    output_folder_in_use,
    a_start_after_the_end,
    a_time_that_is_none,
    too_little_memory,
    memory_that_is_none,
    two_of_one_name,
]


@pytest.fixture
def checkpoint(monkeypatch):
    stand_in = types.SimpleNamespace(load_model=lambda path, **options: (IdentityModel(), {}))
    monkeypatch.setitem(sys.modules, "jaxdeblur.checkpoint", stand_in)


def everything_in(folder):
    return sorted(os.path.join(place, name) for place, folders, files in os.walk(folder) for name in [*folders, *files])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_one_line_and_nothing_left(tmp_path, monkeypatch, capsys, checkpoint, case):
    names = case(tmp_path) or ("in.mp4", "out.mp4")
    paths, options = ([name for name in names if name.startswith("--") == which] for which in (False, True))
    before = everything_in(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = cli.main(["deblur", *paths, "--checkpoint=/", *options])
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("jaxdeblur: error:")]
    assert code in (1, 2)
    assert len(errors) == 1
    assert captured.err.splitlines()[-1] == errors[0]
    assert "Traceback (most" not in captured.err
    named = [*(" ".join(path.split()) for path in paths), *(option for option in options if option != "--strict")]
    assert any(name.split("=")[-1][:200] in errors[0] for name in named), errors[0]
    assert everything_in(tmp_path) == before


def test_a_full_disk(tmp_path, monkeypatch, capsys, checkpoint):
    """The kernel refuses to let files grow, as a full disk does."""
    video(tmp_path / "in.mp4")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        code = cli.main(["deblur", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), "--checkpoint=/"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert code == 1
    assert "out.mp4" in line
    assert "too large" in line
    assert os.listdir(tmp_path) == ["in.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("what", ["source", "folder"])
def test_what_may_not_be_read_or_written(tmp_path, capsys, checkpoint, what):
    video(tmp_path / "in.mp4")
    (tmp_path / "results").mkdir()
    (tmp_path / ("in.mp4" if what == "source" else "results")).chmod(0o000 if what == "source" else 0o500)
    code = cli.main(["deblur", str(tmp_path / "in.mp4"), str(tmp_path / "results" / "out.mp4"), "--checkpoint=/"])
    assert code == 2
    assert ("in.mp4" if what == "source" else "results") in capsys.readouterr().err.splitlines()[-1]
