"""Folders and files under names that others can guess: touched only where they are ours.

Work in progress lies beside a result, under a name that follows from the result's. Whoever may write there, too, could
have put something under that name beforehand: a link that leads elsewhere, or a folder with something in it. What is
not plainly ours is refused, and neither followed nor emptied nor removed.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

_BEGUN = ".jaxdeblur"
_MOST_NAME_BYTES = 255


def make_own_folder(folder: Path, marker: str, *, private: bool = True) -> None:
    """Makes a folder for work in progress, or takes the one that an earlier run of the same user has left.

    Args:
        marker: name of a file that every run makes in it at once: a folder that holds something, but not this, is none
            of ours.
        private: nobody else may enter. Otherwise as folders are made, for one that becomes a result.
    Raises:
        FileExistsError: something else is there, such as a link, or a folder of other things.
        PermissionError: it belongs to another user.
        OSError: it cannot be made.
    """
    try:
        os.mkdir(folder, 0o700 if private else 0o777)
    except FileExistsError:
        _refuse_strange(folder, marker)
        if private:
            with contextlib.suppress(OSError):  # a file system without permissions
                os.chmod(folder, 0o700)


@contextlib.contextmanager
def becoming(target: Path) -> Iterator[Path]:
    """A folder beside the target, empty at first, that takes its name when the block ends well, and is gone otherwise.

    What an earlier run that was killed has left gives way. No two runs may do this at once.

    Args:
        target: is not there when the block ends, or an empty folder.
    Raises:
        FileExistsError, PermissionError: something that is not ours is in the way, see make_own_folder.
    """
    partial = target.with_name(fitting_name(target.name, ".partial", "."))
    if os.path.lexists(partial):
        _refuse_strange(partial, _BEGUN)
        shutil.rmtree(partial)
    os.mkdir(partial)
    try:
        (partial / _BEGUN).touch()
        yield partial
        os.replace(partial, target)
        (target / _BEGUN).unlink()  # not before: without it what a killed run leaves would be taken for another's
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Gives a new, empty file beside `path`, same suffix, and moves it into place when the block ends well.

    On any exception, Ctrl-C included, the temporary file is removed and `path` is as it was.

    Args:
        durable: also write it through, first the data, then the name, so that after a power cut there is the old file
            or the new one, whole.
    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    partial = path.with_name(fitting_name(path.stem, f".partial-{secrets.token_hex(4)}{path.suffix}"))
    is_made = False
    try:
        partial.touch(exist_ok=False)  # nothing is written through a link
        is_made = True
        yield partial
        if durable:
            write_through(partial)
        os.replace(partial, path)
        if durable:
            write_through(path.parent)
    except BaseException as error:
        if is_made:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == os.fspath(partial):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # by the name the user knows
        raise


def fitting_name(name: str, ending: str, beginning: str = "") -> str:
    """A name for a file made of another's, no longer than file systems allow: a long one is cut, and told from others
    by some letters of its hash."""
    whole = f"{beginning}{name}{ending}"
    if len(os.fsencode(whole)) <= _MOST_NAME_BYTES:
        return whole
    told_apart = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    room = _MOST_NAME_BYTES - len(os.fsencode(f"{beginning}-{told_apart}{ending}"))
    return f"{beginning}{os.fsencode(name)[:room].decode(errors='ignore')}-{told_apart}{ending}"


def write_through(path: Path) -> None:
    """Returns when a file, or a folder's list of names, is on the disk and would outlive a power cut.

    Of folders some systems cannot do that, and some network file systems do not: then it is left to them.
    """
    is_folder, is_windows = path.is_dir(), os.name == "nt"
    if is_folder and is_windows:
        return
    handle = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


def _refuse_strange(folder: Path, marker: str) -> None:
    found = os.lstat(folder)
    is_folder = stat.S_ISDIR(found.st_mode)
    if is_folder and hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise PermissionError(
            f"{folder}: belongs to another user and is in the place of a folder for work in progress; move it away, or "
            "name another target"
        )
    if is_folder and (not os.listdir(folder) or os.path.lexists(folder / marker)):
        return
    kind = "a link" if stat.S_ISLNK(found.st_mode) else "a folder of other things" if is_folder else "no folder"
    raise FileExistsError(
        f"{folder}: is {kind} in the place of a folder for work in progress; move it away, or name another target"
    )
