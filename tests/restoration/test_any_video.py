"""Whatever a video is, restoring it with a model that changes nothing gives the same video back."""

import itertools
import tempfile
from pathlib import Path

import av
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from identity_model import IdentityModel
from tiny_video import psnr_db, smooth_frames, sound_packets, time_stamps_s, write_video_file

from jaxdeblur.data.video_io import VideoReader
from jaxdeblur.restoration.files import deblur_video

MATRIX_OF_TAG = {None: None, 1: "ITU709", 5: "ITU601", 6: "ITU601", 9: "BT2020"}


def what_a_video_is(path):
    """Matrix; primaries, transfer and range; bits."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        matrix, *rest = (int(getattr(frame, name)) for name in ("colorspace", "color_primaries", "color_trc"))
        # A range that is not named is the limited one; some encoders name it always.
        return matrix, [*rest, max(1, int(frame.color_range))], frame.format.components[0].bits


def frames_of(path):
    with VideoReader(path) as reader:
        return np.stack([frame.rgb for frame in reader])


@st.composite
def videos(draw):
    """Arguments of write_video_file, and the suffixes of the video and of what is made of it."""
    chroma, bits = draw(st.sampled_from(["420", "422", "444"])), draw(st.sampled_from([8, 8, 10]))
    height, width = draw(
        st.sampled_from([(1, 1), (2, 6), (33, 47), (406, 722), (90, 160)]) | st.tuples(*[st.integers(1, 120)] * 2)
    )
    if chroma != "444":
        width += width % 2
    if chroma == "420":
        height += height % 2
    count = draw(st.integers(1, 50 if height * width < 20_000 else 4))
    tag = draw(st.sampled_from(list(MATRIX_OF_TAG)))
    gaps_ms = draw(st.none() | st.lists(st.sampled_from([1, 20, 40, 45, 500]), min_size=count, max_size=count))
    first_ms = draw(st.sampled_from([0, 0, 700]))
    return {
        "size": (height, width),
        "count": count,
        "audio_s": draw(st.sampled_from([0.0, 0.3, 1.5])),
        "pix_fmt": f"yuv{chroma}p" + ("10le" if bits == 10 else ""),
        "matrix": MATRIX_OF_TAG[tag],
        "tag": tag,
        "full_range": tag is not None and draw(st.booleans()),
        "pts": None if gaps_ms is None else [first_ms + t for t in itertools.accumulate(gaps_ms)],
        "rotation": draw(st.sampled_from([None, None, 90, 180, -90])),
        "mirrored": draw(st.booleans()),
        "suffixes": draw(st.tuples(*[st.sampled_from([".mp4", ".mov", ".mkv"])] * 2)),
    }


def of_kind(**changes):
    plain = {
        "size": (32, 48),
        "count": 5,
        "audio_s": 0.3,
        "pix_fmt": "yuv420p",
        "matrix": None,
        "tag": None,
        "full_range": False,
        "pts": None,
        "rotation": None,
        "mirrored": False,
        "suffixes": (".mp4", ".mp4"),
    }
    return {**plain, **changes}


@settings(max_examples=25, deadline=None)
@given(videos())
@example(of_kind(size=(1, 1), pix_fmt="yuv444p", count=1))
@example(of_kind(size=(406, 722), count=3))
@example(of_kind(count=50, pts=[3 * t * t + 40 for t in range(50)]))
@example(of_kind(tag=9, matrix="BT2020", pix_fmt="yuv420p10le", size=(90, 160)))
@example(of_kind(tag=1, matrix="ITU709", full_range=True, pix_fmt="yuv422p"))
@example(of_kind(size=(600, 1000), rotation=90, count=2))
def test_nothing_is_lost(video):
    with tempfile.TemporaryDirectory() as folder:
        source, target = (
            Path(folder) / f"{name}{suffix}" for name, suffix in zip(("in", "out"), video["suffixes"], strict=True)
        )
        deep = video["pix_fmt"].endswith("10le")
        frames = smooth_frames(video["count"], *video["size"], np.uint16 if deep else np.uint8)
        of_file = {name: value for name, value in video.items() if name not in ("size", "count", "suffixes")}
        write_video_file(source, frames, crf=4, **of_file)
        assert deblur_video(source, target, IdentityModel(), {}, crf=4) == video["count"]

        times = time_stamps_s(source)
        begin = 0 if video["audio_s"] else times[0]  # sound begins at 0; what begins later begins there, too
        assert time_stamps_s(target) == [time - begin for time in times]
        (matrix, *others), (matrix_after, *others_after) = what_a_video_is(source), what_a_video_is(target)
        assert others_after == others
        # Turned upright, a size may tell another matrix, which is then named.
        assert matrix_after == matrix or (matrix == 2 and video["rotation"] in (90, -90) and max(video["size"]) >= 720)
        if video["audio_s"]:
            times_s, packets = zip(*sound_packets(source), strict=True)
            times_after_s, packets_after = zip(*sound_packets(target), strict=True)
            assert packets_after == packets
            # Matroska counts in milliseconds.
            assert np.allclose(np.array(times_s, float), np.array(times_after_s, float), rtol=0, atol=0.0011)
            if ".mkv" not in video["suffixes"]:
                assert times_after_s == times_s
        before, after = frames_of(source), frames_of(target)
        assert after.shape == before.shape
        assert np.array_equal(after, before) or psnr_db(after, before) >= 45
