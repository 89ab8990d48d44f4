"""Images that are restored together as the frames of a clip: which, in what order, and what is written of them."""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from jaxdeblur.data.image_io import (
    ImageFile,
    StrPath,
    count_pages,
    holds,
    image_kind,
    read_image,
    refuse_unheld,
    refuse_unheld_pages,
    to_u8,
    write_image,
    write_pages,
)
from jaxdeblur.data.video_folder import numeric_order

_PAGES = "pages"
"""Folder for pages, which wait for the others of their file."""


class Page(NamedTuple):
    """One frame: a page of a file, from 0, and how many that file has."""

    path: Path
    number: int
    pages: int

    def __str__(self) -> str:
        return f"{self.path}" if self.pages == 1 else f"{self.path}, page {self.number}"


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Made by `plan_pictures`.

    Attributes:
        target: a folder that gets the same names; or, where `is_file`, what the single picture becomes.
        pages: the frames in order.
        first: the first of them, of whose size and depth all must be.
    """

    target: Path
    is_file: bool
    pages: tuple[Page, ...]
    first: ImageFile

    @property
    def paths(self) -> list[Path]:
        """The files, each once."""
        return list(dict.fromkeys(page.path for page in self.pages))

    def frames(self, start: int = 0) -> Iterator[ImageFile]:
        """Reads the frames from that number on.

        Raises:
            ValueError: one is damaged, or of another size or depth than the first; the message names it.
        """
        for page in self.pages[start:]:
            image = read_image(page.path, page.number)
            if image.rgb.shape != self.first.rgb.shape or image.rgb.dtype != self.first.rgb.dtype:
                raise ValueError(
                    f"{page}: is {_size_and_depth(image.rgb)}, but {self.pages[0].path.name} is "
                    f"{_size_and_depth(self.first.rgb)}; frames that are restored together must be of one size and "
                    "depth"
                )
            yield image

    def write(self, folder: Path, number: int, image: ImageFile) -> Path:
        """Writes a restored frame into a folder, or, of a file of several pages, beside it until `join`. Returns the
        file."""
        page = self.pages[number]
        path = folder / self._name(page.path) if page.pages == 1 else self._part(folder, page)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, self._held(image, page.path))
        return path

    def join(self, folder: Path) -> None:
        """Makes one file of pages that belong to one; the folder then holds what the target is to be."""
        for path, group in itertools.groupby(self.pages, key=lambda page: page.path):
            pages = list(group)
            if len(pages) > 1:
                write_pages(folder / self._name(path), (self._joined(folder, page) for page in pages))

    @property
    def result(self) -> str:
        """Where in that folder the target is."""
        return self.target.name if self.is_file else ""

    def _joined(self, folder: Path, page: Page) -> ImageFile:
        # A page waits as TIFF, which does not hold how long it is shown.
        return dataclasses.replace(
            read_image(self._part(folder, page)), metadata=read_image(page.path, page.number).metadata
        )

    def _part(self, folder: Path, page: Page) -> Path:
        return folder.with_name(_PAGES) / self._name(page.path) / f"{page.number:06d}.tif"

    def _name(self, path: Path) -> str:
        return self.target.name if self.is_file else path.name

    def _held(self, image: ImageFile, path: Path) -> ImageFile:
        """With the bits that the file to be holds."""
        suffix = Path(self._name(path)).suffix
        if image.bits == 8 or holds(image, suffix):
            return image
        return _of_8_bits(image)


def plan_pictures(sources: Sequence[StrPath], target: StrPath, *, is_file: bool = False) -> Pictures:
    """What becomes of images.

    Args:
        sources: of one size and depth; restored in the order of their names, with numbers counted as numbers. A file of
            several pages is so many frames.
        target: a folder; or, where is_file, the file that a single image becomes, of the kind its suffix names.

    Raises:
        ValueError: there are none, two of one name, the first is damaged, or the target cannot hold what they are.
        OSError: one cannot be read.
    """
    if not sources:
        raise ValueError("there are no pictures")
    # Nothing can be moved onto a link or ".", but a file is to take a link's place.
    target = Path(target) if is_file else Path(os.path.realpath(target))
    paths = sorted((Path(source) for source in dict.fromkeys(sources)), key=lambda path: numeric_order(path.name))
    for one, other in itertools.pairwise(paths):
        if one.name == other.name:
            raise ValueError(f"{one} and {other} would become one file; restore them one by one")
    counts = [count_pages(path) for path in paths]
    pages = tuple(Page(path, number, many) for path, many in zip(paths, counts) for number in range(many))
    pictures = Pictures(target, is_file, pages, read_image(paths[0], 0))
    for path, many in zip(paths, counts):
        _refuse_unheld(pictures, path, many)
    return pictures


def _refuse_unheld(pictures: Pictures, path: Path, many: int) -> None:
    first, target = pictures.first, pictures.target if pictures.is_file else pictures.target / path.name
    if pictures.is_file:
        image_kind(target.suffix, os.fspath(target))
        refuse_unheld(first if holds(first, target.suffix) else _of_8_bits(first), target.suffix, os.fspath(target))
        if not holds(first, target.suffix):
            logging.warning("%s: a %s file holds 8 of the 16 bits of %s", target, target.suffix, path)
    image = first if many == 1 else read_image(path, 0)
    way_out = "name a folder, or a .tif" if pictures.is_file else f"rename {path} to .tif"
    refuse_unheld_pages(many, image, target.suffix, os.fspath(target), way_out)


def _of_8_bits(image: ImageFile) -> ImageFile:
    alpha = None if image.alpha is None else to_u8(image.alpha)
    return dataclasses.replace(image, rgb=to_u8(image.rgb), alpha=alpha)


def _size_and_depth(rgb: np.ndarray) -> str:
    height, width, _ = rgb.shape
    return f"{width}x{height} of {8 * rgb.dtype.itemsize} bit"
