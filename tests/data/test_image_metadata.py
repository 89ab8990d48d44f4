"""Pictures come upright and keep what they say of themselves; Pillow is the judge of what was written."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from jaxdeblur.data.image_io import (
    ImageFile,
    ImageMetadata,
    count_pages,
    read_image,
    read_rgb_u8,
    write_image,
    write_pages,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DATE = "2020:01:02 03:04:05"
LOSSLESS = {".png": {}, ".tif": {}, ".webp": {"lossless": True}, ".jpg": {"quality": 95}}


def picture(height=37, width=51):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 5, y * 6, 255 - x * 3], -1).astype(np.uint8)


def exif(orientation):
    found = Image.Exif()
    found[ExifTags.Base.Orientation] = orientation
    found[ExifTags.Base.Make] = "Maker"
    found[ExifTags.Base.DateTime] = DATE
    found[ExifTags.IFD.Exif] = {
        ExifTags.Base.DateTimeOriginal: DATE,
        ExifTags.Base.ExifImageWidth: 51,
        ExifTags.Base.ExifImageHeight: 37,
        ExifTags.Base.MakerNote: b"places in another file",
    }
    found[ExifTags.IFD.GPSInfo] = {1: "N", 2: (1.0, 2.0, 3.5)}
    return found.tobytes()


def written(path, orientation=1, **options):
    Image.fromarray(picture()).save(
        path, exif=exif(orientation), icc_profile=SRGB, dpi=(300, 200), **LOSSLESS[path.suffix], **options
    )
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", LOSSLESS)
def test_pictures_come_upright_and_are_written_so(tmp_path, suffix, orientation):
    upright = written(tmp_path / f"in{suffix}", orientation)
    image = read_image(tmp_path / f"in{suffix}")
    np.testing.assert_array_equal(image.rgb, upright)
    write_image(tmp_path / f"out{suffix}", image)
    with Image.open(tmp_path / f"out{suffix}") as again:
        assert again.getexif().get(ExifTags.Base.Orientation, 1) == 1
        assert again.size == upright.shape[1::-1]
    np.testing.assert_allclose(read_rgb_u8(tmp_path / f"out{suffix}"), upright, atol=8 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("target", LOSSLESS)
@pytest.mark.parametrize("source", [".png", ".tif", ".jpg"])
def test_profile_resolution_date_camera_and_place_are_kept(tmp_path, source, target, orientation):
    height, width, _ = written(tmp_path / f"in{source}", orientation).shape
    write_image(tmp_path / f"out{target}", read_image(tmp_path / f"in{source}"))
    with Image.open(tmp_path / f"out{target}") as image:
        assert image.info["icc_profile"] == SRGB
        tags = image.getexif()
        across, down = (200, 300) if orientation == 6 else (300, 200)
        if target == ".webp":  # which has no place for it but EXIF
            found = tags[ExifTags.Base.XResolution], tags[ExifTags.Base.YResolution]
        else:
            found = image.info["dpi"]
        assert [round(float(value)) for value in found] == [across, down]
        assert (tags[ExifTags.Base.Make], tags[ExifTags.Base.DateTime]) == ("Maker", DATE)
        of_exposure = tags.get_ifd(ExifTags.IFD.Exif)
        assert of_exposure[ExifTags.Base.DateTimeOriginal] == DATE
        sizes = of_exposure[ExifTags.Base.ExifImageWidth], of_exposure[ExifTags.Base.ExifImageHeight]
        assert sizes == (width, height)
        assert ExifTags.Base.MakerNote not in of_exposure
        assert tags.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_keep_profile_and_resolution(tmp_path, suffix):
    rgb = np.random.default_rng(0).integers(0, 2**16, (9, 13, 3), np.uint16)
    metadata = ImageMetadata(SRGB, (300.0, 200.0), exif(8).removeprefix(b"Exif\0\0"))
    write_image(tmp_path / f"a{suffix}", ImageFile(rgb, metadata=metadata))
    again = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(again.rgb, np.rot90(rgb))  # the tag was written as it was given
    assert again.metadata.icc_profile == SRGB
    assert np.rint(again.metadata.dpi).tolist() == [200, 300]


def test_damaged_exif_is_none(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.rgb, picture())
    assert image.metadata.exif is None


@pytest.mark.parametrize("subsampling", [0, 1, 2, "grey"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (33, 47), (1, 1), (17, 1), (2, 3)])
def test_jpeg_has_the_values_of_libjpeg(tmp_path, size, subsampling, progressive):
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    image = Image.fromarray(rgb)
    image, options = (image.convert("L"), {}) if subsampling == "grey" else (image, {"subsampling": subsampling})
    image.save(tmp_path / "a.jpg", quality=80, progressive=progressive, **options)
    with Image.open(tmp_path / "a.jpg") as expected:
        np.testing.assert_array_equal(read_rgb_u8(tmp_path / "a.jpg"), np.asarray(expected.convert("RGB")))
    assert read_image(tmp_path / "a.jpg").is_grey == (subsampling == "grey")


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_becomes_rgb_with_a_warning(tmp_path, caplog, suffix):
    colour = (200, 30, 60)
    image = Image.fromarray(np.full((16, 16, 3), colour, np.uint8)).convert("CMYK")
    image.save(tmp_path / f"a{suffix}", **({"quality": 95} if suffix == ".jpg" else {}))
    np.testing.assert_allclose(read_rgb_u8(tmp_path / f"a{suffix}")[8, 8], colour, atol=3)
    assert f"a{suffix}: is CMYK, and becomes RGB" in caplog.text


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "YCbCr", "I;16", "I;16B"])
def test_every_mode_of_tiff_is_read(tmp_path, mode):
    grey = Image.fromarray(picture()).convert("L")
    if mode.startswith("I;16"):
        dtype = ">u2" if mode.endswith("B") else "<u2"
        image = Image.frombytes(mode, grey.size, (np.asarray(grey).astype(dtype) * 257).tobytes())
    elif mode == "PA":
        image = Image.fromarray(picture()).convert("P").convert("PA")
    else:
        image = Image.fromarray(picture()).convert(mode)
    image.save(tmp_path / "a.tif")
    expected = np.asarray(grey if mode.startswith("I;16") else image.convert("RGB"))
    expected = np.repeat(expected[..., None], 3, -1) if expected.ndim == 2 else expected
    np.testing.assert_array_equal(read_rgb_u8(tmp_path / "a.tif"), expected)


def test_floating_point(tmp_path, caplog):
    values = np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").rgb[..., 0], np.rint(values * 65535))
    assert "a.tif: has floating-point values, which become 16 bits" in caplog.text
    for strange, said in ((values * 255, "from 0 to 255; expected 0 to 1"), (values * np.nan, "from nan to nan")):
        Image.fromarray(strange).save(tmp_path / "b.tif")
        with pytest.raises(ValueError, match=rf"b\.tif: has floating-point values {said}"):
            read_image(tmp_path / "b.tif")
    Image.fromarray(np.full((6, 10), 70000, np.int32)).save(tmp_path / "c.tif")
    with pytest.raises(ValueError, match=r"c\.tif: has signed or 32-bit integers.*save it with 8 or 16 bits"):
        read_image(tmp_path / "c.tif")


def test_tiles_of_16_bits_are_refused(tmp_path):
    """FFmpeg reads them wrongly, and says nothing."""
    tifffile = pytest.importorskip("tifffile")
    rgb = np.zeros((32, 48, 3), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb", tile=(16, 16))
    with pytest.raises(ValueError, match=r"a\.tif: has 16 bits in tiles.*save it in strips"):
        read_image(tmp_path / "a.tif")
    for dtype, said in ((np.float32, "floating-point"), (np.uint32, "pixels that are not read")):
        tifffile.imwrite(tmp_path / "a.tif", rgb.astype(dtype), photometric="rgb")
        with pytest.raises(ValueError, match=rf"a\.tif: has .*{said}.*save it .*with 8 or 16 bits"):
            read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("grey", "alpha"), [(False, False), (True, False), (True, True), (False, True)])
def test_pages_of_a_tiff(tmp_path, bits, grey, alpha):
    generator, dtype = np.random.default_rng(0), f"u{bits // 8}"
    pages = []
    for width in (13, 14, 15):
        rgb = generator.integers(0, 2**bits, (9, width, 3)).astype(dtype)
        mask = generator.integers(0, 2**bits, (9, width)).astype(dtype) if alpha else None
        pages.append(ImageFile(np.repeat(rgb[..., :1], 3, -1) if grey else rgb, mask, grey))
    write_pages(tmp_path / "a.tif", iter(pages))
    assert count_pages(tmp_path / "a.tif") == 3
    for number, page in enumerate(pages):
        again = read_image(tmp_path / "a.tif", number)
        np.testing.assert_array_equal(again.rgb, page.rgb)
        assert again.is_grey == grey
        if alpha:
            np.testing.assert_array_equal(again.alpha, page.alpha)
    with pytest.raises(ValueError, match=r"a\.tif: holds 3 pages, where one picture is expected"):
        read_image(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: holds 3 pages, and page 3 is asked for"):
        read_image(tmp_path / "a.tif", 3)


def test_small_copies_are_no_pages(tmp_path):
    stream = io.BytesIO()
    small = Image.fromarray(picture()[::4, ::4])
    Image.fromarray(picture()).save(
        stream, "TIFF", save_all=True, append_images=[small], tiffinfo={254: 0}, compression="raw"
    )
    data = stream.getvalue()
    # The second directory's type of page becomes that of a small copy.
    entry = b"\xfe\x00\x04\x00\x01\x00\x00\x00"
    last = data.rindex(entry) + len(entry)
    (tmp_path / "a.tif").write_bytes(data[:last] + b"\1\0\0\0" + data[last + 4 :])
    assert count_pages(tmp_path / "a.tif") == 1
    np.testing.assert_array_equal(read_rgb_u8(tmp_path / "a.tif"), picture())


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_animations_come_and_go_frame_by_frame(tmp_path, suffix):
    frames = [np.random.default_rng(seed).integers(0, 256, (12, 14, 3), np.uint8) for seed in range(3)]
    first, *others = map(Image.fromarray, frames)
    path, durations_ms = tmp_path / f"a{suffix}", [40, 80, 120]
    first.save(path, save_all=True, append_images=others, duration=durations_ms, **LOSSLESS[suffix])
    write_pages(tmp_path / f"b{suffix}", (read_image(path, number) for number in range(count_pages(path))))
    for name in (f"a{suffix}", f"b{suffix}"):
        assert count_pages(tmp_path / name) == 3
        for number, frame in enumerate(frames):
            page = read_image(tmp_path / name, number)
            np.testing.assert_array_equal(page.rgb, frame)
            assert page.metadata.duration_ms == durations_ms[number]


@pytest.mark.parametrize("loop", [0, 3])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "grey", "clear"])
def test_animations_keep_equal_frames_and_what_they_say(tmp_path, suffix, kind, loop):
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (2, 12, 14, 3), np.uint8)
    masks = generator.integers(0, 256, (2, 12, 14), np.uint8) * (kind != "clear")
    colours = np.repeat(colours[..., :1], 3, -1) if kind == "grey" else colours
    order, durations_ms = (0, 0, 0, 1, 1, 0), [50, 60, 70, 80, 90, 100]
    frames = [ImageFile(colours[i], masks[i] if kind in ("RGBA", "clear") else None, kind == "grey") for i in order]
    metadata = ImageMetadata(SRGB, (300.0, 150.0), exif(1).removeprefix(b"Exif\0\0"), None, loop)
    pages = [dataclasses.replace(metadata, duration_ms=duration_ms) for duration_ms in durations_ms]
    path = tmp_path / f"a{suffix}"
    write_pages(path, (dataclasses.replace(frame, metadata=page) for frame, page in zip(frames, pages)))
    assert count_pages(path) == len(order)
    for number, frame in enumerate(frames):
        again = read_image(path, number)
        np.testing.assert_array_equal(again.rgb, frame.rgb)
        assert again.is_grey == (kind == "grey" and suffix == ".png")
        if kind in ("RGBA", "clear"):
            np.testing.assert_array_equal(again.alpha, frame.alpha)
        assert (again.metadata.duration_ms, again.metadata.loop) == (durations_ms[number], loop)
    first = read_image(path, 0).metadata
    assert first.icc_profile == SRGB
    np.testing.assert_allclose(first.dpi, (300, 150), atol=0.02)
    with Image.open(path) as image:
        assert image.getexif()[ExifTags.Base.Make] == "Maker"


def test_frames_of_an_animation_with_and_without_alpha_or_colour(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), np.uint8)
    colours[0] = colours[0, ..., :1]
    frames = [ImageFile(colours[0], None, True), ImageFile(colours[1], colours[1, ..., 0]), ImageFile(colours[2])]
    metadata = ImageMetadata(duration_ms=100_000)  # longer than 16 bits of milliseconds
    write_pages(tmp_path / "a.png", (dataclasses.replace(frame, metadata=metadata) for frame in frames))
    for number, frame in enumerate(frames):
        again = read_image(tmp_path / "a.png", number)
        np.testing.assert_array_equal(again.rgb, frame.rgb)
        np.testing.assert_array_equal(again.alpha, 255 if frame.alpha is None else frame.alpha)
        assert again.metadata.duration_ms == 100_000
