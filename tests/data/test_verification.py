# ruff: noqa: E501  (a table of faults is read best a line a fault)
"""Faults planted in miniature data sets, each of which must be found, named, and found alone."""

import re
import shutil
import zlib

import numpy as np
import pytest
from official_factory import MINI_GOPRO, WRITERS, blurred_and_sharp, texture, write

from jaxdeblur.data.datasets import BSD, DATASETS, DVD, GOPRO, REDS, SINTEL
from jaxdeblur.data.flow_io import write_flo
from jaxdeblur.data.image_io import ImageFile, read_rgb_u8, write_image
from jaxdeblur.data.preparation import FaultsFoundError, prepare, verify
from jaxdeblur.data.verification import _numbered, light_share

CLIP = "GOPRO_Large/train/GOPR0372_07_00"
SCENES = "DeepVideoDeblurring_Dataset/quantitative_datasets"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return {name: write_set(tmp_path_factory.mktemp(name)) for name, (_, write_set) in WRITERS.items()}


def test_the_published_counts():
    counts = {d.name: {split: d.count(split) for split in d.splits} for d in (DVD, GOPRO, REDS, BSD)}
    assert counts == {
        "dvd": {"train": (61, 5708), "test": (10, 1000)},
        "gopro": {"train": (22, 2103), "test": (11, 1111)},
        "reds": {"train": (240, 24000), "val": (30, 3000)},
        "bsd": {"train": (60, 6000), "valid": (20, 2000), "test": (20, 3000)},
    }
    assert (len(SINTEL.scenes), sum(SINTEL.scenes.values())) == (23, 1064)
    assert sum(1 for _ in SINTEL.pairs()) == 2 * 1041
    assert sum(1 for _ in DATASETS["flying_chairs"].pairs()) == 22872


@pytest.mark.parametrize("name", WRITERS)
def test_a_whole_set_has_no_faults(originals, name):
    dataset, _ = WRITERS[name]
    found = verify(dataset, [originals[name]])
    assert found.faults == []
    for count in found.counts:
        assert (count.clips, count.pairs) == (count.expected_clips, count.expected_pairs)
        assert set(count.sizes_px) <= {(64, 48), (48, 64)}


@pytest.mark.parametrize(("name", "variant"), [("gopro", "blur_gamma"), ("reds", "blur_jpeg")])
def test_variants_are_sets_of_their_own(originals, name, variant):
    found = verify(WRITERS[name][0], [originals[name]], variant=variant)
    assert found.faults == []
    assert all(
        f"/{variant}/" in item.key or f"_{variant}/" in item.key for item, place in found.files if "/blur/" in place
    )


# A planted fault: (data set, what plants it in a copy, the kind and the words with which it is found).


def delete(*paths):
    def plant(root):
        for path in paths:
            target = root / path
            shutil.rmtree(target) if target.is_dir() else target.unlink()

    return plant


def swap(one, other):
    def plant(root):
        (root / one).rename(root / "aside")
        (root / other).rename(root / one)
        (root / "aside").rename(root / other)

    return plant


def move(source, target):
    return lambda root: (root / source).rename(root / target)


def copy(source, target):
    def plant(root):
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (root / source).is_dir() else shutil.copy)(root / source, root / target)

    return plant


def edit(path, change):
    def plant(root):
        (root / path).write_bytes(change((root / path).read_bytes()))

    return plant


def flip_a_byte(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :]


def picture(path, change, **options):
    def plant(root):
        write_image(root / path, ImageFile(np.ascontiguousarray(change(read_rgb_u8(root / path))), **options))

    return plant


def one_frame_late(root):
    """Every sharp frame but the last becomes the one after it; the last one shows something new."""
    sharp = sorted((root / CLIP / "sharp").iterdir())
    frames = [read_rgb_u8(path) for path in sharp]
    _, (*_, new) = blurred_and_sharp(1, len(frames) + 1)
    for path, frame in zip(sharp, [*frames[1:], new]):
        write(path, frame)


def lose_pixels(data):
    """A PNG whose only IDAT holds a third of the rows, its checksum right."""
    position, parts = 8, [data[:8]]
    while position < len(data):
        length = int.from_bytes(data[position : position + 4])
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        if kind == b"IDAT":
            rows = zlib.decompress(body)
            body = zlib.compress(rows[: len(rows) // 3])
        checksum = zlib.crc32(kind + body)
        parts.append(len(body).to_bytes(4) + kind + body + checksum.to_bytes(4))
        position += 12 + length
    return b"".join(parts)


def of_another_clip(root):
    blur, _ = blurred_and_sharp(99, 6)
    for path, frame in zip(sorted((root / CLIP / "blur").iterdir()), blur):
        write(path, frame)


def rename_frames(root):
    """Numbers from 1 on instead of the published ones."""
    for side in ("blur", "blur_gamma", "sharp"):
        for number, path in enumerate(sorted((root / CLIP / side).iterdir()), start=1):
            path.rename(path.with_name(f"{number:06d}.png"))


def one_frame_more(root):
    for side, frames in zip(("blur", "sharp"), blurred_and_sharp(22, 5, gamma=3.0)):
        write(root / f"train/train_{side}/001/00000004.png", frames[4])


FAULTS = {
    "missing blurred frame": ("gopro", delete(f"{CLIP}/blur/000049.png"), "missing", r"GOPR0372_07_00/blur: has no frame 49$"),
    "missing sharp frame": ("gopro", delete(f"{CLIP}/sharp/000047.png"), "missing", r"07_00/sharp: has no frame 47$"),
    "last frames missing": (
        "gopro",
        delete(*(f"{CLIP}/{side}/0000{n}.png" for side in ("blur", "sharp") for n in (51, 52))),
        "missing",
        r"has no frames 51 to 52$",
    ),
    "missing clip": ("gopro", delete("GOPRO_Large/test/GOPR0384_11_00"), "missing", r"test/GOPR0384_11_00: the whole clip of 5"),
    "missing side": ("gopro", delete(f"{CLIP}/sharp"), "missing", r"07_00/sharp: has no frames"),
    "missing unnamed clip": ("bsd", delete("BSD_1ms8ms/train/007"), "missing", r"train: has 1 of 2 clips"),
    "swapped sides": ("gopro", swap(f"{CLIP}/blur", f"{CLIP}/sharp"), "swapped", r"07_00, frames 47 to 52: the blurred frame is sharper"),
    "truncated PNG": ("gopro", edit(f"{CLIP}/blur/000048.png", lambda d: d[:-40]), "damaged", r"000048.png: is cut short"),
    "flipped bit in a PNG": ("gopro", edit(f"{CLIP}/sharp/000050.png", flip_a_byte), "damaged", r"000050.png: is damaged: its part 'IDAT'"),
    "truncated JPEG": ("dvd", edit(f"{SCENES}/IMG_0009/GT/00031.jpg", lambda d: d[:-300]), "damaged", r"00031.jpg: damaged or trunc"),
    "empty file": ("gopro", edit(f"{CLIP}/blur/000047.png", lambda _: b""), "damaged", r"000047.png: is empty"),
    "a web page in place of a frame": ("reds", edit("val/val_blur/000/00000002.png", lambda _: b"<html>quota exceeded</html>"), "damaged", r"00000002.png: not a PNG"),
    "a frame of another size": ("gopro", picture(f"{CLIP}/blur/000052.png", lambda x: x[:-8]), "another size", r"000052.png: is 64x40, its clip 64x48"),
    "a clip of another size": (
        "dvd",
        lambda root: [
            picture(path.relative_to(root), lambda x: x[::2, ::2])(root) for path in (root / SCENES / "IMG_0009").rglob("*.jpg")
        ],
        "another size",
        r"train/IMG_0009: is 32x24; it is published as 48x64 or 64x48",
    ),
    "a grey frame": ("bsd", picture("BSD_1ms8ms/valid/000/Sharp/RGB/00000003.png", lambda x: x, is_grey=True), "another kind", r"00000003.png: holds 8-bit grey; exp"),
    "extra file among frames": ("gopro", copy(f"{CLIP}/blur/000047.png", f"{CLIP}/blur/000047 (1).png"), "extra", r"000047 \(1\).png: is no frame of clip GOPR0372_07_00"),
    "extra folder of pictures in a clip": ("gopro", copy(f"{CLIP}/blur/000047.png", f"{CLIP}/blur2/000047.png"), "extra", r"blur2/000047.png: is no frame"),
    "extra frame": ("reds", one_frame_more, "extra", r"has frame 4; it is published with 0 to 3"),
    "extra clip": ("dvd", copy(f"{SCENES}/IMG_0009", f"{SCENES}/IMG_0777"), "extra", r"clip IMG_0777: DVD.* has no such clip"),
    "extra unnamed clip": ("bsd", copy("BSD_1ms8ms/train/007", "BSD_1ms8ms/valid/123"), "extra", r"valid: has 2 clips, 1 are published"),
    "the gamma variant in place of the linear one": ("gopro", swap(f"{CLIP}/blur", f"{CLIP}/blur_gamma"), "another variant", r"07_00, frames 47 to 52: .*an average of light \(share of light \d.\d\d\), not of gamma-enc"),
    "a test clip among the training clips": ("gopro", move("GOPRO_Large/test/GOPR0384_11_00", "GOPRO_Large/train/GOPR0384_11_00"), "in the wrong split", r"train/GOPR0384_11_00: is published in test"),
    "the same frame twice": ("dvd", lambda root: write(root / SCENES / "IMG_0009/GT/00030.png", read_rgb_u8(root / SCENES / "IMG_0009/GT/00030.jpg")), "twice", r"00030.(png|jpg): is the same frame as .*00030"),
    "a sharp frame in place of the blurred one": ("gopro", copy(f"{CLIP}/sharp/000052.png", f"{CLIP}/blur/000052.png"), "copy", r"000052.png: is the same file as .*blur/000052.png"),
    "a neighbour in place of a lost frame": ("gopro", copy(f"{CLIP}/sharp/000051.png", f"{CLIP}/sharp/000052.png"), "copy", r"000052.png: is the same file as .*000051.png"),
    "a single pair swapped": ("gopro", swap(f"{CLIP}/blur/000049.png", f"{CLIP}/sharp/000049.png"), "swapped", r"07_00, frame 49: the blurred frame is sharper"),
    "two frames of the gamma variant": ("gopro", lambda root: [swap(f"{CLIP}/blur/{n}.png", f"{CLIP}/blur_gamma/{n}.png")(root) for n in ("000048", "000051")], "another variant", r"07_00, frames 48, 51: .*an average of light"),
    "pixels that end early behind right checksums": ("gopro", edit(f"{CLIP}/blur/000050.png", lose_pixels), "damaged", r"000050.png: is damaged: it holds fewer pixels than its size says"),
    "blurred frames of another clip": ("gopro", of_another_clip, "not a pair", r"show different things"),
    "sharp frames one frame late": ("gopro", one_frame_late, "out of step", r"blurred frame n shows the sharp frame n-1, not n"),
    "other numbers": ("gopro", rename_frames, "missing", r"has no frames 47 to 52"),
    "truncated flow": ("sintel", edit("training/flow/alley_1/frame_0002.flo", lambda d: d[:-8]), "damaged", r"frame_0002.flo: .flo file cut short"),
    "flow of another size": ("sintel", lambda root: write_flo(root / "training/flow/alley_1/frame_0001.flo", np.zeros((5, 7, 2), np.float32)), "another size", r"frame_0001.flo: is 7x5; it is published as 64x48"),
    "flow of no pixel": ("flying_chairs", lambda root: write_flo(root / "FlyingChairs_release/data/00003_flow.flo", np.full((48, 64, 2), np.nan, np.float32), np.zeros((48, 64), bool)), "damaged", r"00003_flow.flo: knows the flow of no pixel"),
    "flow of another pair": ("flying_chairs", lambda root: write_flo(root / "FlyingChairs_release/data/00001_flow.flo", np.full((48, 64, 2), 9, np.float32)), "not a pair", r"00001_flow.flo: does not lead from data/00001_img1.ppm"),
    "images the wrong way round": ("flying_chairs", swap("FlyingChairs_release/data/00002_img1.ppm", "FlyingChairs_release/data/00002_img2.ppm"), "not a pair", r"00002_flow.flo: does not lead from data/00002_img1.ppm"),
    "missing flow": ("sintel", delete("training/flow/cave_2/frame_0001.flo"), "missing", r"training/flow/cave_2/frame_0001.flo: is missing"),
    "missing mask": ("sintel", delete("training/invalid/cave_2/frame_0001.png"), "missing", r"training/invalid/cave_2/frame_0001.png: is missing"),
    "missing scene": ("sintel", delete(*(f"training/{part}/cave_2" for part in ("clean", "final", "flow", "invalid"))), "missing", r"cave_2: all of its 4 pairs are missing"),
    "extra flow": ("sintel", copy("training/flow/cave_2/frame_0001.flo", "training/flow/cave_2/frame_0003.flo"), "extra", r"frame_0003.flo: MPI Sintel .* has no such file"),
    "truncated PPM": ("flying_chairs", edit("FlyingChairs_release/data/00002_img2.ppm", lambda d: d[:-1]), "damaged", r"00002_img2.ppm: is cut short"),
    "split of another set": ("flying_chairs", edit("FlyingChairs_train_val.txt", lambda d: d + b"1\n"), "damaged", r"train_val.txt: has 4 entries; expected 3, each 1 or 2"),
    "missing split": ("flying_chairs", delete("FlyingChairs_train_val.txt"), "missing", r"FlyingChairs_train_val.txt: is missing"),
}  # fmt: skip

# What goes with a fault, since it is one too: a clip in the wrong split is missing from its own.
CONSEQUENCES = {
    "a neighbour in place of a lost frame": {"not a pair"},
    "sharp frames one frame late": {"not a pair"},  # the last one shows something new
    "a test clip among the training clips": {"missing"},
    "other numbers": {"extra"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_nothing_is_prepared(originals, tmp_path, fault):
    name, plant, kind, words = FAULTS[fault]
    dataset, _ = WRITERS[name]
    root = tmp_path / "set"
    shutil.copytree(originals[name], root)
    plant(root)
    found = verify(dataset, [root])
    of_kind = [str(f) for f in found.faults if f.kind == kind]
    assert any(re.search(words, text) for text in of_kind), [f"{f.kind}: {f}" for f in found.faults]
    assert {f.kind for f in found.faults} == {kind} | CONSEQUENCES.get(fault, set())
    with pytest.raises(FaultsFoundError) as caught:
        prepare(dataset, [root], tmp_path / "out")
    assert caught.value.faults == found.faults
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_clips_can_be_trusted(originals, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(originals["gopro"], root)
    swap(f"{CLIP}/blur", f"{CLIP}/sharp")(root)
    (fault,) = verify(MINI_GOPRO, [root]).faults
    assert fault.is_a_judgement
    assert verify(MINI_GOPRO, [root], trusted=["GOPR0372_07_00"]).faults == []
    with pytest.raises(ValueError, match="there is no clip GOPR9999 to be trusted"):
        verify(MINI_GOPRO, [root], trusted=["GOPR9999"])
    copy(f"{CLIP}/blur/000051.png", f"{CLIP}/blur/000052.png")(root)
    assert {fault.kind for fault in verify(MINI_GOPRO, [root]).faults} == {"swapped", "copy", "not a pair"}
    assert verify(MINI_GOPRO, [root], trusted=["GOPR0372_07_00"]).faults == []
    chairs = tmp_path / "chairs"
    shutil.copytree(originals["flying_chairs"], chairs)
    FAULTS["flow of another pair"][1](chairs)
    (fault,) = verify(WRITERS["flying_chairs"][0], [chairs]).faults
    assert fault.is_a_judgement
    assert verify(WRITERS["flying_chairs"][0], [chairs], trusted=["00001"]).faults == []


def test_a_quick_look_reads_every_file_but_judges_few(originals, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(originals["gopro"], root)
    swap(f"{CLIP}/blur/000047.png", f"{CLIP}/sharp/000047.png")(root)
    edit(f"{CLIP}/sharp/000052.png", flip_a_byte)(root)
    assert {fault.kind for fault in verify(MINI_GOPRO, [root]).faults} == {"swapped", "damaged"}
    assert {fault.kind for fault in verify(MINI_GOPRO, [root], quick=True).faults} == {"damaged"}


def test_masks_of_flow_may_all_be_missing(originals, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(originals["sintel"], root)
    delete("training/invalid")(root)
    assert verify(WRITERS["sintel"][0], [root]).faults == []


def test_part_of_a_set(originals, tmp_path):
    """What is there must be in order; what is not there may be missing, but for gaps."""
    root = tmp_path / "set"
    shutil.copytree(originals["gopro"], root)
    delete("GOPRO_Large/test", *(f"{CLIP}/{side}/000047.png" for side in ("blur", "sharp")))(root)
    assert {fault.kind for fault in verify(MINI_GOPRO, [root]).faults} == {"missing"}
    found = verify(MINI_GOPRO, [root], partial=True)
    assert found.faults == []
    assert [(count.split, count.pairs) for count in found.counts] == [("train", 10), ("test", 0)]
    assert verify(MINI_GOPRO, [originals["gopro"]], splits=["test"]).counts[0].pairs == 5
    delete(f"{CLIP}/blur/000050.png")(root)
    (fault,) = verify(MINI_GOPRO, [root], partial=True).faults
    assert str(fault) == "train/GOPR0372_07_00/blur: has no frame 50"
    delete("training/flow/alley_1")(shutil.copytree(originals["sintel"], tmp_path / "sintel"))
    delete("training/clean/cave_2")(tmp_path / "sintel")
    faults = verify(WRITERS["sintel"][0], [tmp_path / "sintel"], partial=True).faults
    assert {fault.kind for fault in faults} == {"missing"}
    assert len(faults) == 3 + 3  # a scene's flow and another's clean frames; what is there of a scene must be whole


def test_a_frame_of_a_wild_number_in_part_of_a_set_is_one_fault(originals, tmp_path):
    """And not all the numbers before it, which would take all memory to list."""
    root = tmp_path / "set"
    shutil.copytree(originals["gopro"], root)
    for side in ("blur", "sharp"):
        folder = root / "GOPRO_Large" / "train" / "GOPR0372_07_00" / side
        shutil.copy(folder / "000047.png", folder / "90000000000.png")
        (folder / "000047.png").unlink()
    faults = verify(MINI_GOPRO, [root], partial=True, trusted=["GOPR0372_07_00"]).faults
    assert {fault.kind for fault in faults} == {"extra"}
    assert len(faults) == 2
    assert "has frame 90000000000; it is published with 47 to 52" in str(faults[0])


def test_long_lists_of_frames_are_cut():
    assert _numbered([3, 7, 8, 9]) == "frames 3, 7 to 9"
    assert _numbered(range(0, 60, 2)) == "frames 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, and 20 more"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variant": "blurry"}, "gopro has no variant 'blurry'; variants are blur, blur_gamma, splits train, test"),
        ({"splits": ["val"]}, "gopro has no split 'val'; variants"),
    ],
)
def test_unknown_choices_list_what_there_is(originals, options, words):
    with pytest.raises(ValueError, match=words):
        verify(MINI_GOPRO, [originals["gopro"]], **options)


def test_a_flow_set_has_no_variants(originals):
    with pytest.raises(ValueError, match="sintel has no variant to choose; leave --variant out"):
        verify(WRITERS["sintel"][0], [originals["sintel"]], variant="final")


@pytest.mark.parametrize(("name", "other"), [("gopro", "sintel"), ("sintel", "gopro")])
def test_another_data_set_is_no_data_set(originals, name, other):
    with pytest.raises(ValueError, match=r"nothing of .* is there; expected .* `jaxdeblur data info"):
        verify(WRITERS[name][0], [originals[other]])


@pytest.mark.parametrize(("gamma", "share"), [(1.0, 0.0), (2.2, 1.0)])
@pytest.mark.parametrize("seed", range(5))
def test_the_share_of_light(gamma, share, seed):
    """Where what leaves the frame on one side comes in on the other, the share is exact but for rounding."""
    sharp = texture(seed, 48, 66)
    group = np.stack([np.roll(sharp, shift, axis=1) for shift in range(-4, 5)])
    blurred = np.mean(group**gamma, axis=0) ** (1 / gamma)
    found = light_share(*(np.rint(255 * image).astype(np.uint8) for image in (blurred, sharp)))
    assert abs(found - share) < 0.02


def test_the_share_of_light_of_a_still_frame_cannot_be_told():
    frame = np.rint(255 * texture(0, 48, 64)).astype(np.uint8)
    assert light_share(frame, frame) is None
