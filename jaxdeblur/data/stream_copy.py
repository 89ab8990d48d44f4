"""What a video has beside its pictures, put into another file: copied packet by packet where the container takes it,
encoded anew or written as plain text where it does not, and left out, with a warning, where nothing helps.

What a container takes is found by trying: FFmpeg tells only when it writes, or not at all.
"""

import dataclasses
import enum
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from absl import logging
from av.audio.resampler import AudioResampler
from av.codec.context import Flags

from jaxdeblur.data.image_io import StrPath
from jaxdeblur.data.video_damage import demuxed
from jaxdeblur.data.video_io import JUMP_S, Cut, is_cover, is_part_of_another, open_input, true_tags

MATROSKA = (".mkv", ".webm")

# So many packets of the source, of all its streams, are looked at to see what a container does with them.
_SAMPLE_PACKETS = 400

# Of gaps in sound that is encoded anew, those between are filled with silence; longer ones stay.
_LEAST_GAP_S, _MOST_SILENCE_S = 0.1, 10.0

# A line of MP4's own subtitles is no longer: its length is written in two bytes.
_MOST_TEXT_BYTES = 65535

_AAC_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}

# Languages that QuickTime has under other letters than Matroska.
_LANGUAGES_OF_MOV = {
    "bod": "tib", "cym": "wel", "cze": "ces", "deu": "ger", "ell": "gre", "eus": "baq", "fas": "per",
    "fre": "fra", "gle": "iri", "hye": "arm", "isl": "ice", "kat": "geo", "mkd": "mac", "msa": "may", "mya": "bur",
    "nld": "dut", "nob": "nor", "rum": "ron", "slo": "slk", "sqi": "alb", "swe": "sve", "zho": "chi",
}  # fmt: skip

# What text without styles of its own is to look like, for encoders that ask.
_PLAIN_STYLE = b"""[Script Info]
ScriptType: v4.00+
PlayResX: 384
PlayResY: 288

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


class Way(enum.Enum):
    """How a stream comes into the new file."""

    COPY = "copied"
    ENCODE = "encoded anew"
    TEXT = "as plain text"
    LEAVE = "left out"


@dataclasses.dataclass(frozen=True)
class CopyPlan:
    """How everything beside the pictures comes into the new file.

    Attributes:
        ways: of each stream of the source but its pictures, by its index.
        keeps_all_tags: with tags under any name, which some players of MP4 do not look for.
        keeps_timecode: the time code of the first frame is written.
        through_tee: by way of FFmpeg's "tee", which alone lets Matroska have sound that it has no name of its own for.
    """

    ways: Mapping[int, Way] = dataclasses.field(default_factory=dict)
    keeps_all_tags: bool = False
    keeps_timecode: bool = True
    through_tee: bool = False


@dataclasses.dataclass
class Losses:
    """What did not come into the new file, in packets of the source.

    Attributes:
        silenced: sound that could not be decoded; silence takes its place.
        unread: subtitles that could not be decoded.
        refused: others that the container did not take.
        shortened: subtitles that are longer than the container's may be, which is no damage.
    """

    silenced: int = 0
    unread: int = 0
    refused: int = 0
    shortened: int = 0

    @property
    def are_damage(self) -> bool:
        return bool(self.silenced or self.unread or self.refused)

    def __bool__(self) -> bool:
        return self.are_damage or bool(self.shortened)

    def __str__(self) -> str:
        faults = {
            "packets of sound that become silence": self.silenced,
            "subtitles left out": self.unread,
            "other packets left out": self.refused,
        }
        counts = [f"{fault}: {count}" for fault, count in faults.items() if count]
        damage = ["; ".join(["damaged beside the pictures", *counts])] if counts else []
        too_long = [f"subtitles cut to {_MOST_TEXT_BYTES} bytes: {self.shortened}"] if self.shortened else []
        return "; ".join([*damage, *too_long])


def open_output(path: Path, suffix: str, plan: CopyPlan) -> Any:
    """FFmpeg's container to write, of the kind that belongs to `suffix`."""
    # Without what differs from run to run: a program's name, random numbers of streams.
    # Sound often begins a little before the pictures, and before time 0; no reason to move everything.
    options = {"fflags": "+bitexact", "avoid_negative_ts": "disabled"}
    # From the root on: of a name alone FFmpeg takes what stands before a colon for a protocol.
    whole = os.path.abspath(path)
    if plan.through_tee:
        settings = ":".join(["f=matroska", *(f"{name}={value}" for name, value in options.items())])
        name = re.sub(r"([\\'|\s\[\]])", r"\\\1", whole)
        return av.open(f"[{settings}]{name}", "w", format="tee")
    if suffix not in MATROSKA:
        options["movflags"] = "+faststart"
        options["movie_timescale"] = "90000"  # by default where streams begin is rounded to milliseconds
        if plan.keeps_all_tags or suffix == ".mov":  # what cameras write: make, model, place, date
            options["movflags"] += "+use_metadata_tags"
    return av.open(whole, "w", container_options=options)


class StreamCopy:
    """Brings what is not the pictures into a container in step with the video's time, from a second opening of the
    file: sound, subtitles, data such as a camera's measurements, further pictures, attached files, chapters.

    Args:
        source: the file.
        container: opened to write, without a header yet.
        suffix: its kind.
        plan: what comes of each stream.
        cut: the part that is wanted, in the file's time; None is all.
    """

    def __init__(self, source: StrPath, container: Any, suffix: str, plan: CopyPlan, cut: Cut | None = None) -> None:
        self._input = open_input(os.fspath(source))
        self._container = container
        self._suffix = suffix
        self._cut = Cut().of_file(self._input) if cut is None else cut
        if self._cut.start_s:
            # Somewhat earlier: files without an index are searched badly. What cannot be searched is read through.
            try:
                self._input.seek(math.floor(max(self._cut.start_s - 2, Fraction(0)) * av.time_base), backward=True)
            except av.FFmpegError:
                self._input.close()
                self._input = open_input(os.fspath(source))
        self._next: Any = None
        self._losses = Losses()
        self._brought: dict[int, _Copied | _EncodedSound | _PlainText] = {}
        try:
            for index, way in plan.ways.items():
                self._add(self._input.streams[index], way)
            if chapters := [self._cut.chapter(chapter) for chapter in self._input.chapters()]:
                container.set_chapters([chapter for chapter in chapters if chapter is not None])
        except BaseException:
            self._input.close()
            raise
        container.metadata.update(true_tags(self._input.metadata))
        streams = [self._input.streams[index] for index in self._brought]
        self._streams = streams
        packets: Iterator[Any] = demuxed(self._input, streams) if streams else iter(())
        self._packets = _in_time(packet for packet in packets if self._cut.move(packet))

    def _add(self, stream: Any, way: Way) -> None:
        if way is Way.LEAVE:
            return
        if stream.type == "attachment":
            name, kind = stream.name or f"attachment_{stream.index}", stream.mimetype or "application/octet-stream"
            self._container.add_attachment(name, kind, bytes(stream.data))
            return
        kinds: dict[Way, Any] = {Way.COPY: _Copied, Way.ENCODE: _EncodedSound, Way.TEXT: _PlainText}
        brought = kinds[way](stream, self._container, self._suffix, self._losses)
        brought.stream.metadata.update(_tags_for(stream, self._suffix))
        brought.stream.disposition = stream.disposition
        self._brought[stream.index] = brought

    def copy_until(self, time_s: float) -> None:
        """What is decoded until then."""
        while True:
            if self._next is None:
                self._next = next(self._packets, None)
            if self._next is None or float(self._next.dts * self._next.time_base) > time_s:
                return
            self._mux(self._next)
            self._next = None

    def finish(self) -> Losses:
        """All that is left. Returns what was lost of the whole."""
        self.copy_until(math.inf)
        for brought in self._brought.values():
            self._container.mux(brought.rest())
        return self._losses

    def copy_sample(self) -> set[int]:
        """Some packets from where the copy begins. Returns the indices of the streams that had any."""
        sample = (
            packet
            for packet in itertools.islice(demuxed(self._input, list(self._input.streams)), _SAMPLE_PACKETS)
            if packet.stream.index in self._brought and self._cut.move(packet)
        )
        seen = set()
        for packet in _in_time(sample):
            seen.add(packet.stream.index)
            self._mux(packet)
        for brought in self._brought.values():
            self._container.mux(brought.rest())
        if self._losses.refused:
            raise ValueError(f"{self._losses.refused} packets were refused")
        return seen

    def _mux(self, packet: Any) -> None:
        for brought in self._brought[packet.stream.index].packets(packet):
            try:
                self._container.mux(brought)
            except av.InvalidDataError:
                self._losses.refused += 1

    def close(self) -> None:
        self._input.close()


class _Copied:
    """A stream as it is."""

    def __init__(self, stream: Any, container: Any, suffix: str, losses: Losses) -> None:
        self.stream = container.add_stream_from_template(stream, opaque=True)

    def packets(self, packet: Any) -> list[Any]:
        packet.stream = self.stream
        return [packet]

    def rest(self) -> list[Any]:
        return []


class _EncodedSound:
    """Sound as AAC, in WebM as Opus; gaps become silence, so that it stays in step."""

    def __init__(self, stream: Any, container: Any, suffix: str, losses: Losses) -> None:
        self._losses = losses
        source = stream.codec_context
        self._decoder = source
        is_opus = suffix == ".webm"
        rates_hz = (48000,) if is_opus else _AAC_RATES_HZ
        self._rate_hz = next((rate for rate in rates_hz if rate >= source.sample_rate), rates_hz[-1])
        self.stream = container.add_stream("libopus" if is_opus else "aac", rate=self._rate_hz)
        channels = source.layout.nb_channels
        encoder = self.stream.codec_context
        encoder.layout = _LAYOUTS.get(channels, "stereo")
        encoder.time_base = Fraction(1, self._rate_hz)
        encoder.bit_rate = min(96_000, 4 * self._rate_hz) * encoder.layout.nb_channels
        encoder.flags |= Flags.global_header  # "tee" does not ask for it
        encoder.open()
        self._encoder = encoder
        self._resampler = AudioResampler(format=encoder.format.name, layout=encoder.layout.name, rate=self._rate_hz)
        self._waiting: list[np.ndarray] = []
        self._next_sample: int | None = None  # of what comes from the decoder
        self._written = 0

    def packets(self, packet: Any) -> list[Any]:
        try:
            frames = self._decoder.decode(packet)
        except av.FFmpegError:
            # After a cut, some decoders wait for a packet that needs none before it.
            self._losses.silenced += packet.is_keyframe or self._next_sample is not None
            return []
        return [encoded for frame in frames for encoded in self._encoded(frame)]

    def rest(self) -> list[Any]:
        if self._next_sample is None:
            return []
        out = []
        try:
            for frame in self._decoder.decode(None):
                out += self._encoded(frame)
        except av.FFmpegError:
            pass  # it has nothing more to give
        for frame in self._resampler.resample(None):
            self._waiting.append(frame.to_ndarray())
        return [*out, *self._full_frames(is_last=True), *self._of_stream(self._encoder.encode(None))]

    def _encoded(self, frame: Any) -> list[Any]:
        time_s = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
        frame.pts = None
        blocks = [block.to_ndarray() for block in self._resampler.resample(frame)]
        out = []
        if self._next_sample is None:
            self._next_sample = self._written = 0 if time_s is None else round(time_s * self._rate_hz)
        elif time_s is not None and blocks:
            gap = round(time_s * self._rate_hz) - self._next_sample
            if gap > _MOST_SILENCE_S * self._rate_hz:
                out = self._full_frames(is_last=True)
                self._next_sample = self._written = self._next_sample + gap
            elif gap > _LEAST_GAP_S * self._rate_hz:
                self._waiting.append(np.zeros((blocks[0].shape[0], gap * self._interleaved), blocks[0].dtype))
                self._next_sample += gap
        self._waiting += blocks
        self._next_sample += sum(block.shape[1] for block in blocks) // self._interleaved
        return [*out, *self._full_frames()]

    @property
    def _interleaved(self) -> int:
        return 1 if self._encoder.format.is_planar else self._encoder.layout.nb_channels

    def _full_frames(self, *, is_last: bool = False) -> list[Any]:
        if not self._waiting:
            return []
        samples = np.concatenate(self._waiting, axis=1)
        size = (self._encoder.frame_size or 1024) * self._interleaved
        ends = range(size, samples.shape[1] + 1, size)
        whole = ends[-1] if ends else 0
        self._waiting = [samples[:, whole:]]
        pieces = np.split(samples[:, :whole], whole // size, axis=1) if whole else []
        if is_last and samples.shape[1] > whole:
            # Whole, too, as something may come behind a gap.
            pieces.append(np.pad(samples[:, whole:], ((0, 0), (0, whole + size - samples.shape[1]))))
            self._waiting = []
        out = []
        for piece in pieces:
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(piece), format=self._encoder.format.name, layout=self._encoder.layout.name
            )
            frame.sample_rate, frame.pts, frame.time_base = self._rate_hz, self._written, Fraction(1, self._rate_hz)
            self._written += piece.shape[1] // self._interleaved
            out += self._of_stream(self._encoder.encode(frame))
        return out

    def _of_stream(self, packets: list[Any]) -> list[Any]:
        for packet in packets:
            packet.stream = self.stream
        return packets


class _PlainText:
    """Subtitles as the plain text of what the container has for them."""

    _UNIT_S = Fraction(1, 1000)

    def __init__(self, stream: Any, container: Any, suffix: str, losses: Losses) -> None:
        self._losses = losses
        self._decoder = stream.codec_context
        self._is_mov_text = suffix not in MATROSKA
        if self._is_mov_text:
            self.stream = container.add_stream("mov_text")
            self._decoder.open(strict=False)
            self.stream.codec_context.subtitle_header = self._decoder.subtitle_header or _PLAIN_STYLE
            self.stream.codec_context.time_base = self._UNIT_S
        else:
            self.stream = container.add_mux_stream("webvtt" if suffix == ".webm" else "subrip")
        self.stream.time_base = self._UNIT_S

    def packets(self, packet: Any) -> list[Any]:
        try:
            lines = [line.dialogue for line in self._decoder.decode(packet) if hasattr(line, "dialogue")]
        except (av.FFmpegError, ValueError):
            self._losses.unread += 1
            return []
        text = re.sub(rb"\{\\[^}]*\}", b"", b"\n".join(lines)).replace(b"\\n", b"\n").replace(b"\\h", b" ").strip()
        if not text:
            return []
        if self._is_mov_text:
            if len(text) > _MOST_TEXT_BYTES:
                self._losses.shortened += 1
                text = text[:_MOST_TEXT_BYTES].decode(errors="ignore").encode()  # of the last character all or nothing
            text = len(text).to_bytes(2, "big") + text
        written = av.Packet(text)
        written.pts = written.dts = round(packet.pts * packet.time_base / self._UNIT_S)
        written.duration = max(1, round((packet.duration or 0) * packet.time_base / self._UNIT_S))
        written.time_base, written.stream, written.is_keyframe = self._UNIT_S, self.stream, True
        return [written]

    def rest(self) -> list[Any]:
        return []


def _tags_for(stream: Any, suffix: str) -> dict[str, str]:
    """A stream's own tags, by the names that the container has for them."""
    tags = true_tags(stream.metadata)
    if "name" in tags:  # as MP4 calls a stream's title
        tags.setdefault("title", tags.pop("name"))
    if suffix == ".mov" and "language" in tags:
        tags["language"] = _LANGUAGES_OF_MOV.get(tags["language"], tags["language"])
    return tags


class CopyPlanner:
    """Finds how everything beside the pictures comes into a file, before there is anything to lose.

    Args:
        source: the file.
        target: the name to be, for messages and its suffix.
        scratch: a name of the same suffix that may be written to and removed.
        open_with_pictures: opens a container at a path by a plan, with the stream of pictures in it.
        cut: as for StreamCopy.
    """

    def __init__(self, source: StrPath, target: Path, scratch: Path, open_with_pictures: Any, cut: Cut | None) -> None:
        self._source = source
        self._target = target
        self._suffix = target.suffix.lower()
        self._scratch = scratch
        self._open_with_pictures = open_with_pictures
        self._cut = cut

    def find(self) -> CopyPlan:
        """The plan. What is not kept is said in warnings.

        Raises:
            OSError: nothing at all can be written there.
        """
        with open_input(os.fspath(self._source)) as container:
            self._streams = {
                stream.index: _Known.of(stream)
                for stream in container.streams
                if stream not in _pictures(container) and not is_part_of_another(stream)
            }
            self._has_chapters = bool(container.chapters())
        # A time code's track is written anew from the tag that it is also read as.
        time_codes = [index for index, known in self._streams.items() if known.is_time_code]
        for index in time_codes:
            del self._streams[index]
        plan = CopyPlan(dict.fromkeys(self._streams, Way.COPY))
        if not self._is_written(plan):
            plan = self._without_failing(self._by_itself())
        plan = self._with_tags(plan)
        self._warn(plan)
        return plan

    def _is_written(self, plan: CopyPlan) -> bool:
        """Whether all of it comes back from a file that was written so."""
        return self._tried(plan, self._open_with_pictures) is not None

    def _tried(self, plan: CopyPlan, open_container: Any) -> "_Tags | None":
        """Writes a sample and reads it back. Returns its tags, None where something did not come back."""
        try:
            container = open_container(self._scratch, plan)
            try:
                copy = StreamCopy(self._source, container, self._suffix, plan, self._cut)
                try:
                    container.start_encoding()
                    seen = copy.copy_sample()
                finally:
                    copy.close()
            finally:
                container.close()
            return self._read_back(plan, seen)
        except (ValueError, OSError, av.FFmpegError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno in _NO_FAULT_OF_THE_CONTAINER:
                raise OSError(error.errno, os.strerror(error.errno), os.fspath(self._target)) from error
            return None
        finally:
            self._scratch.unlink(missing_ok=True)

    def _read_back(self, plan: CopyPlan, seen: set[int]) -> "_Tags | None":
        if not seen and self._suffix in MATROSKA:  # nothing but a header, which FFmpeg does not read; it has all tags
            return self._tags_of_source()
        with open_input(os.fspath(self._scratch)) as container:
            found = [_Known.of(stream) for stream in container.streams if not is_part_of_another(stream)]
            for index, way in plan.ways.items():
                wanted = self._streams[index]
                if way is Way.COPY and (index in seen or wanted.kind == "attachment") and wanted not in found:
                    return None
                if way is Way.COPY and index in seen and wanted in found:
                    found.remove(wanted)
            return _Tags.of(container)

    def _by_itself(self) -> CopyPlan:
        """The best way of each stream that works for it alone."""
        ways, through_tee = {}, False
        for index, known in self._streams.items():
            ladder = [(Way.COPY, False)]
            if known.name == _UNKNOWN:
                pass  # nothing can decode it
            elif known.kind == "audio":
                tee = self._suffix == ".mkv" and not self._has_chapters  # which "tee" does not hand on
                ladder += [(Way.COPY, True)] * tee + [(Way.ENCODE, False)]
            elif known.is_text:
                ladder.append((Way.TEXT, False))
            ways[index] = Way.LEAVE
            for way, tee in ladder:
                alone = CopyPlan({index: way}, through_tee=tee)
                if self._tried(alone, lambda path, plan: open_output(path, self._suffix, plan)) is not None:
                    ways[index], through_tee = way, through_tee or tee
                    break
        return CopyPlan(ways, through_tee=through_tee)

    def _without_failing(self, plan: CopyPlan) -> CopyPlan:
        """The plan, less what keeps the whole from being written, the least important first."""
        if self._is_written(plan):
            return plan
        plan = dataclasses.replace(plan, keeps_timecode=False)
        for kind in ("", "data", "attachment", "video", "subtitle", "audio"):
            ways = {index: Way.LEAVE if self._streams[index].kind == kind else way for index, way in plan.ways.items()}
            plan = dataclasses.replace(plan, ways=ways)
            if self._is_written(plan):
                return plan
        raise OSError(f"{self._target}: FFmpeg cannot write a {self._suffix} file of such pictures; use another suffix")

    def _with_tags(self, plan: CopyPlan) -> CopyPlan:
        self._lost = self._tags_lost(plan)
        if self._lost and self._suffix in (".mp4", ".m4v"):
            other = dataclasses.replace(plan, keeps_all_tags=True)
            lost = self._tags_lost(other)
            if len(lost) < len(self._lost):
                self._lost = lost
                return other
        return plan

    def _tags_lost(self, plan: CopyPlan) -> list[str]:
        back = self._tried(plan, self._open_with_pictures)
        return self._tags_of_source().missing_in(back or _Tags(frozenset()))

    def _tags_of_source(self) -> "_Tags":
        with open_input(os.fspath(self._source)) as container:
            return _Tags.of(container)

    def _warn(self, plan: CopyPlan) -> None:
        """One line for what comes another way, and one for what is left out, which of a phone's data is much."""
        hows = {
            Way.ENCODE: f"encoded anew as {'Opus' if self._suffix == '.webm' else 'AAC'}",
            Way.TEXT: "written as plain text",
            Way.LEAVE: "left out",
        }
        for way, how in hows.items():
            indices = [index for index, chosen in plan.ways.items() if chosen is way]
            whats = [f"the {self._streams[index].kind} stream {index}" for index in indices]
            names = [f"({self._streams[index].name})" for index in indices]
            if not indices:
                continue
            what = f"{whats[0]} of {os.fspath(self._source)} {names[0]}"
            what += "".join(f", {other} {name}" for other, name in zip(whats[1:], names[1:], strict=True))
            which = "which is" if len(indices) == 1 else "which are"
            logging.warning("%s: a %s file cannot hold %s, %s %s", self._target, self._target.suffix, what, which, how)
        if self._lost:
            logging.warning(
                "%s: a %s file cannot hold these tags of %s, which are lost: %s",
                self._target,
                self._target.suffix,
                os.fspath(self._source),
                ", ".join(self._lost),
            )


_UNKNOWN = "unknown to FFmpeg"

# A full disk and the like: no other plan would help.
_NO_FAULT_OF_THE_CONTAINER = {1, 5, 13, 27, 28, 30, 122}  # EPERM EIO EACCES EFBIG ENOSPC EROFS EDQUOT


@dataclasses.dataclass(frozen=True)
class _Known:
    """What tells a stream from others."""

    kind: str
    family: str
    name: str = dataclasses.field(compare=False)
    is_time_code: bool = dataclasses.field(default=False, compare=False)
    is_text: bool = dataclasses.field(default=False, compare=False)  # of subtitles; others are pictures

    @classmethod
    def of(cls, stream: Any) -> "_Known":
        context = None
        if stream.type in ("data", "attachment"):
            name = stream.name
        else:  # what FFmpeg cannot decode has no codec context
            context = stream.codec_context
            name = None if context is None else context.codec.canonical_name
        is_time_code = stream.type == "data" and name is None and "timecode" in stream.metadata
        family = "mp3" if name in ("mp1", "mp2") else name  # MP4 has one name for all three, and so has the decoder
        is_text = context is not None and context.codec.text_sub
        return cls(stream.type, family or _UNKNOWN, name or _UNKNOWN, is_time_code, is_text)


@dataclasses.dataclass(frozen=True)
class _Tags:
    """Names of a file's tags, and whether its pictures have a time code."""

    names: frozenset[str]

    @classmethod
    def of(cls, container: Any) -> "_Tags":
        names = {name.lower() for name in true_tags(container.metadata)}
        has_timecode = any("timecode" in map(str.lower, stream.metadata) for stream in _pictures(container))
        return cls(frozenset(names | {"timecode"} if has_timecode else names))

    def missing_in(self, other: "_Tags") -> list[str]:
        return sorted(self.names - other.names)


def _pictures(container: Any) -> list[Any]:
    """The stream that VideoReader reads, as a list of one."""
    streams = [stream for stream in container.streams.video if not is_cover(stream) and not is_part_of_another(stream)]
    return [stream for stream in streams if stream.codec_context is not None][:1]


def _in_time(packets: Iterator[Any]) -> Iterator[Any]:
    """The same packets, every stream's in their order, with decoding times that rise, as containers want them.

    Matroska tells none for the first packets of pictures that are reordered; they are decoded just before the first
    that has one. Where recordings were joined and times begin anew, they go on, as those of the pictures do.
    """
    held: dict[int, list[Any]] = {}
    last: dict[int, int] = {}  # decoding time of each stream's last packet, and where that ends
    ends: dict[int, int] = {}
    later: dict[int, int] = {}

    def timed(packet: Any, dts: int) -> Any:
        index = packet.stream.index
        shift = later.get(index, 0)
        if index in last and (last[index] - dts - shift) * packet.time_base > JUMP_S:
            later[index] = shift = ends[index] - dts
        packet.dts = max(dts + shift, last.get(index, dts + shift - 1) + 1)
        packet.pts = packet.dts if packet.pts is None else max(packet.pts + shift, packet.dts)
        last[index], ends[index] = packet.dts, packet.dts + max(packet.duration or 0, 1)
        return packet

    for packet in packets:
        index = packet.stream.index
        if packet.dts is None and packet.pts is None and index not in last:  # a cover has no time
            yield timed(packet, 0)
        elif packet.dts is None and index not in last:
            held.setdefault(index, []).append(packet)
        else:
            waiting = held.pop(index, [])
            for number, early in enumerate(waiting):
                yield timed(early, packet.dts - len(waiting) + number)
            dts = last[index] + 1 - later.get(index, 0) if packet.dts is None else packet.dts
            yield timed(packet, dts)
    for waiting in held.values():
        first = min(packet.pts for packet in waiting)
        for number, early in enumerate(waiting):
            yield timed(early, first - len(waiting) + 1 + number)
