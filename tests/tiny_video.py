"""Makes small videos with PyAV alone, so that nothing of the package takes part in its own tests."""

from fractions import Fraction

import av
import numpy as np


def smooth_frames(count, height=32, width=48, dtype=np.uint8):
    """Moving waves of colour, (T, H, W, 3): smooth, so that H.264 and 4:2:0 hardly change them."""
    t, y, x = np.mgrid[0:count, 0:height, 0:width]
    waves = [np.sin((x + 2 * t) / 17 + phase) * np.cos((y - t) / 19) for phase in (0.0, 0.4, 0.8)]
    largest = np.iinfo(dtype).max
    return np.rint((0.5 + 0.35 * np.stack(waves, -1)) * largest).astype(dtype)


def write_video_file(
    path,
    frames,
    *,
    codec="libx264",
    pts=None,
    time_base=Fraction(1, 1000),
    rate=25,
    pix_fmt="yuv420p",
    matrix=None,
    tag=None,
    full_range=False,
    crf=8,
    rotation=None,
    mirrored=False,
    audio_s=0.0,
    options=(),
    faststart=False,
    last_duration=None,
):
    """frames: (T, H, W, 3) RGB; or (T, P, H, W) if pix_fmt is 4:4:4 or grey and matrix "none": its planes.

    matrix: FFmpeg's name for the conversion; tag: the number written into the file, None for none.
    """
    container_options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", container_options=container_options) as container:
        stream = container.add_stream(codec, rate=rate)
        height, width = frames.shape[2:] if matrix == "none" else frames.shape[1:3]
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = time_base
        stream.codec_context.options = {"crf": str(crf), **dict(options)}
        if tag is not None:
            stream.codec_context.colorspace = tag
            stream.codec_context.color_range = 2 if full_range else 1
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=mirrored)
        sound = _add_sound(container, audio_s) if audio_s else None
        step = Fraction(1, rate) / time_base
        for index, frame in enumerate(frames):
            if matrix == "none":
                picture = av.VideoFrame(width, height, pix_fmt)
                for plane, samples in zip(picture.planes, frame, strict=True):
                    rows = np.zeros((height, plane.line_size // frame.itemsize), frame.dtype)
                    rows[:, :width] = samples
                    plane.update(rows.tobytes())
            else:
                if frame.dtype == np.uint16:  # FFmpeg's 16-bit white is 255 * 256
                    frame = np.rint(frame * (65280 / 65535)).astype(np.uint16)
                picture = av.VideoFrame.from_ndarray(frame, "rgb24" if frame.dtype == np.uint8 else "rgb48le")
                picture = picture.reformat(
                    format=pix_fmt,
                    src_color_range="JPEG",
                    dst_colorspace=matrix or "ITU601",
                    dst_color_range="JPEG" if full_range else "MPEG",
                )
            picture.pts = int(index * step) if pts is None else pts[index]
            picture.time_base = time_base
            container.mux(stream.encode(picture))
        for packet in stream.encode(None):
            if last_duration is not None and packet.pts == picture.pts:
                packet.duration = last_duration
            container.mux(packet)
        if sound is not None:
            container.mux(sound)


def _add_sound(container, seconds):
    """A 440 Hz tone; returns the encoded packets, to be muxed after the video."""
    stream = container.add_stream("aac", rate=48000)
    count = round(seconds * 48000)
    packets = []
    for start in range(0, count, 1024):
        tone = np.sin(2 * np.pi * 440 / 48000 * np.arange(start, start + 1024)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 48000, start
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def write_sound_only(path):
    with av.open(str(path), "w") as container:
        container.mux(_add_sound(container, 0.2))


def sound_packets(path):
    """(time in seconds, bytes) of every packet of the first sound stream."""
    with av.open(str(path)) as container:
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(container.streams.audio[0])
            if packet.size
        ]


def time_stamps_s(path):
    """Exact times of all frames in seconds, as FFmpeg's decoder gives them."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def psnr_db(a, b):
    peak = np.iinfo(a.dtype).max
    error = a.astype(np.float64) - b.astype(np.float64)
    return 10 * np.log10(peak**2 / np.mean(error**2))


def first_frame(path):
    """The first frame, RGB, as FFmpeg converts it."""
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")
