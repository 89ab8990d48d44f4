"""Files that only one process has at a time; a process that is killed lets go of them."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import filelock
from absl import logging

_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds a lock file, which is made if it is not there, and stays.

    A file system without locks gets a warning, and no lock: a file that stands for one would outlive a killed process.

    Raises:
        BlockingIOError: another has it.
        FileExistsError: something else is there under that name, a link or a file that holds something.
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size:
            raise FileExistsError(f"{path}: is in the place of a lock file and is none; move it away")
    held = filelock.FileLock(path, fallback_to_soft=False)
    try:
        held.acquire(blocking=False)
    except filelock.Timeout as error:
        raise BlockingIOError(f"{path}: another has it") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        logging.warning("%s: this file system has no locks; let no other run write here at the same time", path.parent)
    try:
        yield
    finally:
        held.release()
