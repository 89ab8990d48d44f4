"""Single images in and out: PNG, JPEG, BMP, TIFF and WebP, 8 and 16 bit, with what they say of themselves.

A file is known by its first bytes when read and by its suffix when written. Pictures come upright: an EXIF orientation
is applied, and what is written has none. Colour profile, resolution, date, camera and place are kept where the kind of
file has room for them. Reading PNG, BMP, TIFF and lossless WebP is exact; JPEG has libjpeg's values (accurate DCT,
interpolated chroma), which `pipeline` gives as well.

Pillow reads JPEG, WebP, animations and TIFF; FFmpeg (PyAV) reads PNG, BMP, and TIFF of several channels of 16 bits, of
which Pillow would keep 8. CMYK becomes RGB, with a warning. A file may hold several pages: those of a TIFF, or the
frames of an animated PNG or WebP.
"""

import contextlib
import dataclasses
import functools
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from absl import logging
from av.video.reformatter import Interpolation
from PIL import GifImagePlugin, Image, ImageCms, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from jaxdeblur.data import image_metadata
from jaxdeblur.data.animation import png_animation, webp_animation
from jaxdeblur.data.image_metadata import NO_METADATA, ImageMetadata
from jaxdeblur.data.own_files import replacing

StrPath = str | os.PathLike[str]

# Of TIFF.
_SUBFILE_TYPE, _SMALL_COPY = 254, 1
_PHOTOMETRIC_GREY, _PHOTOMETRIC_RGB, _PHOTOMETRIC_CMYK = 1, 2, 5
_TIFF_DEFLATE = 8
_UNASSOCIATED_ALPHA = 2
_UNDEFINED_BYTES = 7
_SIGNED, _FLOATING_POINT = 2, 3

_WEBP_ANIMATION = 2
_INCHES = 2

_PNG, _JPEG, _BMP, _TIFF, _WEBP = "PNG", "JPEG", "BMP", "TIFF", "WebP"

IMAGE_KINDS = {
    ".png": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".bmp": _BMP,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".webp": _WEBP,
}
"""Suffix (lower case) of every kind of image file read and written here."""

# FFmpeg's pixel formats whose bytes can be read as they lie: sample type and channels in order.
_PACKED_FORMATS = {
    "gray": ("u1", "L"),
    "ya8": ("u1", "LA"),
    "rgb24": ("u1", "RGB"),
    "bgr24": ("u1", "BGR"),
    "rgba": ("u1", "RGBA"),
    "bgra": ("u1", "BGRA"),
    "argb": ("u1", "ARGB"),
    "gray16le": ("<u2", "L"),
    "gray16be": (">u2", "L"),
    "ya16le": ("<u2", "LA"),
    "ya16be": (">u2", "LA"),
    "rgb48le": ("<u2", "RGB"),
    "rgb48be": (">u2", "RGB"),
    "rgba64le": ("<u2", "RGBA"),
    "rgba64be": (">u2", "RGBA"),
}

# FFmpeg's decoders, and the pixel formats of its encoders by (bits, channels).
_FFMPEG_DECODERS = {_PNG: "png", _BMP: "bmp", _TIFF: "tiff"}
_FFMPEG_FORMATS = {
    _PNG: {
        (8, "L"): "gray",
        (8, "LA"): "ya8",
        (8, "RGB"): "rgb24",
        (8, "RGBA"): "rgba",
        (16, "L"): "gray16be",
        (16, "LA"): "ya16be",
        (16, "RGB"): "rgb48be",
        (16, "RGBA"): "rgba64be",
    },
    _BMP: {(8, "L"): "gray", (8, "RGB"): "bgr24", (8, "RGBA"): "bgra"},
}
_FFMPEG_OPTIONS = {_PNG: {"pred": "mixed"}, _BMP: {}}

# (bits, channels) that each kind of file holds.
_HELD = {
    **{kind: frozenset(formats) for kind, formats in _FFMPEG_FORMATS.items()},
    _TIFF: frozenset(_FFMPEG_FORMATS[_PNG]),
    # Lossless WebP has RGB only; the encoder drops an alpha that is opaque everywhere.
    _WEBP: frozenset({(8, "L"), (8, "LA"), (8, "RGB"), (8, "RGBA")}),
    _JPEG: frozenset({(8, "L"), (8, "RGB")}),
}

_JPEG_QUALITY = 98
"""A little finer than cameras' own finest; above it files grow faster than what can be told apart."""

_MOST_TIFF_BYTES = 2**32 - 2**20
"""Places in a TIFF have 32 bits."""

ACCURATE = Interpolation(
    Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)
"""Chroma is interpolated; FFmpeg's default repeats the nearest sample, which costs some 5 dB at 4:2:0."""


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """One image and what is needed to write the same kind of file again.

    A palette reads as RGB (grey if all its colours are), with alpha if anything is transparent, and is
    written so: a restored image has more colours than a palette holds.

    Args:
        rgb: (H, W, 3) uint8 or uint16, gamma-encoded, whole range of its type.
        alpha: (H, W) of rgb's type, or None.
        is_grey: the file has one colour channel; written as the mean of rgb's three.
        metadata: what else the file says, and is written again where the kind of file has room for it.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    is_grey: bool = False
    metadata: ImageMetadata = NO_METADATA

    def __post_init__(self) -> None:
        if self.rgb.ndim != 3 or self.rgb.shape[-1] != 3 or 0 in self.rgb.shape:
            raise ValueError(f"rgb has shape {self.rgb.shape}; expected (height, width, 3), at least 1x1")
        if self.rgb.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"rgb is {self.rgb.dtype}; expected uint8 or uint16")
        if self.alpha is not None and (self.alpha.shape != self.rgb.shape[:2] or self.alpha.dtype != self.rgb.dtype):
            raise ValueError(
                f"alpha is {self.alpha.dtype}{self.alpha.shape}; expected {self.rgb.dtype}{self.rgb.shape[:2]}, as rgb"
            )

    @property
    def bits(self) -> int:
        """Bits a sample, 8 or 16."""
        return 8 * self.rgb.dtype.itemsize


def read_image(path: StrPath, page: int | None = None) -> ImageFile:
    """Reads an image with its alpha, bit depth, greyness and metadata; upright.

    Args:
        page: of a file that holds several, from 0; None where it must hold one.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, damaged, cut short, of an unknown kind, or holds another number of pages; the message
            names it.
    """
    with open(path, "rb") as file:
        return _read(file, os.fspath(path), page)


def decode_image(data: bytes, name: str) -> ImageFile:
    """As read_image, of a file's bytes; errors call it by the name given."""
    return _read(io.BytesIO(data), name, None)


def count_pages(path: StrPath) -> int:
    """How many pictures a file holds: pages of a TIFF, frames of an animated PNG or WebP; 1 of what cannot be read.

    Raises:
        OSError: there is no such file.
    """
    with open(path, "rb") as file:
        kind = _kind_of(file)
        if kind not in (_PNG, _TIFF, _WEBP):
            return 1
        try:
            if kind == _TIFF:
                return len(_tiff_directories(file))
            return _opened(file, kind).n_frames if _is_animated(file, kind) else 1
        except MemoryError:
            raise
        except Exception:  # Pillow raises many types; reading the file says what is wrong with it
            return 1


def count_pictures_of_gif(path: StrPath) -> int:
    """How many pictures a GIF holds, which is read as a video; 1 of what is none."""
    with open(path, "rb") as file, contextlib.suppress(Exception):  # Pillow raises many types for damage
        return GifImagePlugin.GifImageFile(file).n_frames
    return 1


def read_orientation(path: StrPath) -> int:
    """EXIF's orientation that `read_image` applies to a JPEG, 1 to 8; 1 where it is damaged."""
    with open(path, "rb") as file, contextlib.suppress(Exception):
        return image_metadata.orientation_of(_opened(file, _JPEG).getexif())
    return 1


def read_rgb_u8(path: StrPath) -> np.ndarray:
    """Reads an image as (H, W, 3) uint8: grey is repeated, alpha dropped, 16 bit rounded to 8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, damaged, cut short, or of an unknown kind; the message names it.
    """
    return to_u8(read_image(path).rgb)


def to_u8(rgb: np.ndarray) -> np.ndarray:
    """uint8 or uint16 values as the nearest uint8 ones."""
    # 65535 = 257 * 255, so this is exact rounding; no value lies half-way.
    return rgb if rgb.dtype == np.uint8 else ((rgb.astype(np.uint32) + 128) // 257).astype(np.uint8)


def write_image(path: StrPath, image: ImageFile) -> None:
    """Writes an image in the form its suffix names; the file is there whole or not at all.

    PNG, BMP, TIFF and WebP are lossless; JPEG has quality 98 and full chroma.

    Raises:
        ValueError: the suffix is unknown, or that kind of file holds no 16 bits or no alpha.
        OSError: the target cannot be written.
    """
    path = Path(path)
    data = encode_image(image, path.suffix, os.fspath(path))
    with replacing(path) as partial:
        partial.write_bytes(data)


def encode_image(image: ImageFile, suffix: str, name: str) -> bytes:
    """What write_image writes; errors call the file by the name given."""
    kind, order = image_kind(suffix, name), _order(image)
    refuse_unheld(image, suffix, name)
    order = order if (image.bits, order) in _HELD[kind] else "RGBA"
    if kind == _TIFF:
        stream = io.BytesIO()
        _write_tiff(stream, iter([image]))
        return stream.getvalue()
    if kind in _FFMPEG_FORMATS:
        data = _encode(_pack(image, _FFMPEG_FORMATS[kind][image.bits, order]), kind)
        return image_metadata.into_png(data, image.metadata) if kind == _PNG else data
    stream = io.BytesIO()
    picture, metadata = _to_pillow(image), image.metadata
    options: dict[str, Any] = {"icc_profile": metadata.icc_profile} if metadata.icc_profile else {}
    if kind == _JPEG:
        if metadata.dpi:
            options["dpi"] = tuple(round(value) for value in metadata.dpi)
        if metadata.exif:
            options["exif"] = image_metadata.with_exif_prefix(metadata.exif)
        picture.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0, **options)
    else:
        if exif := image_metadata.with_resolution(metadata.exif, metadata.dpi):
            options["exif"] = exif
        picture.save(stream, "WEBP", lossless=True, exact=True, **options)
    return stream.getvalue()


def image_kind(suffix: str, name: str) -> str:
    """What a suffix stands for; a ValueError that names the file if that is no kind of image."""
    kind = IMAGE_KINDS.get(suffix.lower())
    if kind is None:
        raise ValueError(f"{name}: unknown image suffix {suffix!r}; use one of {', '.join(IMAGE_KINDS)}")
    return kind


def holds(image: ImageFile, suffix: str) -> bool:
    """Whether a file of that suffix holds such bits and alpha."""
    order = _order(image)
    # Of BMP: grey with alpha only as colour.
    return bool(_HELD[image_kind(suffix, suffix)] & {(image.bits, order), (image.bits, order.replace("LA", "RGBA"))})


def refuse_unheld(image: ImageFile, suffix: str, name: str) -> None:
    """ValueError if a file of that suffix holds no such bits or no alpha."""
    image_kind(suffix, name)
    if not holds(image, suffix):
        what = {"L": "grey", "LA": "grey with alpha", "RGB": "RGB", "RGBA": "RGB with alpha"}[_order(image)]
        raise ValueError(f"{name}: a {suffix} file cannot hold {image.bits}-bit {what}; use .png or .tif instead")


def refuse_unheld_pages(pages: int, image: ImageFile, suffix: str, name: str, way_out: str) -> None:
    """ValueError, with a way out, if a file of that suffix holds no such number of such pages."""
    kind = image_kind(suffix, name)
    holds_animations = kind in (_PNG, _WEBP)
    is_animation = image.metadata.duration_ms is not None
    if pages > 1 and kind != _TIFF and not (holds_animations and is_animation):
        raise ValueError(f"{name}: a {suffix} file cannot hold {pages} pages; {way_out}")
    if pages > 1 and kind == _PNG and image.bits > 8:
        raise ValueError(f"{name}: an animated {suffix} of {image.bits} bits is not written; {way_out}")
    if kind == _TIFF and pages * (image.rgb.nbytes + image.rgb.nbytes // 3) > _MOST_TIFF_BYTES:
        raise ValueError(f"{name}: would take more than the 4 GiB that a TIFF holds; split it into several")


def write_pages(path: StrPath, pages: Iterator[ImageFile]) -> None:
    """Writes a TIFF of several pages, or an animated PNG or WebP; there whole or not at all.

    Raises:
        ValueError: the suffix is another.
        OSError: the target cannot be written.
    """
    path = Path(path)
    kind = image_kind(path.suffix, os.fspath(path))
    with replacing(path) as partial, open(partial, "wb") as stream:
        if kind == _TIFF:
            _write_tiff(stream, pages)
            return
        stream.write(_encode_animation(list(pages), kind))


def _encode_animation(pages: list[ImageFile], kind: str) -> bytes:
    metadata, size_px = pages[0].metadata, pages[0].rgb.shape[:2]
    durations_ms = [page.metadata.duration_ms or 0 for page in pages]
    loop = metadata.loop or 0
    if kind == _WEBP:
        exif = image_metadata.with_resolution(metadata.exif, metadata.dpi)
        pictures = [encode_image(dataclasses.replace(page, metadata=NO_METADATA), ".webp", "a page") for page in pages]
        return webp_animation(pictures, durations_ms, size_px, loop=loop, icc_profile=metadata.icc_profile, exif=exif)
    is_grey, has_alpha = all(page.is_grey for page in pages), any(page.alpha is not None for page in pages)
    opaque = np.full(size_px, 255, np.uint8)
    pictures = []
    for page in pages:
        alpha = opaque if has_alpha and page.alpha is None else page.alpha
        alike = dataclasses.replace(page, alpha=alpha, is_grey=is_grey, metadata=NO_METADATA)
        pictures.append(encode_image(alike, ".png", "a page"))
    return image_metadata.into_png(png_animation(pictures, durations_ms, size_px, loop=loop), metadata)


def _read(file: io.BufferedIOBase, name: str, page: int | None) -> ImageFile:
    kind = _kind_of(file)
    if kind is None:
        if not file.read(1):
            raise ValueError(f"{name}: the image file is empty")
        raise ValueError(f"{name}: not a PNG, JPEG, BMP, TIFF or WebP image")
    with _damage_named(name):
        if kind == _TIFF:
            directories = _tiff_directories(file)
            return _read_tiff(file, *directories[_page_asked_for(page, len(directories))], name)
        if kind == _BMP or (kind == _PNG and not _is_animated(file, kind)):
            _page_asked_for(page, 1)
            return _read_by_ffmpeg(file, kind)
        if kind == _JPEG:
            _refuse_damaged_jpeg(file)
        image = _opened(file, kind)
        pages = 1 if kind == _JPEG else image.n_frames
        place = _page_asked_for(page, pages)
        if pages > 1:
            image.seek(place)
        return _read_by_pillow(image, kind, name)


def _page_asked_for(page: int | None, pages: int) -> int:
    if page is None and pages > 1:
        raise _RefusedError(f"holds {pages} pages, where one picture is expected; write each to a file of its own")
    if page is not None and page >= pages:
        raise _RefusedError(f"holds {pages} pages, and page {page} is asked for")
    return page or 0


class _RefusedError(Exception):
    """What is wrong with a file that is not damaged."""


@contextlib.contextmanager
def _damage_named(name: str) -> Iterator[None]:
    try:
        yield
    except _RefusedError as error:
        raise ValueError(f"{name}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever damaged data makes it stumble over
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name}: damaged or truncated image ({reason})") from error


def _kind_of(file: io.BufferedIOBase) -> str | None:
    start = file.read(12)
    file.seek(0)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return _PNG
    if start.startswith(b"\xff\xd8\xff"):
        return _JPEG
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _TIFF
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return _WEBP
    return _BMP if start.startswith(b"BM") else None


def _opened(file: io.BufferedIOBase, kind: str) -> Any:
    """Pillow's image, of which the header has been read. By its class: `Image.open` refuses large ones."""
    classes: dict[str, Callable[..., Any]] = {
        _PNG: PngImagePlugin.PngImageFile,
        _JPEG: JpegImagePlugin.JpegImageFile,
        _TIFF: TiffImagePlugin.TiffImageFile,
        _WEBP: WebPImagePlugin.WebPImageFile,
    }
    file.seek(0)
    try:
        return classes[kind](file)
    except SyntaxError as error:
        if "pixel mode" in str(error):
            raise _RefusedError("has pixels that are not read; save it with 8 or 16 bits a sample") from error
        raise


def _tiff_directories(file: io.BufferedIOBase) -> list[tuple[int, Any]]:
    """The pictures among a file's pages, of which others are small copies: places among all, and tags."""
    file.seek(0)
    header = file.read(8)
    if b"+" in header[2:4]:  # places of 64 bits
        header += file.read(8)
    found: list[tuple[int, Any]] = []
    seen: set[int] = set()
    place = TiffImagePlugin.ImageFileDirectory_v2(header).next
    while place and place not in seen:
        seen.add(place)
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(place)
        directory.load(file)  # type: ignore[arg-type]
        if not found or not directory.get(_SUBFILE_TYPE, 0) & _SMALL_COPY:
            found.append((len(seen) - 1, directory))
        place = directory.next
    file.seek(0)
    return found


def _is_animated(file: io.BufferedIOBase, kind: str) -> bool:
    """Of a PNG or WebP, from its header."""
    file.seek(0)
    if kind == _WEBP:
        start = file.read(21)
        file.seek(0)
        return start[12:16] == b"VP8X" and bool(start[20:] and start[20] & _WEBP_ANIMATION)
    found = any(chunk == b"acTL" for chunk in image_metadata.png_header_chunks(file))
    file.seek(0)
    return found


def _read_by_pillow(image: Any, kind: str, name: str) -> ImageFile:
    exif = image.getexif()
    orientation = image_metadata.orientation_of(exif)
    image.load()
    metadata = image_metadata.of_pillow(image, exif)
    is_upright = image_metadata.orientation_of(image.getexif()) != orientation  # a TIFF, of which Pillow sees to it
    if image.mode in ("CMYK", "YCCK"):
        image, profile = _from_cmyk(image, metadata.icc_profile, name)
        metadata = dataclasses.replace(metadata, icc_profile=profile)
    if image.mode == "F":
        return _upright(_of_float(np.asarray(image), name), metadata, exif, orientation, is_upright=is_upright)
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        return _upright(ImageFile(_repeated(grey), None, True), metadata, exif, orientation, is_upright=is_upright)
    if image.mode in ("I", "LAB", "HSV"):
        what = {"I": "signed or 32-bit integers"}.get(image.mode, f"{image.mode} colours")
        raise _RefusedError(f"has {what}, which are not read; save it with 8 or 16 bits a sample, grey or RGB")
    is_palette, order = image.mode in ("P", "PA"), _order_of_mode(image)
    channels = np.asarray(image if image.mode == order else image.convert(order))
    channels = channels[..., None] if channels.ndim == 2 else channels
    alpha = np.ascontiguousarray(channels[..., -1]) if order.endswith("A") else None
    if alpha is not None and (kind == _WEBP or is_palette) and np.all(alpha == 255):
        alpha = None
    rgb = _repeated(channels[..., 0]) if order.startswith("L") else np.ascontiguousarray(channels[..., :3])
    is_grey = order.startswith("L") or (is_palette and _is_grey_palette(rgb, metadata))
    return _upright(ImageFile(rgb, alpha, is_grey), metadata, exif, orientation, is_upright=is_upright)


def _order_of_mode(image: Any) -> str:
    if image.mode in ("1", "L"):
        return "LA" if "transparency" in image.info else "L"
    if image.mode in ("LA", "La"):
        return "LA"
    if image.mode in ("RGBA", "RGBa", "PA") or (image.mode in ("P", "RGB") and "transparency" in image.info):
        return "RGBA"
    return "RGB"


def _repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def _is_grey_palette(rgb: np.ndarray, metadata: ImageMetadata) -> bool:
    """Unless its colours are those of a profile, which a grey file could not have."""
    return metadata.icc_profile is None and bool(np.all(rgb == rgb[..., :1]))


def _from_cmyk(image: Any, icc_profile: bytes | None, name: str) -> tuple[Any, bytes | None]:
    """RGB of printing colours, and its profile: by theirs if there is one, otherwise by the plain formula."""
    _warn_once(f"{name}: is CMYK, and becomes RGB")
    if icc_profile is not None:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            of_screens = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
            of_print = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            converted = ImageCms.profileToProfile(image, of_print, of_screens, outputMode="RGB")
            return converted, of_screens.tobytes()
    return image.convert("RGB"), None


@functools.lru_cache(10_000)
def _warn_once(message: str) -> None:
    """Files are read more than once."""
    logging.warning("%s", message)


def _of_float(values: np.ndarray, name: str) -> ImageFile:
    """Grey floating-point values in [0, 1] with 16 bits."""
    least, most = float(np.min(values)), float(np.max(values))
    if not 0 <= least <= most <= 1:  # values that are no numbers fail this, too
        raise _RefusedError(
            f"has floating-point values from {least:g} to {most:g}; expected 0 to 1: scale them, or save the picture "
            "with 8 or 16 bits a sample"
        )
    _warn_once(f"{name}: has floating-point values, which become 16 bits")
    return ImageFile(_repeated(np.rint(values.astype(np.float64) * 65535).astype(np.uint16)), None, True)


def _upright(
    image: ImageFile, metadata: ImageMetadata, exif: Any, orientation: int, *, is_upright: bool = False
) -> ImageFile:
    """With its metadata, turned by the orientation unless it has been already."""
    turn = functools.partial(_turned, orientation=1 if is_upright else orientation)
    rgb = np.ascontiguousarray(turn(image.rgb))
    alpha = None if image.alpha is None else np.ascontiguousarray(turn(image.alpha))
    return ImageFile(rgb, alpha, image.is_grey, image_metadata.placed(metadata, exif, orientation, rgb.shape[:2]))


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) as EXIF's orientation has it shown."""
    if image_metadata.is_transposed(orientation):
        array = array.swapaxes(0, 1)
    # Orientations that begin at the bottom, and at the right, once rows are rows.
    upside_down, mirrored = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return array[:: -1 if upside_down else 1, :: -1 if mirrored else 1]


def _refuse_damaged_jpeg(file: io.BufferedIOBase) -> None:
    """libjpeg fills what is damaged with grey and says nothing; FFmpeg, asked so, refuses it."""
    file.seek(0)
    data = file.read()
    decoder = cast(av.VideoCodecContext, av.CodecContext.create("mjpeg", "r"))
    decoder.thread_count = 1
    decoder.options = {"err_detect": "explode"}
    try:
        frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
        if not frames or frames[0].is_corrupt:
            raise ValueError("nothing decoded")
    except av.PatchWelcomeError:
        pass  # of a kind that only libjpeg knows
    if data.find(b"\xff\xd9", data.find(b"\xff\xda")) < 0:
        raise ValueError("no end-of-image marker")
    file.seek(0)


def _read_tiff(file: io.BufferedIOBase, place: int, directory: Any, name: str) -> ImageFile:
    bits = directory.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    photometric = directory.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    kinds = directory.get(TiffImagePlugin.SAMPLEFORMAT, ())
    if len(bits) > 1 and _FLOATING_POINT in kinds:
        raise _RefusedError("has colours of floating-point values, which are not read; save it with 8 or 16 bits")
    if len(bits) == 1 or max(bits) <= 8 or photometric == _PHOTOMETRIC_CMYK:
        image = _opened(file, _TIFF)
        image.seek(place)
        return _read_by_pillow(image, _TIFF, name)
    if set(bits) != {16} or _SIGNED in kinds or photometric not in (_PHOTOMETRIC_GREY, _PHOTOMETRIC_RGB):
        raise _RefusedError("has pixels that are not read; save it as grey or RGB with 8 or 16 bits a sample")
    if TiffImagePlugin.TILEWIDTH in directory:
        raise _RefusedError("has 16 bits in tiles, which are not read; save it in strips, as is usual, or as .png")
    # Several channels of 16 bits, of which Pillow would keep 8. FFmpeg reads the first page: so this is made the first.
    data = bytearray(file.read())
    order: Any = "little" if data.startswith(b"II") else "big"
    for _ in range(place):
        here = int.from_bytes(data[4:8], order)
        after = here + 2 + 12 * int.from_bytes(data[here : here + 2], order)
        data[4:8] = data[after : after + 4]
    image = _of_ffmpeg(bytes(data), _TIFF)
    metadata = image_metadata.of_tiff(directory)
    return _upright(image, metadata, image_metadata.exif_of_tiff(directory), image_metadata.orientation_of(directory))


def _read_by_ffmpeg(file: io.BufferedIOBase, kind: str) -> ImageFile:
    data = file.read()
    if kind != _PNG:
        return _of_ffmpeg(data, kind)
    image = _of_ffmpeg(image_metadata.without_metadata(data), kind)
    metadata, exif = image_metadata.of_png(data)
    return _upright(image, metadata, exif, image_metadata.orientation_of(exif))


def _of_ffmpeg(data: bytes, kind: str) -> ImageFile:
    """As it lies in the file."""
    decoder = cast(av.VideoCodecContext, av.CodecContext.create(_FFMPEG_DECODERS[kind], "r"))
    decoder.thread_count = 1
    frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
    if not frames or frames[0].is_corrupt:
        raise ValueError("nothing decoded")
    frame = frames[0]
    if frame.format.name == "pal8":
        channels = _unpack(frame.reformat(format="rgba"))
        is_grey = bool(np.all(channels[..., :3] == channels[..., :1]))
        alpha = channels[..., 3] if np.any(channels[..., 3] != 255) else None
        return ImageFile(np.ascontiguousarray(channels[..., :3]), alpha, is_grey)
    if frame.format.name in ("monob", "monow"):
        frame = frame.reformat(format="gray")
    elif frame.format.name not in _PACKED_FORMATS:
        frame = _to_packed(frame)
    channels = _unpack(frame)
    order = _PACKED_FORMATS[frame.format.name][1]
    alpha = channels[..., order.index("A")] if "A" in order else None
    colours = [order.index(letter) for letter in ("LLL" if "L" in order else "RGB")]
    return ImageFile(np.ascontiguousarray(channels[..., colours]), alpha, "L" in order)


def _to_packed(frame: av.VideoFrame) -> av.VideoFrame:
    """Converts planar RGB."""
    components = frame.format.components
    if not frame.format.is_rgb:
        raise _RefusedError(f"has pixels that are not read ({frame.format.name}); save it as grey or RGB")
    has_alpha = any(component.is_alpha for component in components)
    deep = components[0].bits > 8
    return frame.reformat(format=("rgba64le" if has_alpha else "rgb48le") if deep else "rgba" if has_alpha else "rgb24")


def _unpack(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, C) in native byte order from a packed frame, C as in its format."""
    dtype, order = _PACKED_FORMATS[frame.format.name]
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height]
    samples = rows[:, : frame.width * len(order) * np.dtype(dtype).itemsize].copy().view(dtype)
    return samples.astype(samples.dtype.newbyteorder("="), copy=False).reshape(frame.height, frame.width, len(order))


def _order(image: ImageFile) -> str:
    return ("L" if image.is_grey else "RGB") + ("" if image.alpha is None else "A")


def _channels(image: ImageFile, order: str) -> np.ndarray:
    """(H, W, C) of an image, C as told."""
    colour = image.rgb
    if image.is_grey:
        mean = (np.sum(colour, axis=-1, keepdims=True, dtype=np.uint32) + 1) // 3  # nearest; never half-way
        colour = np.broadcast_to(mean.astype(image.rgb.dtype), colour.shape)
    planes = {"L": colour[..., 0], "R": colour[..., 0], "G": colour[..., 1], "B": colour[..., 2]}
    if "A" in order:
        opaque = np.full(image.rgb.shape[:2], np.iinfo(image.rgb.dtype).max, image.rgb.dtype)
        planes["A"] = opaque if image.alpha is None else image.alpha
    return np.stack([planes[letter] for letter in order], -1)


def _to_pillow(image: ImageFile) -> Image.Image:
    """Of 8 bits."""
    channels = _channels(image, _order(image))
    return Image.fromarray(channels[..., 0] if channels.shape[-1] == 1 else channels)


def _pack(image: ImageFile, pixel_format: str) -> av.VideoFrame:
    dtype, order = _PACKED_FORMATS[pixel_format]
    rows = _channels(image, order).astype(dtype)
    height, width = image.rgb.shape[:2]
    frame = av.VideoFrame(width, height, pixel_format)
    padded = np.zeros((height, frame.planes[0].line_size), np.uint8)
    row_bytes = rows.reshape(height, -1).view(np.uint8)
    padded[:, : row_bytes.shape[1]] = row_bytes
    frame.planes[0].update(padded.tobytes())
    return frame


def _encode(frame: av.VideoFrame, kind: str) -> bytes:
    context = cast(av.VideoCodecContext, av.CodecContext.create(kind.lower(), "w"))
    context.width, context.height = frame.width, frame.height
    context.pix_fmt = frame.format.name
    context.time_base = Fraction(1)
    context.thread_count = 1
    context.options = _FFMPEG_OPTIONS[kind]
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def _write_tiff(stream: io.BufferedIOBase, pages: Iterator[ImageFile]) -> None:
    """Each page: its directory, then its pixels in one strip."""
    stream.write(b"II*\0" + bytes(4))
    link = 4  # where the place of the next directory is noted
    for image in pages:
        stream.write(bytes(stream.tell() % 2))  # directories begin at even places
        strip = zlib.compress(_channels(image, _order(image)).astype(image.rgb.dtype.newbyteorder("<")).tobytes())
        begin = stream.tell()
        directory = _tiff_directory(image, len(strip), begin)
        stream.write(directory)
        stream.write(strip)
        end = stream.tell()
        stream.seek(link)
        stream.write(begin.to_bytes(4, "little"))
        stream.seek(end)
        link = begin + 2 + 12 * int.from_bytes(directory[:2], "little")


def _tiff_directory(image: ImageFile, strip_bytes: int, begin: int) -> bytes:
    height, width = image.rgb.shape[:2]
    order, metadata = _order(image), image.metadata
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0" + bytes(4))
    tags: dict[int, Any] = {
        TiffImagePlugin.IMAGEWIDTH: width,
        TiffImagePlugin.IMAGELENGTH: height,
        TiffImagePlugin.BITSPERSAMPLE: (image.bits,) * len(order),
        TiffImagePlugin.COMPRESSION: _TIFF_DEFLATE,
        TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: _PHOTOMETRIC_GREY if image.is_grey else _PHOTOMETRIC_RGB,
        TiffImagePlugin.STRIPOFFSETS: 0,
        TiffImagePlugin.SAMPLESPERPIXEL: len(order),
        TiffImagePlugin.ROWSPERSTRIP: height,
        TiffImagePlugin.STRIPBYTECOUNTS: strip_bytes,
        TiffImagePlugin.PLANAR_CONFIGURATION: 1,
    }
    if metadata.exif:
        exif = image_metadata.parse_exif(metadata.exif)
        tags |= {**exif, **image_metadata.folders_of(exif)}
    if image.alpha is not None:
        tags[TiffImagePlugin.EXTRASAMPLES] = _UNASSOCIATED_ALPHA
    if metadata.dpi:
        tags[TiffImagePlugin.X_RESOLUTION], tags[TiffImagePlugin.Y_RESOLUTION] = metadata.dpi
        tags[TiffImagePlugin.RESOLUTION_UNIT] = _INCHES
    if metadata.icc_profile:
        directory.tagtype[TiffImagePlugin.ICCPROFILE] = _UNDEFINED_BYTES
        tags[TiffImagePlugin.ICCPROFILE] = metadata.icc_profile
    for tag, value in sorted(tags.items()):
        directory[tag] = value
    data = bytearray(directory.tobytes(begin))
    for place in range(2, 2 + 12 * int.from_bytes(data[:2], "little"), 12):
        if int.from_bytes(data[place : place + 2], "little") == TiffImagePlugin.STRIPOFFSETS:
            # As an unsigned integer of 32 bits, whatever Pillow has made of it.
            data[place + 2 : place + 12] = struct.pack("<HII", 4, 1, begin + len(data))
    return bytes(data)
