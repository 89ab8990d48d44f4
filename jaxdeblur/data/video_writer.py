"""Video files out, through FFmpeg (PyAV): pictures encoded in segments, everything else copied packet by packet.

A segment is some seconds of pictures, encoded by an encoder of its own and kept in a file of its own; at the end their
packets are put into one video. So whoever keeps the segments can go on after being stopped, and the video is the same,
byte for byte.

The matrix, range, primaries and transfer of the source are kept, with its tags; so are its time stamps, and 4:2:0,
4:2:2 or 4:4:4. 4:2:0 halves the resolution of colour: compute metrics on frames, never on lossy files written here.
"""

import contextlib
import dataclasses
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from absl import logging
from av.codec.context import Flags
from av.video.reformatter import Colorspace, VideoReformatter

from jaxdeblur.data.image_io import ACCURATE, StrPath
from jaxdeblur.data.own_files import replacing
from jaxdeblur.data.stream_copy import MATROSKA, CopyPlan, CopyPlanner, StreamCopy, open_output
from jaxdeblur.data.video_io import (
    Cut,
    DamagedVideoError,
    TimedFrame,
    VideoFormat,
    rescale_u16,
    white_16_bit,
)

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
"""What is written; anything FFmpeg knows is read."""

OTHER_VIDEO_SUFFIXES = (".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".vob")
"""By which, too, a file in a folder is taken for a video."""

SEGMENT_FRAMES = 240
"""Of small frames; of larger ones as many as have no more pixels, see `segment_frames`."""

_SEGMENT_PIXELS = 60 * 1280 * 720


@dataclasses.dataclass(frozen=True)
class Codec:
    """A kind of compression: FFmpeg's encoder, how it is driven and what it takes."""

    encoder: str
    crf: int
    """Hard to tell from the source; 0 is the finest."""
    worst_crf: int
    options: dict[str, str]
    bits: tuple[int, ...]
    chroma: tuple[str, ...]
    needs_even_sides: bool


# Always as many threads: with another number of them, encoders give other bytes, and need other memory.
# And without what reads memory that it has not written, of small pictures in a process that does other things as well:
# x264's macroblock tree and x265's weighted prediction gave other bytes in every third run.
_X264 = {"threads": "4", "mbtree": "0"}
_X265 = {"x265-params": "log-level=none:pools=4:frame-threads=2:weightp=0"}
_SVT_AV1 = {"preset": "6", "svtav1-params": "lp=4"}

CODECS = {
    "h264": Codec("libx264", 16, 51, _X264, (8, 10), ("420", "422", "444"), True),
    "hevc": Codec("libx265", 18, 51, _X265, (8, 10), ("420", "422", "444"), True),
    "vp9": Codec("libvpx-vp9", 18, 63, {"threads": "4", "b": "0", "row-mt": "1"}, (8,), ("420", "422", "444"), False),
    "av1": Codec("libsvtav1", 18, 63, _SVT_AV1, (8, 10), ("420",), False),
}
"""What --codec chooses from."""

# Of pictures narrower than one of its blocks x265 writes beyond its memory.
_LEAST_HEVC_SIDE_PX = 64

_USUAL_SIDES_PX = 64, 8192
"""Every encoder takes pictures of such sides; with others it is tried before there is anything to lose."""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How the pictures of one video are written, as `choose_encoding` found it."""

    codec: str
    encoder: str
    pixel_format: str
    options: dict[str, str]

    @property
    def is_rgb(self) -> bool:
        """Stored as RGB, not converted to YUV."""
        return not self.pixel_format.startswith("yuv")


def choose_encoding(
    path: StrPath, format: VideoFormat, *, codec: str | None = None, crf: int | None = None, lossless: bool = False
) -> Encoding:
    """What a file of that name and such pictures is best written as.

    Without a codec: VP9 in WebM; HEVC for more than 8 bits, since hardly any phone, television or browser plays H.264
    of 10 bits; otherwise H.264, which all play. Odd sides take 4:4:4 where the codec's 4:2:0 holds no such side.

    Args:
        path: of the video; its suffix counts, one of VIDEO_SUFFIXES.
        format: size, depth and chroma of its pictures.
        codec: one of CODECS.
        crf: constant quality, 0 to 51 (H.264, HEVC) or 63 (VP9, AV1); None is the codec's own.
        lossless: keep every value of RGB: FFV1 in .mkv, H.264 of RGB in .mp4, .m4v and .mov (8 bits).

    Raises:
        ValueError: unknown suffix or codec, a quality out of range, or what the container or codec cannot hold.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise ValueError(f"{path}: unknown video suffix {path.suffix!r}; use one of {', '.join(VIDEO_SUFFIXES)}")
    if lossless:
        return _choose_lossless(path, format, codec, crf)
    if codec is None:
        small = min(format.height, format.width) < _LEAST_HEVC_SIDE_PX
        codec = "vp9" if suffix == ".webm" else "hevc" if format.bits > 8 and not small else "h264"
    if codec not in CODECS:
        raise ValueError(f"codec is {codec!r}; expected one of {', '.join(CODECS)}")
    if suffix == ".webm" and codec not in ("vp9", "av1"):
        raise ValueError(f"{path}: a .webm file holds vp9 or av1, not {codec}; name the target .mkv, or choose another")
    if suffix == ".mov" and codec not in ("h264", "hevc"):
        raise ValueError(
            f"{path}: a .mov file holds h264 or hevc, not {codec}; name the target .mp4, or choose another"
        )
    kind = CODECS[codec]
    crf = kind.crf if crf is None else crf
    if not 0 <= crf <= kind.worst_crf:
        raise ValueError(f"crf is {crf}; expected 0 (finest) to {kind.worst_crf} for {codec}")
    if codec == "hevc" and min(format.height, format.width) < _LEAST_HEVC_SIDE_PX:
        raise ValueError(
            f"{path}: hevc holds no pictures of {format.width}x{format.height}; both sides are at least "
            f"{_LEAST_HEVC_SIDE_PX}: choose --codec=h264"
        )
    odd_width, odd_height = format.width % 2 == 1, format.height % 2 == 1
    chroma = format.chroma
    if kind.needs_even_sides and ((odd_width and chroma != "444") or (odd_height and chroma == "420")):
        chroma = "444"
    if chroma not in kind.chroma:
        chroma = kind.chroma[-1]
    bits = format.bits if format.bits in kind.bits else 8
    if bits < format.bits:
        logging.warning("%s: %s holds 8 bits here, the video has more; --codec=hevc or av1 keeps 10", path, codec)
    pixel_format = f"yuv{chroma}p" + ("10le" if bits == 10 else "")
    return Encoding(
        codec, kind.encoder, pixel_format, _with_hdr10(path, format, codec, {**kind.options, "crf": str(crf)})
    )


def _with_hdr10(path: Path, format: VideoFormat, codec: str, options: dict[str, str]) -> dict[str, str]:
    told = format.hdr10.options(codec)
    if format.hdr10 and not told:
        logging.warning("%s: FFmpeg cannot tell %s of the display it was made on (HDR10), which is lost", path, codec)
    return {**options, **{name: ":".join(filter(None, (options.get(name), value))) for name, value in told.items()}}


def _choose_lossless(path: Path, format: VideoFormat, codec: str | None, crf: int | None) -> Encoding:
    if codec is not None or crf is not None:
        raise ValueError("lossless leaves nothing to choose; leave out codec and crf")
    suffix = path.suffix.lower()
    if suffix == ".mkv":
        options = _with_hdr10(path, format, "ffv1", {"threads": "4", "level": "3"})
        return Encoding("ffv1", "ffv1", "bgr0" if format.bits == 8 else "gbrp16le", options)
    if suffix != ".webm" and format.bits == 8:
        options = _with_hdr10(path, format, "h264", {**_X264, "crf": "0"})
        return Encoding("h264", "libx264rgb", "rgb24", options)
    raise ValueError(f"{path}: a {suffix} file holds no lossless video of {format.bits} bits; name the target .mkv")


def segment_frames(format: VideoFormat) -> int:
    """How many frames a segment has: about a minute's work, and little memory in the encoder, whatever the size."""
    return max(8, min(SEGMENT_FRAMES, _SEGMENT_PIXELS // (format.height * format.width)))


def encoder_bytes(format: VideoFormat, encoding: Encoding) -> int:
    """About how much memory a VideoWriter takes, its pictures and the encoder's.

    Encoders keep some frames to look ahead, of a segment at most 60. Measured at 640x360 to 3840x2160 (x264 within a
    tenth).
    """
    frames = 2.5 * min(segment_frames(format), 60) + 28
    of_x264 = {"hevc": 1.3, "vp9": 0.8, "av1": 3.7, "ffv1": 0.5}.get(encoding.codec, 1.0)
    of_samples = {"420": 1.0, "422": 1.15, "444": 1.4}[format.chroma] * (1 if format.bits == 8 else 2)
    return round(1.5 * format.height * format.width * frames * of_x264 * of_samples)


@contextlib.contextmanager
def write_video(
    path: StrPath,
    format: VideoFormat,
    *,
    codec: str | None = None,
    crf: int | None = None,
    lossless: bool = False,
    streams_from: StrPath | None = None,
) -> Iterator["VideoWriter"]:
    """Opens a video to be written frame by frame.

    Everything goes to temporary names in the target's folder; the target is replaced when the block ends well, and as
    it was when the block ends in any exception, Ctrl-C included.

    Args:
        path: the target; its suffix names the container, see VIDEO_SUFFIXES.
        format: size, time base, colour and depth of the frames to come.
        codec, crf, lossless: see `choose_encoding`.
        streams_from: see VideoWriter.

    Raises:
        ValueError: see `choose_encoding` and VideoWriter; or a frame that does not fit `format`, or no frame at all.
        OSError: the target cannot be written; also when the disk is full.
    """
    path = Path(path)
    encoding = choose_encoding(path, format, codec=codec, crf=crf, lossless=lossless)
    refuse_unwritable(path)
    if streams_from is not None:
        refuse_same_file(streams_from, path)
    with naming(path), replacing(path) as partial:
        partial.touch()  # an unwritable folder shows before any work is done
        folder = Path(tempfile.mkdtemp(prefix=".jaxdeblur-", dir=path.absolute().parent))
        try:
            writer = VideoWriter(path, folder, format, encoding, streams_from=streams_from)
            yield writer
            writer.assemble(partial)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class VideoWriter:
    """Encodes frames into segments, each a file of a folder, and makes one video of them.

    Args:
        target: the video's name, for messages and its suffix.
        folder: where the segments are.
        format: of the frames.
        encoding: see `choose_encoding`.
        streams_from: a file whose sound, subtitles, data, further pictures, attachments and chapters are copied, None
            for a silent video. Memory holds a few seconds of them at most. Of what the container cannot hold, sound is
            encoded anew, subtitles of text become plain text, and the rest is left out, each with a warning.
        cut: the part of that file that is wanted.
        strict: it is an error, found before the first frame, if sound or subtitles that are not copied cannot be
            decoded, or packets not be copied. Otherwise sound becomes silence there, the others are left out, and a
            warning counts them.
        segments_done: whole segments that the folder has from before; what comes is the frames after them.
        frames_a_segment: None is `segment_frames(format)`.
        stem: what the names of the segments begin with.

    Raises:
        ValueError: pictures that the encoder cannot hold.
        DamagedVideoError: `streams_from` is damaged, if strict.
        OSError: `folder` or `streams_from` cannot be opened, or nothing written.
    """

    def __init__(
        self,
        target: Path,
        folder: Path,
        format: VideoFormat,
        encoding: Encoding,
        *,
        streams_from: StrPath | None = None,
        cut: Cut | None = None,
        strict: bool = False,
        segments_done: int = 0,
        frames_a_segment: int | None = None,
        stem: str = "restored",
    ) -> None:
        self._target = target
        self._suffix = target.suffix.lower()
        self._plan = CopyPlan()
        self._folder = folder
        self._stem = stem
        self._format = format
        self._encoding = encoding
        self._streams_from = streams_from
        self._cut = cut
        self._strict = strict
        self._segments_done = segments_done
        self._segment_frames = frames_a_segment or segment_frames(format)
        self._frames_written = segments_done * self._segment_frames
        self._reformatter = VideoReformatter()
        self._encoder: Any = None
        self._packets: list[Any] = []
        self._durations: dict[int, int] = {}
        self._last_pts: int | None = None
        if segments_done:
            self._last_pts = int(max(_read_presentation_times(self._segment_path(segments_done - 1))))
        self._try_container()

    def write(self, frame: TimedFrame) -> None:
        """Encodes one frame; time stamps must rise."""
        expected = np.dtype(np.uint8 if self._format.bits == 8 else np.uint16)
        shape = (self._format.height, self._format.width, 3)
        number = self._frames_written
        if frame.rgb.shape != shape or frame.rgb.dtype != expected:
            raise ValueError(
                f"{self._target}: frame {number} is {frame.rgb.dtype} {frame.rgb.shape}; expected {expected} {shape}"
            )
        if self._last_pts is not None and frame.pts <= self._last_pts:
            raise ValueError(
                f"{self._target}: frame {number} has time stamp {frame.pts} after {self._last_pts}; "
                "time stamps must rise"
            )
        if len(self._durations) == self._segment_frames:
            self.end_segment()
        if self._encoder is None:
            self._encoder = self._open_encoder()
        self._last_pts = frame.pts
        self._durations[frame.pts] = frame.duration
        self._frames_written += 1
        picture = to_picture(frame, self._format, self._encoding.pixel_format, self._reformatter)
        self._packets += self._encoder.encode(picture)

    def end_segment(self) -> Path | None:
        """Completes the file of the frames since the last segment, and returns it; None if there are none."""
        if not self._durations:
            return None
        self._packets += self._encoder.encode(None)
        segment = _Segment(
            pts=np.array([packet.pts for packet in self._packets], np.int64),
            duration=np.array([self._durations[packet.pts] for packet in self._packets], np.int64),
            size=np.array([packet.size for packet in self._packets], np.int64),
            is_key=np.array([packet.is_keyframe for packet in self._packets]),
            data=np.frombuffer(b"".join(map(bytes, self._packets)), np.uint8),
        )
        path = self._segment_path(self._segments_done)
        with replacing(path, durable=True) as partial, open(partial, "wb") as file:
            # Through memory: on a full disk NumPy's half-written archive would complain once more when it goes.
            archive = io.BytesIO()
            np.savez(archive, **dataclasses.asdict(segment))
            file.write(archive.getbuffer())
        self._segments_done += 1
        self._encoder, self._packets, self._durations = None, [], {}
        return path

    def assemble(self, path: Path) -> None:
        """Writes the video of all segments, with what is copied, to a path of the target's suffix."""
        self.end_segment()
        if self._segments_done == 0:
            raise ValueError(f"{self._target}: no frames were written")
        pts = [_read_presentation_times(self._segment_path(number)) for number in range(self._segments_done)]
        decode_time = _decode_times(np.concatenate(pts))
        what = f" and the other streams of {os.fspath(self._streams_from)}" if self._streams_from else ""
        with naming(self._target, f"the pictures{what}"):
            self._write_all(path, decode_time, int(np.min(pts[0])))

    def _write_all(self, path: Path, decode_time: list[int], first_pts: int) -> None:
        copy: StreamCopy | None = None
        container, stream = self._open_container(path, self._plan)
        try:
            if self._streams_from is not None:
                copy = StreamCopy(self._streams_from, container, self._suffix, self._plan, self._cut)
            for packet in self._timed_packets(decode_time, first_pts):
                packet.stream = stream
                if copy is not None:
                    copy.copy_until(float(packet.dts * packet.time_base))
                container.mux(packet)
            if copy is not None and (losses := copy.finish()):
                logging.warning("%s: %s", self._target, losses)
            container.close()
        finally:
            with contextlib.suppress(OSError, ValueError):
                container.close()  # after an error there is nothing left to save
            if copy is not None:
                copy.close()

    def _timed_packets(self, decode_time: list[int], first_pts: int) -> Iterator[Any]:
        """The packets of all segments."""
        number = 0
        for segment_number in range(self._segments_done):
            segment = _read_segment(self._segment_path(segment_number))
            is_last = segment_number == self._segments_done - 1
            end_pts = int(np.max(segment.pts + segment.duration)) if is_last else 0
            for index, data in enumerate(segment.packets()):
                packet = av.Packet(data)
                packet.pts, packet.dts = int(segment.pts[index]), decode_time[number]
                packet.duration, packet.is_keyframe = int(segment.duration[index]), bool(segment.is_key[index])
                packet.time_base = self._format.time_base
                if is_last and index == len(segment.pts) - 1:
                    # MP4 adds up decoding times: the last packet written, which need not be the last one shown,
                    # carries what is missing to the end of the last frame.
                    shown, decoded = end_pts - first_pts, decode_time[number] - decode_time[0]
                    packet.duration = max(packet.duration, shown - decoded)
                yield packet
                number += 1

    def _segment_path(self, number: int) -> Path:
        return self._folder / f"{self._stem}_{number:06d}.npz"

    def _try_container(self) -> None:
        """Raises what would be raised later, or only in the end."""
        sides = self._format.height, self._format.width
        if min(sides) < _USUAL_SIDES_PX[0] or max(sides) > _USUAL_SIDES_PX[1]:
            self._try_encoder()
        probe = self._folder / f"try{self._target.suffix}"
        if self._streams_from is not None:
            planner = CopyPlanner(
                self._streams_from, self._target, probe, lambda *of: self._open_container(*of)[0], self._cut
            )
            self._plan = planner.find()
            if self._strict:
                self._refuse_losses(probe)
            return
        try:
            self._open_container(probe, self._plan)[0].close()
        finally:
            probe.unlink(missing_ok=True)

    def _refuse_losses(self, probe: Path) -> None:
        """Copies all that is to be copied, without the pictures, to see whether any of it is damaged."""
        assert self._streams_from is not None
        try:
            with naming(self._target), contextlib.closing(self._open_container(probe, self._plan)[0]) as container:
                copy = StreamCopy(self._streams_from, container, self._suffix, self._plan, self._cut)
                with contextlib.closing(copy):
                    container.start_encoding()
                    losses = copy.finish()
        finally:
            probe.unlink(missing_ok=True)
        if losses.are_damage:
            raise DamagedVideoError(f"{os.fspath(self._streams_from)}: {losses}")

    def _try_encoder(self) -> None:
        try:
            self._open_encoder().open()
        except av.FFmpegError as error:
            raise ValueError(
                f"{self._target}: {self._encoding.codec} cannot hold pictures of {self._format.width}x"
                f"{self._format.height} ({error.strerror}); choose another --codec, or scale the video"
            ) from error

    def _open_encoder(self) -> Any:
        encoder: Any = av.CodecContext.create(self._encoding.encoder, "w")
        self._set_up(encoder)
        encoder.framerate = self._rate
        encoder.flags |= Flags.global_header
        return encoder

    def _open_container(self, path: Path, plan: CopyPlan) -> tuple[Any, Any]:
        """The file and its stream of pictures, whose encoder makes the header and nothing else."""
        container = open_output(path, self._suffix, plan)
        try:
            stream = container.add_stream(self._encoding.encoder, rate=self._rate)
            self._set_up(stream.codec_context)
            stream.codec_context.flags |= Flags.global_header  # "tee" does not ask for it
            if self._encoding.codec == "hevc" and self._suffix not in MATROSKA:
                stream.codec_context.codec_tag = "hvc1"  # what Apple's players want
            tags = dict(self._format.metadata)
            if not plan.keeps_timecode or (self._cut is not None and self._cut.start_s):
                tags.pop("timecode", None)
            stream.metadata.update(tags)
        except BaseException:
            container.close()
            raise
        return container, stream

    @property
    def _rate(self) -> Fraction:
        return self._format.average_rate.limit_denominator(1_000_000)

    def _set_up(self, encoder: Any) -> None:
        form = self._format
        if self._encoding.codec == "av1":
            os.environ.setdefault("SVT_LOG", "1")  # errors only
        encoder.width, encoder.height = form.width, form.height
        encoder.pix_fmt = self._encoding.pixel_format
        encoder.time_base = form.time_base
        if not self._encoding.is_rgb:
            encoder.colorspace = form.colorspace
            encoder.color_range = form.color_range
        encoder.color_primaries = form.primaries
        encoder.color_trc = form.transfer
        if form.pixel_aspect:
            encoder.sample_aspect_ratio = form.pixel_aspect
        encoder.options = dict(self._encoding.options)


def to_picture(frame: TimedFrame, form: VideoFormat, pixel_format: str, reformatter: VideoReformatter) -> av.VideoFrame:
    """A frame as an encoder takes it: in FFmpeg's pixel format, by the matrix and range of `form`, and tagged."""
    is_yuv, deep = pixel_format.startswith("yuv"), form.bits > 8
    rgb = np.ascontiguousarray(frame.rgb)
    if deep and is_yuv:
        # FFmpeg narrows samples from 16 bits by shifting, so that its white lies a little below 65535.
        rgb = rescale_u16(rgb, 65535, white_16_bit(form.bits, form.is_full_range))
    picture = av.VideoFrame.from_ndarray(rgb, format="rgb48le" if deep else "rgb24")
    if is_yuv:
        picture = reformatter.reformat(
            picture,
            format=pixel_format,
            src_color_range="JPEG",
            dst_colorspace=Colorspace[form.matrix_name],
            dst_color_range="JPEG" if form.is_full_range else "MPEG",
            interpolation=ACCURATE,
        )
        picture.color_range = form.color_range
        picture.colorspace = form.colorspace
    else:
        picture = reformatter.reformat(picture, format=pixel_format)
    picture.color_primaries = form.primaries
    picture.color_trc = form.transfer
    picture.pts = frame.pts
    picture.time_base = form.time_base
    return picture


@dataclasses.dataclass(frozen=True)
class _Segment:
    """Packets in the order of decoding; all but the bytes in units of the format's time base."""

    pts: np.ndarray
    duration: np.ndarray
    size: np.ndarray
    is_key: np.ndarray
    data: np.ndarray

    def packets(self) -> Iterator[bytes]:
        ends = np.cumsum(self.size)
        for begin, end in zip(ends - self.size, ends, strict=True):
            yield self.data[begin:end].tobytes()


def _read_segment(path: Path) -> _Segment:
    with _opened_segment(path) as arrays:
        return _Segment(**{field.name: arrays[field.name] for field in dataclasses.fields(_Segment)})


def _read_presentation_times(path: Path) -> np.ndarray:
    """A segment's `pts`, without reading its packets."""
    with _opened_segment(path) as arrays:
        return arrays["pts"]


@contextlib.contextmanager
def _opened_segment(path: Path) -> Iterator[Any]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged or missing; begin anew with --restart") from error


def _decode_times(pts: np.ndarray) -> list[int]:
    """When each packet is decoded, given when it is shown: as late as the reordering of frames allows.

    In the order of presentation a packet may stand some places before where it is decoded; with that many places of
    delay every packet is decoded before it is shown, and times rise.
    """
    shown = np.sort(pts)
    delay = int(np.max(np.arange(len(pts)) - np.searchsorted(shown, pts)))
    if delay == 0:
        return pts.tolist()
    early = shown[:delay] - (shown[delay] - shown[0])
    return np.concatenate([early, shown[:-delay]]).tolist()


@contextlib.contextmanager
def naming(target: Path, what: str = "the video") -> Iterator[None]:
    """Errors name the target, not the temporary file that was written to in its place.

    Raises:
        OSError: for any error of FFmpeg's. No ValueError: nothing is wrong with what was asked for, and what was
            restored is to be kept.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is None or isinstance(error, ValueError):
            raise
        whole = Path(os.path.abspath(target))
        # Temporary names are made of the target's, in its folder or in one there.
        ours = (str(whole.with_name(f".{whole.name}")), str(whole.with_name(f"{whole.stem}.partial-")))
        if not os.path.abspath(os.fsdecode(error.filename)).startswith(ours):
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(target)) from error
    except av.FFmpegError as error:
        raise OSError(f"{target}: FFmpeg cannot write {what} ({error.strerror})") from error


def refuse_same_file(source: StrPath, target: StrPath) -> None:
    """ValueError if both names lead to one file, links followed."""
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ValueError(f"{os.fspath(target)}: is the input itself; name another target")


def refuse_unwritable(path: Path) -> None:
    """OSError if a video of that name cannot be made."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a video file in it")
    refuse_unwritable_folder(path)


def refuse_unwritable_folder(path: Path) -> None:
    """OSError if the folder that `path` is to be in is not there or may not be written to."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {parent}; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: the folder {parent} may not be written to")
