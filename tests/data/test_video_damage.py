"""Damaged videos: what cannot be read repeats its neighbour at its own time, and the counts are true."""

from fractions import Fraction

import av
import numpy as np
import pytest
from tiny_video import smooth_frames, time_stamps_s, write_video_file

from jaxdeblur.data.video_io import Cut, VideoReader

COUNT = 20


WITH_GAPS = [0, 1, 2, 5, 6, 7, 9, 10, 11, 12, 13, 14, 18, 19, 20, 21, 22, 23, 24, 27]
"""Times of a recording that skipped pictures."""


def noisy_frames(count=COUNT):
    """So that every picture has something in its packet."""
    noise = np.random.default_rng(0).integers(-20, 21, (count, 64, 96, 3))
    return np.clip(smooth_frames(count, 64, 96).astype(int) + noise, 0, 255).astype(np.uint8)


def packets_of(path):
    """(begin, end in the file, time in seconds) of the packets of pictures, in the order of decoding."""
    with av.open(str(path)) as container:
        return [
            (packet.pos, packet.pos + packet.size, packet.pts * packet.time_base)
            for packet in container.demux(video=0)
            if packet.size
        ]


def spoil(path, numbers, fill=b"\0"):
    """Overwrites packets, all but the first bytes of a Matroska block's header. Returns their times."""
    content = bytearray(path.read_bytes())
    packets = packets_of(path)
    with av.open(str(path)) as container:
        payloads = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for number in numbers:
        begin = content.index(payloads[number])
        content[begin : begin + len(payloads[number])] = fill * len(payloads[number])
    path.write_bytes(bytes(content))
    return [packets[number][2] for number in numbers]


def read(path, **options):
    with VideoReader(path, **options) as reader:
        frames = [(frame.pts * reader.format.time_base, frame.rgb) for frame in reader]
        return frames, reader.damage


KINDS = [
    ("a.mp4", {"options": {"bf": "0", "g": "10"}}),
    ("a.mp4", {"options": {"bf": "3", "g": "10"}}),
    ("a.mov", {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=10"}}),
    ("a.mkv", {"options": {"bf": "2", "g": "10"}}),
    ("a.mkv", {"codec": "libvpx-vp9", "options": {"g": "10"}}),
    ("a.mkv", {"codec": "libvpx", "options": {"g": "10", "auto-alt-ref": "1", "lag-in-frames": "10"}}),
    ("a.mkv", {"codec": "libsvtav1", "options": {"preset": "10", "svtav1-params": "lp=1"}}),
    ("a.avi", {"codec": "mpeg4", "options": {"g": "10"}}),
    ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    ("a.mov", {"codec": "prores", "pix_fmt": "yuv422p10le"}),
    ("a.mkv", {"codec": "ffv1", "options": {"level": "3", "slicecrc": "1"}}),
    ("a.mov", {"codec": "png", "pix_fmt": "rgb24"}),
]


@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
@pytest.mark.parametrize("numbers", [[7], [10], [5, 6, 7], [COUNT - 1]])
@pytest.mark.parametrize(
    ("name", "options"), KINDS, ids=lambda value: value.get("codec", "h264") if isinstance(value, dict) else value
)
def test_damaged_packets_repeat_their_neighbour(tmp_path, caplog, monkeypatch, name, options, numbers, fill):
    monkeypatch.setenv("SVT_LOG", "1")
    if (options.get("codec"), fill) == ("ffv1", b"\0"):
        pytest.skip("to FFV1, which has a checksum of zero for it, this is a picture")
    path = tmp_path / name
    write_video_file(path, noisy_frames(), time_base=Fraction(1, 25), **options)
    times = time_stamps_s(path)
    bad = spoil(path, numbers, fill)
    frames, damage = read(path)
    assert [time for time, _ in frames] == times
    assert damage.read + damage.repeated == COUNT
    assert damage.repeated >= len(numbers)
    assert damage.lost == 0
    shown = dict(frames)
    for time in bad if options.get("codec") != "libsvtav1" else []:  # whose pictures lie in one another's packets
        earlier = times[max(times.index(time) - 1, 0)]
        np.testing.assert_array_equal(shown[time], shown[earlier])
    (line,) = [line for line in caplog.messages if "damaged video" in line]
    assert f"{damage.read} of" in line or f"{damage.read} frames" in line
    assert f"repeated from a neighbour: {damage.repeated}" in line
    with pytest.raises(ValueError, match=rf"{name}: truncated or damaged video: \d+ .*frames were readable, then"):
        read(path, strict=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [KINDS[0], KINDS[1], KINDS[4], KINDS[8], KINDS[9]],
    ids=["h264", "h264-b", "vp9", "mjpeg", "prores"],
)
def test_a_damaged_first_packet(tmp_path, name, options):
    path = tmp_path / name
    write_video_file(path, noisy_frames(), time_base=Fraction(1, 25), **options)
    times = time_stamps_s(path)
    spoil(path, [0])
    frames, damage = read(path)
    assert [time for time, _ in frames] == times
    assert damage.read + damage.repeated == COUNT
    first_good = damage.repeated
    np.testing.assert_array_equal(frames[0][1], frames[first_good][1])


def test_a_video_without_one_good_picture(tmp_path):
    path = tmp_path / "a.mp4"
    write_video_file(path, noisy_frames(3))
    spoil(path, range(3))
    with pytest.raises(ValueError, match=r"a\.mp4: truncated or damaged video .*: 0 of 3 frames were readable"):
        VideoReader(path)


def test_pictures_that_are_damaged_in_parts_are_counted(tmp_path, caplog):
    path = tmp_path / "a.avi"
    write_video_file(path, noisy_frames(), time_base=Fraction(1, 25), codec="mpeg4", options={"g": "1"})
    with av.open(str(path)) as container:
        payload = [bytes(packet) for packet in container.demux(video=0) if packet.size][7]
    half = len(payload) // 2
    path.write_bytes(path.read_bytes().replace(payload, payload[:half] + bytes(len(payload) - half)))
    frames, damage = read(path)
    assert (len(frames), damage.read, damage.repeated, damage.concealed) == (COUNT, COUNT, 0, 1)
    assert "damaged in parts: 1" in caplog.text
    with pytest.raises(ValueError, match="damaged in parts"):
        read(path, strict=True)


def test_damage_outside_a_cut_is_no_matter(tmp_path, caplog):
    path = tmp_path / "a.mp4"
    write_video_file(path, noisy_frames(), time_base=Fraction(1, 25), options={"bf": "0", "g": "10"})
    spoil(path, [15])
    frames, damage = read(path, cut=Cut(Fraction(0), Fraction(2, 5)))
    assert (len(frames), damage.read, damage.repeated, damage.lost) == (10, 10, 0, 0)
    frames, damage = read(path, cut=Cut(Fraction(12, 25), Fraction(18, 25)))
    assert (len(frames), damage.read, damage.repeated) == (6, 5, 1)
    assert caplog.text.count("damaged video") == 1


# --- Files that end too early ---


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"faststart": True}),
        ("a.mp4", {"faststart": True, "options": {"bf": "3"}}),
        ("a.mkv", {}),
        ("a.mkv", {"options": {"bf": "3"}}),
        ("a.avi", {"codec": "mpeg4"}),
    ],
)
def test_a_video_that_is_cut_short_gives_what_is_there(tmp_path, caplog, name, options):
    path = tmp_path / name
    write_video_file(path, noisy_frames(), time_base=Fraction(1, 25), **options)
    packets = packets_of(path)
    times = time_stamps_s(path)
    end = packets[12][0] + (packets[12][1] - packets[12][0]) // 2
    path.write_bytes(path.read_bytes()[:end])
    frames, damage = read(path)
    assert len(frames) == damage.read == 12
    assert {time for time, _ in frames} <= set(times)
    # Matroska does not say how many pictures there were.
    assert (damage.repeated, damage.lost) == (0, 0 if name == "a.mkv" else COUNT - 12)
    (line,) = [line for line in caplog.messages if "damaged video" in line]
    assert "the file is cut short" in line
    assert ("lost: 8" in line) == (name != "a.mkv")
    with pytest.raises(ValueError, match=r"truncated or damaged video: 12 .*frames were readable, then"):
        read(path, strict=True)


def test_whole_videos_have_no_damage(tmp_path):
    for name, options in [
        *KINDS,
        ("a.ts", {"audio_s": 0.8}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.mp4", {"audio_s": 2}),
        ("a.avi", {"codec": "mpeg4", "pts": WITH_GAPS}),
        ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "audio_s": 1, "pts": WITH_GAPS}),
        ("a.avi", {"options": {"bf": "2"}, "pts": WITH_GAPS}),
        ("a.mkv", {"pts": WITH_GAPS}),
        ("a.mp4", {"pts": WITH_GAPS}),
    ]:
        path = tmp_path / name
        write_video_file(path, noisy_frames(), time_base=Fraction(1, 25), **options)
        frames, damage = read(path, strict=True)
        assert (len(frames), damage.read, bool(damage)) == (COUNT, COUNT, False)


@pytest.mark.parametrize("options", [{"codec": "mpeg4"}, {"options": {"bf": "2"}}], ids=["mpeg4", "h264"])
def test_a_cut_avi_with_gaps_tells_no_number(tmp_path, caplog, options):
    path = tmp_path / "a.avi"
    write_video_file(path, noisy_frames(), time_base=Fraction(1, 25), pts=WITH_GAPS, **options)
    content, packets = path.read_bytes(), packets_of(path)
    path.write_bytes(content[:-30])  # of the index, behind all pictures
    assert bool(read(path, strict=True)[1]) is False
    path.write_bytes(content[: packets[12][0] + 4])
    frames, damage = read(path)
    assert (len(frames), damage.read, damage.lost, damage.is_cut) == (12, 12, 0, True)
    assert "(the file is cut short): 12 frames were readable" in caplog.messages[-1]
    with pytest.raises(ValueError, match="12 frames were readable, then the file is cut short"):
        read(path, strict=True)


def test_a_packet_that_an_avi_lists_is_missed(tmp_path):
    path = tmp_path / "a.avi"
    write_video_file(path, noisy_frames(), codec="mjpeg", pix_fmt="yuvj420p", time_base=Fraction(1, 25))
    begin = packets_of(path)[7][0] - 8
    content = path.read_bytes()
    path.write_bytes(content[:begin] + bytes(8) + content[begin + 8 :])
    frames, damage = read(path)
    assert (len(frames), damage.read, damage.repeated, damage.lost) == (COUNT - 1, COUNT - 1, 0, 1)


@pytest.mark.parametrize("sound_s", [0, 2])
def test_a_matroska_file_without_its_end_has_lost_no_picture(tmp_path, caplog, sound_s):
    path = tmp_path / "a.mkv"
    write_video_file(path, noisy_frames(), time_base=Fraction(1, 25), audio_s=sound_s)
    path.write_bytes(path.read_bytes()[:-10])
    frames, damage = read(path)
    assert (len(frames), damage.read, damage.repeated, damage.lost) == (COUNT, COUNT, 0, 0)
    assert bool(damage)
    assert caplog.messages[-1].endswith("(the file is cut short): 20 frames were readable")
    with pytest.raises(ValueError, match="20 frames were readable, then the file is cut short"):
        read(path, strict=True)


@pytest.mark.parametrize("bad", [3, 20, 38])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mkv", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("a.mkv", {"options": {"bf": "0", "g": "10"}}),
        ("a.mkv", {"options": {"bf": "2", "g": "10"}}),
        ("a.mp4", {"options": {"bf": "2", "g": "10"}}),
        ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("a.flv", {"codec": "flv"}),
    ],
    ids=["mjpeg", "h264", "h264-b", "mp4", "avi", "flv"],
)
def test_gaps_of_a_variable_rate_are_no_lost_pictures(tmp_path, name, options, bad):
    path = tmp_path / name
    steps = np.random.default_rng(1).choice([1, 1, 1, 2], 40)
    pts = (np.cumsum(steps) - steps[0]).tolist()
    write_video_file(path, noisy_frames(40), time_base=Fraction(1, 25), pts=pts, **options)
    times = time_stamps_s(path)
    spoil(path, [bad])
    frames, damage = read(path)
    assert [time for time, _ in frames] == times
    assert (damage.read + damage.repeated, damage.lost) == (40, 0)
    assert damage.repeated >= 1


@pytest.mark.parametrize("first", [40, 200])
def test_a_transport_stream_with_a_gap(tmp_path, first):
    """Packets of 188 bytes are missing in the middle, as of a bad reception."""
    path = tmp_path / "a.ts"
    write_video_file(path, noisy_frames(60), time_base=Fraction(1, 25), audio_s=2.4, options={"g": "10"})
    content = path.read_bytes()
    path.write_bytes(content[: 188 * first] + content[188 * (first + 30) :])
    frames, damage = read(path)
    times = [time for time, _ in frames]
    assert 40 <= len(frames) < 60
    assert times == sorted(set(times))
    assert all((time - times[0]) % Fraction(1, 25) == 0 for time in times)
    assert damage.read + damage.repeated == len(frames)
    assert bool(damage)
    assert len(frames) + damage.lost == 60
