"""Video files in, one frame at a time, through FFmpeg (PyAV); `video_writer` is the way out.

Frames come as upright gamma-encoded RGB: YUV is converted by the matrix and range its file names (untagged: BT.709 from
720 rows or 1280 columns on, BT.601 below), rotation and mirroring in the file's metadata are applied, 8-bit video gives
uint8 and deeper video uint16. Interlaced frames come as stored, both fields in one, with a warning.
"""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from types import TracebackType
from typing import IO, Any

import av
import numpy as np
from absl import logging
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Discard
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, VideoReformatter

from jaxdeblur.data.hdr import Hdr10, dynamic_hdr_of, hdr10_of
from jaxdeblur.data.image_io import ACCURATE, StrPath
from jaxdeblur.data.video_damage import Damage, RepairingDecoder, Shown

# What belongs to the source's own container and streams and would be untrue of ours, in any case of letters: Matroska
# writes capitals, and a language behind a hyphen.
_UNTRUE_TAGS = re.compile(
    r"(encoder|software|duration|vendor_id|rotate|alpha_mode|major_brand|minor_version|compatible_brands"
    r"|bps|number_of_frames|number_of_bytes|_statistics_.*)(-[a-z]{3})?",
    re.IGNORECASE,
)

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

# What the names of kinds of pixels without colour begin with, some with alpha.
_GREY = ("gray", "ya8", "ya16", "yaf")

# Kinds of files that make FFmpeg read other files.
_PLAYLISTS = ("hls", "concat", "dash", "imf")


@dataclasses.dataclass(frozen=True)
class Cut:
    """A part of a video: from the first frame at or after start_s to the last before end_s, None for its end.

    Times count from where the file begins, which need not be its time 0. What is cut begins at time 0, and so does a
    file of which nothing is cut: `origin_s`, in the file's time, becomes 0.
    """

    start_s: Fraction = Fraction(0)
    end_s: Fraction | None = None
    origin_s: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        if self.start_s < 0 or (self.end_s is not None and self.end_s <= self.start_s):
            end = "" if self.end_s is None else f" and the end {float(self.end_s):g} s"
            raise ValueError(f"the start is {float(self.start_s):g} s{end}; expected 0 <= start < end")

    def of_file(self, container: Any) -> "Cut":
        """The same in the time of an opened file."""
        begin_s = _begin_s(container)
        return Cut(
            self.start_s + begin_s if self.start_s else self.start_s,
            None if self.end_s is None else self.end_s + begin_s,
            self.start_s + begin_s,
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
        earlier = round(self.origin_s / packet.time_base)
        packet.pts -= earlier
        packet.dts = None if packet.dts is None else packet.dts - earlier
        return True

    def chapter(self, chapter: Any) -> Any:
        """What of a chapter lies in the cut, or None."""
        unit_s = chapter["time_base"]
        begin_s = max(chapter["start"] * unit_s - self.origin_s, Fraction(0))
        last_s = chapter["end"] * unit_s
        end_s = (last_s if self.end_s is None else min(last_s, self.end_s)) - self.origin_s
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
        hdr10: what HDR10 says of the display and the light; False where there is nothing.
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
    hdr10: Hdr10 = dataclasses.field(default_factory=Hdr10)
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


class DamagedVideoError(ValueError):
    """Damage where `strict` allows none."""


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
        strict: damage is an error. Otherwise frames that cannot be decoded repeat their neighbour at their own time, a
            video that is cut short ends where it is cut, and a warning says in the end what was damaged.
        quietly: without warnings, as for a second look at the same file.

    Attributes:
        damage: what was found, whole when the iteration has ended.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a video, without a video stream, without a frame in `cut`.
        DamagedVideoError: damage, if strict; also in the middle of iterating, with the number of frames that could be
            read.
    """

    def __init__(
        self,
        source: StrPath | IO[bytes],
        cut: Cut | None = None,
        *,
        of_kind: tuple[str, dict[str, str]] | None = None,
        strict: bool = False,
        quietly: bool = False,
    ) -> None:
        self.path = os.fspath(source) if isinstance(source, str | os.PathLike) else "standard input"
        self._source = source
        self._of_kind = of_kind
        self._skipped = 0
        self._strict = strict
        self._quietly = quietly
        self.damage = Damage()
        self._container = self._opened()
        self.cut = (cut or Cut()).of_file(self._container)
        try:
            self._stream = self._first_video_stream()
            self._reformatter = VideoReformatter()
            self._decoded = self._wanted()
            self._first = next(self._decoded, None)
            if self._first is None:
                if self.damage.reason:
                    raise ValueError(f"{self.path}: {self.damage}")
                where = "" if cut is None else f" from {float(cut.start_s):g} s on"
                raise ValueError(f"{self.path}: the video stream has no frames{where}{self._length()}")
            if self.cut.start_s and self._first.pts is not None:
                start_s = max(self._time_s(self._first.pts), Fraction(0))
                self.cut = dataclasses.replace(self.cut, start_s=start_s, origin_s=start_s)
            self.format = self._describe(self._first.frame)
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
        earlier = round(self.cut.origin_s / self.format.time_base)
        last_pts = (first.pts if first.pts is not None else 0) - step
        later = 0
        for number, shown in enumerate(itertools.chain([first], self._decoded)):
            pts = last_pts + step if shown.pts is None else shown.pts + later
            if (last_pts - pts) * self.format.time_base > JUMP_S:
                logging.warning("%s: times begin anew at frame %d, as if files had been joined", self.path, number)
                later += last_pts + step - pts
                pts = last_pts + step
            last_pts = pts = max(pts, last_pts + 1)
            if number < self._skipped:
                continue
            rgb = self._upright_rgb(shown.frame)
            if rgb.shape[:2] != (self.format.height, self.format.width):
                raise ValueError(
                    f"{self.path}: frame {number} is {rgb.shape[1]}x{rgb.shape[0]}, the first {self.format.width}x"
                    f"{self.format.height}; make it one size first"
                )
            yield TimedFrame(rgb, pts - earlier, shown.frame.duration or 0)
        if self.damage and not self._quietly:
            logging.warning("%s: %s", self.path, self.damage)

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
            if not is_cover(stream) and not is_part_of_another(stream) and stream.codec_context is not None:
                # Decoders that work on several pictures at once tell of an error when others have been begun.
                stream.thread_type = "SLICE"
                return stream
        if any(stream.codec_context is None for stream in self._container.streams.video):
            raise ValueError(
                f"{self.path}: FFmpeg has no decoder for this kind of video; convert it with another program"
            )
        kinds = sorted({stream.type for stream in self._container.streams}) or ["nothing"]
        raise ValueError(f"{self.path}: has no video stream, only {', '.join(kinds)}")

    def _wanted(self) -> Iterator[Shown]:
        """The frames of the cut."""
        for shown in self._decode_from(self.cut.start_s) if self.cut.start_s else self._decode():
            if shown.pts is None or self.cut.holds(self._time_s(shown.pts)):
                self.damage.read += not shown.is_repeated
                self.damage.repeated += shown.is_repeated
                self.damage.concealed += not shown.is_repeated and shown.frame.is_corrupt
                if self._strict and shown.frame.is_corrupt:
                    raise DamagedVideoError(f"{self.path}: {self.damage}")
                yield shown
            elif self.cut.end_s is not None and self._time_s(shown.pts) >= self.cut.end_s:
                return

    def _decode_from(self, start_s: Fraction) -> Iterator[Shown]:
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
            if first is not None and first.pts is not None and self._time_s(first.pts) <= start_s:
                yield first
                yield from frames
                return
        self._container.close()
        self._container = self._opened()
        self._stream = self._first_video_stream()
        yield from self._decode()

    def _time_s(self, pts: int) -> Fraction:
        return pts * (self._stream.time_base or Fraction(1, 1000))

    def _length(self) -> str:
        duration_us = self._container.duration
        return f"; it is {duration_us / av.time_base:.3f} s long" if duration_us else ""

    def _decode(self) -> Iterator[Shown]:
        """Every frame from where the container stands."""
        self.damage = Damage()
        is_whole = not self.cut.start_s
        decoder = RepairingDecoder(
            self.path, self._container, self._stream, self.damage, is_strict=self._strict, is_whole=is_whole
        )
        try:
            yield from decoder
        except ValueError as error:
            if not self._strict:
                raise
            raise DamagedVideoError(str(error)) from error

    def _describe(self, frame: av.VideoFrame) -> VideoFormat:
        stream = self._stream
        aspect = stream.sample_aspect_ratio or None
        turned = _is_transposed(_display_matrix(frame))
        height, width = (frame.width, frame.height) if turned else (frame.height, frame.width)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        is_full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
        is_yuv = _is_yuv(frame)
        if not self._quietly:
            for fault in _not_kept(frame, stream):
                logging.warning("%s: %s", self.path, fault)
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
            color_range=FULL_RANGE if is_full else min(frame.color_range, LIMITED_RANGE) if is_yuv else LIMITED_RANGE,
            primaries=_known(frame.color_primaries, ColorPrimaries),
            transfer=_known(frame.color_trc, ColorTrc),
            pixel_aspect=1 / aspect if aspect and turned else aspect,
            hdr10=hdr10_of(frame),
            metadata=true_tags(stream.metadata),
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
    if frame.format.is_bit_stream and bits < 8:
        return _of_packed_bits(frame)
    if frame.format.name.startswith("gray") and bits <= 16 and frame.color_range == LIMITED_RANGE:
        return _grey_of_limited_range(frame.to_ndarray(), bits)
    target = "rgb48le" if bits > 8 else "rgb24"
    if frame.format.is_rgb:
        if bits < 8 and frame.format.is_big_endian:  # the converter's short way takes the bytes in the other order
            frame = reformatter.reformat(frame, format="gbrp")
        return reformatter.reformat(frame, format=target).to_ndarray()
    is_full = frame.color_range == FULL_RANGE or frame.format.name.startswith(("yuvj", *_GREY))
    rgb = reformatter.reformat(
        frame,
        format=target,
        src_colorspace=Colorspace[form.matrix_name],
        src_color_range="JPEG" if is_full else "MPEG",
        dst_color_range="JPEG",
        interpolation=ACCURATE,
    ).to_ndarray()
    return rgb if bits <= 8 else rescale_u16(rgb, white_16_bit(min(bits, 16), is_full), 65535)


def white_16_bit(bits: int, is_full_range: bool) -> int:
    """Where FFmpeg's converter, which widens samples to 16 bits by shifting, has white: a little below 65535."""
    return ((1 << bits) - 1) << (16 - bits) if is_full_range else 255 << 8


def rescale_u16(rgb: np.ndarray, white_before: int, white_after: int) -> np.ndarray:
    """16-bit values with another white, rounded to nearest."""
    scaled = (rgb.astype(np.uint32) * np.uint32(white_after) + np.uint32(white_before // 2)) // white_before
    return np.minimum(scaled, 65535).astype(np.uint16)


def true_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file or stream without what would be untrue of one made of it."""
    return {name: value for name, value in tags.items() if not _UNTRUE_TAGS.fullmatch(name)}


def is_part_of_another(stream: Any) -> bool:
    """Whether FFmpeg reads a stream as something else, such as the text track of an MP4 as its chapters."""
    return bool(stream.discard == Discard.all)


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


def _begin_s(container: Any) -> Fraction:
    """When the first sound or picture of a file comes, where that is after its time 0.

    Transport streams and recordings of what was live count from anywhere.
    """
    rough_s = Fraction(container.start_time or 0, av.time_base)  # rounded to microseconds
    streams = [stream for stream in container.streams if stream.type in ("video", "audio") and not is_cover(stream)]
    starts_s = [stream.start_time * stream.time_base for stream in streams if stream.start_time is not None]
    exact_s = [start_s for start_s in starts_s if abs(start_s - rough_s) < Fraction(1, 1000)]
    return max(min(exact_s, default=rough_s), Fraction(0))


def _is_yuv(frame: av.VideoFrame) -> bool:
    return not frame.format.is_rgb and not frame.format.name.startswith(_GREY)


def _not_kept(frame: av.VideoFrame, stream: Any) -> Iterator[str]:
    """What of a video's first picture is not kept, each in a line."""
    bits = frame.format.components[0].bits
    if _is_yuv(frame) and bits > 10:
        yield f"has {bits} bits, of which 10 are kept"
    if len(frame.format.components) in (2, 4) or _has_alpha_beside(stream):
        yield "is transparent in parts, which is not kept"
    if lost := dynamic_hdr_of(frame):
        yield f"has {' and '.join(lost)}, which is not kept"
    if _is_yuv(frame) and frame.colorspace != UNSPECIFIED and frame.colorspace not in _MATRIX_OF_TAG:
        yield f"has colours that FFmpeg cannot convert (matrix {frame.colorspace}), which are taken for usual ones"
    if frame.interlaced_frame:
        yield "is interlaced, and is restored as if it were not: deinterlace it first"


def _has_alpha_beside(stream: Any) -> bool:
    """VP8 and VP9 have transparency as a second picture, which FFmpeg's own decoders do not look at."""
    return any(name.lower() == "alpha_mode" and value == "1" for name, value in stream.metadata.items())


def _known(tag: int, kind: Any) -> int:
    """A tag of colour; none for one that no encoder takes."""
    return int(tag) if tag in set(kind) else UNSPECIFIED


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


def _of_packed_bits(frame: av.VideoFrame) -> np.ndarray:
    """Pixels of one bit, or of four (1 red or blue, 2 green, 1 blue or red), the first in the highest bits."""
    plane: Any = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height]
    name = frame.format.name
    if name in ("monow", "monob"):
        bits = np.unpackbits(rows, axis=1)[:, : frame.width]
        return np.repeat((bits ^ (name == "monow"))[..., None] * np.uint8(255), 3, axis=-1)
    if name not in ("rgb4", "bgr4"):
        raise ValueError(f"pixels of the kind {name} cannot be read")
    pixels = np.stack([rows >> 4, rows & 15], axis=-1).reshape(len(rows), -1)[:, : frame.width]
    outer, green, inner = (pixels >> 3) * 255, (pixels >> 1 & 3) * 85, (pixels & 1) * 255
    return np.stack([outer, green, inner] if name == "rgb4" else [inner, green, outer], axis=-1).astype(np.uint8)


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
