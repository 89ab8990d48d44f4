"""Optical flow in files: Middlebury's .flo and the 16-bit PNG of KITTI.

A flow is (H, W, 2) float32, (u right, v down) in pixels, beside a mask (H, W) that is True where the file
knows it; where it does not, the flow reads as zero, so that no arithmetic stumbles over a marker.

    .flo   float32 202021.25, int32 width, int32 height, then u, v of every pixel row by row, all little
           endian; a component beyond 1e9 marks an unknown pixel. Exact.
    .png   RGB, 16 bit: 2^15 + 64 u, 2^15 + 64 v, and 1 where known (all zero elsewhere). Rounded to 1/64 of
           a pixel; holds -512 to 511.98.
"""

import os
import struct
from pathlib import Path

import numpy as np

from jaxdeblur.data.image_io import ImageFile, StrPath, read_image, write_image
from jaxdeblur.data.own_files import replacing

FLOW_SUFFIXES = (".flo", ".png")

_FLO_HEADER = struct.Struct("<fii")
_FLO_TAG = 202021.25  # exact in float32; its bytes spell "PIEH"
_FLO_UNKNOWN = 1e9
_FLO_UNKNOWN_MARK = 1e10
_LARGEST_SIDE_PX = 99_999

_KITTI_ZERO = 2**15
_KITTI_PER_PX = 64


def read_flow(path: StrPath) -> tuple[np.ndarray, np.ndarray]:
    """Reads a flow by the file's suffix: .flo is Middlebury's form, .png KITTI's.

    Returns:
        flow (H, W, 2) float32 in pixels, zero where unknown; valid (H, W) bool.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix, or the file is not what its suffix says; the message names it.
    """
    return read_flo(path) if _suffix(path) == ".flo" else read_kitti_png(path)


def write_flow(path: StrPath, flow: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Writes a flow in the form its suffix names; the file is there whole or not at all.

    Args:
        path: ends in .flo (exact) or .png (1/64 pixel, -512 to 511.98).
        flow: (H, W, 2) in pixels; anything at all where it is not valid.
        valid: (H, W) bool; None says everywhere.
    Raises:
        ValueError: another suffix, a shape that is no flow, a valid pixel that the form cannot hold.
        OSError: the target cannot be written.
    """
    if _suffix(path) == ".flo":
        write_flo(path, flow, valid)
    else:
        write_kitti_png(path, flow, valid)


def read_flo(path: StrPath) -> tuple[np.ndarray, np.ndarray]:
    """Reads Middlebury's form; see `read_flow`. A component that is not finite marks an unknown pixel too."""
    return decode_flo(Path(path).read_bytes(), os.fspath(path))


def decode_flo(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """As read_flo, of a file's bytes; errors call it by the name given."""
    if len(data) < _FLO_HEADER.size:
        raise ValueError(f"{name}: cut short or no .flo file: {len(data)} bytes, its header alone takes 12")
    tag, width, height = _FLO_HEADER.unpack_from(data)
    if tag != _FLO_TAG:
        raise ValueError(f"{name}: not a .flo file: it starts with {data[:4]!r}, expected b'PIEH'")
    if not (1 <= width <= _LARGEST_SIDE_PX and 1 <= height <= _LARGEST_SIDE_PX):
        raise ValueError(
            f"{name}: damaged .flo file: it claims to be {width}x{height}; expected sides of 1 to {_LARGEST_SIDE_PX}"
        )
    expected = _FLO_HEADER.size + 8 * width * height
    if len(data) != expected:
        state = "cut short" if len(data) < expected else "longer than it should be"
        raise ValueError(f"{name}: .flo file {state}: {len(data)} bytes, but {width}x{height} pixels take {expected}")
    flow = np.frombuffer(data, "<f4", offset=_FLO_HEADER.size).reshape(height, width, 2).astype(np.float32)
    valid = np.all(np.abs(flow) <= _FLO_UNKNOWN, axis=-1)  # False for NaN
    flow[~valid] = 0
    return flow, valid


def write_flo(path: StrPath, flow: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Writes Middlebury's form; see `write_flow`."""
    flow, valid = _checked(path, flow, valid)
    beyond = valid & ~np.all(np.abs(flow) <= _FLO_UNKNOWN, axis=-1)
    if np.any(beyond):
        raise ValueError(
            f"{os.fspath(path)}: {np.count_nonzero(beyond)} valid pixels are not finite or beyond 1e9, which marks "
            "unknown ones; say in `valid` where the flow is known"
        )
    values = np.where(valid[..., None], flow, np.float32(_FLO_UNKNOWN_MARK)).astype("<f4")
    height, width = valid.shape
    with replacing(path) as partial:
        partial.write_bytes(_FLO_HEADER.pack(_FLO_TAG, width, height) + values.tobytes())


def read_kitti_png(path: StrPath) -> tuple[np.ndarray, np.ndarray]:
    """Reads KITTI's form; see `read_flow`."""
    image = read_image(path)
    if image.bits != 16 or image.is_grey or image.alpha is not None:
        kind = ("grey" if image.is_grey else "RGB") + ("" if image.alpha is None else " with alpha")
        raise ValueError(
            f"{os.fspath(path)}: holds no flow: it is a {image.bits}-bit {kind} image, but a KITTI flow is 16-bit RGB"
        )
    valid = image.rgb[..., 2] > 0
    flow = (image.rgb[..., :2].astype(np.float32) - _KITTI_ZERO) / _KITTI_PER_PX
    flow[~valid] = 0
    return flow, valid


def write_kitti_png(path: StrPath, flow: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Writes KITTI's form; see `write_flow`."""
    flow, valid = _checked(path, flow, valid)
    stored = np.rint(np.where(valid[..., None], flow, 0).astype(np.float64) * _KITTI_PER_PX) + _KITTI_ZERO
    beyond = ~np.all((stored >= 0) & (stored < 2**16), axis=-1)  # True for NaN
    if np.any(beyond):
        raise ValueError(
            f"{os.fspath(path)}: {np.count_nonzero(beyond)} valid pixels move by less than -512 or more than 511.98 "
            "pixels, or are not finite, which a KITTI flow cannot hold; write a .flo file instead"
        )
    samples = np.zeros((*valid.shape, 3), np.uint16)
    samples[..., :2] = np.where(valid[..., None], stored, 0)
    samples[..., 2] = valid
    write_image(path, ImageFile(samples))


def _suffix(path: StrPath) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in FLOW_SUFFIXES:
        raise ValueError(f"{os.fspath(path)}: unknown flow suffix {suffix!r}; use one of {', '.join(FLOW_SUFFIXES)}")
    return suffix


def _checked(path: StrPath, flow: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    flow = np.asarray(flow)
    if flow.ndim != 3 or flow.shape[-1] != 2 or 0 in flow.shape or max(flow.shape) > _LARGEST_SIDE_PX:
        raise ValueError(
            f"{os.fspath(path)}: flow has shape {flow.shape}; expected (height, width, 2), "
            f"sides of 1 to {_LARGEST_SIDE_PX}"
        )
    valid = np.ones(flow.shape[:2], np.bool_) if valid is None else np.asarray(valid)
    if valid.shape != flow.shape[:2] or valid.dtype != np.bool_:
        raise ValueError(f"{os.fspath(path)}: valid is {valid.dtype}{valid.shape}; expected bool{flow.shape[:2]}")
    return flow.astype(np.float32), valid
