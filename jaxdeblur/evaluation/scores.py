"""Scoring restored clips: frame by frame under a protocol, streamed, so that a clip's length costs no memory."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from jaxdeblur.evaluation.protocols import Protocol

MAX_PSNR_DB = 100.0
"""What equal frames score: infinity has no mean, and no gain over itself."""


@dataclasses.dataclass(frozen=True)
class EvaluationClip:
    """A clip with its truth. `frames()` yields (blurred, sharp), uint8 (H, W, 3), from the first frame each time."""

    name: str
    frames: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


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
    clip: EvaluationClip, restore: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]], protocol: Protocol
) -> Iterator[FrameScore]:
    """Restores a clip and scores its frames one by one; the protocol says which. All of them are restored.

    Args:
        restore: a stream of float32 frames in [0, 1] to as many restored ones (jaxdeblur.restore with its model bound).
    """

    def frames() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for blurred_u8, sharp_u8 in clip.frames():
            yield _to_float(_framed(blurred_u8, protocol)), _to_float(_framed(sharp_u8, protocol))

    waiting: collections.deque[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = collections.deque()
    pairs = zip(frames(), restore(blurred for blurred, _ in frames()), strict=True)
    for number, ((blurred, sharp), restored) in enumerate(pairs):
        if number < protocol.skip_first:
            continue
        waiting.append((number, blurred, np.asarray(restored), sharp))
        if len(waiting) > protocol.skip_last:
            yield _score_frame(clip.name, protocol, *waiting.popleft())


def _score_frame(
    clip: str, protocol: Protocol, number: int, blurred: np.ndarray, restored: np.ndarray, sharp: np.ndarray
) -> FrameScore:
    (psnr_blurred, ssim_blurred), (psnr_restored, ssim_restored) = (
        protocol.score(image, sharp) for image in (blurred, restored)
    )
    psnr_blurred, psnr_restored = (min(float(value), MAX_PSNR_DB) for value in (psnr_blurred, psnr_restored))
    return FrameScore(clip, number, psnr_blurred, psnr_restored, float(ssim_blurred), float(ssim_restored))


def _framed(image_u8: np.ndarray, protocol: Protocol) -> np.ndarray:
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


def frames_of(
    clip: EvaluationClip,
    restore: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]],
    protocol: Protocol,
    number: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blurred, restored and sharp frame of a number (the last, if the clip is shorter), uint8, for a picture, as the
    protocol scores them."""

    def frames() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (tuple(_framed(image, protocol) for image in pair) for pair in clip.frames())  # type: ignore[misc]

    restored_frames = restore(blurred for blurred, _ in frames())
    for ((blurred, sharp), restored), _ in zip(zip(frames(), restored_frames, strict=True), range(number + 1)):
        last = blurred, np.asarray(restored), sharp
    return last


def clip_scores(scores: Iterable[FrameScore], protocol: Protocol) -> list[ClipScore]:
    """A row a clip, in order of appearance, and last the mean as the protocol takes it."""
    by_clip: dict[str, list[FrameScore]] = {}
    for score in scores:
        by_clip.setdefault(score.clip, []).append(score)
    if not by_clip:
        raise ValueError(
            f"no frame was scored: protocol {protocol.name} leaves out the first {protocol.skip_first} and the last "
            f"{protocol.skip_last} frames of each clip"
        )
    rows = [_mean(name, frames) for name, frames in by_clip.items()]
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
