"""video_io against videos made with PyAV alone: colour, time stamps, sound, rotation, sizes, errors."""

import contextlib
import os
import resource
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from tiny_video import (
    psnr_db,
    smooth_frames,
    sound_packets,
    time_stamps_s,
    write_sound_only,
    write_video_file,
)

from jaxdeblur.data.video_damage import RepairingDecoder
from jaxdeblur.data.video_io import Cut, TimedFrame, VideoFormat, VideoReader, to_rgb
from jaxdeblur.data.video_writer import write_video

LUMA_WEIGHTS = {"ITU601": (0.299, 0.114), "ITU709": (0.2126, 0.0722), "BT2020": (0.2627, 0.0593)}


def rgb_of_yuv(planes, matrix, full_range):
    """The definition: (3, H, W) 8-bit codes -> (H, W, 3) in [0, 255]."""
    red, blue = LUMA_WEIGHTS[matrix]
    y, u, v = planes.astype(np.float64)
    if full_range:
        y, u, v = y / 255, (u - 128) / 255, (v - 128) / 255
    else:
        y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    r = y + 2 * (1 - red) * v
    b = y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    return 255 * np.stack([r, g, b], -1).clip(0, 1)


def read_all(path):
    with VideoReader(path) as reader:
        frames = list(reader)
        return np.stack([frame.rgb for frame in frames]), [frame.pts * reader.format.time_base for frame in frames]


def copy_video(source, target, **options):
    """Every frame through reader and writer: what restoring with a perfect model does."""
    with VideoReader(source) as reader, write_video(target, reader.format, **options) as writer:
        for frame in reader:
            writer.write(frame)


@pytest.mark.parametrize(
    ("tag", "matrix", "size", "full_range"),
    [
        (1, "ITU709", (32, 48), False),
        (1, "ITU709", (32, 48), True),
        (5, "ITU601", (32, 48), False),
        (6, "ITU601", (736, 48), True),
        (9, "BT2020", (32, 48), False),
        (None, "ITU601", (32, 48), False),
        (None, "ITU709", (720, 48), False),
        (None, "ITU709", (32, 1280), False),
    ],
)
def test_reader_follows_matrix_and_range(tmp_path, tag, matrix, size, full_range):
    planes = np.broadcast_to(np.array([120, 100, 160], np.uint8)[:, None, None], (3, *size)).copy()
    planes[:, :, size[1] // 2 :] = np.array([90, 150, 115], np.uint8)[:, None, None]
    write_video_file(
        tmp_path / "a.mp4",
        planes[None],
        pix_fmt="yuv444p",
        matrix="none",
        tag=tag,
        full_range=full_range,
        crf=0,
    )
    frames, _ = read_all(tmp_path / "a.mp4")
    np.testing.assert_allclose(frames[0], rgb_of_yuv(planes, matrix, full_range), atol=1.5)


@pytest.mark.parametrize("full_range", [False, True])
def test_reader_follows_the_range_of_ten_bit_video(tmp_path, full_range):
    """Unlike 8-bit, 10-bit full range has no pixel format of its own: only the tag tells."""
    grey = np.array([600, 512, 512], np.uint16)
    planes = np.broadcast_to(grey[:, None, None], (3, 32, 48)).copy()
    write_video_file(
        tmp_path / "a.mp4",
        planes[None],
        pix_fmt="yuv444p10le",
        matrix="none",
        tag=1,
        full_range=full_range,
        crf=0,
    )
    frames, _ = read_all(tmp_path / "a.mp4")
    expected = 600 / 1023 if full_range else (600 - 64) / 876
    np.testing.assert_allclose(frames[0] / 65535, expected, atol=1e-4)


@pytest.mark.parametrize(("pix_fmt", "bits"), [("gray", 8), ("gray10le", 10)])
@pytest.mark.parametrize("full_range", [False, True])
def test_video_of_one_channel(tmp_path, pix_fmt, bits, full_range):
    code = 150 << (bits - 8)
    planes = np.full((2, 1, 32, 48), code, np.uint8 if bits == 8 else np.uint16)
    path = tmp_path / "a.mkv"
    write_video_file(path, planes, codec="ffv1", pix_fmt=pix_fmt, matrix="none", tag=1, full_range=full_range)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).format.name == pix_fmt
    frames, _ = read_all(path)
    expected = code / (2**bits - 1) if full_range else (150 - 16) / 219
    np.testing.assert_allclose(frames / np.iinfo(frames.dtype).max, expected, atol=0.003)


def test_white_and_grey_come_back_in_ten_bit(tmp_path):
    form = VideoFormat(32, 48, Fraction(1, 25), Fraction(25), bits=10)
    frame = np.full((32, 48, 3), 65535, np.uint16)
    frame[:, :24] = 30000
    with write_video(tmp_path / "a.mp4", form, crf=0) as writer:
        writer.write(TimedFrame(frame, 0))
    with av.open(str(tmp_path / "a.mp4")) as container:
        shown = next(container.decode(video=0))
    codes = np.frombuffer(memoryview(shown.planes[0]), np.uint16).reshape(32, -1)[5, [5, 40]]
    np.testing.assert_allclose(codes, [64 + 876 * 30000 / 65535, 940], atol=1)
    frames, _ = read_all(tmp_path / "a.mp4")
    np.testing.assert_allclose(frames[0, 5, [5, 40]] / 65535, [[30000 / 65535] * 3, [1] * 3], atol=1 / 876)


@pytest.mark.parametrize("matrix", ["ITU601", "ITU709", "BT2020"])
def test_writer_tags_what_it_converted_to(tmp_path, matrix):
    """Read back plane by plane, undone by the definition."""
    colour = np.array([200, 40, 90], np.uint8)
    tag = {"ITU601": 6, "ITU709": 1, "BT2020": 9}[matrix]
    form = VideoFormat(33, 47, Fraction(1, 25), Fraction(25), colorspace=tag, primaries=1, transfer=1)
    with write_video(tmp_path / "a.mp4", form, crf=0) as writer:
        writer.write(TimedFrame(np.broadcast_to(colour, (33, 47, 3)), 0))
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == "yuv444p"
    assert (frame.colorspace, frame.color_range) == (tag, 1)
    assert (frame.color_primaries, frame.color_trc) == (1, 1)
    np.testing.assert_allclose(rgb_of_yuv(frame.to_ndarray(), matrix, False)[5, 5], colour, atol=1.5)


@pytest.mark.parametrize(
    ("size", "count"), [((32, 48), 30), ((33, 47), 5), ((32, 47), 5), ((1, 1), 3), ((2, 2), 1), ((32, 48), 1)]
)
def test_round_trip_keeps_every_frame(tmp_path, size, count):
    frames = smooth_frames(count, *size)
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video_file(source, frames, pix_fmt="yuv444p", options={"bf": "3"})
    copy_video(source, target, crf=4)
    blurred, _ = read_all(source)
    copied, _ = read_all(target)
    assert copied.shape == frames.shape
    assert time_stamps_s(target) == time_stamps_s(source)
    if min(size) > 2:
        assert psnr_db(copied, blurred) >= 45
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_variable_frame_rate_keeps_its_time_stamps(tmp_path, suffix):
    pts = [0, 40, 95, 100, 300, 301, 500, 1500]
    source, target = tmp_path / "a.mp4", tmp_path / f"b{suffix}"
    write_video_file(source, smooth_frames(8), pts=pts)
    copy_video(source, target)
    assert time_stamps_s(target) == [Fraction(stamp, 1000) for stamp in pts]
    with VideoReader(target) as reader:
        assert len(list(reader)) == 8


def test_the_start_of_all_streams_becomes_zero_and_the_last_duration_stays(tmp_path):
    pts = [700, 740, 780]
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video_file(source, smooth_frames(3), pts=pts, last_duration=500, options={"bf": "0"})
    copy_video(source, target)
    assert time_stamps_s(target) == [Fraction(stamp - 700, 1000) for stamp in pts]
    lengths_s = []
    for path in (source, target):
        with av.open(str(path)) as container:
            lengths_s.append(container.duration / av.time_base)
    assert lengths_s[0] == lengths_s[1]
    assert lengths_s[1] >= 0.58


def test_sound_is_copied_packet_by_packet(tmp_path):
    """Longer than the video at the end, and through a container change."""
    source = tmp_path / "a.mp4"
    write_video_file(source, smooth_frames(20), audio_s=1.3)
    packets = sound_packets(source)
    assert len(packets) > 50
    for target in (tmp_path / "b.mp4", tmp_path / "b.mov"):
        copy_video(source, target, streams_from=source)
        assert sound_packets(target) == packets
        assert time_stamps_s(target) == time_stamps_s(source)


def test_sound_and_pictures_are_interleaved(tmp_path):
    """No packet lies more than two seconds of playing time behind one that stands before it in the file."""
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video_file(source, smooth_frames(300), rate=10, audio_s=30)
    copy_video(source, target, streams_from=source)
    with av.open(str(target)) as container:
        latest_s = -1.0
        for position, time_s in sorted(
            (packet.pos, float(packet.dts * packet.time_base)) for packet in container.demux() if packet.size
        ):
            assert position >= 0
            assert time_s > latest_s - 2
            latest_s = max(latest_s, time_s)


def test_subtitles_are_copied(tmp_path):
    source, target = tmp_path / "a.mkv", tmp_path / "b.mkv"
    write_video_file(tmp_path / "plain.mp4", smooth_frames(5))
    with av.open(str(source), "w") as container, av.open(str(tmp_path / "plain.mp4")) as plain:
        picture = container.add_stream_from_template(plain.streams.video[0])
        text = container.add_mux_stream("subrip", time_base=Fraction(1, 1000))
        for packet in plain.demux(video=0):
            if packet.dts is not None:
                packet.stream = picture
                container.mux(packet)
        line = av.Packet(b"a line of text")
        line.stream, line.pts, line.dts, line.duration, line.time_base = text, 40, 40, 80, Fraction(1, 1000)
        container.mux(line)
    copy_video(source, target, streams_from=source)
    with av.open(str(target)) as container:
        lines = [bytes(packet) for packet in container.demux(subtitles=0) if packet.size]
    assert lines == [b"a line of text"]


def write_with_extras(path, *, data=None, attachment=None, chapters=()):
    """A second of video with what else a container may hold."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=10)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        measurements = container.add_data_stream(data) if data else None
        if attachment:
            container.add_attachment("font.ttf", "application/x-truetype-font", attachment)
        container.set_chapters(list(chapters))
        for number, rgb in enumerate(smooth_frames(10)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:32, :32]), format="rgb24")
            frame.pts = number
            container.mux(picture.encode(frame))
            if measurements is not None:
                packet = av.Packet(bytes([number]) * 7)
                packet.pts = packet.dts = 100 * number
                packet.stream, packet.time_base = measurements, Fraction(1, 1000)
                container.mux(packet)
        container.mux(picture.encode(None))


def data_packets(path):
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams if stream.type == "data"]
        return [bytes(packet) for packet in container.demux(streams) if packet.size] if streams else []


CHAPTERS = [
    {"id": 1, "start": 0, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "before"}},
    {"id": 2, "start": 400, "end": 1000, "time_base": Fraction(1, 1000), "metadata": {"title": "after"}},
]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_chapters_are_kept(tmp_path, suffix):
    source, target = tmp_path / "a.mkv", tmp_path / f"b{suffix}"
    write_with_extras(source, chapters=CHAPTERS)
    copy_video(source, target, streams_from=source)
    with av.open(str(target)) as container:
        found = [
            (float(c["start"] * c["time_base"]), float(c["end"] * c["time_base"]), c["metadata"]["title"])
            for c in container.chapters()
        ]
    assert found == [(0.0, 0.4, "before"), (0.4, 1.0, "after")]


def test_a_cameras_measurements_are_copied(tmp_path):
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_with_extras(source, data="bin_data")
    assert len(data_packets(source)) >= 9
    copy_video(source, target, streams_from=source)
    assert data_packets(target) == data_packets(source)


def test_attached_files_are_kept(tmp_path):
    source, target = tmp_path / "a.mkv", tmp_path / "b.mkv"
    write_with_extras(source, attachment=b"a font")
    copy_video(source, target, streams_from=source)
    with av.open(str(target)) as container:
        (attached,) = [stream for stream in container.streams if stream.type == "attachment"]
        assert (attached.name, attached.mimetype, bytes(attached.data)) == (
            "font.ttf",
            "application/x-truetype-font",
            b"a font",
        )


@pytest.mark.parametrize(("extras", "suffix"), [({"data": "bin_data"}, ".mkv"), ({"attachment": b"a font"}, ".mp4")])
def test_what_a_container_cannot_hold_beside_is_said_and_left_out(tmp_path, caplog, extras, suffix):
    source = tmp_path / ("a.mp4" if "data" in extras else "a.mkv")
    write_with_extras(source, **extras)
    target = tmp_path / f"b{suffix}"
    copy_video(source, target, streams_from=source)
    assert f"b{suffix}: a {suffix} file cannot hold the {next(iter(extras))} stream 1 of" in caplog.text
    assert len(read_all(target)[0]) == 10


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotation_and_mirroring_are_applied(tmp_path, rotation, mirrored):
    """Four quadrants of different grey; rotation is counter-clockwise, the mirroring comes after it."""
    frame = np.zeros((32, 48, 3), np.uint8)
    frame[:16, :24], frame[:16, 24:], frame[16:, :24], frame[16:, 24:] = 30, 90, 150, 210
    write_video_file(tmp_path / "a.mp4", frame[None], rotation=rotation, mirrored=mirrored)
    expected = np.rot90(frame, rotation // 90)
    if mirrored:
        expected = expected[:, ::-1]
    frames, _ = read_all(tmp_path / "a.mp4")
    assert frames[0].shape == expected.shape
    inside = np.abs(frames[0].astype(int) - expected) < 8
    assert inside.mean() > 0.9
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert (reader.format.height, reader.format.width) == expected.shape[:2]
    copy_video(tmp_path / "a.mp4", tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container:
        upright = next(container.decode(video=0))
    assert upright.rotation == 0
    assert (upright.height, upright.width) == expected.shape[:2]


def test_ten_bit_stays_ten_bit(tmp_path):
    frames = smooth_frames(4, 32, 48, np.uint16)
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video_file(source, frames, pix_fmt="yuv420p10le", crf=2)
    blurred, _ = read_all(source)
    assert blurred.dtype == np.uint16
    # Finer than 8 bits can be: half an 8-bit step is 128.
    assert np.abs(blurred.astype(int) - frames).mean() < 128
    copy_video(source, target, crf=2)
    with av.open(str(target)) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p10le"
    assert psnr_db(read_all(target)[0], blurred) >= 48


def test_metadata_pixel_shape_and_rate_are_kept(tmp_path):
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    with av.open(str(source), "w") as container:
        container.metadata["title"] = "a title"
        stream = container.add_stream("libx264", rate=Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for frame in smooth_frames(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame).reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    copy_video(source, target, streams_from=source)
    with av.open(str(target)) as container:
        assert container.metadata["title"] == "a title"
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
    with VideoReader(source) as reader:
        assert reader.format.frame_count == 10


def test_a_reader_reads_once(tmp_path):
    write_video_file(tmp_path / "a.mp4", smooth_frames(2))
    with VideoReader(tmp_path / "a.mp4") as reader:
        list(reader)
        with pytest.raises(ValueError, match="reads its file once"):
            list(reader)


def test_missing_and_unreadable_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.mp4: no such file"):
        VideoReader(tmp_path / "none.mp4")
    with pytest.raises(IsADirectoryError, match="is a folder, not a video"):
        VideoReader(tmp_path)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_bytes(b"not a video at all" * 100)
    for name in ("empty.mp4", "text.mp4"):
        with pytest.raises(ValueError, match=f"{name}: not a video .*header is missing or damaged"):
            VideoReader(tmp_path / name)
    write_sound_only(tmp_path / "sound.m4a")
    with pytest.raises(ValueError, match=r"sound\.m4a: has no video stream, only audio"):
        VideoReader(tmp_path / "sound.m4a")


def test_pictures_of_a_kind_that_ffmpeg_does_not_know(tmp_path):
    path = tmp_path / "a.mp4"
    write_video_file(path, smooth_frames(2))
    content = path.read_bytes()
    at = content.index(b"stsd") + 16
    path.write_bytes(content[:at] + b"zzzz" + content[at + 4 :].replace(b"avcC", b"free"))
    with pytest.raises(ValueError, match=r"a\.mp4: FFmpeg has no decoder for this kind of video"):
        VideoReader(path)


def test_truncated_mp4_without_header(tmp_path):
    write_video_file(tmp_path / "a.mp4", smooth_frames(10))
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"a\.mp4: not a video .*header is missing"):
        VideoReader(tmp_path / "a.mp4")


@pytest.mark.parametrize("cut", ["middle", "packet", "last byte"])
def test_truncated_mp4_with_header_says_how_much_was_readable(tmp_path, cut):
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (20, 32, 48, 3), np.uint8)
    path = tmp_path / "a.mp4"
    write_video_file(path, frames, faststart=True)
    data = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.pos + packet.size) for packet in container.demux(video=0) if packet.size]
    length = {"middle": len(data) // 2, "packet": packets[11][1], "last byte": len(data) - 1}[cut]
    path.write_bytes(data[:length])
    whole = sum(end <= length for _, end in packets)
    with (
        VideoReader(path, strict=True) as reader,
        pytest.raises(ValueError, match=rf"a\.mp4: truncated .* {whole} of 20 frames were readable"),
    ):
        list(reader)

    def count(*, strict):
        total = 0
        with VideoReader(path, strict=strict) as reader, contextlib.suppress(ValueError):
            for _ in reader:
                total += 1
        return total

    assert count(strict=True) == count(strict=False) == whole
    assert 5 < whole < 20
    with VideoReader(path) as reader:
        list(reader)
    assert (reader.damage.read, reader.damage.repeated, reader.damage.lost) == (whole, 0, 20 - whole)


def test_refused_targets(tmp_path):
    source = tmp_path / "a.mp4"
    write_video_file(source, smooth_frames(2), audio_s=0.2)
    before = source.read_bytes()
    (tmp_path / "soft.mp4").symlink_to(source)
    os.link(source, tmp_path / "hard.mp4")
    for name in ("a.mp4", "soft.mp4", "hard.mp4"):
        with pytest.raises(ValueError, match=f"{name}: is the input itself"):
            copy_video(source, tmp_path / name, streams_from=source)
    with pytest.raises(ValueError, match=r"unknown video suffix '\.avi'; use one of \.mp4"):
        copy_video(source, tmp_path / "b.avi")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        copy_video(source, tmp_path / "nowhere" / "b.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        copy_video(source, tmp_path / "folder.mp4")
    with pytest.raises(ValueError, match="crf is 52; expected 0"):
        copy_video(source, tmp_path / "b.mp4", crf=52)
    assert source.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "folder.mp4", "hard.mp4", "soft.mp4"]


def test_frames_that_do_not_fit(tmp_path):
    form = VideoFormat(32, 48, Fraction(1, 25), Fraction(25))

    def write(*frames, pts=range(9)):
        with write_video(tmp_path / "a.mp4", form) as writer:
            for stamp, frame in zip(pts, frames):
                writer.write(TimedFrame(frame, stamp))

    good = np.zeros((32, 48, 3), np.uint8)
    with pytest.raises(ValueError, match=r"frame 1 is uint8 \(32, 47, 3\); expected uint8 \(32, 48, 3\)"):
        write(good, good[:, 1:])
    with pytest.raises(ValueError, match=r"frame 0 is uint16"):
        write(good.astype(np.uint16))
    with pytest.raises(ValueError, match="no frames were written"):
        write()
    with pytest.raises(ValueError, match="frame 1 has time stamp 3 after 3; time stamps must rise"):
        write(good, good, pts=[3, 3])
    with pytest.raises(ValueError, match="colorspace is 8; expected one of 2, 1"):
        VideoFormat(32, 48, Fraction(1, 25), Fraction(25), colorspace=8)
    with pytest.raises(ValueError, match="bits is 12"):
        VideoFormat(32, 48, Fraction(1, 25), Fraction(25), bits=12)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video_file(source, smooth_frames(3))
    target.write_bytes(b"old")

    def fail():
        with VideoReader(source) as reader, write_video(target, reader.format) as writer:
            for frame in reader:
                writer.write(frame)
                assert any(".partial-" in name for name in os.listdir(tmp_path))
            raise error

    with pytest.raises(error):
        fail()
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "b.mp4"]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("limit_bytes", [20_000, 130_000])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, limit_bytes):
    """The kernel refuses to let files grow: in the middle of encoding, or while the file is completed."""
    frames = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    form = VideoFormat(64, 64, Fraction(1, 25), Fraction(25))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write():
        with write_video(tmp_path / "a.mp4", form, crf=10) as writer:
            for index, frame in enumerate(frames):
                writer.write(TimedFrame(frame, index))

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, old[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert os.listdir(tmp_path) == []
    write()
    assert (tmp_path / "a.mp4").stat().st_size > limit_bytes


# --- Times that are not as they should be ---


def test_joined_recordings_go_on(tmp_path, caplog):
    """Two transport streams one after the other in one, as cameras and discs have them: times begin anew in between."""
    part, joined, target = tmp_path / "part.ts", tmp_path / "joined.ts", tmp_path / "out.mkv"
    write_video_file(part, smooth_frames(30), time_base=Fraction(1, 25), audio_s=1.2)
    joined.write_bytes(part.read_bytes() * 2)
    with VideoReader(joined) as reader, write_video(target, reader.format, streams_from=joined) as writer:
        found = list(reader)
        for frame in found:
            writer.write(frame)
    assert len(found) == 60
    times = np.array([float(frame.pts * reader.format.time_base) for frame in found])
    np.testing.assert_allclose(np.diff(times), 1 / 25, atol=1e-3)
    assert "times begin anew at frame 30" in caplog.text
    assert len(time_stamps_s(target)) == 60
    sound = sound_packets(target)
    assert len(sound) == len(sound_packets(joined))
    heard = np.array([float(time) for time, _ in sound])
    assert np.all(np.diff(heard) > 0)
    assert abs(heard[-1] - times[-1]) < 0.2


def test_a_cut_counts_from_where_the_file_begins(tmp_path):
    """Transport streams, for one, seldom begin at time 0."""
    source = tmp_path / "in.ts"
    write_video_file(source, smooth_frames(40), time_base=Fraction(1, 25), pts=range(50, 90))
    with av.open(str(source)) as container:
        assert container.start_time > 1.9 * av.time_base
    with VideoReader(source) as reader:
        whole = list(reader)
    with VideoReader(source, Cut(Fraction(2, 5), Fraction(6, 5))) as reader:
        part = list(reader)
    assert len(part) == 20
    assert part[0].pts == 0
    np.testing.assert_array_equal(part[0].rgb, whole[10].rgb)
    with VideoReader(source, Cut(end_s=Fraction(2, 5))) as reader:
        assert len(list(reader)) == 10
    with pytest.raises(ValueError, match="no frames from 3 s on"):
        VideoReader(source, Cut(Fraction(3)))


def test_a_second_stream_of_pictures_keeps_its_times(tmp_path):
    """Matroska tells no decoding times for the first packets of pictures that are reordered."""
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    with av.open(str(source), "w") as container:
        streams = [container.add_stream("libx264", rate=25, options={"bf": "3"}) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in smooth_frames(20):
            for stream in streams:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))

    def second(path):
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(container.streams.video[1]) if packet.size]
            return [(float(packet.pts * packet.time_base), bytes(packet)) for packet in packets]

    assert any(packet.dts is None for packet in av.open(str(source)).demux(video=1))
    with VideoReader(source) as reader, write_video(target, reader.format, streams_from=source) as writer:
        for frame in reader:
            writer.write(frame)
    assert second(target) == second(source)


def test_sound_that_ffmpeg_cannot_decode_is_left_out(tmp_path, caplog):
    """Of some phones FFmpeg knows the sound's format only by name, or not at all; PyAV cannot copy that."""
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video_file(source, smooth_frames(10), audio_s=0.4)
    content = source.read_bytes()
    assert content.count(b"mp4a") == 1
    source.write_bytes(content.replace(b"mp4a", b"zzzz").replace(b"esds", b"free"))
    with av.open(str(source)) as container:
        assert container.streams.audio[0].codec_context is None
    copy_video(source, target, streams_from=source)
    assert "cannot hold the audio stream 1 of" in caplog.text
    assert "unknown to FFmpeg), which is left out" in caplog.text
    assert len(read_all(target)[0]) == 10


def test_what_is_not_kept_of_colours_is_said(tmp_path, caplog):
    write_video_file(tmp_path / "a.mov", smooth_frames(2), codec="qtrle", pix_fmt="argb")
    read_all(tmp_path / "a.mov")
    assert "is transparent in parts" in caplog.text
    write_video_file(tmp_path / "b.mkv", smooth_frames(2, dtype=np.uint16), codec="ffv1", pix_fmt="yuv420p12le")
    read_all(tmp_path / "b.mkv")
    assert "has 12 bits, of which 10 are kept" in caplog.text


@pytest.mark.parametrize(("codec", "size"), [("h264", (16, 17_000)), ("av1", (2, 2))])
def test_sizes_that_no_encoder_takes_are_refused_at_once(tmp_path, codec, size):
    form = VideoFormat(*size, Fraction(1, 25), Fraction(25))
    with (
        pytest.raises(ValueError, match=rf"out\.mkv: {codec} cannot hold pictures of {size[1]}x{size[0]}.*--codec"),
        write_video(tmp_path / "out.mkv", form, codec=codec),
    ):
        pytest.fail("not refused")
    assert os.listdir(tmp_path) == []


# --- Pixels and tags of every kind ---


def every_pixel_format():
    """All that FFmpeg's converter can make of RGB: those a test can make."""
    rgb = av.VideoFrame.from_ndarray(np.zeros((2, 2, 3), np.uint8), format="rgb24")
    for name in sorted(av.video.format.names):
        try:
            yield name, rgb.reformat(format=name)
        except (av.FFmpegError, ValueError):
            continue


def test_every_kind_of_pixels_becomes_rgb():
    """Two colours, or their grey, black or white in kinds that have no colour."""
    rgb = np.zeros((32, 48, 3), np.uint8)
    rgb[:16], rgb[16:] = [200, 40, 90], [30, 180, 220]
    source = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    form = VideoFormat(32, 48, Fraction(1, 25), Fraction(25))
    names = [name for name, _ in every_pixel_format()]
    assert len(names) > 180
    for name in names:
        frame = source.reformat(format=name, dst_colorspace="ITU601")
        found = to_rgb(frame, form, VideoReformatter())
        largest = np.iinfo(found.dtype).max
        assert found.shape == (32, 48, 3), name
        colours = found[[5, 26], 20] / largest * 255
        if name.startswith("mono"):
            assert set(np.unique(found)) <= {0, 255}, name
        elif np.ptp(colours, axis=1).max() < 1:
            np.testing.assert_allclose(colours[:, 0], [94, 140], atol=12, err_msg=name)
        else:
            coarse = {"rgb8", "bgr8", "rgb4", "bgr4", "rgb4_byte", "bgr4_byte", "rgb444le", "rgb444be", "bgr444le"}
            np.testing.assert_allclose(colours, rgb[[5, 26], 20], atol=170 if name in coarse else 18, err_msg=name)


@pytest.mark.parametrize("name", ["rgb4", "bgr4"])
def test_pixels_that_ffmpegs_converter_cannot_read(name):
    frame = av.VideoFrame(4, 1, name)
    plane = frame.planes[0]
    plane.update(bytes([0b1000_0110, 0b0001_1111]) + bytes(plane.buffer_size - 2))
    expected = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]])
    found = to_rgb(frame, VideoFormat(1, 4, Fraction(1, 25), Fraction(25)), VideoReformatter())
    np.testing.assert_array_equal(found, expected if name == "rgb4" else expected[..., ::-1])


@pytest.mark.parametrize("name", ["colorspace", "color_primaries", "color_trc", "color_range"])
@pytest.mark.parametrize("value", [0, 3, 8, 14, 15, 17, 22, 200])
def test_tags_that_nothing_knows_are_no_matter(tmp_path, monkeypatch, name, value):
    """Whatever a decoder says of colours, the video is read and written."""
    source, target = tmp_path / "a.mkv", tmp_path / "b.mp4"
    write_video_file(source, smooth_frames(2))

    original = RepairingDecoder.__iter__

    def tagged(self):
        for shown in original(self):
            setattr(shown.frame, name, value)
            yield shown

    monkeypatch.setattr(RepairingDecoder, "__iter__", tagged)
    copy_video(source, target)
    assert len(time_stamps_s(target)) == 2
