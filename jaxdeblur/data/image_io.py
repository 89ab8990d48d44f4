"""Single images in and out through FFmpeg (PyAV): PNG, JPEG, BMP, TIFF and WebP, 8 and 16 bit.

A file is known by its first bytes when read and by its suffix when written. Pixels are as stored: an EXIF
orientation or an ICC profile is neither applied nor kept. Reading PNG, BMP, TIFF and lossless WebP is exact;
JPEG is full-range BT.601 with interpolated chroma.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.reformatter import Interpolation

StrPath = str | os.PathLike[str]

ENCODERS = {
    ".png": "png",
    ".jpg": "mjpeg",
    ".jpeg": "mjpeg",
    ".bmp": "bmp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webp": "libwebp",
}
"""Suffix (lower case) of every kind of image file read and written here, and FFmpeg's encoder for it."""

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

# What each encoder takes, by (bits, channels).
_ENCODER_FORMATS = {
    "png": {
        (8, "L"): "gray",
        (8, "LA"): "ya8",
        (8, "RGB"): "rgb24",
        (8, "RGBA"): "rgba",
        (16, "L"): "gray16be",
        (16, "LA"): "ya16be",
        (16, "RGB"): "rgb48be",
        (16, "RGBA"): "rgba64be",
    },
    "tiff": {
        (8, "L"): "gray",
        (8, "LA"): "ya8",
        (8, "RGB"): "rgb24",
        (8, "RGBA"): "rgba",
        (16, "L"): "gray16le",
        (16, "LA"): "ya16le",
        (16, "RGB"): "rgb48le",
        (16, "RGBA"): "rgba64le",
    },
    "bmp": {(8, "L"): "gray", (8, "RGB"): "bgr24", (8, "RGBA"): "bgra"},
    # Lossless WebP has one form only; the encoder drops an alpha that is opaque everywhere, and the colour of
    # what is wholly transparent.
    "libwebp": {(8, "L"): "bgra", (8, "LA"): "bgra", (8, "RGB"): "bgra", (8, "RGBA"): "bgra"},
    # A grey JPEG is written with neutral chroma: FFmpeg's encoder knows no single-component JPEG.
    "mjpeg": {(8, "L"): "rgb24", (8, "RGB"): "rgb24"},
}

_ENCODER_OPTIONS = {
    "png": {"pred": "mixed"},
    "tiff": {"compression_algo": "deflate"},
    "bmp": {},
    "libwebp": {"lossless": "1"},
    "mjpeg": {"qmin": "1", "qmax": "1"},
}

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
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    is_grey: bool = False

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


def read_image(path: StrPath) -> ImageFile:
    """Reads an image with its alpha, bit depth and greyness.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, damaged, cut short, or of an unknown kind; the message names it.
    """
    return decode_image(Path(path).read_bytes(), os.fspath(path))


def decode_image(data: bytes, name: str) -> ImageFile:
    """As read_image, of a file's bytes; errors call it by the name given."""
    frame, codec_name = _decode(data, name)
    pixel_format = frame.format.name
    if pixel_format == "pal8":
        channels = _unpack(frame.reformat(format="rgba"))
        is_grey = bool(np.all(channels[..., :3] == channels[..., :1]))
        alpha = channels[..., 3] if np.any(channels[..., 3] != 255) else None
        return ImageFile(np.ascontiguousarray(channels[..., :3]), alpha, is_grey)
    if pixel_format in ("monob", "monow"):
        frame = frame.reformat(format="gray")
        pixel_format = "gray"
    if pixel_format not in _PACKED_FORMATS:
        frame = _to_packed(frame, codec_name)
        pixel_format = frame.format.name
    channels = _unpack(frame)
    order = _PACKED_FORMATS[pixel_format][1]
    alpha = channels[..., order.index("A")] if "A" in order else None
    if codec_name == "webp" and alpha is not None and np.all(alpha == 255):
        alpha = None  # the decoder gives every lossless file an alpha
    colours = [order.index(letter) for letter in ("LLL" if "L" in order else "RGB")]
    return ImageFile(np.ascontiguousarray(channels[..., colours]), alpha, "L" in order)


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

    PNG, BMP, TIFF and WebP are lossless; JPEG has the encoder's finest quantisation and full chroma.

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
    encoder = ENCODERS.get(suffix.lower())
    if encoder is None:
        raise ValueError(f"{name}: unknown image suffix {suffix!r}; use one of {', '.join(ENCODERS)}")
    order = ("L" if image.is_grey else "RGB") + ("" if image.alpha is None else "A")
    pixel_format = _ENCODER_FORMATS[encoder].get((image.bits, order))
    if pixel_format is None and order == "LA":  # BMP: grey with alpha only as colour
        order = "RGBA"
        pixel_format = _ENCODER_FORMATS[encoder].get((image.bits, order))
    if pixel_format is None:
        kind = {"L": "grey", "LA": "grey with alpha", "RGB": "RGB", "RGBA": "RGB with alpha"}[order]
        raise ValueError(f"{name}: a {suffix} file cannot hold {image.bits}-bit {kind}; use .png or .tif instead")
    return _encode(_pack(image, pixel_format), encoder)


@contextlib.contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """Gives a temporary name beside `path`, same suffix, and moves it into place when the block ends well.

    On any exception, Ctrl-C included, the temporary file is removed and `path` is as it was.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == os.fspath(partial):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # by the name the user knows
        raise


def _decode(data: bytes, name: str) -> tuple[av.VideoFrame, str]:
    if not data:
        raise ValueError(f"{name}: the image file is empty")
    codec_name = _codec_of(data)
    if codec_name is None:
        raise ValueError(f"{name}: not a PNG, JPEG, BMP, TIFF or WebP image")
    decoder = cast(av.VideoCodecContext, av.CodecContext.create(codec_name, "r"))
    decoder.thread_count = 1
    if codec_name == "mjpeg":  # the others refuse by themselves, and TIFF would take strange tags for damage
        decoder.options = {"err_detect": "explode"}
    try:
        frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name}: damaged or truncated image ({reason})") from error
    if codec_name == "mjpeg" and data.find(b"\xff\xd9", data.find(b"\xff\xda")) < 0:
        raise ValueError(f"{name}: damaged or truncated image (no end-of-image marker)")
    if not frames or frames[0].is_corrupt:
        raise ValueError(f"{name}: damaged or truncated image (nothing decoded)")
    return frames[0], codec_name


def _codec_of(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "mjpeg"
    if data.startswith((b"II*\0", b"MM\0*")):
        return "tiff"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return "bmp" if data.startswith(b"BM") else None


def _to_packed(frame: av.VideoFrame, codec_name: str) -> av.VideoFrame:
    """Converts YUV and planar RGB; YUV without a tag is BT.601, full range in JPEG."""
    components = frame.format.components
    has_alpha = any(component.is_alpha for component in components)
    if components[0].bits > 8:
        target = "rgba64le" if has_alpha else "rgb48le"
    else:
        target = "rgba" if has_alpha else "rgb24"
    if frame.format.is_rgb:
        return frame.reformat(format=target)
    return frame.reformat(
        format=target,
        src_colorspace="ITU601",
        src_color_range="JPEG" if codec_name == "mjpeg" else "MPEG",
        dst_color_range="JPEG",
        interpolation=ACCURATE,
    )


def _unpack(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, C) in native byte order from a packed frame, C as in its format."""
    dtype, order = _PACKED_FORMATS[frame.format.name]
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height]
    samples = rows[:, : frame.width * len(order) * np.dtype(dtype).itemsize].copy().view(dtype)
    return samples.astype(samples.dtype.newbyteorder("="), copy=False).reshape(frame.height, frame.width, len(order))


def _pack(image: ImageFile, pixel_format: str) -> av.VideoFrame:
    dtype, order = _PACKED_FORMATS[pixel_format]
    opaque = np.full(image.rgb.shape[:2], np.iinfo(image.rgb.dtype).max, image.rgb.dtype)
    colour = image.rgb
    if image.is_grey:
        mean = (np.sum(colour, axis=-1, keepdims=True, dtype=np.uint32) + 1) // 3  # nearest; never half-way
        colour = np.broadcast_to(mean.astype(image.rgb.dtype), colour.shape)
    planes = {
        "L": colour[..., 0],
        "R": colour[..., 0],
        "G": colour[..., 1],
        "B": colour[..., 2],
        "A": opaque if image.alpha is None else image.alpha,
    }
    rows = np.stack([planes[letter] for letter in order], -1).astype(dtype)
    height, width = image.rgb.shape[:2]
    frame = av.VideoFrame(width, height, pixel_format)
    padded = np.zeros((height, frame.planes[0].line_size), np.uint8)
    row_bytes = rows.reshape(height, -1).view(np.uint8)
    padded[:, : row_bytes.shape[1]] = row_bytes
    frame.planes[0].update(padded.tobytes())
    return frame


def _encode(frame: av.VideoFrame, encoder: str) -> bytes:
    if encoder == "mjpeg":
        frame = frame.reformat(
            format="yuvj444p", dst_colorspace="ITU601", dst_color_range="JPEG", interpolation=ACCURATE
        )
    context = cast(av.VideoCodecContext, av.CodecContext.create(encoder, "w"))
    context.width, context.height = frame.width, frame.height
    context.pix_fmt = frame.format.name
    context.time_base = Fraction(1)
    context.thread_count = 1
    context.options = _ENCODER_OPTIONS[encoder]
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
