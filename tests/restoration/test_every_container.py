"""What cameras, phones and programs write is restored to every container, with all that is beside the pictures, or the
loss is said before the work begins."""

import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from identity_model import IdentityModel
from tiny_video import smooth_frames, write_video_file
from video_summary import summary

from jaxdeblur.data.video_io import Cut, VideoReader
from jaxdeblur.restoration.files import deblur_video

CONTAINERS = (".mp4", ".mov", ".mkv")
RATE = 25


def restore(source, target, **options):
    frames = deblur_video(source, target, IdentityModel(), {}, **options)
    assert sorted(path.name for path in target.parent.iterdir() if path.name.startswith(".")) == []
    return frames


def write_with(
    path, *, count=10, sound=None, data=(), chapters=(), tags=(), stream_tags=(), codec="libx264", **options
):
    """A video of `count` frames with what else a container may hold.

    sound: (codec, rate, layout) of a tone that lasts as long. data: FFmpeg's names of codecs of streams of data.
    """
    with av.open(str(path), "w", **options) as container:
        picture = container.add_stream(codec, rate=RATE)
        picture.width, picture.height, picture.pix_fmt = 48, 32, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        picture.codec_context.time_base = Fraction(1, RATE)
        picture.metadata.update(dict(stream_tags))
        tone = None
        if sound is not None:
            tone = container.add_stream(sound[0], rate=sound[1])
            tone.layout = sound[2]
            if sound[0].startswith("wma"):
                tone.bit_rate = 64000
        measurements = [container.add_data_stream(name) for name in data]
        container.set_chapters(list(chapters))
        container.metadata.update(dict(tags))
        packets = []
        for number, rgb in enumerate(smooth_frames(count)):
            frame = av.VideoFrame.from_ndarray(rgb).reformat(format=picture.pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            packets += picture.encode(frame)
            for offset, stream in enumerate(measurements):
                packet = av.Packet(bytes([number, offset]) * 6)
                packet.pts = packet.dts = 40 * number
                packet.stream, packet.time_base = stream, Fraction(1, 1000)
                packets.append(packet)
        packets += picture.encode(None)
        if tone is not None:
            packets += tone_packets(tone, sound[1], sound[2], count / RATE)
        for packet in packets:
            container.mux(packet)


def tone_packets(stream, rate, layout, seconds):
    encoder = stream.codec_context
    encoder.open(strict=False)
    samples = 0.5 * np.sin(2 * np.pi * 440 / rate * np.arange(round(rate * seconds)))
    whole = av.AudioFrame.from_ndarray(
        np.repeat(samples[None], encoder.layout.nb_channels, 0).astype(np.float32), format="fltp", layout=layout
    )
    whole.sample_rate = rate
    resampler = av.AudioResampler(encoder.format.name, layout, rate, frame_size=encoder.frame_size or 1024)
    packets, position = [], 0
    for frame in [*resampler.resample(whole), *resampler.resample(None)]:
        if frame.samples >= encoder.frame_size:
            frame.pts, frame.time_base = position, Fraction(1, rate)
            position += frame.samples
            packets += stream.encode(frame)
    return packets + stream.encode(None)


def name_samples(path, old, *new):
    """Gives the kinds of samples in the tracks of an MP4 that have four letters others, one after the other."""
    content = path.read_bytes()
    begin = 0
    for name in new:
        while content[(at := content.index(b"stsd", begin) + 16) : at + 4] != old:
            begin = at
        content, begin = content[:at] + name + content[at + 4 :], at
    path.write_bytes(content)


# --- Data ---


def gopro(path):
    """Pictures, sound, a time code, GoPro's own "fdsc" and measurements."""
    write_with(path, sound=("aac", 48000, "stereo"), data=["bin_data"] * 3)
    name_samples(path, b"gpmd", b"tmcd", b"fdsc", b"gpmd")


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_an_action_camera(tmp_path, caplog, suffix):
    source, target = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    gopro(source)
    with av.open(str(source)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio", "data", "data", "data"]
    assert restore(source, target) == 10
    before, after = summary(source), summary(target)
    assert after["frames"] == before["frames"]
    assert after["sounds"][0][:2] == before["sounds"][0][:2]
    descriptors, measurements = before["data"][-2:]
    assert measurements[3] == bytes([3, 2]) * 6
    assert after["data"] == {".mp4": [measurements], ".mov": [descriptors, measurements], ".mkv": []}[suffix]
    (left_out,) = [line for line in caplog.messages if "the data stream" in line]
    assert left_out.count("the data stream") == {".mp4": 2, ".mov": 1, ".mkv": 3}[suffix]
    assert restore(target, tmp_path / "again.mp4") == 10


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("kind", [".mov", ".mp4"])
def test_a_time_code_is_kept(tmp_path, kind, suffix):
    source, target = tmp_path / f"in{kind}", tmp_path / f"out{suffix}"
    write_with(source, stream_tags={"timecode": "01:00:00:05"})
    with av.open(str(source)) as container:
        assert [stream.type for stream in container.streams] == ["video", "data"]
    assert restore(source, target) == 10
    assert summary(target)["pictures_tags"]["timecode"] == "01:00:00:05"
    assert summary(target)["frames"] == summary(source)["frames"]


def test_a_time_code_that_the_rate_does_not_allow_is_left_out(tmp_path):
    source, target = tmp_path / "in.mkv", tmp_path / "out.mp4"
    write_video_file(source, smooth_frames(4), pts=[0, 37, 91, 1000])
    with av.open(str(source)) as plain, av.open(str(tmp_path / "coded.mkv"), "w") as container:
        stream = container.add_stream_from_template(plain.streams.video[0])
        stream.metadata["timecode"] = "nonsense"
        for packet in plain.demux():
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    assert restore(tmp_path / "coded.mkv", target) == 4


# --- Chapters ---

CHAPTERS = [
    {"id": 1, "start": 0, "end": 160, "time_base": Fraction(1, 1000), "metadata": {"title": "before"}},
    {"id": 2, "start": 160, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "after"}},
]


@pytest.mark.parametrize(("kind", "suffix"), list(itertools.product(CONTAINERS, CONTAINERS)))
def test_chapters(tmp_path, caplog, kind, suffix):
    source, target, again = tmp_path / f"in{kind}", tmp_path / f"out{suffix}", tmp_path / f"again{kind}"
    write_with(source, sound=("aac", 48000, "stereo"), chapters=CHAPTERS, tags={"title": "T"})
    for before, after in ((source, target), (target, again)):
        assert restore(before, after) == 10
        assert summary(after)["chapters"] == [
            (0, Fraction(4, 25), "before"),
            (Fraction(4, 25), Fraction(2, 5), "after"),
        ]
        assert summary(after)["sounds"][0][:2] == summary(source)["sounds"][0][:2]
        assert summary(after)["tags"]["title"] == "T"
    assert "cannot hold" not in caplog.text


# --- Sound ---

SOUNDS = [
    (".wmv", ("wmav2", 44100, "stereo"), "wmv2"),
    (".avi", ("adpcm_ima_wav", 48000, "stereo"), "mjpeg"),
    (".avi", ("adpcm_ms", 22050, "mono"), "mpeg4"),
    (".avi", ("pcm_s16le", 44100, "stereo"), "mpeg4"),
    (".mov", ("libopencore_amrnb", 8000, "mono"), "mpeg4"),
    (".ts", ("mp2", 48000, "stereo"), "libx264"),
    (".flv", ("nellymoser", 44100, "mono"), "flv"),
    (".mkv", ("flac", 48000, "stereo"), "libx264"),
]


@pytest.mark.parametrize("suffix", [*CONTAINERS, ".webm"])
@pytest.mark.parametrize(
    ("kind", "sound", "codec"), SOUNDS, ids=lambda value: value[0] if isinstance(value, tuple) else ""
)
def test_every_sound_comes_along(tmp_path, caplog, kind, sound, codec, suffix):
    if sound[0] not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {sound[0]}")
    source, target = tmp_path / f"in{kind}", tmp_path / f"out{suffix}"
    write_with(source, sound=sound, codec=codec)
    assert restore(source, target) == 10
    before, after = summary(source), summary(target)
    np.testing.assert_allclose(
        np.diff(np.array(after["frames"], float)), np.diff(np.array(before["frames"], float)), atol=0.0011
    )
    (name, packets, first_s, last_s), (_, packets_before, _, last_before_s) = after["sounds"][0], before["sounds"][0]
    if "encoded anew" in caplog.text:
        assert name == ("opus" if suffix == ".webm" else "aac")
        assert abs(float(last_s - last_before_s)) < 0.15
    else:
        # MOV and MP4 divide sound that is not compressed as they like, which changes no byte of it.
        assert packets == packets_before
    assert abs(float(first_s - after["frames"][0])) < 0.06 + 1024 / sound[1]  # of the encoder's delay
    if suffix == ".mkv" and kind != ".flv":
        assert "cannot hold" not in caplog.text


def test_matroska_keeps_sound_that_it_has_no_name_for_under_any_file_name(tmp_path):
    source, target = tmp_path / "in.avi", tmp_path / "o'u[t] | a:b\\ c=%d.mkv"
    write_with(source, sound=("adpcm_ms", 22050, "mono"), codec="mpeg4", tags={"title": "It's [1:2]"})
    assert restore(source, target) == 10
    assert summary(target)["sounds"][0][:2] == summary(source)["sounds"][0][:2]
    assert summary(target)["tags"]["title"] == "It's [1:2]"


def test_gaps_in_sound_that_is_encoded_anew_stay(tmp_path):
    """Half a second, which becomes silence, and a minute, which stays a gap."""
    source, target = tmp_path / "in.mkv", tmp_path / "out.mov"
    with av.open(str(source), "w") as container:
        picture = container.add_stream("libx264", rate=1)
        picture.width, picture.height, picture.pix_fmt = 48, 32, "yuv420p"
        tone = container.add_stream("flac", rate=48000)
        tone.layout = "mono"
        for number, rgb in enumerate(smooth_frames(3)):
            frame = av.VideoFrame.from_ndarray(rgb).reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        packets = tone_packets(tone, 48000, "mono", 1.0)
        for number, packet in enumerate(packets):
            later = 0 if number < 4 else 24000 if number < 8 else 60 * 48000
            packet.pts, packet.dts = packet.pts + later, packet.pts + later
            packet.time_base = Fraction(1, 48000)
            container.mux(packet)
    restore(source, target)
    loud = []
    with av.open(str(target)) as container:
        for frame in container.decode(audio=0):
            if np.abs(frame.to_ndarray()).max() > 0.1:
                loud.append(float(frame.pts * frame.time_base))
    steps = np.diff(loud)
    assert sorted(np.round(steps[steps > 0.1], 1))[0] == pytest.approx(0.5, abs=0.06)
    assert sorted(np.round(steps[steps > 0.1], 1))[1] == pytest.approx(59.5, abs=0.2)


@pytest.mark.parametrize(
    ("kind", "sound", "codec"),
    [(".mkv", ("flac", 48000, "stereo"), "libx264"), (".wmv", ("wmav2", 44100, "stereo"), "wmv2")],
)
def test_damaged_sound_that_is_encoded_anew_is_counted(tmp_path, caplog, kind, sound, codec):
    plain, source, target = tmp_path / f"plain{kind}", tmp_path / f"in{kind}", tmp_path / "out.mov"
    write_with(plain, count=25, sound=sound, codec=codec)
    with av.open(str(plain)) as container:
        payloads = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    content = plain.read_bytes()
    for payload in payloads[3:8]:
        assert content.count(payload) == 1
        content = content.replace(payload, b"\xff" * len(payload))
    source.write_bytes(content)
    with pytest.raises(ValueError, match=r"sound that become silence: 5; leave out --strict to restore the rest"):
        restore(source, target, strict=True, progress=lambda *_: pytest.fail("a frame was restored"))
    assert not target.exists()
    assert restore(source, target) == 25
    said = "out.mov: damaged beside the pictures; packets of sound that become silence: 5"
    assert [line for line in caplog.messages if line.endswith(said)] != []
    caplog.clear()
    assert restore(plain, target, overwrite=True, strict=True) == 25
    assert restore(plain, target, overwrite=True, strict=True, cut=Cut(Fraction(2, 5))) >= 15
    assert "beside the pictures" not in caplog.text


# --- Subtitles ---


def write_subtitles(path, codec, payload):
    write_video_file(path.with_name("plain.mp4"), smooth_frames(10))
    with av.open(str(path), "w") as container, av.open(str(path.with_name("plain.mp4"))) as plain:
        picture = container.add_stream_from_template(plain.streams.video[0])
        text = container.add_mux_stream(codec, time_base=Fraction(1, 1000))
        text.metadata["language"] = "fra"
        for packet in plain.demux(video=0):
            if packet.size:
                packet.stream = picture
                container.mux(packet)
        line = av.Packet(payload)
        line.stream, line.pts, line.dts, line.duration, line.time_base = text, 40, 40, 80, Fraction(1, 1000)
        container.mux(line)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        ("subrip", b"<i>a line</i> of text"),
        ("webvtt", b"a line of text"),
        ("ass", b"0,0,Default,,0,0,0,,a {\\b1}line of text"),
    ],
)
def test_subtitles_come_along(tmp_path, suffix, codec, payload):
    source, target, again = tmp_path / "in.mkv", tmp_path / f"out{suffix}", tmp_path / "again.mkv"
    write_subtitles(source, codec, payload)
    for before, after in ((source, target), (target, again)):
        assert restore(before, after) == 10
        with av.open(str(after)) as container:
            (stream,) = container.streams.subtitles
            assert stream.metadata["language"] == "fra"
            lines = [
                (packet.pts * packet.time_base, line.dialogue)
                for packet in container.demux(stream)
                if packet.size
                for line in packet.decode()
            ]
        (spoken,) = [(time, text) for time, text in lines if text]
        assert spoken[0] == Fraction(1, 25)
        assert b"line" in spoken[1]
        assert b"of text" in spoken[1]


@pytest.mark.parametrize(("text", "kept"), [("x" * 65535, 65535), ("x" * 70000, 65535), ("ä" * 40000, 65534)])
def test_a_long_subtitle_is_cut_at_a_whole_character(tmp_path, caplog, text, kept):
    source = tmp_path / "in.mkv"
    write_subtitles(source, "subrip", text.encode())
    for suffix, most in ((".mp4", kept), (".mov", kept), (".webm", len(text.encode()))):
        caplog.clear()
        assert restore(source, tmp_path / f"out{suffix}", strict=True) == 10
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            line = next(bytes(packet) for packet in container.demux(subtitles=0) if packet.size > 2)
        assert line.removeprefix(most.to_bytes(2, "big") if suffix != ".webm" else b"") == text.encode()[:most]
        assert ("subtitles cut to 65535 bytes: 1" in caplog.text) == (most < len(text.encode()))


def test_subtitles_of_another_encoding_are_counted(tmp_path, caplog):
    source, target = tmp_path / "in.mkv", tmp_path / "out.mp4"
    write_subtitles(source, "subrip", "déjà vu".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"in\.mkv: damaged beside the pictures; subtitles left out: 1; leave out --strict"
    ):
        restore(source, target, strict=True)
    assert restore(source, target) == 10
    assert "out.mp4: damaged beside the pictures; subtitles left out: 1" in caplog.text
    assert restore(source, tmp_path / "out.mkv", strict=True) == 10


@pytest.mark.parametrize("codec", ["hdmv_pgs_subtitle", "dvb_subtitle"])
def test_pictures_for_subtitles_are_left_out_where_nothing_takes_them(tmp_path, caplog, codec):
    source = tmp_path / "in.mkv"
    write_subtitles(source, codec, b"\x16\x00\x0b\x00\x30\x00\x20\x10\x00\x01\x80\x00\x00\x00\x80\x00\x00")
    assert restore(source, tmp_path / "out.mkv") == 10
    assert "cannot hold" not in caplog.text
    for suffix in (".mp4", ".mov", ".webm"):
        caplog.clear()
        assert restore(source, tmp_path / f"out{suffix}") == 10
        assert f"cannot hold the subtitle stream 1 of {source} ({codec}), which is left out" in caplog.text
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            assert not container.streams.subtitles


# --- Metadata ---

PHONE = {
    "com.apple.quicktime.location.ISO6709": "+52.5200+013.4050+034.000/",
    "com.apple.quicktime.creationdate": "2024-05-06T07:08:09+0200",
    "com.apple.quicktime.make": "Apple",
    "com.android.version": "14",
    "location": "+52.5200+013.4050/",
    "creation_time": "2024-05-06T07:08:09.000000Z",
    "title": "A day",
}


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_phones_place_and_date_are_kept(tmp_path, caplog, suffix):
    source, target = tmp_path / "in.mov", tmp_path / f"out{suffix}"
    write_with(source, tags=PHONE, container_options={"movflags": "use_metadata_tags"})
    assert {name.lower() for name in PHONE} <= set(summary(source)["tags"])
    restore(source, target)
    tags = summary(target)["tags"]
    for name, value in PHONE.items():
        assert tags[name.lower()][:19] == value[:19]
    assert "are lost" not in caplog.text


def test_usual_tags_stay_where_players_of_mp4_look_for_them(tmp_path):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_with(source, tags={"title": "A day", "artist": "me"})
    restore(source, target)
    assert b"\xa9nam" in target.read_bytes()


def test_a_programs_name_and_alpha_do_not_stay(tmp_path, caplog):
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    write_with(
        source,
        stream_tags={"ALPHA_MODE": "1", "alpha_mode": "1", "ENCODER": "Lavc"},
        tags={"ENCODER": "x", "SOFTWARE": "y"},
    )
    restore(source, target)
    assert caplog.text.count("is transparent in parts") == 1
    found = summary(target)
    assert not {"alpha_mode", "encoder"} & set(found["pictures_tags"])
    assert found["tags"] == {"encoder": "Lavf"}  # of ours


@pytest.mark.parametrize(
    ("suffix", "codec"), [*itertools.product(CONTAINERS, ["hevc", "h264"]), (".mp4", "av1"), (".mkv", "av1")]
)
def test_hdr10_reaches_the_encoder(tmp_path, suffix, codec):
    source, target = tmp_path / "in.mkv", tmp_path / f"out{suffix}"
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    write_video_file(
        source,
        smooth_frames(3, 64, 64, np.uint16),
        codec="libx265",
        pix_fmt="yuv420p10le",
        options={"x265-params": f"log-level=none:master-display={display}:max-cll=1000,400"},
    )
    restore(source, target, codec=codec)
    before, after = summary(source)["side_data"], summary(target)["side_data"]
    assert after["CONTENT_LIGHT_LEVEL"] == before["CONTENT_LIGHT_LEVEL"] == struct.pack("=2I", 1000, 400)

    def numbers(side_data):
        values = np.frombuffer(side_data["MASTERING_DISPLAY_METADATA"], np.int32)[:20].reshape(10, 2)
        return values[:, 0] / values[:, 1]

    np.testing.assert_allclose(numbers(after), numbers(before), atol=2e-4 if codec == "av1" else 0)


def test_hdr10_that_cannot_be_told_is_said(tmp_path, caplog):
    source = tmp_path / "in.mkv"
    write_video_file(
        source,
        smooth_frames(3, 64, 64, np.uint16),
        codec="libx265",
        pix_fmt="yuv420p10le",
        options={"x265-params": "log-level=none:max-cll=1000,400"},
    )
    restore(source, tmp_path / "out.mkv", lossless=True)
    assert "cannot tell ffv1 of the display it was made on" in caplog.text


# --- Times ---


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("kind", [".ts", ".mkv", ".mov"])
def test_what_starts_late_starts_at_zero(tmp_path, kind, suffix):
    source, target = tmp_path / f"in{kind}", tmp_path / f"out{suffix}"
    with av.open(str(source), "w", container_options={"avoid_negative_ts": "disabled"}) as container:
        picture = container.add_stream("libx264", rate=RATE)
        picture.width, picture.height, picture.pix_fmt = 48, 32, "yuv420p"
        picture.codec_context.time_base = Fraction(1, 1000)
        tone = container.add_stream("mp3", rate=48000)
        tone.layout = "mono"
        packets = []
        for number, rgb in enumerate(smooth_frames(10)):
            frame = av.VideoFrame.from_ndarray(rgb).reformat(format="yuv420p")
            frame.pts, frame.time_base = 3_600_100 + 40 * number, Fraction(1, 1000)
            packets += picture.encode(frame)
        packets += picture.encode(None)
        for packet in tone_packets(tone, 48000, "mono", 0.4):
            packet.pts, packet.dts = packet.pts + 3600 * 48000, packet.dts + 3600 * 48000
            packets.append(packet)
        for packet in packets:
            container.mux(packet)
    restore(source, target)
    before, after = summary(source), summary(target)
    assert before["start_s"] > 3599
    assert abs(float(after["start_s"])) < 0.03
    offsets = [float(found["frames"][0] - found["sounds"][0][2]) for found in (before, after)]
    assert offsets[0] == pytest.approx(offsets[1], abs=0.0011)
    np.testing.assert_allclose(np.diff(np.array(after["frames"], float)), 0.04, atol=0.0011)
    assert after["sounds"][0][1] == before["sounds"][0][1]


# --- Side data and pixels ---


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_side_data_of_a_kind_that_pyav_does_not_know(tmp_path, suffix):
    """Motion JPEG with EXIF, which also turns the picture."""
    source, target = tmp_path / "in.avi", tmp_path / f"out{suffix}"
    tiff = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + bytes(4)
    segment = b"\xff\xe1" + struct.pack(">H", len(tiff) + 2) + tiff
    with av.open(str(source), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        for rgb in smooth_frames(3):
            for packet in stream.encode(av.VideoFrame.from_ndarray(rgb).reformat(format="yuvj420p")):
                data = bytes(packet)
                changed = av.Packet(data[:2] + segment + data[2:])
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                changed.stream = stream
                container.mux(changed)
        container.mux(stream.encode(None))
    assert restore(source, target) == 3
    with VideoReader(source) as reader:
        assert (reader.format.height, reader.format.width) == (48, 32)


BLACK_AND_WHITE = np.repeat(
    np.where(np.indices((2, 33, 47)).sum(0) // 8 % 2, 255, 0).astype(np.uint8)[..., None], 3, -1
)


@pytest.mark.parametrize("pixels", ["monow", "monob"])
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_pixels_of_one_bit(tmp_path, suffix, pixels):
    source, target = tmp_path / "in.nut", tmp_path / f"out{suffix}"
    write_video_file(source, BLACK_AND_WHITE, codec="rawvideo", pix_fmt=pixels)
    with av.open(str(source)) as container:
        assert next(container.decode(video=0)).format.name == pixels
    assert restore(source, target, crf=0) == 2
    with VideoReader(target) as reader:
        for frame, expected in zip(reader, BLACK_AND_WHITE, strict=True):
            np.testing.assert_allclose(frame.rgb.astype(int), expected, atol=2)
