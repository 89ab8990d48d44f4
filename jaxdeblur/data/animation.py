"""Puts encoded pictures together into an animation that shows each of them: other encoders merge equal neighbours."""

import struct
from collections.abc import Sequence

from jaxdeblur.data.image_metadata import png_chunk, png_places

_HAS_PROFILE, _HAS_ALPHA, _HAS_EXIF, _IS_ANIMATION = 0x20, 0x10, 0x08, 0x02
_REPLACES_WHAT_IS_THERE = 0x02
_MOST_MS = 2**24 - 1
_MOST_16_BITS = 2**16 - 1


def png_animation(
    pictures: Sequence[bytes], durations_ms: Sequence[int], size_px: tuple[int, int], *, loop: int = 0
) -> bytes:
    """The bytes of an animated PNG.

    Args:
        pictures: PNG files without metadata, of one kind of pixels.
        durations_ms: of each.
        size_px: (height, width) of all of them.
        loop: how often it is shown, 0 for ever.
    """
    height, width = size_px
    header = pictures[0][: 8 + 12 + 13]
    animation, number = png_chunk(b"acTL", struct.pack(">II", len(pictures), loop)), 0
    for index, (picture, duration_ms) in enumerate(zip(pictures, durations_ms, strict=True)):
        # Of 16 bits each.
        delay = (duration_ms, 1000) if duration_ms <= _MOST_16_BITS else (min(duration_ms // 1000, _MOST_16_BITS), 1)
        animation += png_chunk(b"fcTL", struct.pack(">5I2H2B", number, width, height, 0, 0, *delay, 0, 0))
        number += 1
        for kind, begin, end in png_places(picture):
            if kind == b"IDAT" and index == 0:
                animation += picture[begin:end]
            elif kind == b"IDAT":
                animation += png_chunk(b"fdAT", struct.pack(">I", number) + picture[begin + 8 : end - 4])
                number += 1
    return header + animation + png_chunk(b"IEND", b"")


def webp_animation(
    pictures: Sequence[bytes],
    durations_ms: Sequence[int],
    size_px: tuple[int, int],
    *,
    loop: int = 0,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
) -> bytes:
    """The bytes of an animated WebP.

    Args:
        pictures: lossless WebP files without metadata.
        durations_ms: of each.
        size_px: (height, width) of all of them.
        loop: how often it is shown, 0 for ever.
        icc_profile: of their colours.
        exif: TIFF structure.
    """
    height, width = size_px
    flags = _IS_ANIMATION | _HAS_ALPHA | _HAS_PROFILE * bool(icc_profile) | _HAS_EXIF * bool(exif)
    chunks = _chunk(b"VP8X", struct.pack("<I", flags) + _u24(width - 1) + _u24(height - 1))
    if icc_profile:
        chunks += _chunk(b"ICCP", icc_profile)
    chunks += _chunk(b"ANIM", struct.pack("<IH", 0, min(loop, _MOST_16_BITS)))
    for picture, duration_ms in zip(pictures, durations_ms, strict=True):
        head = _u24(0) + _u24(0) + _u24(width - 1) + _u24(height - 1) + _u24(min(duration_ms, _MOST_MS))
        chunks += _chunk(b"ANMF", head + bytes([_REPLACES_WHAT_IS_THERE]) + picture[12:])
    if exif:
        chunks += _chunk(b"EXIF", exif)
    return _chunk(b"RIFF", b"WEBP" + chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _u24(value: int) -> bytes:
    return value.to_bytes(3, "little")
