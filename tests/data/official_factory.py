"""Miniature data sets in the layouts of the official archives: textures that move, averaged to blurred frames."""

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxdeblur.data.datasets import BSD, DVD, FLYING_CHAIRS, GOPRO, REDS, SINTEL, Unnamed
from jaxdeblur.data.flow_io import write_flo
from jaxdeblur.data.image_io import ImageFile, write_image

SIZE_PX = (64, 48)  # width, height
AVERAGED = 7

MINI_GOPRO = dataclasses.replace(
    GOPRO,
    splits={
        "train": {"GOPR0372_07_00": range(47, 53), "GOPR0372_07_01": range(601, 606)},
        "test": {"GOPR0384_11_00": range(1, 6)},
    },
    size_px=SIZE_PX,
)
MINI_DVD = dataclasses.replace(
    DVD, splits={"train": {"IMG_0009": range(30, 34)}, "test": {"720p_240fps_2": range(4)}}, size_px=SIZE_PX
)
MINI_REDS = dataclasses.replace(
    REDS, splits={"train": {"000": range(4), "001": range(4)}, "val": {"000": range(4)}}, size_px=SIZE_PX
)
MINI_BSD = dataclasses.replace(
    BSD,
    splits={"train": Unnamed(2, range(4)), "valid": Unnamed(1, range(4)), "test": Unnamed(1, range(5))},
    size_px=SIZE_PX,
)
MINI_SINTEL = dataclasses.replace(SINTEL, scenes={"alley_1": 4, "cave_2": 3}, size_px=SIZE_PX)
MINI_CHAIRS = dataclasses.replace(FLYING_CHAIRS, scenes={"": 3}, size_px=SIZE_PX)


def texture(seed: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) in [0, 1]: blocks of random colours, hard edges."""
    coarse = np.random.default_rng(seed).uniform(size=(height // 6 + 1, width // 6 + 1, 3))
    return np.kron(coarse, np.ones((6, 6, 1)))[:height, :width]


def subframes(seed: int, count: int, size_px: tuple[int, int] = SIZE_PX) -> np.ndarray:
    """(count, H, W, 3) in [0, 1]: a texture that goes by, a pixel at a time."""
    width, height = size_px
    wide = texture(seed, height, width + count)
    return np.stack([wide[:, left : left + width] for left in range(count)])


def blurred_and_sharp(
    seed: int, count: int, *, gamma: float = 1.0, size_px: tuple[int, int] = SIZE_PX
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 clips: means of groups of frames in values ** gamma, and the groups' middle frames; 1: encoded values."""
    groups = subframes(seed, count * AVERAGED, size_px).reshape(count, AVERAGED, size_px[1], size_px[0], 3)
    blurred = np.mean(groups**gamma, axis=1) ** (1 / gamma)
    return tuple(np.rint(255 * clip).astype(np.uint8) for clip in (blurred, groups[:, AVERAGED // 2]))


def write(path: Path, image_u8: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, ImageFile(image_u8))


def write_gopro(root: Path) -> Path:
    """GOPRO_Large/{train,test}/<clip>/{blur,blur_gamma,sharp}/000047.png, with the notes the archive has."""
    seed = 0
    for split, clips in MINI_GOPRO.splits.items():
        for clip, numbers in clips.items():
            seed += 1
            folder = root / "GOPRO_Large" / split / clip
            blur, sharp = blurred_and_sharp(seed, len(numbers))
            blur_gamma, _ = blurred_and_sharp(seed, len(numbers), gamma=2.2)
            for side, frames in (("blur", blur), ("blur_gamma", blur_gamma), ("sharp", sharp)):
                for number, frame in zip(numbers, frames):
                    write(folder / side / f"{number:06d}.png", frame)
            (folder / "frames 9 offset 0.txt").write_text("")
    return root


def write_dvd(root: Path) -> Path:
    """DeepVideoDeblurring_Dataset/quantitative_datasets/<video>/{input,GT}/00000.jpg, one video upright."""
    for seed, (clip, numbers) in enumerate(
        (name, numbers) for clips in MINI_DVD.splits.values() for name, numbers in clips.items()
    ):
        folder = root / "DeepVideoDeblurring_Dataset" / "quantitative_datasets" / clip
        size_px = SIZE_PX if clip.startswith("IMG") else SIZE_PX[::-1]
        blur, sharp = blurred_and_sharp(10 + seed, len(numbers), size_px=size_px)
        for side, frames in (("input", blur), ("GT", sharp)):
            for number, frame in zip(numbers, frames):
                write(folder / side / f"{number:05d}.jpg", frame)
    write(root / "DeepVideoDeblurring_Dataset" / "qualitative_datasets" / "alley" / "input" / "00000.jpg", blur[0])
    return root


def write_reds(root: Path) -> Path:
    """{train,val}/{train,val}_{sharp,blur,blur_jpeg}/000/00000000.png, blur_jpeg's .jpg."""
    seed = 20
    for split, clips in MINI_REDS.splits.items():
        for clip, numbers in clips.items():
            seed += 1
            blur, sharp = blurred_and_sharp(seed, len(numbers), gamma=3.0)
            for kind, frames, suffix in (("sharp", sharp, "png"), ("blur", blur, "png"), ("blur_jpeg", blur, "jpg")):
                for number, frame in zip(numbers, frames):
                    write(root / split / f"{split}_{kind}" / clip / f"{number:08d}.{suffix}", frame)
    return root


def write_bsd(root: Path) -> Path:
    """BSD_1ms8ms/{train,valid,test}/<clip>/{Blur,Sharp}/RGB/00000000.png; the names of clips have gaps."""
    seed = 30
    for split, clips in MINI_BSD.splits.items():
        for clip in range(clips.clips):
            seed += 1
            blur, sharp = blurred_and_sharp(seed, len(clips.frames))
            for side, frames in (("Blur", blur), ("Sharp", sharp)):
                for number, frame in zip(clips.frames, frames):
                    write(root / "BSD_1ms8ms" / split / f"{7 * clip:03d}" / side / "RGB" / f"{number:08d}.png", frame)
    return root


def write_sintel(root: Path) -> Path:
    """training/{clean,final,flow,invalid}/<scene>/frame_0001.*: a texture that moves by whole pixels, and `test`."""
    width, height = SIZE_PX
    for seed, (scene, count) in enumerate(MINI_SINTEL.scenes.items()):
        wide = np.rint(255 * texture(40 + seed, height, width + 3 * count)).astype(np.uint8)
        for number in range(1, count + 1):
            name = f"{scene}/frame_{number:04d}"
            frame = wide[:, 3 * number - 3 : 3 * number - 3 + width]
            write(root / "training" / "clean" / f"{name}.png", frame)
            write(root / "training" / "final" / f"{name}.png", frame // 2 + 30)
            mask = np.zeros((height, width, 3), np.uint8)
            mask[:2] = 255
            path = root / "training" / "invalid" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, ImageFile(mask, is_grey=True))
            if number < count:
                path = root / "training" / "flow" / f"{name}.flo"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_flo(path, np.broadcast_to(np.float32([-3, 0]), (height, width, 2)))
        write(root / "test" / "clean" / scene / "frame_0001.png", frame)
    return root


def write_chairs(root: Path) -> Path:
    """FlyingChairs_release/data/00001_{img1.ppm,img2.ppm,flow.flo} and the split beside it."""
    width, height = SIZE_PX
    data = root / "FlyingChairs_release" / "data"
    data.mkdir(parents=True)
    for number in range(1, MINI_CHAIRS.scenes[""] + 1):
        wide = np.rint(255 * texture(50 + number, height, width + 4)).astype(np.uint8)
        for name, frame in (("img1", wide[:, :width]), ("img2", wide[:, 4:])):
            (data / f"{number:05d}_{name}.ppm").write_bytes(f"P6\n{width} {height}\n255\n".encode() + frame.tobytes())
        write_flo(data / f"{number:05d}_flow.flo", np.broadcast_to(np.float32([-4, 0]), (height, width, 2)))
    (root / "FlyingChairs_train_val.txt").write_text("1\n2\n1\n")
    return root


WRITERS = {
    "gopro": (MINI_GOPRO, write_gopro),
    "dvd": (MINI_DVD, write_dvd),
    "reds": (MINI_REDS, write_reds),
    "bsd": (MINI_BSD, write_bsd),
    "sintel": (MINI_SINTEL, write_sintel),
    "flying_chairs": (MINI_CHAIRS, write_chairs),
}


def zipped(root: Path, archives: Mapping[Path, str]) -> None:
    """Packs folders into archives of the names given (path of the archive -> folder inside root, "" all of it)."""
    for path, inside in archives.items():
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("__MACOSX/._junk", b"left by a file manager")
            for file in sorted((root / inside).rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(root).as_posix())
