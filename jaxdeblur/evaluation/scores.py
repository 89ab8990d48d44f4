"""Scoring restored clips: frame by frame under a protocol, streamed, so that a clip's length costs no memory."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from jaxdeblur.evaluation.protocols import Protocol

MAX_PSNR_DB = 100.0
"""What equal frames score: infinity has no mean, and no gain over itself."""


@dataclasses.dataclass(frozen=True)
class EvaluationClip:
    """A clip with its truth. `frames()` yields (blurred, sharp), uint8 (H, W, 3), from the first frame each time;
    `restored()` likewise what another program made of the blurred frames, where that is what is to be scored."""

    name: str
    frames: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]
    restored: Callable[[], Iterator[np.ndarray]] | None = None


@dataclasses.dataclass(frozen=True)
class FrameScore:
    """PSNR in decibel and SSIM of the blurred and the restored frame against the sharp one."""

    clip: str
    frame: int
    psnr_blurred_db: float
    psnr_restored_db: float
    ssim_blurred: float
    ssim_restored: float

    @property
    def gain_db(self) -> float:
        return self.psnr_restored_db - self.psnr_blurred_db


Restore = Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]]
"""A stream of frames to as many restored ones."""

ProtocolScore = tuple[Protocol, FrameScore]


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """Means over the scored frames of a clip (or of all clips, under the name "mean")."""

    clip: str
    frames: int
    psnr_blurred_db: float
    psnr_restored_db: float
    gain_db: float
    ssim_blurred: float
    ssim_restored: float


def score_clip(
    clip: EvaluationClip,
    restore: Restore | None,
    protocols: Sequence[Protocol],
    *,
    see: Callable[[np.ndarray, np.ndarray, np.ndarray], None] | None = None,
) -> Iterator[ProtocolScore]:
    """Restores a clip and scores its frames one by one; each protocol says which. All frames are restored, once for all
    protocols that turn and cut them alike.

    Args:
        restore: a stream of float32 frames in [0, 1] to as many restored ones (jaxdeblur.restore with its model bound);
            None takes what the clip has, or the blurred frames as they are.
        see: called with every frame blurred, restored and sharp, as the first protocol turns and cuts them.
    """
    first, _ = next(iter(clip.frames()), (None, None))
    if first is None:
        return
    alike: dict[tuple[int, ...], list[Protocol]] = {}
    for protocol in protocols:
        turned = protocol.laid_down and first.shape[0] > first.shape[1]
        alike.setdefault((turned, *framed(first, protocol).shape), []).append(protocol)
    for group in alike.values():
        yield from _score_alike(clip, restore, group, see)
        see = None


def _score_alike(
    clip: EvaluationClip,
    restore: Restore | None,
    protocols: Sequence[Protocol],
    see: Callable[[np.ndarray, np.ndarray, np.ndarray], None] | None,
) -> Iterator[ProtocolScore]:
    triples = _restored(clip, restore, lambda image_u8: _to_float(framed(image_u8, protocols[0])))
    waiting: collections.deque[tuple[int, Triple]] = collections.deque(
        maxlen=1 + max(protocol.skip_last for protocol in protocols)
    )
    for triple in enumerate(triples):
        waiting.append(triple)
        if see is not None:
            see(*triple[1])
        for protocol in protocols:
            if len(waiting) > protocol.skip_last:  # as many have come after it
                number, images = waiting[len(waiting) - 1 - protocol.skip_last]
                if protocol.scores(number):
                    yield protocol, _score_frame(clip.name, protocol, number, *images)


def _score_frame(
    clip: str, protocol: Protocol, number: int, blurred: np.ndarray, restored: np.ndarray, sharp: np.ndarray
) -> FrameScore:
    psnr_blurred, ssim_blurred = of_blurred = protocol.score(blurred, sharp)
    psnr_restored, ssim_restored = of_blurred if restored is blurred else protocol.score(restored, sharp)
    psnr_blurred, psnr_restored = (min(float(value), MAX_PSNR_DB) for value in (psnr_blurred, psnr_restored))
    return FrameScore(clip, number, psnr_blurred, psnr_restored, float(ssim_blurred), float(ssim_restored))


def framed(image_u8: np.ndarray, protocol: Protocol) -> np.ndarray:
    """A frame as the protocol restores and scores it: laid down, cut."""
    if protocol.laid_down and image_u8.shape[0] > image_u8.shape[1]:
        image_u8 = image_u8.swapaxes(0, 1)
    height, width, _ = image_u8.shape
    multiple = protocol.size_multiple
    if min(height, width) < multiple:
        raise ValueError(
            f"frames of {width}x{height} have nothing left when cut to multiples of {multiple}, as protocol "
            f"{protocol.name} does; choose another protocol"
        )
    return image_u8[: height // multiple * multiple, : width // multiple * multiple]


Triple = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A frame blurred, restored and sharp."""


def frames_of(clip: EvaluationClip, restore: Restore | None, protocol: Protocol, number: int) -> Triple:
    """A frame of a number (the last, if the clip is shorter), uint8, for a picture, as the protocol scores it."""
    triples = _restored(clip, restore, lambda image_u8: framed(image_u8, protocol))
    *_, last = itertools.islice(triples, number + 1)
    return last


def _restored(
    clip: EvaluationClip, restore: Restore | None, prepared: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Triple]:
    """Every frame of a clip; the blurred and the sharp one, and with them the restored one, are prepared first."""

    def frames() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return ((prepared(blurred), prepared(sharp)) for blurred, sharp in clip.frames())

    if clip.restored is None and restore is None:
        return ((blurred, blurred, sharp) for blurred, sharp in frames())
    if clip.restored is not None:
        restored: Iterable[np.ndarray] = map(prepared, clip.restored())
    else:
        assert restore is not None
        restored = map(np.asarray, restore(blurred for blurred, _ in frames()))
    return ((blurred, result, sharp) for (blurred, sharp), result in zip(frames(), restored, strict=True))


def clip_scores(scores: Iterable[FrameScore], protocol: Protocol) -> list[ClipScore]:
    """A row a clip, in the protocol's order or that of appearance, and last the mean as the protocol takes it."""
    by_clip: dict[str, list[FrameScore]] = {}
    for score in scores:
        by_clip.setdefault(score.clip, []).append(score)
    if not by_clip:
        raise ValueError(
            f"no frame was scored: protocol {protocol.name} leaves out the first {protocol.skip_first} and the last "
            f"{protocol.skip_last} frames of each clip" + (", and takes only some between" if protocol.frames else "")
        )
    order = protocol.order
    names = sorted(by_clip, key=lambda name: order.index(name) if name in order else len(order))
    rows = [_mean(name, by_clip[name]) for name in names]
    everything = [frame for frames in by_clip.values() for frame in frames]
    mean = _mean("mean", everything)
    if protocol.over == "clips":
        means = {
            field: float(np.mean([getattr(row, field) for row in rows]))
            for field in ("psnr_blurred_db", "psnr_restored_db", "gain_db", "ssim_blurred", "ssim_restored")
        }
        mean = ClipScore("mean", len(everything), **means)
    return [*rows, mean]


def _mean(name: str, frames: list[FrameScore]) -> ClipScore:
    def mean(field: str) -> float:
        return float(np.mean([getattr(frame, field) for frame in frames]))

    return ClipScore(
        name,
        len(frames),
        mean("psnr_blurred_db"),
        mean("psnr_restored_db"),
        mean("gain_db"),
        mean("ssim_blurred"),
        mean("ssim_restored"),
    )


def _to_float(image_u8: np.ndarray) -> np.ndarray:
    return image_u8.astype(np.float32) / np.float32(255)
