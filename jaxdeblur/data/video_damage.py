"""Decodes the pictures of a video that may be damaged: what cannot be decoded is repeated from its neighbour."""

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import av

# Of these every packet is one picture that is shown; their decoder leaves out damaged ones without a word.
_PICTURE_A_PACKET = ("av1",)

# A file that cannot be read any further is given up after so many failures in a row.
_MOST_FAILURES = 100

# Pictures are at most so many places away from where their packets are.
_MOST_REORDERED = 16

# Steps of equal length, away from all damage, that show a rate to be constant.
_EQUAL_STEPS = 8

_EBML_ID, _SEGMENT_ID = 0x1A45DFA3, 0x18538067


@dataclasses.dataclass
class Damage:
    """What was wrong with a video, in frames.

    Attributes:
        read: that could be decoded.
        repeated: that could not, and show their neighbour at their own time.
        concealed: of those read, damaged in parts, which FFmpeg's decoder filled in.
        lost: that the file should have and has not, where their number is known; the times of the others are as they
            were.
        is_cut: the file is shorter than it should be.
        may_have_lost: some may be missing, but in a video of variable rate nobody can tell.
        reason: FFmpeg's word for it.
        promised: how many frames the file says it has, 0 where it does not.
    """

    read: int = 0
    repeated: int = 0
    concealed: int = 0
    lost: int = 0
    is_cut: bool = False
    may_have_lost: bool = False
    reason: str = ""
    promised: int = 0

    def __bool__(self) -> bool:
        return bool(self.repeated or self.concealed or self.lost or self.is_cut or self.may_have_lost)

    def __str__(self) -> str:
        promised = f" of {self.promised}" if self.promised else ""
        why = f" ({self.reason})" if self.reason else ""
        faults = {
            "repeated from a neighbour": self.repeated,
            "damaged in parts": self.concealed,
            "lost": self.lost,
        }
        counts = "".join(f"; {fault}: {count}" for fault, count in faults.items() if count)
        counts += "; some may be lost" if self.may_have_lost else ""
        return f"truncated or damaged video{why}: {self.read}{promised} frames were readable{counts}"


class Shown(NamedTuple):
    """A decoded picture and its time, None where the file has none."""

    frame: Any
    pts: int | None
    is_repeated: bool = False


def demuxed(container: Any, streams: Sequence[Any], note: Callable[[av.FFmpegError], None] | None = None) -> Any:
    """The packets of some streams; reading goes on behind what cannot be read.

    The empty packets, which only flush decoders, are left out.

    Args:
        note: called with each error.
    """
    failures = 0
    while failures < _MOST_FAILURES:
        try:
            for packet in container.demux(streams):
                if packet.size:
                    failures = 0
                    yield packet
            return
        except av.FFmpegError as error:
            failures += 1
            if note is not None:
                note(error)


class RepairingDecoder:
    """Iterating gives every picture of a stream as Shown, from where its container stands.

    Decoders give pictures in the order of presentation. So a packet whose picture has not come when a later one comes
    has lost it; that it is damage, and not a packet that shows nothing, is known by an error since the picture before.

    Args:
        path: the name of the file, for messages.
        damage: gets all but `read`, `repeated` and `concealed`, which whoever iterates counts.
        is_strict: the first damage is an error, raised once the pictures before it have come.
        is_whole: the container stands at its beginning: what is missing at either end can be told.

    Raises:
        ValueError: if is_strict.
    """

    def __init__(
        self, path: str, container: Any, stream: Any, damage: Damage, *, is_strict: bool = False, is_whole: bool = True
    ) -> None:
        self._path = path
        self._container = container
        self._stream = stream
        self._damage = damage
        self._is_strict = is_strict
        self._is_whole = is_whole
        self._shows_every_packet = stream.codec_context.codec.canonical_name in _PICTURE_A_PACKET
        self._is_vp8 = stream.codec_context.codec.canonical_name == "vp8"
        self._waiting: set[int] = set()  # times of packets whose pictures have not come
        self._bad: list[int | None] = []  # times of packets that could not be decoded, since the last picture
        self._is_doubtful = False  # something was incomplete since the last picture
        kind = container.format.name
        self._is_mp4, self._is_avi, self._is_matroska = "mp4" in kind, "avi" in kind, "matroska" in kind
        self._recent: deque[int] = deque()  # how many pictures would fill the gap before each of the last ones
        self._doubtful_until = -1
        self._missing_near_damage = self._equal_steps = self._unequal_steps = 0
        self._last: Any = None
        self._last_pts: int | None = None
        self._step = 0
        self._last_dts = -1
        self._packets = self._given = 0
        damage.promised = stream.frames

    def __iter__(self) -> Iterator[Shown]:
        for packet in self._packets_worth_decoding():
            yield from self._decoded(packet)
            if self._is_strict and self._bad:
                break
        with contextlib.suppress(av.FFmpegError):  # the decoder has nothing more to give
            for frame in self._stream.decode(None):
                yield from self._in_its_place(frame)
        yield from self._missing_before(None)
        self._count_lost()
        if self._is_strict and (self._bad or self._damage):
            promised = f" of {self._damage.promised}" if self._damage.promised else ""
            raise ValueError(
                f"{self._path}: truncated or damaged video: {self._given}{promised} frames were readable, then "
                f"{self._damage.reason}"
            )

    def _packets_worth_decoding(self) -> Iterator[Any]:
        """All but an incomplete one at the end, where the file is cut. One before others, as where recordings were
        joined, may well be whole."""
        incomplete: Any = None
        for packet in demuxed(self._container, [self._stream], self._note):
            if incomplete is not None:
                yield incomplete
                self._is_doubtful = True
            incomplete = packet if packet.is_corrupt else None
            if incomplete is None:
                yield packet
        self._damage.is_cut = incomplete is not None

    def _note(self, error: av.FFmpegError) -> None:
        self._damage.reason = error.strerror or str(error)
        self._is_doubtful = True

    def _decoded(self, packet: Any) -> Iterator[Shown]:
        self._packets += 1
        self._last_dts = self._last_dts if packet.dts is None else packet.dts
        if self._is_avi and self._last_dts >= self._packets:  # the times and the header count empty packets as well
            self._damage.promised = 0
        # VP8 has packets of pictures that only others refer to; edit lists leave out pictures that others need.
        is_shown = not packet.is_discard and not (self._is_vp8 and not bytes(packet)[0] & 0x10)
        if is_shown and packet.pts is not None:
            self._waiting.add(packet.pts)
        try:
            frames = self._stream.decode(packet)
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self._note(error)
            self._bad.append(packet.pts)
            if packet.pts is not None:
                self._waiting.add(packet.pts)
            return
        for frame in frames:
            yield from self._in_its_place(frame)

    def _in_its_place(self, frame: Any) -> Iterator[Shown]:
        if self._last is not None or self._is_whole:
            yield from self._missing_before(frame)
            if self._is_strict and self._bad:
                return
        pts = frame.pts
        if pts is not None:
            gap = 0 if self._last_pts is None else pts - self._last_pts
            self._note_gap(gap, self._is_doubtful or frame.is_corrupt)
            self._step = gap if gap > 0 else self._step
            self._last_pts = pts
            self._waiting = {time for time in self._waiting if time > pts}
            self._bad = [time for time in self._bad if time is not None and time > pts]
        else:
            self._bad = []
        self._last = frame
        self._is_doubtful = False
        self._given += 1
        yield Shown(frame, pts)

    def _note_gap(self, gap: int, is_doubtful: bool) -> None:
        """Pictures that are missing with their packets are known by a gap in time, near something else that is damaged:
        pictures come in another order than their packets, so that it may be some pictures before or behind.

        They are counted where the steps are equal everywhere else.
        """
        if self._is_mp4 or self._is_avi:  # where a packet has its place, whatever becomes of others
            return
        reordered = _MOST_REORDERED if self._stream.codec_context.has_b_frames else 1
        self._recent.append(round(gap / self._step) - 1 if self._step and gap > 1.5 * self._step else 0)
        if is_doubtful:
            self._doubtful_until = self._given + reordered
        if self._given <= self._doubtful_until:
            self._missing_near_damage += sum(self._recent)
            self._recent.clear()
        elif len(self._recent) > reordered:
            is_unequal = self._recent.popleft() > 0
            self._unequal_steps += is_unequal
            self._equal_steps += not is_unequal
        is_constant = not self._unequal_steps and self._equal_steps >= _EQUAL_STEPS
        self._damage.lost = self._missing_near_damage if is_constant else 0
        self._damage.may_have_lost = self._missing_near_damage > 0 and not is_constant

    def _missing_before(self, frame: Any) -> Iterator[Shown]:
        """Of the pictures that should have come before this one, or the end, their neighbour."""
        end = None if frame is None else frame.pts
        is_damaged = any(time is None or end is None or time < end for time in self._bad)
        neighbour = self._last or frame
        if neighbour is None or not (is_damaged or self._shows_every_packet):
            return
        missing: list[int | None] = [time for time in self._bad if time is None]
        missing += sorted(
            time
            for time in self._waiting
            if (self._last_pts is None or time > self._last_pts) and (end is None or time < end)
        )
        if self._is_strict:
            self._bad += missing
            if missing:
                self._damage.reason = self._damage.reason or "a packet without a picture"
            return
        for missing_pts in missing:
            self._last_pts = self._last_pts if missing_pts is None else missing_pts
            yield Shown(neighbour, missing_pts, is_repeated=True)

    def _count_lost(self) -> None:
        """What should have come behind the last packet."""
        if not self._is_whole:
            return
        damage = self._damage
        listed = sum(entry.size > 0 for entry in self._stream.index_entries)  # an empty one shows nothing
        if self._is_mp4:  # lists all its packets in its header
            damage.lost = max(0, (listed or self._stream.frames) - self._packets)
            damage.is_cut |= damage.lost > 0
        elif self._is_avi and _is_cut_avi(self._path):
            damage.lost = max(0, damage.promised - self._packets)
            damage.is_cut |= self._stream.frames > self._last_dts + 1
        elif self._is_avi:
            damage.lost = max(0, listed - self._packets)
        elif self._is_matroska:
            damage.is_cut |= _is_cut_matroska(self._path)
        if damage.is_cut:
            damage.reason = ", ".join(filter(None, [damage.reason, "the file is cut short"]))
        elif damage.lost or damage.may_have_lost:
            damage.reason = damage.reason or "packets are missing"


def _is_cut_avi(path: str) -> bool:
    """Whether an AVI is shorter than the headers of its parts say, of which a long one has several."""
    if not os.path.isfile(path):
        return False
    at, size_bytes = 0, os.path.getsize(path)
    with open(path, "rb") as file:
        while at < size_bytes:
            file.seek(at)
            head = file.read(8)
            if head[:4] != b"RIFF":
                return False
            at += 8 + int.from_bytes(head[4:8], "little")
    return at > size_bytes


def _is_cut_matroska(path: str) -> bool:
    """Whether a Matroska file is shorter than its header says."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        head = file.read(4096)
    at = 0
    for expected in (_EBML_ID, _SEGMENT_ID):
        if int.from_bytes(head[at : at + 4], "big") != expected or len(head) <= at + 4:
            return False
        length = 9 - head[at + 4].bit_length()  # of the number that follows
        number = int.from_bytes(head[at + 4 : at + 4 + length], "big") & ((1 << 7 * length) - 1)
        if expected == _SEGMENT_ID and number == (1 << 7 * length) - 1:
            return False  # not known, as of a live recording
        at += 4 + length + number
    return at > os.path.getsize(path)
