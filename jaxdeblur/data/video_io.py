"""Video files in and out, one frame at a time, through FFmpeg (PyAV).

Reading gives upright gamma-encoded RGB: YUV is converted by the matrix and range its file names (untagged:
BT.709 from 720 rows or 1280 columns on, BT.601 below), rotation and mirroring in the file's metadata are
applied, 8-bit video gives uint8 and deeper video uint16. Interlaced frames come as stored, both fields in
one. Writing gives H.264 with the same matrix in limited range, both tagged, the source's own time stamps, its
sound, subtitles and data packet by packet, its chapters and attached files.

4:2:0 halves the resolution of colour: compute metrics on frames, never on files written here.
"""

import contextlib
import dataclasses
import io
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from absl import logging
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Colorspace, VideoReformatter

from jaxdeblur.data.image_io import ACCURATE, StrPath, replacing

CRF = 16
"""x264's constant quality: 0 is lossless, 16 hard to tell from the source, 51 the worst."""

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
"""What is written; anything FFmpeg knows is read."""

OTHER_VIDEO_SUFFIXES = (".avi", ".webm", ".ts", ".mts", ".mpg", ".wmv", ".flv", ".3gp")
"""By which, too, a file in a folder is taken for a video."""

# FFmpeg's matrix tag (AVColorSpace) -> the name its converter uses, and the tag written for that name.
_MATRIX_OF_TAG = {
    1: "ITU709",
    4: "FCC",
    5: "ITU601",
    6: "ITU601",
    7: "SMPTE240M",
    9: "BT2020",
    10: "BT2020",
}
_TAG_OF_MATRIX = {"ITU709": 1, "FCC": 4, "ITU601": 6, "SMPTE240M": 7, "BT2020": 9}
_UNSPECIFIED = 2
_LIMITED_RANGE = 1
_FULL_RANGE = 2

# FFmpeg's converter widens samples to 16 bits by shifting, so that its white lies a little below 65535.
_WHITE_16_BIT_LIMITED = 255 << 8

# What belongs to the source's own container and would be untrue of ours.
_CONTAINER_METADATA = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}


@dataclasses.dataclass(frozen=True)
class TimedFrame:
    """One frame: rgb (H, W, 3) uint8 or uint16, time stamp and duration in units of the format's time_base.

    A duration of 0 means not known.
    """

    rgb: np.ndarray
    pts: int
    duration: int = 0


@dataclasses.dataclass(frozen=True)
class VideoFormat:
    """What a video is, beside its frames.

    Args:
        height: upright rows, in pixels.
        width: upright columns.
        time_base: seconds a unit of time stamps.
        average_rate: frames a second, for the encoder's rate control.
        bits: 8, or 10 for anything deeper.
        matrix: RGB <-> YUV: "ITU601", "ITU709", "BT2020", "FCC", "SMPTE240M"; guessed from the size if None.
        primaries, transfer: FFmpeg's AVColorPrimaries and AVColorTransferCharacteristic, handed through.
        pixel_aspect: width / height of a pixel.
        frame_count: as the file's header tells, None where it does not; for progress bars only.
    """

    height: int
    width: int
    time_base: Fraction
    average_rate: Fraction
    bits: int = 8
    matrix: str | None = None
    primaries: int = _UNSPECIFIED
    transfer: int = _UNSPECIFIED
    pixel_aspect: Fraction | None = None
    frame_count: int | None = None

    @property
    def matrix_name(self) -> str:
        """The matrix, guessed where none is given."""
        return self.matrix or _guess_matrix(self.height, self.width)

    def __post_init__(self) -> None:
        if self.matrix_name not in _TAG_OF_MATRIX:
            raise ValueError(f"matrix is {self.matrix!r}; expected one of {', '.join(_TAG_OF_MATRIX)}")
        if self.bits not in (8, 10):
            raise ValueError(f"bits is {self.bits}; expected 8 or 10")


class VideoReader:
    """Reads the first video stream of a file, cover pictures aside, frame by frame; a context manager.

    Iterating gives every frame once, in order of presentation, as TimedFrame. Time stamps rise strictly: one
    that is missing or repeated in a damaged file is moved behind the one before.

    Args:
        path: any video file FFmpeg can open.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a video, without a video stream, or damaged (also in the middle of iterating, with the
            number of frames that could be read).
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        self._container = _open_input(self.path)
        try:
            self._stream = self._first_video_stream()
            self._stream.thread_type = "AUTO"
            self._reformatter = VideoReformatter()
            self._decoded = self._decode()
            self._first = next(self._decoded, None)
            if self._first is None:
                raise ValueError(f"{self.path}: the video stream has no frames")
            self.format = self._describe(self._first)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def __iter__(self) -> Iterator[TimedFrame]:
        if self._first is None:
            raise ValueError(f"{self.path}: a VideoReader reads its file once; open another")
        first, self._first = self._first, None
        step = max(1, round(1 / (self.format.average_rate * self.format.time_base)))
        last_pts = (first.pts if first.pts is not None else 0) - step
        for frame in _chain(first, self._decoded):
            pts = last_pts + step if frame.pts is None else max(frame.pts, last_pts + 1)
            last_pts = pts
            yield TimedFrame(self._upright_rgb(frame), pts, frame.duration or 0)

    def _first_video_stream(self) -> av.VideoStream:
        for stream in self._container.streams.video:
            if not stream.disposition & type(stream.disposition).attached_pic:
                return stream
        kinds = sorted({stream.type for stream in self._container.streams}) or ["nothing"]
        raise ValueError(f"{self.path}: has no video stream, only {', '.join(kinds)}")

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Every frame the file holds, then an error if the file is cut short."""
        frame_count = packet_count = 0
        damage = None
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    damage = "an incomplete packet"
                    break
                packet_count += bool(packet.size)
                for frame in packet.decode():
                    frame_count += 1
                    yield frame
        except av.FFmpegError as error:
            damage = error.strerror
        # An mp4 lists all its packets in its header, a cut can therefore be told even between two packets.
        if damage is None and "mp4" in self._container.format.name:
            expected = len(self._stream.index_entries)
            if packet_count < max(expected, self._stream.frames if expected == 0 else 0):
                damage = "nothing"
        if damage is None:
            return
        try:
            for frame in self._stream.decode(None):
                frame_count += 1
                yield frame
        except av.FFmpegError:
            pass  # the decoder has nothing more to give; the damage is reported below
        promised = f" of {self._stream.frames}" if self._stream.frames else ""
        raise ValueError(
            f"{self.path}: truncated or damaged video: {frame_count}{promised} frames were readable, then {damage}"
        )

    def _describe(self, frame: av.VideoFrame) -> VideoFormat:
        stream = self._stream
        matrix = _MATRIX_OF_TAG.get(frame.colorspace, _guess_matrix(frame.height, frame.width))
        aspect = stream.sample_aspect_ratio or None
        turned = _is_transposed(_display_matrix(frame))
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        return VideoFormat(
            height=frame.width if turned else frame.height,
            width=frame.height if turned else frame.width,
            time_base=stream.time_base or Fraction(1, 1000),
            average_rate=rate,
            bits=10 if frame.format.components[0].bits > 8 else 8,
            matrix=matrix,
            primaries=int(frame.color_primaries),
            transfer=int(frame.color_trc),
            pixel_aspect=1 / aspect if aspect and turned else aspect,
            frame_count=stream.frames or self._estimate_frame_count(rate),
        )

    def _estimate_frame_count(self, rate: Fraction) -> int | None:
        duration_us = self._container.duration
        return None if not duration_us else max(1, round(rate * duration_us / 1_000_000))

    def _upright_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        rgb = self._rgb(frame)
        # Display matrix: a pixel at (x, y) is shown at (a x + c y, b x + d y).
        a, b, c, d = matrix = _display_matrix(frame)
        if _is_transposed(matrix):
            rgb, x_sign, y_sign = rgb.swapaxes(0, 1), c, b
        else:
            x_sign, y_sign = a, d
        rgb = rgb[:: -1 if y_sign < 0 else 1, :: -1 if x_sign < 0 else 1]
        return np.ascontiguousarray(rgb)

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        bits = frame.format.components[0].bits
        if frame.format.name.startswith("gray") and frame.color_range == _LIMITED_RANGE:
            return _grey_of_limited_range(frame.to_ndarray(), bits)
        target = "rgb48le" if bits > 8 else "rgb24"
        if frame.format.is_rgb:
            return self._reformatter.reformat(frame, format=target).to_ndarray()
        is_full = frame.color_range == _FULL_RANGE or frame.format.name.startswith(("yuvj", "gray"))
        rgb = self._reformatter.reformat(
            frame,
            format=target,
            src_colorspace=Colorspace[self.format.matrix_name],
            src_color_range="JPEG" if is_full else "MPEG",
            dst_color_range="JPEG",
            interpolation=ACCURATE,
        ).to_ndarray()
        if bits == 8:
            return rgb
        return _rescale_u16(rgb, ((1 << bits) - 1) << (16 - bits) if is_full else _WHITE_16_BIT_LIMITED, 65535)


@contextlib.contextmanager
def write_video(
    path: StrPath, format: VideoFormat, *, crf: int = CRF, sound_from: StrPath | None = None
) -> Iterator["VideoWriter"]:
    """Opens an H.264 file to be written frame by frame.

    Everything goes to a temporary name in the target's folder, which takes the target's name when the block
    ends well and is removed when it ends in any exception, Ctrl-C included. Sizes with an odd side are
    written as 4:4:4, which holds every size; even ones as 4:2:0, which every player plays.

    Args:
        path: the target; its suffix names the container, see VIDEO_SUFFIXES.
        format: size, time base, colour and depth of the frames to come.
        crf: x264's constant quality, 0 to 51.
        sound_from: a file whose sound, subtitles, data, attachments and chapters are copied, None for a silent video.
            Memory holds a few seconds of them at most. Data and attachments that the container cannot hold are left
            out, with a warning.

    Raises:
        ValueError: unknown suffix, a sound or subtitle codec that the container cannot hold, a frame that
            does not fit `format`, no frame at all, or writing over `sound_from`.
        OSError: the target cannot be written; also when the disk is full.
    """
    path = Path(path)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(f"{path}: unknown video suffix {path.suffix!r}; use one of {', '.join(VIDEO_SUFFIXES)}")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf is {crf}; expected 0 (lossless) to 51")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a video file in it")
    if sound_from is not None:
        refuse_same_file(sound_from, path)
    with replacing(path) as partial:
        partial.touch()  # an unwritable folder shows before any work is done
        writer = VideoWriter(path, partial, format, crf, sound_from)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


class VideoWriter:
    """What `write_video` gives: encodes frames into the temporary file."""

    def __init__(self, target: Path, partial: Path, format: VideoFormat, crf: int, sound_from: StrPath | None) -> None:
        self._target = target
        self._format = format
        self._frame_count = 0
        self._durations: dict[int, int] = {}
        self._first_pts = self._last_pts = self._end_pts = 0
        self._first_dts: int | None = None
        self._reformatter = VideoReformatter()
        self._sound: _StreamCopy | None = None
        options = {} if target.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
        self._container: Any = av.open(os.fspath(partial), "w", container_options=options)
        self._stream: Any = self._container.add_stream("libx264", rate=format.average_rate.limit_denominator(1_000_000))
        self._stream.width, self._stream.height = format.width, format.height
        chroma = "yuv444p" if format.width % 2 or format.height % 2 else "yuv420p"
        self._stream.pix_fmt = chroma if format.bits == 8 else f"{chroma}10le"
        context = self._stream.codec_context
        context.time_base = format.time_base
        context.colorspace = _TAG_OF_MATRIX[format.matrix_name]
        context.color_range = _LIMITED_RANGE
        context.color_primaries = format.primaries
        context.color_trc = format.transfer
        if format.pixel_aspect:
            context.sample_aspect_ratio = format.pixel_aspect
        context.options = {"crf": str(crf)}
        if sound_from is not None:
            self._sound = _StreamCopy(sound_from, self._container, target)

    def write(self, frame: TimedFrame) -> None:
        """Encodes one frame; time stamps must rise."""
        expected = np.dtype(np.uint8 if self._format.bits == 8 else np.uint16)
        shape = (self._format.height, self._format.width, 3)
        if frame.rgb.shape != shape or frame.rgb.dtype != expected:
            raise ValueError(
                f"{self._target}: frame {self._frame_count} is {frame.rgb.dtype} {frame.rgb.shape}; "
                f"expected {expected} {shape}"
            )
        if self._frame_count and frame.pts <= self._last_pts:
            raise ValueError(
                f"{self._target}: frame {self._frame_count} has time stamp {frame.pts} after "
                f"{self._last_pts}; time stamps must rise"
            )
        if expected == np.uint8:
            source = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.rgb), format="rgb24")
        else:
            rgb = _rescale_u16(frame.rgb, 65535, _WHITE_16_BIT_LIMITED)
            source = av.VideoFrame.from_ndarray(rgb, format="rgb48le")
        converted = self._reformatter.reformat(
            source,
            format=self._stream.pix_fmt,
            src_color_range="JPEG",
            dst_colorspace=Colorspace[self._format.matrix_name],
            dst_color_range="MPEG",
            interpolation=ACCURATE,
        )
        converted.color_primaries = self._format.primaries
        converted.color_trc = self._format.transfer
        converted.pts = frame.pts
        converted.time_base = self._format.time_base
        self._durations[frame.pts] = frame.duration
        self._first_pts = frame.pts if self._frame_count == 0 else self._first_pts
        self._last_pts, self._end_pts = frame.pts, frame.pts + frame.duration
        self._mux(self._stream.encode(converted))
        self._frame_count += 1

    def finish(self) -> None:
        """Flushes the encoder, copies the rest of the sound and completes the file."""
        if self._frame_count == 0:
            raise ValueError(f"{self._target}: no frames were written")
        self._mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.copy_until(math.inf)
        self._container.close()

    def close(self) -> None:
        """Lets go of the files. After `finish` nothing is left to do, after an error nothing left to save."""
        with contextlib.suppress(OSError, ValueError):
            self._container.close()
        if self._sound is not None:
            self._sound.close()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if self._sound is not None:
                self._sound.copy_until(float(packet.dts * packet.time_base))
            self._first_dts = packet.dts if self._first_dts is None else self._first_dts
            packet.duration = self._durations.pop(packet.pts)
            if not self._durations:
                # MP4 adds up decoding times: the last packet written, which need not be the last one shown,
                # carries what is missing to the end of the last frame.
                shown, decoded = self._end_pts - self._first_pts, packet.dts - self._first_dts
                packet.duration = max(packet.duration, shown - decoded)
            self._container.mux(packet)


class _StreamCopy:
    """Copies what is not pictures, packet by packet in step with the video's time, from a second opening of the file:
    sound, subtitles, data such as a camera's measurements, attached files, chapters."""

    def __init__(self, source: StrPath, container: Any, target: Path) -> None:
        self._input = _open_input(os.fspath(source))
        self._container = container
        self._next: Any = None
        self._stream_of: dict[int, Any] = {}
        try:
            for stream in self._input.streams:
                if stream.type in ("audio", "subtitle", "data", "attachment"):
                    self._add(stream, source, target)
            if chapters := self._input.chapters():
                container.set_chapters(chapters)
        except BaseException:
            self._input.close()
            raise
        container.metadata.update(
            {key: value for key, value in self._input.metadata.items() if key not in _CONTAINER_METADATA}
        )
        streams = [self._input.streams[index] for index in self._stream_of]
        self._packets: Iterator[Any] = self._input.demux(streams) if streams else iter(())

    def _add(self, stream: Any, source: StrPath, target: Path) -> None:
        form, is_attachment, is_data = self._container.format.name, stream.type == "attachment", stream.type == "data"
        held = not (is_attachment and "matroska" not in form) and not (is_data and not _holds_data(form, stream.name))
        name = stream.name if is_attachment or is_data else stream.codec_context.name
        what = f"the {stream.type} stream {stream.index} of {os.fspath(source)} ({name})"
        if not held:
            # Most of a phone's videos have such streams, and hardly any container but their own takes them.
            logging.warning("%s: a %s file cannot hold %s, which is left out", target, target.suffix, what)
            return
        if is_attachment:
            self._container.add_attachment(stream.name, stream.mimetype, bytes(stream.data))
            return
        try:
            copied = self._container.add_stream_from_template(stream)
        except (ValueError, av.FFmpegError) as error:
            raise ValueError(f"{target}: a {target.suffix} file cannot hold {what}; name the target .mkv") from error
        copied.metadata.update(stream.metadata)
        copied.disposition = stream.disposition
        self._stream_of[stream.index] = copied

    def copy_until(self, time_s: float) -> None:
        while True:
            if self._next is None:
                self._next = next(self._packets, None)
            if self._next is None:
                return
            packet = self._next
            if packet.dts is not None:  # the last, empty packets only flush decoders
                if float(packet.dts * packet.time_base) > time_s:
                    return
                packet.stream = self._stream_of[packet.stream.index]
                self._container.mux(packet)
            self._next = None

    def close(self) -> None:
        self._input.close()


def _holds_data(form: str, codec: str) -> bool:
    """Whether a kind of container takes data of a codec; a stream that it does not take spoils the whole file."""
    with av.open(io.BytesIO(), "w", format=form) as probe:
        try:
            probe.add_data_stream(codec)
        except (ValueError, av.FFmpegError):
            return False
    return True


def refuse_same_file(source: StrPath, target: StrPath) -> None:
    """ValueError if both names lead to one file, links followed."""
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ValueError(f"{os.fspath(target)}: is the input itself; name another target")


def _open_input(path: str) -> Any:
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path}: is a folder, not a video")
    try:
        return av.open(path, "r", metadata_errors="replace")
    except av.FFmpegError as error:
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"{path}: no such file") from error
        if isinstance(error, PermissionError):
            raise PermissionError(f"{path}: may not be read") from error
        raise ValueError(
            f"{path}: not a video FFmpeg can open: the header is missing or damaged, as in an unfinished or "
            f"truncated file ({error.strerror})"
        ) from error


def _guess_matrix(height: int, width: int) -> str:
    return "ITU709" if height >= 720 or width >= 1280 else "ITU601"


def _grey_of_limited_range(luma: np.ndarray, bits: int) -> np.ndarray:
    """FFmpeg takes every one-channel picture for full range; this follows the tag."""
    unit = (luma / (1 << (bits - 8)) - 16) / 219
    largest = 255 if bits == 8 else 65535
    grey = np.rint(unit.clip(0, 1) * largest).astype(np.uint8 if bits == 8 else np.uint16)
    return np.repeat(grey[..., None], 3, axis=-1)


def _rescale_u16(rgb: np.ndarray, white_before: int, white_after: int) -> np.ndarray:
    scaled = (rgb.astype(np.uint32) * np.uint32(white_after) + np.uint32(white_before // 2)) // white_before
    return np.minimum(scaled, 65535).astype(np.uint16)


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    side_data: Any = frame.side_data
    data = side_data.get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = (int(value) for value in np.frombuffer(memoryview(data), np.int32)[:5])
    return a, b, c, d


def _is_transposed(matrix: tuple[int, int, int, int]) -> bool:
    return abs(matrix[1]) > abs(matrix[0])


def _chain(first: av.VideoFrame, rest: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    yield first
    yield from rest
