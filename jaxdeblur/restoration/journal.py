"""What an interrupted restoration has done so far: a folder beside its target, until the target is there."""

import contextlib
import hashlib
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from jaxdeblur.data.image_io import StrPath
from jaxdeblur.data.locks import lock
from jaxdeblur.data.own_files import make_own_folder, replacing, write_through
from jaxdeblur.restoration.clip import Halfway
from jaxdeblur.restoration.jobs import journal_folder
from jaxdeblur.types import Variables
from jaxdeblur.version import __version__

_RECORD = "job.json"
_STATE = "state.npz"
_LOCK = "lock"


class Journal:
    """A folder `.<target>.jaxdeblur` beside the target, for one run at a time; a context manager.

    At the end the folder is removed; so it is after an error that would only come again (ValueError), or before
    anything was saved. After anything else, a kill included, it stays, and the same command goes on from `halfway`; or,
    once all `is_whole`, from where results are moved to their places.

    What is noted as done is on the disk before it is noted, and looked at again before it is gone on with: whatever was
    damaged or removed in between is said in a line, and made anew.

    Args:
        target: the file or folder that is to be.
        task: what determines the result, by name, in JSON's types.
        restart: forget what an earlier run has left.
        save_every_s: no more often is anything saved; what comes in between is done again.
        say: called with a line where something has to be made anew.

    Raises:
        ValueError: an earlier run of another task waits to be gone on with.
        BlockingIOError: another run is at work on this target.
        FileExistsError, PermissionError: something that is not ours is in the folder's place.
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        target: Path,
        task: dict[str, Any],
        *,
        restart: bool = False,
        save_every_s: float = 20.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = journal_folder(target)
        self.halfway: Halfway | None = None
        self.complete: int | None = None
        self._target = target
        self._task = {**task, "version": __version__}
        self._save_every_s = save_every_s
        self._saved_at = time.monotonic()
        self._say = say
        self._unsaved: dict[str, int] = {}
        self._block_begin = 0
        self._lock = contextlib.ExitStack()
        self._record: dict[str, Any] = {}
        self._open(restart)

    def _open(self, restart: bool) -> None:
        make_own_folder(self.folder, _LOCK)
        try:
            self._lock.enter_context(lock(self.folder / _LOCK))
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{self._target}: another run is writing it; wait for it, or name another target"
            ) from error
        try:
            if not restart:
                self._read()
            if self.complete is None and self.halfway is None:
                self._begin()
            self._refuse_another(self._record["task"])
            if self.complete is None:
                self._forget_unsure()
        except BaseException as error:
            if isinstance(error, OSError) and self.complete is None and self.halfway is None:
                shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.close()
            self._raise_by_known_name(error)
            raise

    def _read(self) -> None:
        """What an earlier run has noted; nothing, if any of that is damaged."""
        record, state = self.folder / _RECORD, self.folder / _STATE
        if not record.exists():
            return
        try:
            self._record = _read_record(record)
            self.complete = self._record["complete"]
            self.halfway = _read_state(state) if state.exists() else None
        except ValueError as error:
            if self.complete is None:  # otherwise the state is not needed any more
                self._announce(f"{error}, so that all is restored anew")

    def _begin(self) -> None:
        self._clear()
        self.halfway = self.complete = None
        self._unsaved, self._block_begin = {}, 0
        self._record = {"task": self._task, "settled": {}, "complete": None, "files": {}, "parts": {}}
        self._write_record()

    def _forget_unsure(self) -> None:
        """Looks whether all that is noted as done is there, and goes back before what is not.

        A model with a memory can go on from the last note alone; where anything before it is amiss it begins anew.
        """
        if self.halfway is None:
            return
        done = self.halfway.frames_done
        files = {name: noted for name, noted in self._record["files"].items() if noted[0] < done}
        amiss = {name: first for name, (first, *noted) in files.items() if _noted(self.folder / name) != noted}
        if amiss:
            name, first = min(amiss.items(), key=lambda item: item[1])
            first = 0 if self.halfway.carry else first
            self._announce(
                f"{self.folder / name}: damaged or gone, so that frames from number {first} on are restored anew"
            )
            if first == 0:
                self._begin()
                return
            self.halfway = Halfway(first, [])
            files = {name: noted for name, noted in files.items() if noted[0] < first}
        self._record["files"], self._block_begin = files, self.halfway.frames_done

    def is_whole(self, places: Mapping[str, Path]) -> bool:
        """Whether an earlier run has completed everything, and it still is as it was: here, or moved to its place.

        Args:
            places: where each part belongs, by its name here.
        """
        if self.complete is None:
            return False

        def now_at(name: str) -> Path:
            part = next(part for part in places if name == part or name.startswith(f"{part}/"))
            here = (self.folder / part).exists()
            return self.folder / name if here else places[part] / name[len(part) + 1 :]

        for name, noted in self._record["parts"].items():
            if _noted(now_at(name)) != noted:
                self._announce(f"{now_at(name)}: damaged or gone, so that it is made anew")
                self.complete = self._record["complete"] = None
                self._forget_unsure()
                if self.halfway is None:
                    self._begin()
                return False
        return True

    def _announce(self, line: str) -> None:
        if self._say is not None:
            self._say(f"{self._target}: of an interrupted run, {line}")

    def _refuse_another(self, earlier: dict[str, Any]) -> None:
        names = [name for name in {**earlier, **self._task} if earlier.get(name) != self._task.get(name)]
        if names:
            changes = ", ".join(_change(name, earlier.get(name), self._task.get(name)) for name in names)
            frames = self.complete if self.halfway is None else self.halfway.frames_done
            raise ValueError(
                f"{self._target}: an interrupted run waits to be gone on with ({frames} frames done), but of another "
                f"task: {changes}. Repeat that run, or begin anew with --restart"
            )

    def settle(self, name: str, find: Callable[[], Any]) -> Any:
        """Something the result depends on and the task does not name: found once, and then the same for every run.

        Args:
            find: gives it, in JSON's types.
        """
        if name not in self._record["settled"]:
            self._record["settled"][name] = find()
            self._write_record()
        return self._record["settled"][name]

    def _write_record(self) -> None:
        with replacing(self.folder / _RECORD, durable=True) as partial:
            partial.write_text(json.dumps({**self._record, "checksum": _checksum(self._record)}))

    def set_complete(self, frames: int, parts: Iterable[str]) -> None:
        """Everything is in the folder, whole; what is left is to move it to where it belongs.

        Args:
            parts: names in the folder, of files and of folders of files.
        """
        names = [name for part in parts for name in self._files_of(part)]
        known = {name: noted for name, (_, *noted) in self._record["files"].items()}
        self._write_through(name for name in names if name not in known)
        self._record["parts"] = {name: known.get(name) or _noted(self.folder / name) for name in names}
        self._record["complete"] = self.complete = frames
        self._write_record()

    def _files_of(self, part: str) -> Iterator[str]:
        path = self.folder / part
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return (file.relative_to(self.folder).as_posix() for file in files if file.is_file())

    def _write_through(self, names: Iterable[str]) -> None:
        paths = [self.folder / name for name in names]
        for path in paths:
            write_through(path)
        for folder in {path.parent for path in paths}:
            write_through(folder)

    def save(self, halfway: Halfway, files: Iterable[Path] = ()) -> None:
        """Notes that everything up to there is in the folder; not every time it is called.

        Args:
            files: that hold what came since the last call, in the folder.
        """
        self._unsaved |= {path.relative_to(self.folder).as_posix(): self._block_begin for path in files}
        self._block_begin = halfway.frames_done
        if time.monotonic() - self._saved_at < self._save_every_s:
            return
        self._write_through(self._unsaved)
        for name, first in self._unsaved.items():
            self._record["files"][name] = [first, *(_noted(self.folder / name) or [])]
        self._unsaved = {}
        self._write_record()
        # Seen as plain bytes, since NumPy's files know no bfloat16; no copies, since a memory may be large.
        leaves: dict[str, Any] = {
            f"carry_{number}": np.asarray(leaf).reshape(-1).view(np.uint8) for number, leaf in enumerate(halfway.carry)
        }
        with replacing(self.folder / _STATE, durable=True) as partial, open(partial, "wb") as file:
            np.savez(file, frames_done=np.int64(halfway.frames_done), **leaves)
        self.halfway = halfway
        self._saved_at = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)
        self._raise_by_known_name(error)

    def _raise_by_known_name(self, error: BaseException | None) -> None:
        """An error about a file in the folder again, by the name that the user knows."""
        if isinstance(error, OSError) and error.errno and self._is_ours(error.filename):
            raise OSError(error.errno, error.strerror, os.fspath(self._target)) from error

    def _is_ours(self, name: Any) -> bool:
        return name is None or str(name).startswith(os.fspath(self.folder))

    def _leave(self, error: BaseException | None) -> None:
        is_begun = self.halfway is not None or self.complete is not None
        keep = error is not None and not isinstance(error, ValueError) and is_begun
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
        if not keep and os.name == "nt":  # where a file that is locked cannot be removed
            shutil.rmtree(self.folder, ignore_errors=True)

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _change(name: str, earlier: Any, now: Any) -> str:
    """In a few words, however many files a folder has."""
    was, is_now = (f"{value}" for value in (earlier, now))
    return f"{name} changed" if max(len(was), len(is_now)) > 200 else f"{name} was {was}, is {is_now}"


def fingerprint(variables: Variables) -> str:
    """A few letters that tell one set of weights from another."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def identity_of_file(path: StrPath) -> dict[str, Any]:
    """What tells that a file is still the one it was."""
    status = os.stat(path)
    return {"path": os.path.abspath(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        if record.pop("checksum") != _checksum(record):
            raise ValueError
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: damaged") from error
    return record


def _noted(path: Path) -> list[Any] | None:
    """What tells that a file is still what it was: how many bytes, and their checksum; None for none."""
    try:
        with open(path, "rb") as file:
            return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _read_state(path: Path) -> Halfway:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            leaves = [arrays[f"carry_{number}"] for number in range(len(arrays.files) - 1)]
            return Halfway(int(arrays["frames_done"]), leaves)
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{path}: damaged") from error
