"""Results of any program, and their truth: folders of frames, videos, or folders of either, paired frame by frame."""

import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxdeblur.data.image_io import IMAGE_KINDS, read_rgb_u8, to_u8
from jaxdeblur.data.video_folder import list_images, read_frames
from jaxdeblur.data.video_writer import OTHER_VIDEO_SUFFIXES, VIDEO_SUFFIXES
from jaxdeblur.evaluation.scores import EvaluationClip


def pair_clips(
    results: Path, truth: Path | None, blurred: Path | None = None
) -> tuple[list[EvaluationClip], list[str]]:
    """Clips to be scored, and what is to be said about them.

    Frames of folders are paired by their names without suffix, those of videos by their place. Results without truth
    are left out and said; truth without results is an error, since a mean of what is left would mislead.

    Args:
        results: a folder of images, a video, or a folder of such, each a clip; without `truth` a clip, or a folder of
            clips, that holds blur/ and sharp/, whose blurred frames are scored.
        truth: likewise, with the same names.
        blurred: likewise, what the results were made from, to be scored beside them.
    Raises:
        OSError, ValueError: something is missing or cannot be read; the message names it.
    """
    notes: list[str] = []
    if truth is None:
        if blurred is not None:
            raise ValueError("blurred frames are scored beside results; give RESULTS and TRUTH, too")
        sides = _clips_with_both_sides(results)
        return [_pair(name, blur, sharp, notes, strict=False) for name, (blur, sharp) in sides.items()], notes
    of_truth = _clips_below(truth)
    of_results = _of_the_same_clips(results, of_truth, notes)
    clips = [_pair(name, of_results[name], sharp, notes, strict=True) for name, sharp in of_truth.items()]
    if blurred is None:
        return clips, notes
    of_blurred = _of_the_same_clips(blurred, of_truth, [])
    return [
        EvaluationClip(
            clip.name,
            _pair(clip.name, of_blurred[clip.name], of_truth[clip.name], [], strict=True).frames,
            functools.partial(_first_of_each, clip),
        )
        for clip in clips
    ], notes


def _first_of_each(clip: EvaluationClip) -> Iterator[np.ndarray]:
    return (image for image, _ in clip.frames())


def _of_the_same_clips(path: Path, truth: Mapping[str, Path], notes: list[str]) -> dict[str, Path]:
    found = _clips_below(path)
    if len(truth) == len(found) == 1:  # whatever they are called
        return dict(zip(truth, found.values()))
    if missing := [name for name in truth if name not in found]:
        raise ValueError(f"{path}: has no clip {', '.join(missing)}, of which there is the truth")
    if strange := [name for name in found if name not in truth]:
        notes.append(f"no truth of {', '.join(strange)}, which are left out")
    return found


def _clips_with_both_sides(folder: Path) -> dict[str, tuple[Path, Path]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected <clip>/blur and <clip>/sharp in it")
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = {path.name: (path / "blur", path / "sharp") for path in places if (path / "blur").is_dir()}
    if missing := [name for name, (_, sharp) in found.items() if not sharp.is_dir()]:
        raise FileNotFoundError(f"{folder}: clip {', '.join(missing)} has blur but no sharp")
    if not found:
        raise FileNotFoundError(f"{folder}: holds no <clip>/blur and <clip>/sharp; give results and truth separately")
    return found


def _clips_below(path: Path) -> dict[str, Path]:
    """Name -> a folder of images or a video."""
    if path.is_file():
        return {path.stem: path}
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    inside = sorted(inner for inner in path.iterdir() if not inner.name.startswith("."))
    if any(inner.suffix.lower() in IMAGE_KINDS for inner in inside):
        return {path.name: path}
    clips = {inner.stem if inner.is_file() else inner.name: inner for inner in inside if _is_clip(inner)}
    if not clips:
        raise ValueError(f"{path}: holds neither images nor videos nor folders of images")
    return clips


def _is_clip(path: Path) -> bool:
    if path.is_dir():
        return any(inner.suffix.lower() in IMAGE_KINDS for inner in path.iterdir())
    return path.suffix.lower() in (*VIDEO_SUFFIXES, *OTHER_VIDEO_SUFFIXES)


def _pair(name: str, result: Path, truth: Path, notes: list[str], *, strict: bool) -> EvaluationClip:
    if result.is_dir() != truth.is_dir() or not result.is_dir():
        return EvaluationClip(name, functools.partial(_by_place, result, truth))
    here, there = ({path.stem: path for path in list_images(folder)} for folder in (result, truth))
    shared = [stem for stem in there if stem in here]
    if missing := [stem for stem in there if stem not in here]:
        if strict or not shared:
            raise ValueError(f"{result}: has no frame {_some(missing)}, of which {truth} has the truth")
        notes.append(f"{name}: {len(missing)} sharp frames have no partner and are left out")
    if len(here) > len(shared):
        notes.append(f"{name}: {len(here) - len(shared)} of {len(here)} frames have no truth and are left out")
    return EvaluationClip(name, lambda: _sized((read_rgb_u8(here[s]), read_rgb_u8(there[s]), s) for s in shared))


def _by_place(result: Path, truth: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    def frames() -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
        pairs = itertools.zip_longest(*(map(to_u8, read_frames(path)) for path in (result, truth)))
        for number, (image, sharp) in enumerate(pairs):
            if image is None or sharp is None:
                short, long = (result, truth) if image is None else (truth, result)
                raise ValueError(f"{short}: ends after {number} frames, {long} goes on; both must have the same frames")
            yield image, sharp, str(number)

    return _sized(frames())


def _sized(frames: Iterator[tuple[np.ndarray, np.ndarray, str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for image, sharp, name in frames:
        if image.shape != sharp.shape:
            sizes = [f"{x.shape[1]}x{x.shape[0]}" for x in (image, sharp)]
            raise ValueError(f"frame {name} is {sizes[0]}, its truth {sizes[1]}; they must have one size")
        yield image, sharp


def _some(names: list[str], at_most: int = 5) -> str:
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")
