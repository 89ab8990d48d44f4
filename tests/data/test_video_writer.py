"""video_writer: codecs, lossless files, segments, cuts, and what is copied beside the pictures."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from tiny_video import psnr_db, smooth_frames, sound_packets, time_stamps_s, write_video_file

from jaxdeblur.data.video_io import Cut, TimedFrame, VideoFormat, VideoReader
from jaxdeblur.data.video_writer import VideoWriter, choose_encoding, encoder_bytes, segment_frames, write_video


def frames_of(path):
    with VideoReader(path) as reader:
        return np.stack([frame.rgb for frame in reader])


def form_of(frames, **changes):
    bits = 8 if frames.dtype == np.uint8 else 10
    return VideoFormat(*frames.shape[1:3], Fraction(1, 25), Fraction(25), bits=bits, **changes)


def write(path, frames, form=None, **options):
    with write_video(path, form or form_of(frames), **options) as writer:
        for number, frame in enumerate(frames):
            writer.write(TimedFrame(frame, number, 1))


@pytest.mark.parametrize(
    ("name", "codec", "found", "dtype"),
    [
        ("a.mp4", None, "h264", np.uint8),
        ("a.mp4", None, "hevc", np.uint16),
        ("a.webm", None, "vp9", np.uint8),
        ("a.mov", "hevc", "hevc", np.uint8),
        ("a.mkv", "av1", "av1", np.uint16),
        ("a.mp4", "av1", "av1", np.uint8),
        ("a.mkv", "vp9", "vp9", np.uint8),
    ],
)
@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
def test_codecs(tmp_path, name, codec, found, dtype, size):
    frames = smooth_frames(12, *size, dtype)
    write(tmp_path / name, frames, codec=codec)
    with av.open(str(tmp_path / name)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec.canonical_name == found
    back = frames_of(tmp_path / name)
    assert back.dtype == dtype
    assert psnr_db(back, frames) >= 38
    assert time_stamps_s(tmp_path / name) == [Fraction(number, 25) for number in range(12)]


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.mkv", np.uint8), ("a.mkv", np.uint16), ("a.mp4", np.uint8), ("a.mov", np.uint8)]
)
def test_lossless_keeps_every_value(tmp_path, name, dtype):
    frames = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 33, 46, 3), dtype, endpoint=True)
    write(tmp_path / name, frames, lossless=True)
    np.testing.assert_array_equal(frames_of(tmp_path / name), frames)


def test_choices_that_cannot_be_kept_say_so():
    small, deep = form_of(np.zeros((1, 32, 48, 3), np.uint8)), form_of(np.zeros((1, 64, 64, 3), np.uint16))
    for path, form, options, message in (
        ("a.webm", small, {"codec": "h264"}, "holds vp9 or av1, not h264"),
        ("a.mov", small, {"codec": "av1"}, r"holds h264 or hevc, not av1; name the target \.mp4"),
        ("a.mp4", small, {"codec": "xvid"}, "codec is 'xvid'; expected one of h264"),
        ("a.mp4", small, {"codec": "hevc"}, "hevc holds no pictures of 48x32"),
        ("a.mp4", small, {"crf": 52}, r"expected 0 \(finest\) to 51 for h264"),
        ("a.mp4", deep, {"lossless": True}, r"no lossless video of 10 bits; name the target \.mkv"),
        ("a.mkv", small, {"lossless": True, "crf": 3}, "leaves nothing to choose"),
        ("a.gif", small, {}, "unknown video suffix"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_encoding(path, form, **options)
    assert choose_encoding("a.mp4", form_of(np.zeros((1, 32, 48, 3), np.uint16))).codec == "h264"


def test_eight_bits_are_said_where_ten_were(caplog):
    choose_encoding("a.webm", form_of(np.zeros((1, 64, 64, 3), np.uint16)))
    assert "vp9 holds 8 bits here" in caplog.text


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_both_ranges_hold_black_and_white(tmp_path, full, dtype):
    frames = np.zeros((2, 64, 96, 3), dtype)
    frames[:, :, 32:64] = np.iinfo(dtype).max // 2
    frames[:, :, 64:] = np.iinfo(dtype).max
    write(tmp_path / "a.mp4", frames, form_of(frames, color_range=2 if full else 1, colorspace=1), crf=0)
    with av.open(str(tmp_path / "a.mp4")) as container:
        shown = next(container.decode(video=0))
    assert shown.color_range == (2 if full else 1)
    planes = np.frombuffer(memoryview(shown.planes[0]), dtype).reshape(64, -1)[5, [5, 85]]
    scale = 1 if dtype == np.uint8 else 4
    expected = [0, 256 * scale - 1] if full else [16 * scale, 235 * scale]
    np.testing.assert_allclose(planes, expected, atol=scale)
    back = frames_of(tmp_path / "a.mp4")
    np.testing.assert_allclose(
        back[0, 5, [5, 48, 85]] / np.iinfo(dtype).max, frames[0, 5, [5, 48, 85]] / np.iinfo(dtype).max, atol=0.006
    )


def test_segments_are_one_video(tmp_path):
    """Reordered frames, variable rate; in segments of four and in one."""
    frames = smooth_frames(23)
    pts = [0, 3, 4, 9, 11, 12, 20, 21, 22, 30, 31, 50, 51, 52, 60, 61, 62, 63, 70, 80, 90, 99, 100]
    for name, length in (("parts", 4), ("whole", 240)):
        folder = tmp_path / name
        folder.mkdir()
        form = form_of(frames)
        writer = VideoWriter(tmp_path / "a.mp4", folder, form, choose_encoding("a.mp4", form), frames_a_segment=length)
        for stamp, frame in zip(pts, frames, strict=True):
            writer.write(TimedFrame(frame, stamp, 1))
        writer.assemble(tmp_path / f"{name}.mp4")
        assert len(os.listdir(folder)) == -(-23 // length)
    for name in ("parts.mp4", "whole.mp4"):
        assert time_stamps_s(tmp_path / name) == [Fraction(stamp, 25) for stamp in pts]
        assert psnr_db(frames_of(tmp_path / name), frames) >= 40


def test_segments_are_longer_for_smaller_frames():
    lengths = [
        segment_frames(VideoFormat(height, width, Fraction(1, 25), Fraction(25)))
        for height, width in ((32, 48), (720, 1280), (1080, 1920), (2160, 3840), (20_000, 20_000))
    ]
    assert lengths == [240, 60, 26, 8, 8] == sorted(lengths, reverse=True)


def test_encoders_memory_grows_with_size_and_depth():
    eight, ten = (form_of(np.zeros((1, 720, 1280, 3), dtype)) for dtype in (np.uint8, np.uint16))
    assert encoder_bytes(ten, choose_encoding("a.mp4", ten)) > 2 * encoder_bytes(eight, choose_encoding("a.mp4", eight))


def copy(source, target, cut=None, **options):
    with (
        VideoReader(source, cut) as reader,
        write_video(target, reader.format, streams_from=source, **options) as writer,
    ):
        for frame in reader:
            writer.write(frame)


def test_metadata_and_language_are_kept(tmp_path):
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    write_video_file(tmp_path / "plain.mp4", smooth_frames(4), audio_s=0.2)
    with av.open(str(tmp_path / "plain.mp4")) as plain, av.open(str(source), "w") as container:
        streams = [container.add_stream_from_template(stream) for stream in plain.streams]
        container.metadata.update({"title": "A day", "creation_time": "2020-01-02T03:04:05.000000Z"})
        streams[0].metadata["language"] = "deu"
        streams[1].metadata["title"] = "wind"
        for packet in plain.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
    for end in (target, tmp_path / "out.mp4"):
        copy(source, end)
        with av.open(str(end)) as container:
            assert container.metadata["title"] == "A day"
            assert container.streams.video[0].metadata["language"] == "deu"
    with av.open(str(target)) as container:
        assert container.streams.audio[0].metadata["title"] == "wind"
        assert container.metadata["creation_time"].startswith("2020-01-02T03:04:05")


def test_a_cover_picture_is_kept(tmp_path):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video_file(tmp_path / "plain.mp4", smooth_frames(4))
    from jaxdeblur.data.image_io import ImageFile, encode_image

    picture = encode_image(ImageFile(smooth_frames(1)[0]), ".png", "cover")
    with av.open(str(tmp_path / "plain.mp4")) as plain, av.open(str(source), "w") as container:
        video = container.add_stream_from_template(plain.streams.video[0])
        cover = container.add_mux_stream("png", width=48, height=32)
        cover.disposition = av.stream.Disposition.attached_pic
        packet = av.Packet(picture)
        packet.stream = cover
        packets = [packet for packet in plain.demux(video=0) if packet.size]
        for moving in packets:
            moving.stream = video
            container.mux(moving)
        container.mux(packet)
    with av.open(str(source)) as container:
        assert len(container.streams.video) == 2
    copy(source, target)
    with av.open(str(target)) as container:
        covers = [
            stream for stream in container.streams.video if stream.disposition & av.stream.Disposition.attached_pic
        ]
        assert len(covers) == 1
        (shown,) = [bytes(packet) for packet in container.demux(covers[0]) if packet.size]
    assert shown == picture
    assert len(frames_of(target)) == 4


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_an_edit_list_leaves_out_stay_out(tmp_path, suffix):
    """A file whose first frames lie before time 0, as cutting without encoding makes them."""
    source, target = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    write_video_file(
        source, smooth_frames(12), pts=[40 * number - 120 for number in range(12)], audio_s=0.4, options={"bf": "0"}
    )
    shown = time_stamps_s(source)
    copy(source, target)
    assert time_stamps_s(target) == shown
    np.testing.assert_allclose(frames_of(target).astype(int), frames_of(source), atol=12)


@pytest.mark.parametrize(("start_s", "end_s"), [(0.5, 1.2), (0.5, None), (0, 0.8), (0.51, 0.53)])
def test_a_cut_begins_at_zero_and_keeps_sound_in_step(tmp_path, start_s, end_s):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    frames = smooth_frames(50)
    write_video_file(source, frames, audio_s=2.0, options={"g": "10"})
    cut = Cut(Fraction(start_s), None if end_s is None else Fraction(end_s))
    with VideoReader(source, cut) as reader, write_video(target, reader.format, crf=4) as writer:
        pictures = list(reader)
        found = reader.cut
        for frame in pictures:
            writer.write(frame)
    wanted = [time for time in time_stamps_s(source) if time >= cut.start_s and (end_s is None or time < cut.end_s)]
    assert [frame.pts * reader.format.time_base for frame in pictures] == [time - wanted[0] for time in wanted]
    assert time_stamps_s(target) == [time - wanted[0] for time in wanted]
    assert found.start_s == wanted[0]
    first = round(wanted[0] * 25)
    assert psnr_db(frames_of(target), frames_of(source)[first : first + len(wanted)]) >= 38


@pytest.mark.parametrize(("name", "codec"), [("in.mp4", "libx264"), ("in.flv", "flv")])  # which cannot be searched
def test_a_cut_of_everything_else(tmp_path, name, codec):
    source, folder, target = tmp_path / name, tmp_path / "parts", tmp_path / "out.mp4"
    write_video_file(source, smooth_frames(50), codec=codec, audio_s=2.0)
    folder.mkdir()
    with VideoReader(source, Cut(Fraction(1, 2), Fraction(6, 5))) as reader:
        writer = VideoWriter(
            target, folder, reader.format, choose_encoding(target, reader.format), streams_from=source, cut=reader.cut
        )
        for frame in reader:
            writer.write(frame)
        cut = reader.cut
    writer.assemble(target)
    wanted = [(time - cut.start_s, data) for time, data in sound_packets(source) if cut.holds(time)]
    found = sound_packets(target)
    assert [data for _, data in found] == [data for _, data in wanted]
    assert max(abs(float(a - b)) for (a, _), (b, _) in zip(found, wanted, strict=True)) < 1e-4


def test_cuts_that_hold_nothing_say_so(tmp_path):
    source = tmp_path / "in.mp4"
    write_video_file(source, smooth_frames(25))
    with pytest.raises(ValueError, match=r"in\.mp4: the video stream has no frames from 7 s on; it is 1\.000 s long"):
        VideoReader(source, Cut(Fraction(7)))
    with pytest.raises(ValueError, match="expected 0 <= start < end"):
        Cut(Fraction(2), Fraction(1))
