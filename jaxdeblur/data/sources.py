"""Where a data set lies: in archives as they were downloaded, in folders unpacked from them, or both, listed as one."""

import contextlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxdeblur.data.flow_pairs import decode_ppm
from jaxdeblur.data.image_io import StrPath, decode_image, to_u8

RECORD_FILE = "dataset.json"
"""Lies in a prepared folder and says what it is; `.dataset.json` in one that is being prepared."""

_LEFT_BY_SYSTEMS = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
"""What file managers leave in folders and archives; no part of any data set."""


@dataclass(frozen=True)
class Item:
    """One file of a data set.

    key: its path inside the folder or the archive, with forward slashes.
    where: what people are told: a path, or `<archive>: <path inside>`.
    """

    key: str
    where: str
    size_bytes: int
    path: Path
    """Of the file, or of the archive it is in."""
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None

    def read(self) -> bytes:
        """Its bytes; safe to call from several threads.

        Raises:
            OSError: it cannot be read.
            ValueError: the archive is damaged at this place.
        """
        if self.archive is None or self.member is None:
            return self.path.read_bytes()
        try:
            return self.archive.read(self.member)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{self.where}: cannot be taken out of the archive ({error})") from error

    def picture(self) -> np.ndarray:
        """What it shows, (H, W, 3) uint8; also of a PPM file.

        Raises:
            OSError, ValueError: it cannot be read, or is no whole image.
        """
        data = self.read()
        if self.key.lower().endswith(".ppm"):
            return decode_ppm(data, self.where)
        return to_u8(decode_image(data, self.where).rgb)

    def place(self, target: Path) -> None:
        """Puts it at a path: a hard link where the file system allows, which takes no space, else a copy."""
        partial = target.with_name(f".{target.name}.partial")
        partial.unlink(missing_ok=True)
        if self.archive is not None:
            partial.write_bytes(self.read())
        else:
            try:
                os.link(self.path.resolve(), partial)  # of a link's target: a copied link might lead nowhere
            except OSError:
                shutil.copyfile(self.path, partial)
        os.replace(partial, target)


@contextlib.contextmanager
def open_source(paths: Sequence[StrPath]) -> Iterator[list[Item]]:
    """Lists every file of folders and .zip archives, archives that lie at the top of a folder included.

    Raises:
        FileNotFoundError: a path does not exist, or there is nothing in any of them.
        ValueError: a file that is no whole .zip archive.
    """
    items: list[Item] = []
    with contextlib.ExitStack() as stack:
        for given in map(Path, paths):
            if given.is_dir():
                items += _files_below(given)
                archives = sorted(path for path in given.iterdir() if _is_archive(path))
            elif given.exists():
                archives = [given]
            else:
                raise FileNotFoundError(f"{given}: no such file or folder; expected a data set's archive or folder")
            for path in archives:
                items += _members(path, stack)
        if not items:
            raise FileNotFoundError(f"{', '.join(map(str, paths))}: there is no file in it")
        yield items


def _files_below(folder: Path) -> Iterator[Item]:
    def refuse(error: OSError) -> None:
        raise error  # os.walk would take a folder that cannot be read for an empty one

    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if Path(place) != folder and {RECORD_FILE, f".{RECORD_FILE}"} & set(names):
            folders.clear()  # prepared from this source, or of another data set
            continue
        # Links that lead back up would never end.
        folders[:] = sorted(f for f in folders if not _is_foreign(f) and not _leads_up(Path(place, f), folder))
        for name in sorted(names):
            path = Path(place, name)
            if _is_foreign(name) or (_is_archive(path) and path.parent == folder):
                continue
            size = path.stat().st_size if path.exists() else 0
            yield Item(path.relative_to(folder).as_posix(), str(path), size, path)


def _leads_up(path: Path, top: Path) -> bool:
    return path.is_symlink() and (top.resolve() == path.resolve() or path.resolve() in path.absolute().parents)


def _members(path: Path, stack: contextlib.ExitStack) -> Iterator[Item]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path}: no .zip archive, or cut short ({error}); download it again, and unpack archives of other kinds"
        ) from error
    for member in archive.infolist():
        key = member.filename.replace("\\", "/")
        parts = key.split("/")
        if not member.is_dir() and ".." not in parts and not any(map(_is_foreign, parts)):
            yield Item(key, f"{path}: {key}", member.file_size, path, archive, member)


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def _is_foreign(name: str) -> bool:
    return name in _LEFT_BY_SYSTEMS or name.startswith("._")
