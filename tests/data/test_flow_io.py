"""flow_io against files put together byte by byte here, and round trips."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from jaxdeblur.data.flow_io import read_flo, read_flow, read_kitti_png, write_flo, write_flow, write_kitti_png
from jaxdeblur.data.image_io import ImageFile, read_image, write_image

SUFFIXES = (".flo", ".png")


def random_flow(height=5, width=7, *, seed=0):
    """(flow, valid), zero where not valid; multiples of 1/64, which both forms hold exactly."""
    generator = np.random.default_rng(seed)
    flow = (generator.integers(-(2**15), 2**15, (height, width, 2)) / 64).astype(np.float32)
    valid = generator.uniform(size=(height, width)) < 0.8
    flow[~valid] = 0
    assert 0 < valid.sum() < valid.size
    return flow, valid


def assert_reads(path, flow, valid):
    for read in (read_flow, {".flo": read_flo, ".png": read_kitti_png}[path.suffix.lower()]):
        found, found_valid = read(path)
        assert (found.dtype, found_valid.dtype) == (np.float32, np.bool_)
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, flow)
        np.testing.assert_array_equal(found_valid, valid)


def flo_bytes(rows):
    """rows[y][x] = (u, v)."""
    data = struct.pack("<f", 202021.25) + struct.pack("<ii", len(rows[0]), len(rows))
    assert data.startswith(b"PIEH")
    return data + b"".join(struct.pack("<ff", *pixel) for row in rows for pixel in row)


def kitti_bytes(rows):
    """rows[y][x] = (first, second, third sample) as stored: big endian, no filter."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    raw = b"".join(b"\0" + b"".join(struct.pack(">HHH", *pixel) for pixel in row) for row in rows)
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_reads_a_flo_file_put_together_by_hand(tmp_path):
    path = tmp_path / "a.flo"
    unknown = [(1e10, 1e10), (2e9, 0.0), (0.5, -2e9), (float("nan"), 1.0), (1.0, float("inf"))]
    path.write_bytes(flo_bytes([[(1.5, -2.25), *unknown], [(1e9, -1e9)] * 6]))
    flow = np.zeros((2, 6, 2), np.float32)
    flow[0, 0], flow[1] = (1.5, -2.25), (1e9, -1e9)
    valid = np.array([[True, *[False] * 5], [True] * 6])
    assert_reads(path, flow, valid)


def test_reads_a_kitti_file_put_together_by_hand(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(kitti_bytes([[(2**15, 2**15 + 1, 1), (0, 65535, 1)], [(0, 0, 0), (2**15 - 96, 2**15, 65535)]]))
    flow = np.array([[(0, 1 / 64), (-512, 512 - 1 / 64)], [(0, 0), (-1.5, 0)]], np.float32)
    assert_reads(path, flow, np.array([[True, True], [False, True]]))


def test_writes_the_very_bytes_of_a_flo_file(tmp_path):
    flow = np.array([[(1, 2), (3, 4)]], np.float32)
    write_flo(tmp_path / "a.flo", flow, np.array([[True, False]]))
    assert (tmp_path / "a.flo").read_bytes() == flo_bytes([[(1, 2), (1e10, 1e10)]])


def test_writes_the_very_samples_of_a_kitti_file(tmp_path):
    # 0.01 * 64 rounds to 1; what is not valid may be anything.
    flow = np.array([[(-1.5, 0.01), (np.nan, 1e10)]], np.float32)
    write_kitti_png(tmp_path / "a.png", flow, np.array([[True, False]]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").rgb, [[(2**15 - 96, 2**15 + 1, 1), (0, 0, 0)]])


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".FLO"])
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (40, 3)])
def test_round_trip(tmp_path, suffix, size):
    flow, valid = random_flow(*size) if size != (1, 1) else (np.ones((1, 1, 2), np.float32), np.ones((1, 1), bool))
    path = tmp_path / f"a{suffix}"
    write_flow(path, np.where(valid[..., None], flow, 1e12), valid)
    assert_reads(path, flow, valid)
    write_flow(path, flow)
    assert_reads(path, flow, np.ones_like(valid))
    assert os.listdir(tmp_path) == [path.name]


def test_flo_is_exact_and_kitti_rounds_to_a_64th(tmp_path):
    flow = np.random.default_rng(1).uniform(-500, 500, (9, 4, 2)).astype(np.float32)
    write_flow(tmp_path / "a.flo", flow)
    write_flow(tmp_path / "a.png", flow)
    np.testing.assert_array_equal(read_flow(tmp_path / "a.flo")[0], flow)
    np.testing.assert_allclose(read_flow(tmp_path / "a.png")[0], flow, rtol=0, atol=1 / 128)
    assert np.any(read_flow(tmp_path / "a.png")[0] != flow)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut short or no .flo file: 0 bytes"),
        (b"PIEH\1\0\0\0", "cut short or no .flo file: 8 bytes"),
        (struct.pack(">fii", 202021.25, 1, 1) + bytes(8), "not a .flo file: it starts with b'HEIP'"),
        (struct.pack("<fii", 202021.25, 0, 4), "claims to be 0x4"),
        (struct.pack("<fii", 202021.25, 4, -1), "claims to be 4x-1"),
        (struct.pack("<fii", 202021.25, 2**30, 2**30), "claims to be 1073741824x1073741824"),
        (flo_bytes([[(0, 0)] * 3])[:-1], "cut short: 35 bytes, but 3x1 pixels take 36"),
        (flo_bytes([[(0, 0)] * 3]) + b"x", "longer than it should be: 37 bytes"),
    ],
)
def test_damaged_flo_files_are_refused_by_name(tmp_path, data, message):
    path = tmp_path / "a.flo"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{path}: .*{message}"):
        read_flow(path)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (ImageFile(np.zeros((2, 2, 3), np.uint8)), "8-bit RGB image"),
        (ImageFile(np.zeros((2, 2, 3), np.uint16), is_grey=True), "16-bit grey image"),
        (ImageFile(np.zeros((2, 2, 3), np.uint16), np.zeros((2, 2), np.uint16)), "16-bit RGB with alpha image"),
    ],
)
def test_png_files_that_hold_no_flow_are_refused_by_name(tmp_path, image, kind):
    path = tmp_path / "a.png"
    write_image(path, image)
    with pytest.raises(ValueError, match=rf"{path}: holds no flow: it is a {kind}"):
        read_flow(path)


def test_a_damaged_png_is_refused_by_name(tmp_path):
    path = tmp_path / "a.png"
    write_flow(path, random_flow(30, 40)[0])
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match=rf"{path}: damaged or truncated"):
        read_flow(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    beyond, message = (2e9, "beyond 1e9") if suffix == ".flo" else (512.0, "write a .flo file instead")
    for value in (beyond, -beyond - 1, np.nan, np.inf):
        flow = np.zeros((2, 3, 2), np.float32)
        flow[1, 1, 0] = flow[0, 0, 1] = value
        with pytest.raises(ValueError, match=rf"{path}: 2 valid pixels .*{message}"):
            write_flow(path, flow)
    for shape in ((2, 3), (2, 3, 3), (0, 3, 2), (2, 100_000, 2)):
        with pytest.raises(ValueError, match=r"expected \(height, width, 2\)"):
            write_flow(path, np.zeros(shape, np.float32))
    for valid in (np.ones((3, 2), bool), np.ones((2, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"expected bool\(2, 3\)"):
            write_flow(path, np.zeros((2, 3, 2), np.float32), valid)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


def test_unknown_suffixes_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"a\.pfm: unknown flow suffix '\.pfm'; use one of \.flo, \.png"):
        read_flow(tmp_path / "a.pfm")
    with pytest.raises(ValueError, match="unknown flow suffix ''"):
        write_flow(tmp_path / "a", np.zeros((1, 1, 2), np.float32))
    for suffix in SUFFIXES:
        with pytest.raises(FileNotFoundError, match=f"missing{suffix}"):
            read_flow(tmp_path / f"missing{suffix}")


def test_no_import_here_brings_tensorflow_in():
    modules = "jaxdeblur.data.flow_io, jaxdeblur.data.flow_pairs, jaxdeblur.losses.flow, jaxdeblur.ops.flow"
    code = f"import sys, {modules}; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
