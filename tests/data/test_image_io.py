"""image_io against files put together byte by byte here, and round trips over every kind it writes."""

import os
import struct
import zlib

import av
import numpy as np
import pytest

from jaxdeblur.data.image_io import ImageFile, read_image, read_rgb_u8, write_image
from jaxdeblur.data.own_files import replacing


def png_bytes(samples, colour_type, bits=8, palette=b"", transparency=b""):
    """A PNG by the specification: filter 0 on every row, one IDAT. samples: (H, W, C)."""
    height, width, _ = samples.shape
    rows = samples.astype(">u2" if bits == 16 else "u1").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
        + (chunk(b"PLTE", palette) if palette else b"")
        + (chunk(b"tRNS", transparency) if transparency else b"")
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def noise(channels, bits=8, height=7, width=5):
    generator = np.random.default_rng([channels, bits, height, width])
    return generator.integers(0, 2**bits, (height, width, channels)).astype(f"u{bits // 8}")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_reads_every_kind_of_png_exactly(tmp_path, colour_type, channels, bits):
    samples = noise(channels, bits)
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes(samples, colour_type, bits))
    image = read_image(path)
    has_alpha = channels in (2, 4)
    colour = samples[..., :-1] if has_alpha else samples
    np.testing.assert_array_equal(image.rgb, np.broadcast_to(colour, (7, 5, 3)))
    assert image.bits == bits
    assert image.is_grey == (channels < 3)
    if has_alpha:
        np.testing.assert_array_equal(image.alpha, samples[..., -1])
    else:
        assert image.alpha is None

    rgb_u8 = read_rgb_u8(path)
    expected = np.rint(np.broadcast_to(colour, (7, 5, 3)) / (257 if bits == 16 else 1))
    np.testing.assert_array_equal(rgb_u8, expected)
    assert rgb_u8.dtype == np.uint8


@pytest.mark.parametrize("transparency", [b"", bytes([255, 7, 0])])
def test_reads_palette_png(tmp_path, transparency):
    colours = np.array([[255, 0, 3], [9, 8, 7], [20, 200, 100]], np.uint8)
    index = noise(1) % 3
    index[0, :3, 0] = 0, 1, 2
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes(index, 3, palette=colours.tobytes(), transparency=transparency))
    image = read_image(path)
    np.testing.assert_array_equal(image.rgb, colours[index[..., 0]])
    assert not image.is_grey
    if transparency:
        np.testing.assert_array_equal(image.alpha, np.frombuffer(transparency, np.uint8)[index[..., 0]])
    else:
        assert image.alpha is None


def test_reads_grey_palette_as_grey(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes(noise(1) % 2, 3, palette=bytes([5, 5, 5, 99, 99, 99])))
    assert read_image(path).is_grey


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".bmp", ".webp"])
def test_lossless_kinds_come_back_the_same(tmp_path, suffix, bits, alpha, grey):
    rgb = noise(3, bits, 37, 41)
    if grey:
        rgb = np.repeat(rgb[..., :1], 3, -1)
    # WebP drops the colour of wholly transparent pixels.
    image = ImageFile(rgb, np.maximum(noise(1, bits, 37, 41)[..., 0], 1) if alpha else None, grey)
    path = tmp_path / f"a{suffix}"
    if bits == 16 and suffix in (".bmp", ".webp"):
        with pytest.raises(ValueError, match=r"cannot hold 16-bit .*use \.png or \.tif"):
            write_image(path, image)
        assert os.listdir(tmp_path) == []
        return
    write_image(path, image)
    again = read_image(path)
    np.testing.assert_array_equal(again.rgb, rgb)
    assert again.bits == bits
    assert (again.alpha is None) == (not alpha)
    if alpha:
        np.testing.assert_array_equal(again.alpha, image.alpha)
    assert again.is_grey == (grey and suffix != ".webp" and not (suffix == ".bmp" and alpha))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (64, 3)])
def test_small_sizes(tmp_path, size):
    rgb = noise(3, 8, *size)
    write_image(tmp_path / "a.png", ImageFile(rgb))
    np.testing.assert_array_equal(read_rgb_u8(tmp_path / "a.png"), rgb)
    write_image(tmp_path / "a.jpg", ImageFile(rgb))
    assert read_rgb_u8(tmp_path / "a.jpg").shape == rgb.shape


def test_grey_is_written_as_the_mean_of_the_channels(tmp_path):
    rgb = noise(3, 16, 37, 41)
    write_image(tmp_path / "a.png", ImageFile(rgb, is_grey=True))
    expected = np.rint(rgb.astype(np.float64).mean(-1))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").rgb[..., 1], expected)


def test_jpeg_is_full_range_bt601(tmp_path):
    """Encodes known YCbCr with FFmpeg and compares with the JFIF formula."""
    ycc = np.stack([np.full((16, 16), value) for value in (150, 90, 170)]).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(ycc, format="yuvj444p")
    with av.open(str(tmp_path / "a.jpg"), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("mjpeg", options={"qmin": "1", "qmax": "1"})
        stream.width = stream.height = 16
        stream.pix_fmt = "yuvj444p"
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    y, cb, cr = 150.0, 90.0 - 128, 170.0 - 128
    expected = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
    np.testing.assert_allclose(read_rgb_u8(tmp_path / "a.jpg")[8, 8], expected, atol=1.5)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_jpeg_round_trip(tmp_path, suffix):
    y, x = np.mgrid[0:63, 0:81]
    rgb = np.stack([x * 3, y * 4, 255 - x * 3], -1).astype(np.uint8)
    path = tmp_path / f"a{suffix}"
    write_image(path, ImageFile(rgb))
    error = read_rgb_u8(path).astype(np.float64) - rgb
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 45
    with pytest.raises(ValueError, match="cannot hold 8-bit RGB with alpha"):
        write_image(path, ImageFile(rgb, rgb[..., 0]))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, -4])
def test_cut_files_are_refused_by_name(tmp_path, suffix, kept):
    path = tmp_path / f"frame_%03d{suffix}"  # a name FFmpeg would take for a pattern
    write_image(path, ImageFile(noise(3, 8, 37, 41)))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept >= 0 else kept])
    if suffix in (".tif", ".webp", ".bmp") and kept < 0:
        return  # FFmpeg forgives the last bytes of these
    with pytest.raises(ValueError, match=r"frame_%03d.*(empty|damaged or truncated|not a PNG)"):
        read_image(path)


def test_damaged_png_and_strangers_are_refused(tmp_path):
    path = tmp_path / "a.png"
    write_image(path, ImageFile(noise(3, 8, 37, 41)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png: damaged"):
        read_image(path)
    path.write_bytes(b"GIF89a and more")
    with pytest.raises(ValueError, match=r"a\.png: not a PNG, JPEG"):
        read_image(path)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"unknown image suffix '\.gif'; use one of \.png"):
        write_image(tmp_path / "a.gif", ImageFile(noise(3)))
    with pytest.raises(ValueError, match="expected uint8 or uint16"):
        ImageFile(np.zeros((3, 3, 3), np.float32))
    with pytest.raises(ValueError, match=r"expected \(height, width, 3\)"):
        ImageFile(np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match="alpha is uint8"):
        ImageFile(np.zeros((3, 3, 3), np.uint8), np.zeros((3, 2), np.uint8))


def test_the_wrong_suffix_does_not_matter_when_reading(tmp_path):
    rgb = noise(3)
    write_image(tmp_path / "a.png", ImageFile(rgb))
    os.rename(tmp_path / "a.png", tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_rgb_u8(tmp_path / "a.jpg"), rgb)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail():
        with replacing(path) as partial:
            assert partial.suffix == ".png"
            partial.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == ["a.png"]
    assert path.read_bytes() == b"old"
