"""What an interrupted restoration has done so far: a folder beside its target, until the target is there."""

import contextlib
import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from jaxdeblur.data.image_io import StrPath
from jaxdeblur.data.locks import lock
from jaxdeblur.data.own_files import make_own_folder, replacing
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
    once all is `complete`, from where results are moved to their places.

    Args:
        target: the file or folder that is to be.
        task: what determines the result, by name, in JSON's types.
        restart: forget what an earlier run has left.
        save_every_s: no more often is anything saved; what comes in between is done again.

    Raises:
        ValueError: an earlier run of another task waits to be gone on with.
        BlockingIOError: another run is at work on this target.
        FileExistsError, PermissionError: something that is not ours is in the folder's place.
        OSError: the folder cannot be made.
    """

    def __init__(
        self, target: Path, task: dict[str, Any], *, restart: bool = False, save_every_s: float = 20.0
    ) -> None:
        self.folder = journal_folder(target)
        self.halfway: Halfway | None = None
        self.complete: int | None = None
        self._target = target
        self._task = {**task, "version": __version__}
        self._save_every_s = save_every_s
        self._saved_at = time.monotonic()
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
            record = self.folder / _RECORD
            if not restart and record.exists():
                self._record = json.loads(record.read_text())
                self.complete = self._record.get("complete")
                if (self.folder / _STATE).exists():
                    self.halfway = _read_state(self.folder / _STATE)
            if self.complete is None and self.halfway is None:
                self._clear()
                self._record = {"task": self._task, "settled": {}}
                self._write_record()
            self._refuse_another(self._record["task"])
        except BaseException as error:
            if isinstance(error, OSError) and self.complete is None and self.halfway is None:
                shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.close()
            self._raise_by_known_name(error)
            raise

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
        with replacing(self.folder / _RECORD) as partial:
            partial.write_text(json.dumps(self._record, indent=1))

    def set_complete(self, frames: int) -> None:
        """Everything is in the folder, whole; what is left is to move it to where it belongs."""
        self._record["complete"] = self.complete = frames
        self._write_record()

    def save(self, halfway: Halfway) -> None:
        """Notes that everything up to there is in the folder; not every time it is called."""
        if time.monotonic() - self._saved_at < self._save_every_s:
            return
        # Seen as plain bytes, since NumPy's files know no bfloat16; no copies, since a memory may be large.
        leaves: dict[str, Any] = {
            f"carry_{number}": np.asarray(leaf).reshape(-1).view(np.uint8) for number, leaf in enumerate(halfway.carry)
        }
        with replacing(self.folder / _STATE) as partial, open(partial, "wb") as file:
            np.savez(file, frames_done=np.int64(halfway.frames_done), **leaves)
            file.flush()
            os.fsync(file.fileno())
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


def _read_state(path: Path) -> Halfway:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            leaves = [arrays[f"carry_{number}"] for number in range(len(arrays.files) - 1)]
            return Halfway(int(arrays["frames_done"]), leaves)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged; begin anew with --restart") from error
