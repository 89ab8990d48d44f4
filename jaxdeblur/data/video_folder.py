"""The video folder: `<root>/<split>/<clip>/{blur,sharp}/<frame>.png|jpg`, the same frame names on both sides.

Frames are ordered by their names with numbers read as numbers (`9.png` before `10.png`). They are 8-bit RGB; grey, grey
with alpha, RGBA, palette and 16-bit PNG files are converted: alpha is dropped, 16-bit values v become round(v / 257).
Files that lie on their side come upright. A folder `<root>/packed` belongs to `jaxdeblur.data.pack` and is no split;
hidden folders are none either.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from absl import logging

from jaxdeblur.data.image_io import IMAGE_KINDS, StrPath, count_pages, read_image, read_orientation, read_rgb_u8
from jaxdeblur.data.image_metadata import is_transposed, orientation_of, parse_exif
from jaxdeblur.data.video_io import VideoReader

PACKED_FOLDER = "packed"
Side = Literal["blur", "sharp"]
SIDES: tuple[Side, Side] = ("blur", "sharp")
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")

DVD_TEST_VIDEOS = (
    "IMG_0030",
    "IMG_0049",
    "IMG_0021",
    "720p_240fps_2",
    "IMG_0032",
    "IMG_0033",
    "IMG_0031",
    "IMG_0003",
    "IMG_0039",
    "IMG_0037",
)
"""The quantitative test videos of DVD (Su et al., CVPR 2017), in the order of the papers' tables."""

_LAYOUT = "<root>/<split>/<clip>/{blur,sharp}/<frame>.png|jpg"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LISTED_AT_MOST = 10
# Reading a header is waiting for a disk or a network, hardly computing.
_INDEX_THREADS = 16


@dataclass(frozen=True)
class ClipFiles:
    """One clip: where its frames lie and how large they are. Frame i of blur belongs to frame i of sharp."""

    folder: str
    """`<root>/<split>/<clip>`, absolute."""
    blur_paths: tuple[str, ...]
    sharp_paths: tuple[str, ...]
    height_px: int
    width_px: int
    unplain_paths: frozenset[str] = frozenset()
    """Of these, whatever only decodes pixels gives something else than `image_io`: they lie on their side, are CMYK or
    the like."""

    @property
    def name(self) -> str:
        return os.path.basename(self.folder)

    @property
    def n_frames(self) -> int:
        return len(self.blur_paths)

    def paths(self, side: Side) -> tuple[str, ...]:
        return self.blur_paths if side == "blur" else self.sharp_paths


def list_splits(root: str | os.PathLike[str]) -> list[str]:
    """Names of the splits under root.

    Raises:
        FileNotFoundError: root is no folder.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"no folder {str(root)!r}; give the root of a video folder, laid out as {_LAYOUT}")
    return [name for name in _folders_in(root) if name != PACKED_FOLDER]


def index_video_folder(root: str | os.PathLike[str], split: str) -> tuple[ClipFiles, ...]:
    """Finds and checks every clip of a split; reads of each file its header only.

    Returns:
        The clips, in the order of their names.
    Raises:
        FileNotFoundError: root or split does not exist (the message lists the splits that do).
        ValueError: no clips or no frames; a frame without its partner; frames of unequal size in a clip; a
            file that is neither PNG nor JPEG.
    """
    splits = list_splits(root)
    split_folder = Path(root).absolute() / split
    if split not in splits:
        found = f"it has {', '.join(map(repr, splits))}" if splits else "it has none"
        raise FileNotFoundError(
            f"video folder {str(root)!r} has no split {split!r}; {found}; expected layout {_LAYOUT}"
        )
    names = _folders_in(split_folder)
    if not names:
        raise ValueError(f"split {str(split_folder)!r} holds no clips; expected layout {_LAYOUT}")
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        return tuple(pool.map(_index_clip, [str(split_folder / name) for name in names]))


def read_clip_frame(clip: ClipFiles, frame: int, side: Side) -> np.ndarray:
    """Frame number `frame` of one side of the clip: (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the file cannot be decoded, or its size is not the one the index found.
    """
    path = clip.paths(side)[frame]
    image_u8 = read_rgb_u8(path)
    if image_u8.shape != (clip.height_px, clip.width_px, 3):
        raise ValueError(
            f"{path!r} is {image_u8.shape[1]}x{image_u8.shape[0]} but was {clip.width_px}x{clip.height_px} "
            f"when the "
            "folder was indexed; do not change a video folder while it is read"
        )
    return image_u8


def iterate_clip(clip: ClipFiles) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blurred and sharp frame after frame, each (H, W, 3) uint8; one pair in memory at a time."""
    for frame in range(clip.n_frames):
        yield read_clip_frame(clip, frame, "blur"), read_clip_frame(clip, frame, "sharp")


def frame_size_px(path: str) -> tuple[int, int]:
    """(height, width) of a PNG or JPEG file, once it lies upright; from its header.

    Raises:
        ValueError: the file is empty, cut short within the header, or neither PNG nor JPEG.
    """
    return _read_header(path).size_px


def is_image(path: StrPath) -> bool:
    """Whether a name is that of an image, by its suffix, and not of a folder."""
    return Path(path).suffix.lower() in IMAGE_KINDS and not os.path.isdir(path)


def list_images(folder: StrPath) -> list[Path]:
    """The image files of a folder, by suffix, hidden ones aside, numbers in names counted as numbers.

    Raises:
        OSError: there is no such folder.
        ValueError: it holds no images.
    """
    folder = Path(folder)
    paths = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_KINDS and not path.name.startswith(".") and path.is_file()
    ]
    animations = sorted(path for path in folder.glob("*.[gG][iI][fF]"))
    if not paths:
        beside = f"; {animations[0].name} is a video: name it itself" if animations else ""
        raise ValueError(f"{folder}: has no images; looked for {', '.join(IMAGE_KINDS)}{beside}")
    if animations:
        logging.warning("%s: is left aside; restore it as a video, by naming it itself", animations[0])
    return sorted(paths, key=lambda path: numeric_order(path.name))


def read_frames(path: StrPath) -> Iterator[np.ndarray]:
    """The frames of a video, of a folder of images in the order of their names, or of an image: (H, W, 3), uint8 or
    uint16. Of an image that holds several pages each is a frame.

    Raises:
        OSError, ValueError: there is none, or it is damaged; the message names the file.
    """
    if Path(path).is_dir() or is_image(path):
        for file in list_images(path) if Path(path).is_dir() else [path]:
            yield from (read_image(file, page).rgb for page in range(count_pages(file)))
        return
    with VideoReader(path, strict=True) as reader:
        for frame in reader:
            yield frame.rgb


def alike(frames: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """The frames as they come; one of another size or type than the first is a ValueError that names the clip so."""
    first: np.ndarray | None = None
    for number, frame in enumerate(frames):
        first = frame if first is None else first
        if frame.shape != first.shape or frame.dtype != first.dtype:
            raise ValueError(
                f"{name}: frame {number} is {frame.dtype} {frame.shape}, frame 0 {first.dtype} {first.shape}; "
                "the frames of a clip must be alike"
            )
        yield frame


def numeric_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which numbers inside names count as numbers: `a2 < a10`."""
    # Split with a group alternates text, digits, text, ...; the first item tells them apart.
    parts = re.split(r"(\d+)", name)
    return (*((1, int(part), "") if i % 2 else (0, 0, part) for i, part in enumerate(parts)), (2, 0, name))


class _Header(NamedTuple):
    size_px: tuple[int, int]
    is_plain: bool


def _read_header(path: str) -> _Header:
    with open(path, "rb") as file:
        start = file.read(24)
        header = None
        if start[:8] == PNG_SIGNATURE and len(start) == 24:
            header = _png_header(file, (int.from_bytes(start[20:24]), int.from_bytes(start[16:20])))
        elif start[:2] == b"\xff\xd8":
            header = _jpeg_header(file, path)
    if header is None:
        state = "is empty" if not start else "is not a PNG or JPEG file, or is cut short"
        raise ValueError(f"{path!r} {state}; write that frame again or remove its clip")
    return header


def _png_header(file: io.BufferedIOBase, size_px: tuple[int, int]) -> _Header:
    """Of the chunks before the pixels."""
    position, is_plain = 8, True
    while True:
        file.seek(position)
        chunk = file.read(8)
        length, kind = int.from_bytes(chunk[:4]), chunk[4:]
        if kind == b"eXIf":
            orientation = orientation_of(parse_exif(file.read(length)))
            size_px, is_plain = _upright(size_px, orientation), is_plain and orientation == 1
        elif kind == b"acTL":
            is_plain = False
        elif len(chunk) < 8 or kind in (b"IDAT", b"IEND"):
            return _Header(size_px, is_plain)
        position += 12 + length


def _jpeg_header(file: io.BufferedIOBase, path: str) -> _Header | None:
    position, may_say_more = 2, False
    while True:
        file.seek(position)
        marker = file.read(4)
        if len(marker) < 4 or marker[0] != 0xFF:
            return None
        if marker[1] == 0xFF:  # a fill byte before the marker
            position += 1
            continue
        # Start of frame: C0..CF without the three that define tables (C4, C8, CC).
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            header = file.read(6)  # precision, height, width, channels
            if len(header) < 6:
                return None
            size_px = int.from_bytes(header[1:3]), int.from_bytes(header[3:5])
            orientation = read_orientation(path) if may_say_more else 1
            return _Header(_upright(size_px, orientation), orientation == 1 and header[5] in (1, 3))
        may_say_more |= marker[1] == 0xE1  # EXIF and XMP
        position += 2 + int.from_bytes(marker[2:4])


def _upright(size_px: tuple[int, int], orientation: int) -> tuple[int, int]:
    height, width = size_px
    return (width, height) if is_transposed(orientation) else (height, width)


def _index_clip(folder: str) -> ClipFiles:
    blur, sharp = (_frames_by_name(os.path.join(folder, side)) for side in SIDES)
    faults = [
        f"{missing_in} has no partner of {_listed(sorted(here.keys() - there.keys(), key=numeric_order))}"
        for here, there, missing_in in ((blur, sharp, "sharp"), (sharp, blur, "blur"))
        if here.keys() - there.keys()
    ]
    if faults:
        raise ValueError(
            f"clip {folder!r}: {'; '.join(faults)}; every frame needs a file of the same name in blur and in sharp"
        )
    names = sorted(blur, key=numeric_order)
    clip_paths = [blur[name] for name in names], [sharp[name] for name in names]
    height_px, width_px = frame_size_px(clip_paths[0][0])
    unequal, unplain = [], set()
    for paths in clip_paths:
        for path in paths:
            (found_height_px, found_width_px), is_plain = _read_header(path)
            if not is_plain:
                unplain.add(path)
            if (found_height_px, found_width_px) != (height_px, width_px):
                unequal.append(f"{path} is {found_width_px}x{found_height_px}")
    if unequal:
        raise ValueError(
            f"clip {folder!r} has frames of unequal size: its first frame is {width_px}x{height_px} but "
            f"{_listed(unequal)}; scale or crop them alike, or make clips of their own of them"
        )
    return ClipFiles(folder, tuple(clip_paths[0]), tuple(clip_paths[1]), height_px, width_px, frozenset(unplain))


def _frames_by_name(folder: str) -> dict[str, str]:
    """File name without suffix -> path."""
    if not os.path.isdir(folder):
        raise ValueError(f"no folder {folder!r}; expected layout {_LAYOUT}")
    frames: dict[str, str] = {}
    for file_name in os.listdir(folder):
        name, suffix = os.path.splitext(file_name)
        if file_name.startswith(".") or suffix.lower() not in FRAME_SUFFIXES:
            continue
        path = os.path.join(folder, file_name)
        if name in frames:
            raise ValueError(f"{frames[name]!r} and {path!r} are the same frame twice; remove one of them")
        frames[name] = path
    if not frames:
        raise ValueError(f"folder {folder!r} holds no frames; expected {' or '.join(FRAME_SUFFIXES)} files in it")
    return frames


def _folders_in(folder: str | os.PathLike[str]) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(names, key=numeric_order)


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    more = len(items) - _LISTED_AT_MOST
    return ", ".join(items[:_LISTED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
