"""From what was downloaded to what training reads: checked first, and then there whole or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from jaxdeblur.data.datasets import FlowSet, VideoSet
from jaxdeblur.data.image_io import StrPath
from jaxdeblur.data.own_files import make_own_folder
from jaxdeblur.data.pack import LOCK, only_writer, pack_video_folder
from jaxdeblur.data.sources import RECORD_FILE, Item, open_source
from jaxdeblur.data.verification import Fault, Inspection, Progress, inspect
from jaxdeblur.version import __version__

_STAGED_RECORD = f".{RECORD_FILE}"
_GIB = 2.0**30


class FaultsFoundError(ValueError):
    """A data set is not as it was published; nothing was written."""

    def __init__(self, message: str, faults: list[Fault]) -> None:
        super().__init__(message)
        self.faults = faults


def verify(
    dataset: VideoSet | FlowSet,
    sources: Sequence[StrPath],
    *,
    variant: str | None = None,
    splits: Collection[str] | None = None,
    partial: bool = False,
    trusted: Collection[str] = (),
    quick: bool = False,
    progress: Progress | None = None,
) -> Inspection:
    """Holds archives, unpacked folders or a prepared folder to what was published; see `verification.inspect`.

    Of a prepared folder its record says the variant, the splits and whether it is partial, where no argument does.

    Raises:
        ValueError: as inspect; a prepared folder of another data set or variant.
        OSError: a source does not exist or cannot be read.
    """
    record = read_record(sources[0]) if len(sources) == 1 else None
    if record is not None:
        _check_record(record, dataset, variant, sources[0])
        variant, partial = record["variant"], partial or record["partial"]
        splits = splits or record["splits"]
    with open_source(sources) as items:
        return inspect(
            items,
            dataset,
            variant=variant,
            splits=splits,
            partial=partial,
            prepared=record is not None,
            trusted=trusted,
            quick=quick,
            progress=progress,
        )


def prepare(
    dataset: VideoSet | FlowSet,
    sources: Sequence[StrPath],
    out: StrPath,
    *,
    variant: str | None = None,
    splits: Collection[str] | None = None,
    partial: bool = False,
    trusted: Collection[str] = (),
    quick: bool = False,
    packed: bool = False,
    progress: Progress | None = None,
) -> Inspection:
    """Makes a video folder, or a folder of flow pairs in its published layout, of archives or unpacked folders.

    Everything is verified before anything is written. Files are then gathered under `<out>.preparing`, which takes the
    name `out` when it is complete. Stopped on the way, the same call goes on with the files that are missing there.
    Files of folders on the same file system are linked, not copied: a change to the one is a change to the other.

    Args:
        out: does not exist yet, or is empty.
        packed: also write the packed form (`data.pack`) of a video set.
    Raises:
        FaultsFoundError: the data set has faults; they are listed in it.
        FileExistsError: out is there already.
        ValueError: as verify; a flow set is to be packed.
        OSError: a source cannot be read; out cannot be written, has no room or is being written by another run.
    """
    if packed and isinstance(dataset, FlowSet):
        raise ValueError(f"{dataset.name} holds flow; only videos have a packed form")
    out = Path(out).absolute()
    _refuse_existing(out)
    if isinstance(dataset, VideoSet):
        variant = variant or next(iter(dataset.variants))
        splits = list(splits or dataset.splits)
    with open_source(sources) as items:
        found = inspect(
            items,
            dataset,
            variant=variant,
            splits=splits,
            partial=partial,
            trusted=trusted,
            quick=quick,
            progress=progress,
        )
        if found.faults:
            count = len(found.faults)
            raise FaultsFoundError(
                f"{dataset.title}: {count} fault{'s' * (count > 1)} found, so nothing was written", found.faults
            )
        staging = out.with_name(f"{out.name}.preparing")
        _check_room(found.files, staging)
        staging.parent.mkdir(parents=True, exist_ok=True)
        make_own_folder(staging, LOCK, private=False)
        with only_writer(staging):
            _refuse_existing(out)  # another run may have been faster
            record: dict[str, Any] = {
                "name": dataset.name,
                "title": dataset.title,
                "licence": dataset.licence,
                "variant": variant,
                "splits": splits,
                "partial": partial,
                "pairs": {count.split: count.pairs for count in found.counts},
                "jaxdeblur": __version__,
            }
            _clear_unless_same(staging, record)
            _gather(found.files, staging, progress)
            if packed:
                pack_video_folder(staging)
            os.replace(staging / _STAGED_RECORD, staging / RECORD_FILE)
        # Here, since Windows moves no folder in which a file is open, as the lock is.
        os.replace(staging, out)
        # Not before: without it what a killed run leaves would be taken for another's.
        (out / LOCK).unlink(missing_ok=True)
    return found


def read_record(folder: StrPath) -> dict[str, Any] | None:
    """What `prepare` wrote about a folder; None if it did not write the folder.

    Raises:
        ValueError: the record is damaged.
    """
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        return None
    try:
        record = dict(json.loads(path.read_text()))
        return {field: record[field] for field in ("name", "variant", "splits", "partial")}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: is damaged; prepare the data set again") from error


def _refuse_existing(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir()) or out.samefile(Path.cwd())):
        raise FileExistsError(f"{out}: is there already; verify it, or name another folder, one that is not there yet")


def _check_record(record: dict[str, Any], dataset: VideoSet | FlowSet, variant: str | None, folder: StrPath) -> None:
    if record["name"] != dataset.name or variant not in (None, record["variant"]):
        raise ValueError(
            f"{folder}: was prepared from {record['name']}"
            + (f", variant {record['variant']}" if record["variant"] else "")
            + f"; asked for is {dataset.name}"
            + (f", variant {variant}" if variant else "")
        )


def _clear_unless_same(staging: Path, record: dict[str, Any]) -> None:
    """Leaves what an interrupted run with the same options has gathered, and nothing of any other."""
    text, path = json.dumps(record, indent=1) + "\n", staging / _STAGED_RECORD
    if path.is_file() and path.read_text() == text:
        return
    for left in staging.iterdir():
        if left.name != LOCK:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    path.write_text(text)


def _gather(files: Sequence[tuple[Item, str]], staging: Path, progress: Progress | None) -> None:
    for folder in {(staging / place).parent for _, place in files}:
        folder.mkdir(parents=True, exist_ok=True)
    for done, (item, place) in enumerate(files, start=1):
        target = staging / place
        if not target.is_file() or target.stat().st_size != item.size_bytes:
            item.place(target)
        if progress is not None:
            progress(done, len(files))


def _check_room(files: Sequence[tuple[Item, str]], staging: Path) -> None:
    there = next(folder for folder in (staging, *staging.parents) if folder.exists())
    device = there.stat().st_dev
    needed_bytes = sum(
        item.size_bytes
        for item, place in files
        if not (staging / place).is_file() and (item.archive is not None or item.path.stat().st_dev != device)
    )
    free_bytes = shutil.disk_usage(there).free
    if needed_bytes > free_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{needed_bytes / _GIB:.1f} GiB are needed, {free_bytes / _GIB:.1f} GiB are free; free some space or name "
            "another folder",
            str(staging.with_suffix("")),
        )
