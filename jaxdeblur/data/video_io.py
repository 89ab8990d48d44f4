"""Video files in, one frame at a time, through FFmpeg (PyAV); `video_writer` is the way out.

Frames come as upright gamma-encoded RGB: YUV is converted by the matrix and range its file names (untagged: BT.709 from
720 rows or 1280 columns on, BT.601 below), rotation and mirroring in the file's metadata are applied, 8-bit video gives
uint8 and deeper video uint16. Interlaced frames come as stored, both fields in one, with a warning.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from types import TracebackType
from typing import IO, Any

import av
import numpy as np
from absl import logging
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Colorspace, VideoReformatter

from jaxdeblur.data.image_io import ACCURATE, StrPath

# What belongs to the source's own container and would be untrue of ours.
_STREAM_METADATA = {"encoder", "vendor_id", "DURATION", "BPS", "NUMBER_OF_FRAMES", "NUMBER_OF_BYTES", "rotate"}

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
_TAG_OF_GUESS = {"ITU709": 1, "ITU601": 6}
UNSPECIFIED = 2
"""FFmpeg's tag for colour that a file says nothing about."""
LIMITED_RANGE = 1
FULL_RANGE = 2


JUMP_S = Fraction(1, 2)
"""Time stamps that go back by more are those of another recording, joined to the one before; those that go back by
less are faults."""

# Kinds of files that make FFmpeg read other files.
_PLAYLISTS = ("hls", "concat", "dash", "imf")


@dataclasses.dataclass(frozen=True)
class Cut:
    """A part of a video: from the first frame at or after start_s to the last before end_s, None for its end.

    Times count from where the file begins, which need not be its time 0. What is cut begins at time 0; without a start,
    times are left alone.
    """

    start_s: Fraction = Fraction(0)
    end_s: Fraction | None = None

    def __post_init__(self) -> None:
        if self.start_s < 0 or (self.end_s is not None and self.end_s <= self.start_s):
            end = "" if self.end_s is None else f" and the end {float(self.end_s):g} s"
            raise ValueError(f"the start is {float(self.start_s):g} s{end}; expected 0 <= start < end")

    def of_file(self, container: Any) -> "Cut":
        """The same in the time of an opened file."""
        begin_s = max(Fraction(container.start_time or 0, av.time_base), Fraction(0))
        return Cut(
            self.start_s + begin_s if self.start_s else self.start_s,
            None if self.end_s is None else self.end_s + begin_s,
        )

    def holds(self, time_s: Fraction) -> bool:
        """Whether what begins at that time is wanted."""
        # A file may begin before time 0; without a start all of it is wanted.
        return (time_s >= self.start_s or not self.start_s) and (self.end_s is None or time_s < self.end_s)

    def move(self, packet: Any) -> bool:
        """Whether a packet is wanted; if so, moves it to where the cut has it."""
        if packet.pts is None or packet.time_base is None:
            return True
        if not self.holds(packet.pts * packet.time_base):
            return False
        earlier = round(self.start_s / packet.time_base)
        packet.pts -= earlier
        packet.dts = None if packet.dts is None else packet.dts - earlier
        return True

    def chapter(self, chapter: Any) -> Any:
        """What of a chapter lies in the cut, or None."""
        unit_s = chapter["time_base"]
        begin_s = max(chapter["start"] * unit_s - self.start_s, Fraction(0))
        last_s = chapter["end"] * unit_s
        end_s = (last_s if self.end_s is None else min(last_s, self.end_s)) - self.start_s
        if end_s <= begin_s:
            return None
        return {**chapter, "start": round(begin_s / unit_s), "end": round(end_s / unit_s)}


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
        chroma: "420", "422" or "444": how finely colour is sampled.
        colorspace, color_range, primaries, transfer: FFmpeg's AVColorSpace, AVColorRange, AVColorPrimaries and
            AVColorTransferCharacteristic; what the file says, UNSPECIFIED (for the range 0) where it says nothing.
        pixel_aspect: width / height of a pixel.
        metadata: of the stream of pictures, such as its language.
        frame_count: as the file's header tells, None where it does not; for progress bars only.
    """

    height: int
    width: int
    time_base: Fraction
    average_rate: Fraction
    bits: int = 8
    chroma: str = "420"
    colorspace: int = UNSPECIFIED
    color_range: int = LIMITED_RANGE
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    pixel_aspect: Fraction | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    frame_count: int | None = None

    @property
    def matrix_name(self) -> str:
        """RGB <-> YUV: "ITU601", "ITU709", "BT2020", "FCC" or "SMPTE240M"; guessed by the size if none is named."""
        return _MATRIX_OF_TAG.get(self.colorspace) or _guess_matrix(self.height, self.width)

    @property
    def is_full_range(self) -> bool:
        """Black is 0, not 16 of 255."""
        return self.color_range == FULL_RANGE

    def of_size(self, height: int, width: int) -> "VideoFormat":
        """Pictures of another size and the same colour: what is guessed from the size is then named."""
        return dataclasses.replace(
            self,
            height=height,
            width=width,
            colorspace=_named_matrix(self.colorspace, self.matrix_name, height, width),
        )

    def __post_init__(self) -> None:
        if self.colorspace != UNSPECIFIED and self.colorspace not in _MATRIX_OF_TAG:
            known = ", ".join(map(str, (UNSPECIFIED, *_MATRIX_OF_TAG)))
            raise ValueError(f"colorspace is {self.colorspace}; expected one of {known}")
        if self.bits not in (8, 10):
            raise ValueError(f"bits is {self.bits}; expected 8 or 10")
        if self.chroma not in ("420", "422", "444"):
            raise ValueError(f"chroma is {self.chroma!r}; expected 420, 422 or 444")


class VideoReader:
    """Reads the first video stream of a file, cover pictures aside, frame by frame; a context manager.

    Iterating gives every frame once, in order of presentation, as TimedFrame. Time stamps rise strictly: one that is
    missing or repeated in a damaged file is moved behind the one before; where recordings were joined and times begin
    anew, they go on.

    Args:
        source: any video file FFmpeg can open; or an open binary file, such as a pipe, of a kind that `of_kind` names.
        of_kind: FFmpeg's name of a container and its options, such as ("yuv4mpegpipe", {}).
        cut: the part that is wanted. Afterwards `cut` is what was found, in the file's time: it begins with the first
            frame of that part.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a video, without a video stream, without a frame in `cut`, or damaged (also in the middle of
            iterating, with the number of frames that could be read).
    """

    def __init__(
        self, source: StrPath | IO[bytes], cut: Cut | None = None, *, of_kind: tuple[str, dict[str, str]] | None = None
    ) -> None:
        self.path = os.fspath(source) if isinstance(source, str | os.PathLike) else "standard input"
        self._source = source
        self._of_kind = of_kind
        self._skipped = 0
        self._container = self._opened()
        self.cut = Cut() if cut is None else cut.of_file(self._container)
        try:
            self._stream = self._first_video_stream()
            self._stream.thread_type = "AUTO"
            self._reformatter = VideoReformatter()
            self._decoded = self._wanted()
            self._first = next(self._decoded, None)
            if self._first is None:
                where = "" if cut is None else f" from {float(cut.start_s):g} s on"
                raise ValueError(f"{self.path}: the video stream has no frames{where}{self._length()}")
            if self.cut.start_s and self._first.pts is not None:
                self.cut = dataclasses.replace(self.cut, start_s=max(self._time_s(self._first), Fraction(0)))
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

    def skip(self, count: int) -> None:
        """Iterating is to leave out the first frames; they are decoded, not converted."""
        self._skipped = count

    def __iter__(self) -> Iterator[TimedFrame]:
        if self._first is None:
            raise ValueError(f"{self.path}: a VideoReader reads its file once; open another")
        first, self._first = self._first, None
        step = max(1, round(1 / (self.format.average_rate * self.format.time_base)))
        earlier = round(self.cut.start_s / self.format.time_base)
        last_pts = (first.pts if first.pts is not None else 0) - step
        later = 0
        for number, frame in enumerate(itertools.chain([first], self._decoded)):
            pts = last_pts + step if frame.pts is None else frame.pts + later
            if (last_pts - pts) * self.format.time_base > JUMP_S:
                logging.warning("%s: times begin anew at frame %d, as if files had been joined", self.path, number)
                later += last_pts + step - pts
                pts = last_pts + step
            last_pts = pts = max(pts, last_pts + 1)
            if number < self._skipped:
                continue
            rgb = self._upright_rgb(frame)
            if rgb.shape[:2] != (self.format.height, self.format.width):
                raise ValueError(
                    f"{self.path}: frame {number} is {rgb.shape[1]}x{rgb.shape[0]}, the first {self.format.width}x"
                    f"{self.format.height}; make it one size first"
                )
            yield TimedFrame(rgb, pts - earlier, frame.duration or 0)

    def _opened(self) -> Any:
        if self._of_kind is None:
            return open_input(self.path)
        kind, options = self._of_kind
        try:
            return av.open(self._source, "r", format=kind, options=options)
        except av.FFmpegError as error:
            raise ValueError(f"{self.path}: holds no frames of the kind that was named ({error.strerror})") from error

    def _first_video_stream(self) -> av.VideoStream:
        for stream in self._container.streams.video:
            if not is_cover(stream):
                return stream
        kinds = sorted({stream.type for stream in self._container.streams}) or ["nothing"]
        raise ValueError(f"{self.path}: has no video stream, only {', '.join(kinds)}")

    def _wanted(self) -> Iterator[av.VideoFrame]:
        """The frames of the cut."""
        for frame in self._decode_from(self.cut.start_s) if self.cut.start_s else self._decode():
            if frame.pts is None or self.cut.holds(self._time_s(frame)):
                yield frame
            elif self.cut.end_s is not None and self._time_s(frame) >= self.cut.end_s:
                return

    def _decode_from(self, start_s: Fraction) -> Iterator[av.VideoFrame]:
        """Every frame from there on, and some before.

        Files without an index are searched badly: reading goes on in the middle of pictures that hang together, of
        which the first are lost. So where the first frame comes too late, it is looked for earlier, in the end from the
        file's beginning, as in what cannot be searched at all.
        """
        for earlier_s in (0, 4, 16, 64, 256):
            if earlier_s >= start_s:
                break
            try:
                self._container.seek(math.floor((start_s - earlier_s) * av.time_base), backward=True)
            except av.FFmpegError:
                break
            frames = self._decode()
            first = next(frames, None)
            if first is not None and first.pts is not None and self._time_s(first) <= start_s:
                yield first
                yield from frames
                return
        self._container.close()
        self._container = self._opened()
        self._stream = self._first_video_stream()
        yield from self._decode()

    def _time_s(self, frame: av.VideoFrame) -> Fraction:
        return frame.pts * (self._stream.time_base or Fraction(1, 1000))  # type: ignore[operator, no-any-return]

    def _length(self) -> str:
        duration_us = self._container.duration
        return f"; it is {duration_us / av.time_base:.3f} s long" if duration_us else ""

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Every frame the file holds, then an error if the file is cut short."""
        frame_count = packet_count = 0
        damage = None
        incomplete: list[Any] = []
        try:
            for packet in self._container.demux(self._stream):
                if incomplete and not packet.size:
                    damage = "an incomplete packet"  # and after it nothing but the end
                    break
                if packet.is_corrupt and not incomplete:
                    incomplete.append(packet)
                    continue
                if incomplete:  # but not the last, as where recordings were joined
                    logging.warning("%s: an incomplete packet after %d frames may show", self.path, frame_count)
                packets = [*incomplete, packet]
                incomplete.clear()
                for whole in packets:
                    packet_count += bool(whole.size)
                    for frame in whole.decode():
                        frame_count += 1
                        yield frame
        except av.FFmpegError as error:
            damage = error.strerror
        # An mp4 lists all its packets in its header, a cut can therefore be told even between two packets.
        if damage is None and "mp4" in self._container.format.name and not self.cut.start_s:
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
        aspect = stream.sample_aspect_ratio or None
        turned = _is_transposed(_display_matrix(frame))
        height, width = (frame.width, frame.height) if turned else (frame.height, frame.width)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        is_full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
        is_yuv = not frame.format.is_rgb and not frame.format.name.startswith("gray")
        if is_yuv and frame.format.components[0].bits > 10:
            logging.warning("%s: has %d bits, of which 10 are kept", self.path, frame.format.components[0].bits)
        if len(frame.format.components) in (2, 4):
            logging.warning("%s: is transparent in parts, which is not kept", self.path)
        if frame.interlaced_frame:
            logging.warning("%s: is interlaced, and is restored as if it were not: deinterlace it first", self.path)
        return VideoFormat(
            height=height,
            width=width,
            time_base=stream.time_base or Fraction(1, 1000),
            average_rate=rate,
            bits=10 if frame.format.components[0].bits > 8 else 8,
            chroma=_chroma(frame.format) if is_yuv or frame.format.is_rgb else "420",
            colorspace=_named_matrix(
                frame.colorspace, _guess_matrix(frame.height, frame.width), height, width, is_known=is_yuv
            ),
            # Untagged RGB and grey use the whole of their range; what is written of them need not.
            color_range=FULL_RANGE if is_full else int(frame.color_range) if is_yuv else LIMITED_RANGE,
            primaries=int(frame.color_primaries),
            transfer=int(frame.color_trc),
            pixel_aspect=1 / aspect if aspect and turned else aspect,
            metadata={key: value for key, value in stream.metadata.items() if key not in _STREAM_METADATA},
            frame_count=self._estimate_frame_count(rate),
        )

    def _estimate_frame_count(self, rate: Fraction) -> int | None:
        if self._stream.frames and not self.cut.start_s and self.cut.end_s is None:
            return self._stream.frames
        duration_us = self._container.duration
        if not duration_us:
            return None
        duration_s = Fraction(duration_us, av.time_base)
        end_s = duration_s if self.cut.end_s is None else min(self.cut.end_s, duration_s)
        return max(1, round(rate * (end_s - self.cut.start_s)))

    def _upright_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        rgb = to_rgb(frame, self.format, self._reformatter)
        # Display matrix: a pixel at (x, y) is shown at (a x + c y, b x + d y).
        a, b, c, d = matrix = _display_matrix(frame)
        if _is_transposed(matrix):
            rgb, x_sign, y_sign = rgb.swapaxes(0, 1), c, b
        else:
            x_sign, y_sign = a, d
        rgb = rgb[:: -1 if y_sign < 0 else 1, :: -1 if x_sign < 0 else 1]
        return np.ascontiguousarray(rgb)


def to_rgb(frame: av.VideoFrame, form: VideoFormat, reformatter: VideoReformatter) -> np.ndarray:
    """A decoded picture, as it lies, as RGB: uint8, or uint16 of more than 8 bits. `video_writer.to_picture` is the way
    back."""
    bits = frame.format.components[0].bits
    if frame.format.name.startswith("gray") and frame.color_range == LIMITED_RANGE:
        return _grey_of_limited_range(frame.to_ndarray(), bits)
    target = "rgb48le" if bits > 8 else "rgb24"
    if frame.format.is_rgb:
        return reformatter.reformat(frame, format=target).to_ndarray()
    is_full = frame.color_range == FULL_RANGE or frame.format.name.startswith(("yuvj", "gray"))
    rgb = reformatter.reformat(
        frame,
        format=target,
        src_colorspace=Colorspace[form.matrix_name],
        src_color_range="JPEG" if is_full else "MPEG",
        dst_color_range="JPEG",
        interpolation=ACCURATE,
    ).to_ndarray()
    return rgb if bits == 8 else rescale_u16(rgb, white_16_bit(bits, is_full), 65535)


def white_16_bit(bits: int, is_full_range: bool) -> int:
    """Where FFmpeg's converter, which widens samples to 16 bits by shifting, has white: a little below 65535."""
    return ((1 << bits) - 1) << (16 - bits) if is_full_range else 255 << 8


def rescale_u16(rgb: np.ndarray, white_before: int, white_after: int) -> np.ndarray:
    """16-bit values with another white, rounded to nearest."""
    scaled = (rgb.astype(np.uint32) * np.uint32(white_after) + np.uint32(white_before // 2)) // white_before
    return np.minimum(scaled, 65535).astype(np.uint16)


def is_cover(stream: Any) -> bool:
    """A still picture beside the video, as music and films have."""
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def open_input(path: str) -> Any:
    """FFmpeg's container, or an error that names the file."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path}: is a folder, not a video")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path}: is no file but a device or a pipe; frames from a pipe go through --pipe")
    try:
        # "file:" in front, or FFmpeg takes what stands before a colon for a protocol. And nothing but files, whatever a
        # playlist may name.
        container = av.open(f"file:{path}", "r", metadata_errors="replace", options={"protocol_whitelist": "file"})
        if container.format.name.split(",")[0] in _PLAYLISTS:
            container.close()
            raise ValueError(f"{path}: is a list of videos ({container.format.name}), not a video")
        return container
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


def _named_matrix(tag: int, matrix: str, height: int, width: int, *, is_known: bool = True) -> int:
    """The tag as it is; but one of its own for a matrix that the size would not tell, or that is not known here."""
    if is_known and tag in _MATRIX_OF_TAG:
        return tag
    if is_known and tag == UNSPECIFIED and matrix == _guess_matrix(height, width):
        return UNSPECIFIED
    return _TAG_OF_GUESS[matrix]


def _chroma(form: Any) -> str:
    """The finest of 4:2:0, 4:2:2 and 4:4:4 that a pixel format needs: 4:1:1 becomes 4:2:2, 4:4:0 becomes 4:4:4."""
    fine_columns, fine_rows = form.chroma_width(64) > 32, form.chroma_height(64) > 32
    return "444" if fine_columns else "422" if fine_rows else "420"


def _grey_of_limited_range(luma: np.ndarray, bits: int) -> np.ndarray:
    """FFmpeg takes every one-channel picture for full range; this follows the tag."""
    unit = (luma / (1 << (bits - 8)) - 16) / 219
    largest = 255 if bits == 8 else 65535
    grey = np.rint(unit.clip(0, 1) * largest).astype(np.uint8 if bits == 8 else np.uint16)
    return np.repeat(grey[..., None], 3, axis=-1)


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    side_data: Any = frame.side_data
    data = side_data.get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = (int(value) for value in np.frombuffer(memoryview(data), np.int32)[:5])
    return a, b, c, d


def _is_transposed(matrix: tuple[int, int, int, int]) -> bool:
    return abs(matrix[1]) > abs(matrix[0])
