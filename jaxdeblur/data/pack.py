"""The packed form of a video folder: uint8 arrays on disk, of which a crop is read without decoding.

    <root>/packed/<split>/<clip>/blur.npy, sharp.npy   (T, H, W, 3) uint8, read through a memory map
    <root>/packed/<split>/<clip>/index.json            names, sizes and times of the files they were made from

A clip is written under a hidden temporary name and moved into place whole: what bears a clip's name is
complete. A 1280x720 frame takes 2.8 MB. Files give the same bytes packed or not.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdeblur.data.locks import lock
from jaxdeblur.data.own_files import becoming
from jaxdeblur.data.video_folder import (
    PACKED_FOLDER,
    SIDES,
    ClipFiles,
    Side,
    index_video_folder,
    list_splits,
    read_clip_frame,
)

_FORMAT = 1
_INDEX_FILE = "index.json"
LOCK = ".lock"
# Decoded frames that wait to be written; bounds the memory whatever the length of a clip.
_FRAMES_AT_ONCE = 16
_GIB = 2.0**30


def pack_video_folder(root: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None) -> Path:
    """Packs every split of a video folder. Clips that are packed already and unchanged since are kept.

    May be stopped at any moment and started again: it goes on with the first clip that is missing.

    Args:
        root: the video folder.
        out: where to write; `<root>/packed` if None, which is where readers look by themselves.
    Returns:
        The folder of the packed form.
    Raises:
        FileNotFoundError, ValueError: root is no video folder, or a frame cannot be read (the message names
            it).
        FileExistsError: something else is where a clip's packed form belongs.
        OSError: the target is full or cannot be written; the clips finished before are kept, no half clip is.
    """
    clips = [clip for split in list_splits(root) for clip in index_video_folder(root, split)]
    if not clips:
        raise ValueError(f"video folder {str(root)!r} has no splits to pack")
    target = Path(root).absolute() / PACKED_FOLDER if out is None else Path(out).absolute()
    target.mkdir(parents=True, exist_ok=True)
    with only_writer(target):
        missing = [clip for clip in clips if _why_unusable(clip, _packed_folder(clip, target)) is not None]
        for clip in missing:
            _refuse_strange(_packed_folder(clip, target))
        _check_space(missing, target)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with (
            Progress(*columns, console=Console(stderr=True)) as progress,
            ThreadPoolExecutor(os.cpu_count()) as pool,
        ):
            task = progress.add_task("packing", total=sum(len(SIDES) * clip.n_frames for clip in missing))
            for clip in missing:
                progress.update(task, description=f"packing {clip.name}")
                for n_frames in _write_clip(clip, _packed_folder(clip, target), pool):
                    progress.advance(task, n_frames)
    logging.info("%s: %d clips packed, %d kept", target, len(missing), len(clips) - len(missing))
    return target


def find_packed(index: Sequence[ClipFiles], *, packed: str | os.PathLike[str] | None = None) -> list[str | None]:
    """For each clip the folder of its packed form, or None where its images must be read. Logs which.

    A clip whose files changed since it was packed (name, size or time of any) is a logged warning and None.

    Args:
        index: what `index_video_folder` found.
        packed: what `pack_video_folder` was given as `out`.
    Raises:
        ValueError: `packed` is given but is no folder.
    """
    if packed is not None and not os.path.isdir(packed):
        raise ValueError(f"no packed form at {str(packed)!r}; make it with pack_video_folder or leave packed out")
    folders: list[str | None] = []
    stale = []
    for clip in index:
        folder = _packed_folder(clip, _default_target(clip) if packed is None else Path(packed))
        if not folder.is_dir():
            folders.append(None)
            continue
        reason = _why_unusable(clip, folder)
        folders.append(str(folder) if reason is None else None)
        if reason is not None:
            stale.append(f"{clip.name} ({reason})")
    if stale:
        logging.warning(
            "the packed form of %d clips no longer fits their images, which are read instead: %s; "
            "run `jaxdeblur data pack` again",
            len(stale),
            ", ".join(stale[:10]),
        )
    n_packed = sum(folder is not None for folder in folders)
    if n_packed:
        logging.info("reading %d of %d clips from their packed form", n_packed, len(index))
    return folders


def open_packed(folder: str, side: Side) -> np.ndarray:
    """The (T, H, W, 3) uint8 frames of one side as a memory map: only what is indexed is read.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    path = os.path.join(folder, f"{side}.npy")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path!r} is damaged ({error}); delete its folder and run `jaxdeblur data pack` again"
        ) from error


def _default_target(clip: ClipFiles) -> Path:
    return Path(clip.folder).parents[1] / PACKED_FOLDER


def _packed_folder(clip: ClipFiles, target: Path) -> Path:
    return target / Path(clip.folder).parent.name / clip.name


def _describe_sources(clip: ClipFiles) -> dict[str, object]:
    """What is compared to notice that a pack is stale; equal to its own round trip through JSON."""
    description: dict[str, object] = {"format": _FORMAT}
    for side in SIDES:
        files = []
        for path in clip.paths(side):
            status = os.stat(path)
            files.append([os.path.basename(path), status.st_size, status.st_mtime_ns])
        description[side] = files
    return description


def _why_unusable(clip: ClipFiles, folder: Path) -> str | None:
    """None if the folder holds the clip as it is now."""
    try:
        recorded: dict[str, object] = dict(json.loads((folder / _INDEX_FILE).read_text()))
    except FileNotFoundError:
        return "not packed"
    except (ValueError, TypeError):
        return "its index is damaged"
    if recorded.pop("bytes", None) != {side: _size_of(folder / f"{side}.npy") for side in SIDES}:
        return "an array is cut short or missing"
    return None if recorded == _describe_sources(clip) else "its images changed, or it is of another version"


def _refuse_strange(folder: Path) -> None:
    """Nothing but an earlier packed form gives way to a new one; not the frames themselves, say."""
    if folder.exists() and not (folder / _INDEX_FILE).is_file():
        raise FileExistsError(f"{folder}: exists and is no packed form of a clip; pack elsewhere")


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _write_clip(clip: ClipFiles, folder: Path, pool: ThreadPoolExecutor) -> Iterator[int]:
    """Writes one clip; yields how many frames were written each time some were."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with becoming(folder) as partial:  # the lock keeps others out
        # Before the frames are read: a file that changes meanwhile makes the pack stale, not wrong.
        description = _describe_sources(clip)
        for side in SIDES:
            yield from _write_array(clip, side, partial / f"{side}.npy", pool)
        description["bytes"] = {side: _size_of(partial / f"{side}.npy") for side in SIDES}
        (partial / _INDEX_FILE).write_text(json.dumps(description))
        if folder.exists():
            shutil.rmtree(folder)


def _write_array(clip: ClipFiles, side: Side, path: Path, pool: ThreadPoolExecutor) -> Iterator[int]:
    # Written, not mapped: on a full disk a write is an OSError, a store into a memory map kills the process.
    try:
        with open(path, "wb") as file:
            shape = (clip.n_frames, clip.height_px, clip.width_px, 3)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for start in range(0, clip.n_frames, _FRAMES_AT_ONCE):
                frames = range(start, min(start + _FRAMES_AT_ONCE, clip.n_frames))
                for image_u8 in pool.map(lambda frame: read_clip_frame(clip, frame, side), frames):
                    file.write(np.ascontiguousarray(image_u8).data)
                yield len(frames)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(path):
            raise  # a frame could not be read, and says so itself
        raise OSError(
            error.errno,
            f"could not write the packed form of clip {clip.name!r} ({error.strerror}); free some space or "
            f"pack "
            "elsewhere, then run it again: finished clips are kept",
            str(path),
        ) from error


def _check_space(clips: Sequence[ClipFiles], target: Path) -> None:
    needed_bytes = sum(len(SIDES) * clip.n_frames * clip.height_px * clip.width_px * 3 for clip in clips)
    free_bytes = shutil.disk_usage(target).free
    if needed_bytes > free_bytes:
        raise OSError(
            errno.ENOSPC,
            f"the packed form needs {needed_bytes / _GIB:.1f} GiB more but {free_bytes / _GIB:.1f} GiB are "
            f"free; "
            "free some space or pack elsewhere",
            str(target),
        )


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keeps other runs from writing into a folder; the lock ends with the process, however it ends.

    Raises:
        BlockingIOError: another run is at it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(folder / LOCK))
        except BlockingIOError as error:
            raise BlockingIOError(
                errno.EAGAIN, "another run is writing into this folder; wait until it has finished", str(folder)
            ) from error
        yield
