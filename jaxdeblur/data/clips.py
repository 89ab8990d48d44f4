"""Windows over videos, and the order in which a run visits them.

Nothing here has state: which window sample n of a run reads follows from (seed, n) alone, so that any
process, and any run that starts in the middle, finds it without having seen the samples before.
"""

import collections
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from jaxdeblur.data.streams import Stream
from jaxdeblur.data.video_folder import ClipFiles
from jaxdeblur.types import Array, BeyondEnds


@dataclass(frozen=True)
class WindowSpec:
    """How videos are cut into training clips.

    mode "grid": starts 0, T, 2T, ...; an incomplete tail is dropped. The past of a clip is its own first
        frame repeated, its future may be real frames: indices s-past .. s+T-1+future clipped to [s, last
        frame of the video]. The recipe of the released multi-task-unit code (T = 13, past = future = 2).
    mode "sliding": every start 0, 1, ..., last-T+1. Past and future are real frames wherever the video has
        them: indices clipped to [0, last frame].
    mode "interior": every start whose past and future are all real frames. The recipe of the released CDVD-TSP (T = 3,
        past = future = 1, first_frames = 100).
    """

    frames: int
    """T, the frames that have a sharp partner in the batch."""
    past: int
    """What a model looks at before the clip; blurred only."""
    future: int
    mode: Literal["grid", "sliding", "interior"]
    first_frames: int | None = None
    """Of each video only so many are used; None: all."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.past < 0 or self.future < 0:
            raise ValueError(
                "a window needs frames >= 1, past >= 0 and future >= 0, "
                f"not frames={self.frames}, past={self.past}, future={self.future}"
            )
        if self.mode not in ("grid", "sliding", "interior"):
            raise ValueError(f"window mode is 'grid', 'sliding' or 'interior', not {self.mode!r}")

    @property
    def least_frames(self) -> int:
        """What a video must have."""
        return self.frames + (self.past + self.future if self.mode == "interior" else 0)

    def used(self, n_frames: int) -> int:
        """How many of a video's frames are used."""
        return n_frames if self.first_frames is None else min(n_frames, self.first_frames)


class ClipWindow(NamedTuple):
    """A training clip: frames first_frame .. first_frame+T-1 of clip number `clip` of the index."""

    clip: int
    first_frame: int


def cut_windows(index: Sequence[ClipFiles], spec: WindowSpec) -> list[ClipWindow]:
    """All windows of all clips, clip after clip.

    Raises:
        ValueError: a clip is shorter than the window, or the index is empty.
    """
    if not index:
        raise ValueError("the index holds no clips; make one with index_video_folder")
    least = spec.least_frames
    short = [f"{clip.folder!r} has {spec.used(clip.n_frames)}" for clip in index if spec.used(clip.n_frames) < least]
    if short:
        raise ValueError(
            f"clips shorter than the window of {least} frames: {', '.join(short[:10])}"
            f"{f' and {len(short) - 10} more' if len(short) > 10 else ''}; choose a shorter window or "
            f"leave them out"
        )
    step = spec.frames if spec.mode == "grid" else 1
    before = spec.past if spec.mode == "interior" else 0
    return [
        ClipWindow(number, first_frame)
        for number, clip in enumerate(index)
        for first_frame in range(before, before + spec.used(clip.n_frames) - least + 1, step)
    ]


def blurred_frame_numbers(window: ClipWindow, n_frames: int, spec: WindowSpec) -> list[int]:
    """The past + T + future frames that the window reads from a video of n_frames; see `WindowSpec`."""
    first = window.first_frame if spec.mode == "grid" else 0
    wanted = range(window.first_frame - spec.past, window.first_frame + spec.frames + spec.future)
    return np.clip(wanted, first, spec.used(n_frames) - 1).tolist()


def sharp_frame_numbers(window: ClipWindow, spec: WindowSpec) -> list[int]:
    """The T frames of the clip itself."""
    return list(range(window.first_frame, window.first_frame + spec.frames))


def batch_share(batch_size: int, process_index: int, process_count: int) -> range:
    """Which examples of every batch a process reads, of process_count that share it equally.

    Raises:
        ValueError: the batch cannot be shared out, or there is no such process.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared out equally to {process_count} processes; "
            "choose a positive multiple of their number"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is 0 to {process_count - 1}, not {process_index}")
    share = batch_size // process_count
    return range(process_index * share, (process_index + 1) * share)


def check_start(seed: int, first_batch: int) -> None:
    """Raises ValueError unless an order can begin so."""
    if not 0 <= seed < 2**32 or first_batch < 0:
        raise ValueError(f"seed is 0 to 2**32-1 and first_batch >= 0, not {seed} and {first_batch}")


@functools.lru_cache(maxsize=4)
def epoch_order(n_windows: int, *, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(n_windows), a pure function of its arguments. Read-only: calls share it.

    Ranks of Philox bits rather than `Generator.permutation`: NumPy promises to keep the bits, not the method.
    """
    bits = np.random.Philox(np.random.SeedSequence((Stream.ORDER, seed, epoch))).random_raw(n_windows)
    order = np.argsort(bits, kind="stable")
    order.flags.writeable = False
    return order


def window_of_sample(windows: Sequence[ClipWindow], *, seed: int, sample: int) -> ClipWindow:
    """The window that sample number `sample` of a run reads: position sample mod N of epoch sample div N.

    An epoch visits every window once; batches run on across its end, so nothing is dropped.
    """
    epoch, position = divmod(sample, len(windows))
    return windows[epoch_order(len(windows), seed=seed, epoch=epoch)[position]]


def frame_windows(
    frames: Iterable[Array], past: int, future: int, *, beyond_ends: BeyondEnds, continued: bool = False
) -> Iterator[tuple[Array, ...]]:
    """Frames t - past .. t + future for every frame t, as they come.

    Args:
        continued: the first `past` frames are the past of the frame after them and have no window of their own.
        beyond_ends: what stands for frames there are none of. "repeat": copies of the end frame. "alternate": the end
            frame's neighbour and the end frame in turn (f0, f1, f0, f1, f2, ... around frame 0), so that nothing seems
            to stand still; copies where there is a single frame.
    """
    size = past + 1 + future
    window: collections.deque[Array] = collections.deque(maxlen=size)
    for frame in _with_ends(iter(frames), 0 if continued else past, future, alternate=beyond_ends == "alternate"):
        window.append(frame)
        if len(window) == size:
            yield tuple(window)


def _with_ends(frames: Iterator[Array], past: int, future: int, *, alternate: bool) -> Iterator[Array]:
    first = next(frames, None)
    if first is None:
        return
    begin = [first, *itertools.islice(frames, 1)] if alternate else [first]
    yield from (begin[count % len(begin)] for count in range(past, 0, -1))
    end: collections.deque[Array] = collections.deque(maxlen=2 if alternate else 1)
    for frame in itertools.chain(begin, frames):
        end.append(frame)
        yield frame
    yield from (end[-1 - count % len(end)] for count in range(1, future + 1))
