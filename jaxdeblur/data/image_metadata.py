"""What image files say beside their pixels: colour profile, resolution, date, camera and place; and how they lie."""

import contextlib
import dataclasses
import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import ExifTags, Image

_KEPT_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
# Of a folder of its own in the file; a maker's notes point to places in the file they were in.
_LEFT_OUT = (ExifTags.Base.MakerNote, ExifTags.Base.ExifInteroperabilityOffset)
_ORIENTATION = ExifTags.Base.Orientation
_UPRIGHT = 1
_EXIF_PREFIX = b"Exif\0\0"
_PNG_METADATA = (b"iCCP", b"pHYs", b"eXIf")
_METRES_PER_INCH = 0.0254
_INCHES = 2
_MOST_DPI = 1e6


@dataclasses.dataclass(frozen=True)
class ImageMetadata:
    """What is written again with a picture.

    Args:
        icc_profile: of the colours; None for none.
        dpi: pixels an inch, across and down; None where the file does not tell.
        exif: TIFF structure of date, camera, place and the like, whose orientation is upright; None for none.
        duration_ms: of a frame of an animation.
        loop: how often an animation is shown, 0 for ever; None of anything else.
    """

    icc_profile: bytes | None = None
    dpi: tuple[float, float] | None = None
    exif: bytes | None = None
    duration_ms: int | None = None
    loop: int | None = None


NO_METADATA = ImageMetadata()


def orientation_of(exif: Mapping[int, Any]) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none, or none that is known."""
    value = exif.get(_ORIENTATION, _UPRIGHT)
    return value if isinstance(value, int) and 1 <= value <= 8 else _UPRIGHT


def is_transposed(orientation: int) -> bool:
    """Whether the picture's rows lie in the file as columns."""
    return orientation >= 5


def parse_exif(data: bytes) -> Image.Exif:
    """EXIF of its bytes; empty where they are damaged."""
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # Pillow raises whatever damaged data makes it stumble over
        exif.load(data)
    return exif


def upright_exif(exif: Image.Exif, size_px: tuple[int, int]) -> bytes | None:
    """Date, camera, place and the like, of a picture that lies upright.

    Args:
        exif: of the file.
        size_px: (height, width) of the upright picture.
    """
    kept = Image.Exif()
    for tag in _KEPT_TAGS:
        if tag in exif:
            kept[tag] = exif[tag]
    for folder in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        with contextlib.suppress(Exception):
            entries = {tag: value for tag, value in exif.get_ifd(folder).items() if tag not in _LEFT_OUT}
            sizes = zip((ExifTags.Base.ExifImageHeight, ExifTags.Base.ExifImageWidth), size_px)
            entries |= {tag: side for tag, side in sizes if tag in entries}
            if entries:
                _to_bytes({folder: entries})
                kept[folder] = entries
    if not len(kept):
        return None
    kept[_ORIENTATION] = _UPRIGHT
    with contextlib.suppress(Exception):
        return _to_bytes(kept)
    return None


def _to_bytes(entries: Mapping[int, Any]) -> bytes:
    exif = Image.Exif()
    for tag, value in entries.items():
        exif[tag] = value
    return exif.tobytes().removeprefix(_EXIF_PREFIX)


def folders_of(exif: Image.Exif) -> dict[int, dict[int, Any]]:
    """What EXIF has in folders of their own, such as the date of the exposure and the place."""
    found = {folder: dict(exif.get_ifd(folder)) for folder in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)}
    return {int(folder): entries for folder, entries in found.items() if entries}


def with_resolution(exif: bytes | None, dpi: tuple[float, float] | None) -> bytes | None:
    """EXIF that also tells the resolution, for kinds of files that have no other place for it."""
    if dpi is None:
        return exif
    parsed = Image.Exif() if exif is None else parse_exif(exif)
    resolution: dict[int, Any] = {
        _ORIENTATION: _UPRIGHT,
        ExifTags.Base.XResolution: dpi[0],
        ExifTags.Base.YResolution: dpi[1],
        ExifTags.Base.ResolutionUnit: _INCHES,
    }
    return _to_bytes({**parsed, **folders_of(parsed), **resolution})


def with_exif_prefix(exif: bytes) -> bytes:
    """As JPEG has it."""
    return _EXIF_PREFIX + exif


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of a PNG's chunks but those of pixels, as far as they are whole."""
    for kind, begin, end in png_places(data):
        if kind != b"IDAT":
            yield kind, data[begin + 8 : end - 4]


def png_header_chunks(file: io.BufferedIOBase) -> Iterator[bytes]:
    """Types of an open PNG's chunks before its pixels."""
    place = 8
    while True:
        file.seek(place)
        chunk = file.read(8)
        if len(chunk) < 8 or chunk[4:] in (b"IDAT", b"IEND"):
            return
        yield chunk[4:]
        place += 12 + int.from_bytes(chunk[:4])


def without_metadata(data: bytes) -> bytes:
    """A PNG's bytes without what of it is read here, in which damage does no harm to the pixels."""
    places = list(png_places(data))
    if not any(kind in _PNG_METADATA for kind, _, _ in places):
        return data
    rest = data[places[-1][2] :]  # as much of it as there is, that a cut is still one
    return data[:8] + b"".join(data[begin:end] for kind, begin, end in places if kind not in _PNG_METADATA) + rest


def png_places(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, begin and end of a PNG's chunks."""
    begin = 8
    while begin + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[begin : begin + 8])
        yield kind, begin, begin + 12 + length
        begin += 12 + length


def of_png(data: bytes) -> tuple[ImageMetadata, Image.Exif]:
    """Colour profile and resolution, and the EXIF, of a PNG's bytes."""
    chunks = dict(png_chunks(data))
    icc_profile = None
    if b"iCCP" in chunks:
        with contextlib.suppress(zlib.error):
            icc_profile = zlib.decompress(chunks[b"iCCP"].partition(b"\0")[2][1:])
    dpi = None
    if len(chunks.get(b"pHYs", b"")) == 9:
        across, down, unit = struct.unpack(">IIB", chunks[b"pHYs"])
        dpi = (across * _METRES_PER_INCH, down * _METRES_PER_INCH) if unit == 1 and across and down else None
    return ImageMetadata(icc_profile, dpi), parse_exif(chunks.get(b"eXIf", b""))


def into_png(data: bytes, metadata: ImageMetadata) -> bytes:
    """A PNG's bytes with the metadata in it."""
    chunks = b""
    if metadata.icc_profile:
        chunks += png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata.icc_profile))
    if metadata.dpi:
        across, down = (round(value / _METRES_PER_INCH) for value in metadata.dpi)
        chunks += png_chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
    if metadata.exif:
        chunks += png_chunk(b"eXIf", metadata.exif)
    data = without_metadata(data)  # FFmpeg's encoder has its own idea of a resolution
    behind_header = 8 + 12 + 13
    return data[:behind_header] + chunks + data[behind_header:]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def placed(metadata: ImageMetadata, exif: Image.Exif, orientation: int, size_px: tuple[int, int]) -> ImageMetadata:
    """The metadata of a picture once it has been put upright.

    Args:
        metadata: as it lies in the file, without EXIF.
        exif: of the file.
        orientation: that was applied.
        size_px: (height, width) of the upright picture.
    """
    dpi = metadata.dpi[::-1] if metadata.dpi and is_transposed(orientation) else metadata.dpi
    return dataclasses.replace(metadata, dpi=dpi, exif=upright_exif(exif, size_px))


def of_pillow(image: Any, exif: Image.Exif) -> ImageMetadata:
    """Of an image that Pillow has read, and its EXIF: as it lies in the file, without EXIF."""
    dpi = _dpi(*image.info["dpi"]) if "dpi" in image.info else _dpi_of_tags(exif)
    duration_ms = image.info.get("duration")
    duration_ms = None if duration_ms is None else round(duration_ms)
    return ImageMetadata(image.info.get("icc_profile"), dpi, None, duration_ms, image.info.get("loop"))


def of_tiff(directory: Mapping[int, Any]) -> ImageMetadata:
    """Of a TIFF's tags: as it lies in the file, without EXIF."""
    return ImageMetadata(directory.get(ExifTags.Base.InterColorProfile), _dpi_of_tags(directory))


def exif_of_tiff(directory: Mapping[int, Any]) -> Image.Exif:
    """What of EXIF stands among a TIFF's own tags."""
    exif = Image.Exif()
    for tag in _KEPT_TAGS:
        if tag in directory:
            exif[tag] = directory[tag]
    return exif


def _dpi_of_tags(tags: Mapping[int, Any]) -> tuple[float, float] | None:
    if tags.get(ExifTags.Base.ResolutionUnit, _INCHES) != _INCHES:
        return None
    return _dpi(tags.get(ExifTags.Base.XResolution), tags.get(ExifTags.Base.YResolution))


def _dpi(across: Any, down: Any) -> tuple[float, float] | None:
    with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):
        if 0 < float(across) < _MOST_DPI and 0 < float(down) < _MOST_DPI:
            return float(across), float(down)
    return None
