"""Restores video files and folders of frames."""

import collections
import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import flax.linen as nn
import numpy as np

from jaxdeblur.data.image_io import ImageFile, StrPath, read_image, write_image
from jaxdeblur.data.video_folder import list_images
from jaxdeblur.data.video_io import (
    CRF,
    TimedFrame,
    VideoFormat,
    VideoReader,
    VideoWriter,
    refuse_same_file,
    write_video,
)
from jaxdeblur.restoration.clip import Explain, restore
from jaxdeblur.restoration.explanation import contact_sheet
from jaxdeblur.types import Variables

Progress = Callable[[int, int | None], None]
"""Called with the frames finished and, where known, how many there will be."""

# Between the two halves of a comparison. Even, so that it leaves the width's parity alone.
_DIVIDER_PX = 2

# A folder of frames has no time stamps; its comparison plays at the rate of film.
_FOLDER_RATE = Fraction(24)


def deblur_video(
    source: StrPath,
    target: StrPath,
    model: nn.Module,
    variables: Variables,
    *,
    compare: StrPath | None = None,
    explain: StrPath | None = None,
    crf: int = CRF,
    progress: Progress | None = None,
) -> int:
    """Restores a video: every frame, time stamp, sound and subtitle, in constant memory whatever its length.

    Args:
        source: any video FFmpeg can open.
        target: .mp4, .m4v, .mov or .mkv; replaced if it is there. See `data.video_io` for colour and size.
        model: a deblurring model of this package.
        variables: its Flax variables.
        compare: where to write a second, silent video, blurred on the left, restored on the right.
        explain: a folder that does not exist yet or is empty, for a sheet of pictures a frame: how it came about.
        crf: x264's constant quality, 0 (lossless) to 51.
        progress: called after every frame.

    Returns:
        The number of frames.

    Raises:
        ValueError: source is not a whole video, or a target is the source or of an unknown kind.
        OSError: source cannot be read or a target not be written.
        In either case, and on Ctrl-C, the targets are as they were.
    """
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(VideoReader(source))
        form = reader.format
        _refuse_overlap(source, target, compare)
        _refuse_inside(explain, source, target)
        writer = stack.enter_context(write_video(target, form, crf=crf, sound_from=source))
        comparison = _open_comparison(stack, compare, form, crf)
        waiting: collections.deque[TimedFrame] = collections.deque()

        def blurred() -> Iterator[np.ndarray]:
            for frame in reader:
                waiting.append(frame)
                yield frame.rgb

        done = 0
        write_sheet = _open_explanation(stack, explain)
        for restored in restore(blurred(), model, variables, explain=write_sheet):
            frame = waiting.popleft()
            writer.write(dataclasses.replace(frame, rgb=restored))
            if comparison is not None:
                comparison.write(dataclasses.replace(frame, rgb=side_by_side(frame.rgb, restored)))
            done += 1
            if progress is not None:
                progress(done, form.frame_count)
    return done


def deblur_folder(
    source: StrPath,
    target: StrPath,
    model: nn.Module,
    variables: Variables,
    *,
    compare: StrPath | None = None,
    explain: StrPath | None = None,
    crf: int = CRF,
    progress: Progress | None = None,
) -> int:
    """Restores a folder of frames, taken in order of their names with numbers counted as numbers.

    The target folder gets the same names and the same kinds of files: grey stays grey, alpha is kept as it
    is, 16 bit stays 16 bit. It is written under a temporary name beside it and there whole or not at all.
    Files that are not images are left aside.

    Args:
        source: a folder of PNG, JPEG, BMP, TIFF or WebP files of one size and depth.
        target: a folder that does not exist yet or is empty.
        model: a deblurring model of this package.
        variables: its Flax variables.
        compare: where to write a video at 24 frames a second, blurred on the left, restored on the right.
        explain: as for deblur_video.
        crf: x264's constant quality of that video.
        progress: called after every frame.

    Returns:
        The number of frames.

    Raises:
        ValueError: no images, a damaged one, or frames of unequal size or depth; the message names the file.
        OSError: source cannot be read, or target is not empty or cannot be written.
        In either case, and on Ctrl-C, the targets are as they were.
    """
    source, target = Path(source), Path(target)
    paths = list_images(source)
    _refuse_used_folder(target)
    _refuse_inside(explain, source, target)
    waiting: collections.deque[tuple[str, ImageFile]] = collections.deque()

    def blurred() -> Iterator[np.ndarray]:
        first: np.ndarray | None = None
        for path in paths:
            image = read_image(path)
            first = image.rgb if first is None else first
            if image.rgb.shape != first.shape or image.rgb.dtype != first.dtype:
                raise ValueError(
                    f"{path}: is {_size_and_depth(image.rgb)}, but {paths[0].name} is "
                    f"{_size_and_depth(first)}; the frames of a folder must be of one size and depth"
                )
            waiting.append((path.name, image))
            yield image.rgb

    with contextlib.ExitStack() as stack:
        partial = stack.enter_context(_replacing_folder(target))
        comparison: VideoWriter | None = None
        done = 0
        write_sheet = _open_explanation(stack, explain)
        for restored in restore(blurred(), model, variables, explain=write_sheet):
            name, image = waiting.popleft()
            if compare is not None and comparison is None:
                form = VideoFormat(
                    height=restored.shape[0],
                    width=restored.shape[1],
                    time_base=1 / _FOLDER_RATE,
                    average_rate=_FOLDER_RATE,
                    bits=8 if restored.dtype == np.uint8 else 10,
                )
                comparison = _open_comparison(stack, compare, form, crf)
            write_image(partial / name, dataclasses.replace(image, rgb=restored))
            if comparison is not None:
                comparison.write(TimedFrame(side_by_side(image.rgb, restored), pts=done, duration=1))
            done += 1
            if progress is not None:
                progress(done, len(paths))
    return done


def side_by_side(blurred: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """Both frames in one, blurred on the left, a white line of two pixels between them."""
    height, _, channels = blurred.shape
    line = np.full((height, _DIVIDER_PX, channels), np.iinfo(blurred.dtype).max, blurred.dtype)
    return np.concatenate([blurred, line, restored], axis=1)


def _open_comparison(
    stack: contextlib.ExitStack, path: StrPath | None, form: VideoFormat, crf: int
) -> VideoWriter | None:
    if path is None:
        return None
    wide = dataclasses.replace(form, width=2 * form.width + _DIVIDER_PX, matrix=form.matrix_name)
    return stack.enter_context(write_video(path, wide, crf=crf))


def _open_explanation(stack: contextlib.ExitStack, folder: StrPath | None) -> Explain | None:
    if folder is None:
        return None
    _refuse_used_folder(Path(folder))
    partial = stack.enter_context(_replacing_folder(Path(folder)))

    def write_sheet(number: int, pictures_u8: dict[str, np.ndarray]) -> None:
        write_image(partial / f"frame_{number:06d}.png", ImageFile(contact_sheet(pictures_u8)))

    return write_sheet


def _refuse_used_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists and is not an empty folder; name a new folder")


def _refuse_inside(explain: StrPath | None, *others: StrPath) -> None:
    if explain is None:
        return
    for other in map(Path, others):
        if other.resolve() in (Path(explain).resolve(), *Path(explain).resolve().parents):
            raise ValueError(f"{os.fspath(explain)}: is {other} or lies in it; name another folder for --explain")


def _refuse_overlap(source: StrPath, target: StrPath, compare: StrPath | None) -> None:
    refuse_same_file(source, target)
    if compare is not None:
        refuse_same_file(source, compare)
        if Path(compare).resolve() == Path(target).resolve():
            raise ValueError(f"{os.fspath(compare)}: is the restored video's own name; name another for --compare")


def _size_and_depth(rgb: np.ndarray) -> str:
    height, width, _ = rgb.shape
    return f"{width}x{height} of {8 * rgb.dtype.itemsize} bit"


@contextlib.contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder beside the target that takes its name when the block ends well, and goes away when not."""
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
