"""flow_pairs on miniature data sets whose flows are whole pixels, so that warping has an exact answer."""

import dataclasses
import inspect
import itertools
import logging
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.data.flow_io import write_flow
from jaxdeblur.data.flow_pairs import (
    FlowPair,
    flow_pair_batches,
    hold_out_scenes,
    index_flow_folders,
    index_flying_chairs,
    index_sintel,
    read_flow_pair,
    read_flow_window,
)
from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.data.transforms import FLIPS, MTU_AUGMENTATION, QUARTER_TURNS_AND_FLIPS, draw_geometry
from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.ops.warp import warp_backward

NAMES = {"image_1", "image_0", "flow_1to0", "valid_1to0"}
CROP_PX = (8, 6)


def true_pair(seed, height=12, width=18):
    """(image_1, image_0, flow_1to0, valid): out[y, x] = image_0[y + v, x + u], pixel by pixel, v not like u."""
    rng = np.random.default_rng(seed)
    image_0 = rng.integers(0, 256, (height, width, 3), np.uint8)
    flow = np.zeros((height, width, 2), np.float32)
    image_1 = rng.integers(0, 256, (height, width, 3), np.uint8)
    for y, x in np.ndindex(height, width):
        u, v = (3, -1) if x < width // 2 else (-2, 2) if y < height // 2 else (0, -4)
        flow[y, x] = u, v
        if 0 <= y + v < height and 0 <= x + u < width:
            image_1[y, x] = image_0[y + v, x + u]
    return image_1, image_0, flow, rng.uniform(size=(height, width)) < 0.9


def write_ppm(path, image_u8, header="P6\n{width} {height}\n255\n"):
    height, width, _ = image_u8.shape
    path.write_bytes(header.format(width=width, height=height).encode() + image_u8.tobytes())


def write_chairs(root: Path, n_pairs: int, split: str | None = None, size=(12, 18)) -> Path:
    (root / "data").mkdir(parents=True)
    for number in range(1, n_pairs + 1):
        image_1, image_0, flow, valid = true_pair(number, *size)
        write_ppm(root / "data" / f"{number:05d}_img1.ppm", image_1)
        write_ppm(root / "data" / f"{number:05d}_img2.ppm", image_0)
        write_flow(root / "data" / f"{number:05d}_flow.flo", flow, valid)
    if split is not None:
        (root / "FlyingChairs_train_val.txt").write_text(split)
    return root


def write_sintel(root: Path, frames: dict[str, int], *, masks=True) -> Path:
    """Frames of random colours; the flow of a frame is its number; pixel (0, number) is masked."""
    rng = np.random.default_rng(0)
    for scene, n_frames in frames.items():
        for folder in ("final", "clean", "flow", *(["invalid"] if masks else [])):
            (root / "training" / folder / scene).mkdir(parents=True)
        for number in range(1, n_frames + 1):
            name = f"{scene}/frame_{number:04d}"
            for render_pass in ("final", "clean"):
                image = ImageFile(rng.integers(0, 256, (12, 18, 3), np.uint8))
                write_image(root / "training" / render_pass / f"{name}.png", image)
            if number < n_frames:
                flow = np.full((12, 18, 2), number, np.float32)
                write_flow(root / "training" / "flow" / f"{name}.flo", flow)
            if masks:
                mask = np.zeros((12, 18, 3), np.uint8)
                mask[0, number] = 255
                write_image(root / "training" / "invalid" / f"{name}.png", ImageFile(mask, is_grey=True))
    return root


@pytest.fixture(scope="module")
def chairs(tmp_path_factory):
    return write_chairs(tmp_path_factory.mktemp("data") / "chairs", 5, "1\n1\n2\n1\n2\n")


@pytest.fixture(scope="module")
def sintel(tmp_path_factory):
    return write_sintel(tmp_path_factory.mktemp("data") / "sintel", {"b_2": 3, "a_10": 4, "c_1": 2})


def batches(index, n_batches, **options):
    options = {"batch_size": 4, "crop_px": CROP_PX, "seed": 7, "augment": QUARTER_TURNS_AND_FLIPS} | options
    return list(itertools.islice(flow_pair_batches(index, **options), n_batches))


def assert_equal_batches(batch, expected):
    assert batch.keys() == expected.keys() == NAMES
    for name in NAMES:
        assert batch[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(batch[name], expected[name])


def test_sintel_pairs_are_neighbours_with_the_flow_of_the_first(sintel):
    index = index_sintel(sintel)
    assert [pair.scene for pair in index] == ["a_10"] * 3 + ["b_2"] * 2 + ["c_1"]
    training = sintel / "training"
    assert index[1] == FlowPair(
        image_1_path=str(training / "final" / "a_10" / "frame_0002.png"),
        image_0_path=str(training / "final" / "a_10" / "frame_0003.png"),
        flow_1to0_path=str(training / "flow" / "a_10" / "frame_0002.flo"),
        scene="a_10",
        invalid_path=str(training / "invalid" / "a_10" / "frame_0002.png"),
        window_paths=tuple(str(training / "final" / "a_10" / f"frame_000{n}.png") for n in (1, 1, 2, 3, 4)),
    )
    clean = index_sintel(sintel, render_pass="clean", scenes=["c_1", "b_2"])
    assert [Path(pair.image_1_path).parts[-3:] for pair in clean] == [
        ("clean", "b_2", "frame_0001.png"),
        ("clean", "b_2", "frame_0002.png"),
        ("clean", "c_1", "frame_0001.png"),
    ]
    pair = read_flow_pair(index[1])
    valid = np.ones((12, 18), bool)
    valid[0, 2] = False
    np.testing.assert_array_equal(pair["valid_1to0"], valid)
    np.testing.assert_array_equal(pair["flow_1to0"], np.where(valid[..., None], np.float32(2), np.float32(0)) * [1, 1])
    assert not np.array_equal(pair["image_1"], pair["image_0"])
    np.testing.assert_array_equal(pair["image_0"], read_flow_pair(index[2])["image_1"])


def test_windows_are_the_frames_around_the_first_image_with_the_pairs_crops_and_flow(tmp_path):
    index = index_sintel(write_sintel(tmp_path / "sintel", {"a": 7, "b": 3}))
    assert [pair.has_whole_window for pair in index] == [False, False, True, True, True, False, False, False]
    options = {"scale_range": (0.7, 1.0), "crop_px": (6, 6), "batch_size": 2}
    for batch, expected in zip(batches(index, 6, windows=True, **options), batches(index, 6, **options), strict=True):
        assert set(batch) == {"window", "flow_1to0", "valid_1to0"}
        assert batch["window"].shape == (2, 5, 6, 6, 3)
        np.testing.assert_array_equal(batch["window"][:, 2], expected["image_1"])
        np.testing.assert_array_equal(batch["window"][:, 3], expected["image_0"])
        for name in ("flow_1to0", "valid_1to0"):
            np.testing.assert_array_equal(batch[name], expected[name])
    whole = np.stack([read_flow_pair(index[n])["image_1"] for n in (0, 0, 1, 2, 3)])
    np.testing.assert_array_equal(read_flow_window(index[1]), whole)


def test_windows_of_pairs_that_come_from_no_video(chairs):
    pair = index_flying_chairs(chairs)[0]
    images = read_flow_pair(pair)
    expected = [images[name] for name in ("image_1", "image_1", "image_1", "image_0", "image_0")]
    np.testing.assert_array_equal(read_flow_window(pair), np.stack(expected))
    with pytest.raises(ValueError, match="pairs that do not come from videos"):
        flow_pair_batches([pair], batch_size=1, crop_px=CROP_PX, seed=0, augment=None, windows=True)


@pytest.mark.parametrize("suffix", ["flo", "png"])
def test_folders_of_two_pictures_and_their_flow(tmp_path, suffix):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        image_1, image_0, flow, valid = true_pair(3)
        write_image(tmp_path / name / "frame1.png", ImageFile(image_0))
        write_image(tmp_path / name / "frame0.png", ImageFile(image_1))
        write_flow(tmp_path / name / f"flow.{suffix}", flow, valid)
    (tmp_path / "notes").mkdir()
    index = index_flow_folders(tmp_path)
    assert [pair.scene for pair in index] == ["a", "b"]
    read = read_flow_pair(index[0])
    np.testing.assert_array_equal(read["image_1"], image_1)
    np.testing.assert_array_equal(read["image_0"], image_0)
    np.testing.assert_array_equal(read["flow_1to0"][valid], flow[valid])

    write_image(tmp_path / "a" / "frame2.png", ImageFile(image_0))
    with pytest.raises(ValueError, match=rf"a' holds 3 pictures beside flow\.{suffix}; expected two"):
        index_flow_folders(tmp_path)
    for root in (tmp_path / "notes", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="expected layout <root>/<pair>/"):
            index_flow_folders(root)


def test_scenes_are_held_out_by_name(sintel):
    training, validation = hold_out_scenes(index_sintel(sintel), ["a_10"])
    assert {pair.scene for pair in training} == {"b_2", "c_1"}
    assert [pair.scene for pair in validation] == ["a_10"] * 3
    assert validation == index_sintel(sintel, scenes=["a_10"])
    with pytest.raises(ValueError, match="index has no scenes 'd', 'e'; give a list of these names: a_10, b_2, c_1"):
        hold_out_scenes(index_sintel(sintel), ["a_10", "e", "d"])
    with pytest.raises(ValueError, match=r"MPI Sintel in .* has no scenes 'a_11'"):
        index_sintel(sintel, scenes=["a_11"])
    with pytest.raises(ValueError, match="no scenes 'a_10'; give a list"):
        index_sintel(sintel, scenes="a_10")


def test_sintel_without_masks_and_with_missing_files(tmp_path):
    root = write_sintel(tmp_path / "sintel", {"a": 14, "b": 2}, masks=False)
    assert all(pair.invalid_path is None for pair in index_sintel(root))
    for number in range(2, 13):
        (root / "training" / "flow" / "a" / f"frame_{number:04d}.flo").unlink()
    (root / "training" / "final" / "a" / "frame_0014.png").unlink()  # the last one, which only a flow points at
    with pytest.raises(FileNotFoundError, match=r"12 files are missing: \S*flow/a/frame_0002\.flo, .* and 2 more;"):
        index_sintel(root)
    assert len(index_sintel(root, scenes=["b"])) == 1
    with pytest.raises(FileNotFoundError, match=r"11 files are missing"):
        index_sintel(root, render_pass="clean")
    (root / "training" / "invalid").mkdir()
    with pytest.raises(FileNotFoundError, match=r"1 files are missing: \S*invalid/b/frame_0001\.png;"):
        index_sintel(root, scenes=["b"])
    with pytest.raises(FileNotFoundError, match=r"no folder '.*training/final'; expected layout <root>/training"):
        index_sintel(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no pairs"):
        index_sintel(root, scenes=[])
    with pytest.raises(ValueError, match="render_pass is 'final' or 'clean'"):
        inspect.unwrap(index_sintel)(root, render_pass="albedo")  # as without the run-time type checker


def test_chairs_follow_the_split_file_in_either_place(chairs, tmp_path):
    training, validation = index_flying_chairs(chairs), index_flying_chairs(chairs, split="validation")
    assert [pair.scene for pair in training] == ["00001", "00002", "00004"]
    assert [pair.scene for pair in validation] == ["00003", "00005"]
    assert training[2] == FlowPair(
        image_1_path=str(chairs / "data" / "00004_img1.ppm"),
        image_0_path=str(chairs / "data" / "00004_img2.ppm"),
        flow_1to0_path=str(chairs / "data" / "00004_flow.flo"),
        scene="00004",
    )
    image_1, image_0, flow, valid = true_pair(4)
    pair = read_flow_pair(training[2])
    expected = {"image_1": image_1, "image_0": image_0, "flow_1to0": flow * valid[..., None], "valid_1to0": valid}
    assert_equal_batches(pair, expected)

    root = write_chairs(tmp_path / "chairs", 2)
    (root / "data" / "FlyingChairs_train_val.txt").write_text("2 1\n")
    assert [pair.scene for pair in index_flying_chairs(root)] == ["00002"]


def test_chairs_without_a_split_file_validate_every_36th(tmp_path, caplog):
    root = write_chairs(tmp_path / "chairs", 37, size=(1, 1))
    with caplog.at_level(logging.INFO, logger="absl"):
        validation = index_flying_chairs(root, split="validation")
    assert "has no FlyingChairs_train_val.txt; every 36th pair is for validation" in caplog.text
    assert [pair.scene for pair in validation] == ["00036"]
    assert [pair.scene for pair in index_flying_chairs(root)] == [f"{n:05d}" for n in range(1, 38) if n != 36]


def test_chairs_with_missing_files_or_a_split_of_another_set(tmp_path):
    root = write_chairs(tmp_path / "chairs", 3)
    split_file = root / "FlyingChairs_train_val.txt"
    (root / "data" / "00002_img2.ppm").unlink()
    with pytest.raises(FileNotFoundError, match=r"train part of FlyingChairs .* 1 files are missing: \S*00002_img2"):
        index_flying_chairs(root)
    split_file.write_text("1\n2\n1\n")
    assert len(index_flying_chairs(root)) == 2
    split_file.write_text("1\n2\n1\n1\n")
    with pytest.raises(FileNotFoundError, match="3 files are missing"):
        index_flying_chairs(root)
    split_file.write_text("1\n2\n")
    with pytest.raises(ValueError, match=r"train_val\.txt has 2 lines, but '.*data' has a pair 00003"):
        index_flying_chairs(root)
    split_file.write_text("1\n0\n1\n")
    with pytest.raises(ValueError, match=r"train_val\.txt: line 2 is '0'; expected 1 \(train\) or 2 \(validation\)"):
        index_flying_chairs(root)
    with pytest.raises(ValueError, match="split is 'train' or 'validation'"):
        inspect.unwrap(index_flying_chairs)(root, split="test")  # as without the run-time type checker
    with pytest.raises(FileNotFoundError, match=r"no folder '.*data'; expected layout"):
        index_flying_chairs(tmp_path)


@pytest.mark.parametrize("header", ["P6 {width}\t{height}\r\n255 ", "P6\n# a comment\n{width}\n#\n# 9\n{height} 255\n"])
def test_ppm_headers_of_all_kinds(chairs, tmp_path, header):
    image_u8 = true_pair(0)[0]
    write_ppm(tmp_path / "a.ppm", image_u8, header)
    pair = dataclasses.replace(index_flying_chairs(chairs)[0], image_1_path=str(tmp_path / "a.ppm"))
    np.testing.assert_array_equal(read_flow_pair(pair)["image_1"], image_u8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a binary 8-bit PPM image"),
        (b"P5 18 12 255 ", "not a binary 8-bit PPM image"),
        (b"P6 18 12 65535 ", "not a binary 8-bit PPM image"),
        (b"P6 0 12 255 ", "not a binary 8-bit PPM image"),
        (b"P6 18 12 255 " + bytes(12 * 18 * 3 - 1), "is cut short: 660 bytes, but 18x12 pixels take 661"),
    ],
)
def test_damaged_ppm_files_are_refused_by_name(chairs, tmp_path, data, message):
    path = tmp_path / "a.ppm"
    path.write_bytes(data)
    pair = dataclasses.replace(index_flying_chairs(chairs)[0], image_0_path=str(path))
    with pytest.raises(ValueError, match=f"'{path}' .*{message}"):
        read_flow_pair(pair)


def test_files_of_unequal_size_are_refused_by_name(chairs, tmp_path):
    write_flow(tmp_path / "a.flo", np.zeros((12, 17, 2), np.float32))
    pair = dataclasses.replace(index_flying_chairs(chairs)[0], flow_1to0_path=str(tmp_path / "a.flo"))
    with pytest.raises(ValueError, match=r"00001_img1\.ppm' is 18x12 but '.*a\.flo' is 17x12; the files of a pair"):
        read_flow_pair(pair)


@pytest.mark.parametrize(("augment", "n_ways"), [(None, 1), (FLIPS, 4), (QUARTER_TURNS_AND_FLIPS, 8)])
def test_after_every_turn_warping_still_gives_the_first_image(tmp_path, augment, n_ways):
    root = write_chairs(tmp_path / "chairs", 3)
    ways, moved = set(), 0
    for number, batch in enumerate(batches(index_flying_chairs(root), 16, augment=augment)):
        assert batch["image_1"].shape == batch["image_0"].shape == (4, *CROP_PX, 3)
        warped, inside = warp_backward(batch["image_0"].astype(np.float32), batch["flow_1to0"], border="zeros")
        known = np.asarray(inside) & batch["valid_1to0"]
        np.testing.assert_array_equal(np.asarray(warped)[known], batch["image_1"][known])
        moved += np.count_nonzero(known & np.any(batch["flow_1to0"] != 0, -1))
        np.testing.assert_array_equal(batch["flow_1to0"][~batch["valid_1to0"]], 0)
        for sample in range(4 * number, 4 * number + 4):
            box = draw_geometry(seed=7, sample=sample, frame_size_px=(12, 18), crop_px=CROP_PX, augmentation=augment)
            ways.add((box.swap_axes, box.reverse_rows, box.reverse_columns))
    assert len(ways) == n_ways
    assert moved > 64 * 8


def test_crops_are_those_of_the_plain_loop(chairs):
    """The oracle: whole pairs, turned by NumPy, each vector by its matrix; an epoch visits each pair once."""
    index = index_flying_chairs(chairs)
    stored = {true_pair(int(pair.scene))[1].tobytes() for pair in index}
    whole = batches(index, 4, batch_size=3, crop_px=(12, 18), augment=None)
    for batch in whole:
        assert {image.tobytes() for image in batch["image_0"]} == stored
    read = batches(index, 4, batch_size=3)
    for number, (batch, frames) in enumerate(zip(read, whole)):
        for position in range(3):
            box = draw_geometry(
                seed=7,
                sample=3 * number + position,
                frame_size_px=(12, 18),
                crop_px=CROP_PX,
                augmentation=QUARTER_TURNS_AND_FLIPS,
            )
            for name in NAMES:
                array = frames[name][position][box.top_px :, box.left_px :][: box.height_px, : box.width_px]
                array = np.swapaxes(array, 0, 1) if box.swap_axes else array
                array = np.flipud(array) if box.reverse_rows else array
                array = np.fliplr(array) if box.reverse_columns else array
                if name == "flow_1to0":
                    matrix = np.eye(2)[::-1] if box.swap_axes else np.eye(2)
                    matrix = np.diag([-1, 1] if box.reverse_columns else [1, 1]) @ matrix
                    matrix = np.diag([1, -1] if box.reverse_rows else [1, 1]) @ matrix
                    array = np.einsum("ij,yxj->yxi", matrix, array)
                np.testing.assert_array_equal(batch[name][position], array)


def test_starting_at_a_batch_equals_skipping_to_it(chairs):
    index = index_flying_chairs(chairs)
    options = {"scale_range": (0.7, 1.2), "crop_px": (8, 8)}
    whole = batches(index, 6, **options)
    for batch, expected in zip(batches(index, 3, first_batch=3, **options), whole[3:]):
        assert_equal_batches(batch, expected)
    assert np.any(whole[0]["image_1"] != batches(index, 1, seed=8, **options)[0]["image_1"])


def test_the_shares_of_two_processes_make_the_batch(sintel):
    index = index_sintel(sintel)
    whole = batches(index, 4)[1:]
    shares = [batches(index, 3, first_batch=1, process_index=process, process_count=2) for process in range(2)]
    for batch, first, second in zip(whole, *shares):
        assert first["image_1"].shape[0] == 2
        assert_equal_batches({name: np.concatenate([first[name], second[name]]) for name in NAMES}, batch)


def test_scaled_pairs_are_crops_of_the_resized_pair(tmp_path):
    """Against the resizing of `ops`; the flow, of the frame's size in pixels, tells the size that was drawn."""
    image_1, image_0, _, valid = true_pair(0, 21, 30)
    index = [FlowPair(*(str(tmp_path / name) for name in ("1.ppm", "0.ppm", "flow.flo")), scene="a")]
    write_ppm(tmp_path / "1.ppm", image_1)
    write_ppm(tmp_path / "0.ppm", image_0)
    write_flow(tmp_path / "flow.flo", np.full((21, 30, 2), (30, 21), np.float32), valid)
    # All in one array, since every size compiles anew.
    stored = np.concatenate([image_1, image_0, ~valid[..., None], valid[..., None] * np.array([30, 21])], axis=-1)
    stored = jnp.asarray(stored, jnp.float32)
    widths = set()
    read = batches(index, 9, batch_size=1, crop_px=(12, 10), augment=None, scale_range=(0.5, 1.2))
    for number, batch in enumerate(read):
        width, height = np.rint(batch["flow_1to0"][batch["valid_1to0"]][0]).astype(int).tolist()
        widths.add(width)
        box = draw_geometry(seed=7, sample=number, frame_size_px=(height, width), crop_px=(12, 10), augmentation=None)
        resized = np.asarray(resize_bilinear(stored, height, width, align_corners=False))
        crop = resized[box.top_px :, box.left_px :][:12, :10]
        known = crop[..., 6] == 0
        np.testing.assert_array_equal(batch["valid_1to0"][0], known)
        flow = crop[..., 7:] * np.array([width / 30, height / 21])
        np.testing.assert_allclose(batch["flow_1to0"][0], np.where(known[..., None], flow, 0), atol=1e-4)
        images = np.concatenate([batch["image_1"][0], batch["image_0"][0]], axis=-1)
        # A byte may round the other way where the two interpolations differ in the last place.
        np.testing.assert_allclose(images, crop[..., :6], atol=0.5001)
    # From what holds the crop (12 rows of 21) to the highest.
    assert min(widths) >= 17
    assert max(widths) <= 36
    assert len(widths) > 5


def test_a_smooth_pair_still_warps_after_scaling_and_turning(tmp_path):
    y, x = np.mgrid[:48, :64].astype(np.float64)

    def picture(x, y):
        return np.stack([np.sin(x / 5) + np.cos(y / 7), np.cos(x / 6 - y / 9), np.sin(y / 4)], -1)

    flow = np.stack([2.5 + 0.03 * y, -1.25 - 0.04 * x], -1).astype(np.float32)
    for name, image in (("1", picture(x + flow[..., 0], y + flow[..., 1])), ("0", picture(x, y))):
        write_ppm(tmp_path / f"{name}.ppm", np.rint(127.5 + 60 * image).astype(np.uint8))
    write_flow(tmp_path / "flow.flo", flow)
    index = [FlowPair(*(str(tmp_path / name) for name in ("1.ppm", "0.ppm", "flow.flo")), scene="a")]
    for batch in batches(index, 8, crop_px=(24, 20), scale_range=(0.6, 1.5)):
        warped, inside = warp_backward(batch["image_0"].astype(np.float32), batch["flow_1to0"], border="zeros")
        difference = np.abs(np.asarray(warped) - batch["image_1"])[np.asarray(inside)]
        assert np.all(batch["valid_1to0"])
        assert difference.mean() < 1.5
        assert difference.max() < 12
        assert np.abs(batch["image_0"].astype(int) - batch["image_1"]).mean() > 10


def test_a_file_that_is_damaged_changed_or_gone_is_named(tmp_path):
    root = write_chairs(tmp_path / "chairs", 1)
    index = index_flying_chairs(root)
    read = flow_pair_batches(index, batch_size=2, crop_px=CROP_PX, seed=0, augment=None)
    flow_path, image_path = root / "data" / "00001_flow.flo", root / "data" / "00001_img1.ppm"
    data = flow_path.read_bytes()
    flow_path.write_bytes(data[:100])
    with pytest.raises(ValueError, match=r"00001_flow\.flo: \.flo file cut short: 100 bytes"):
        next(read)
    flow_path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        batches(index, 1)
    assert caught.value.filename == str(flow_path)
    flow_path.write_bytes(data)
    read = flow_pair_batches(index, batch_size=2, crop_px=CROP_PX, seed=0, augment=None)
    for path, suffix in ((image_path, "img1"), (root / "data" / "00001_img2.ppm", "img2")):
        assert suffix in path.name
        write_ppm(path, true_pair(1, 12, 17)[0])
    write_flow(flow_path, np.zeros((12, 17, 2), np.float32))
    with pytest.raises(ValueError, match=r"00001_img1\.ppm' is 17x12 but was 18x12 when the run began"):
        next(read)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "process_count": 2}, "batch of 3 cannot be shared out equally to 2 processes"),
        ({"process_index": 1}, "process_index is 0 to 0, not 1"),
        ({"seed": -1}, "seed is 0 to"),
        ({"first_batch": -1}, "first_batch >= 0"),
        ({"crop_px": (13, 8)}, r"crop of 8x13 does not fit clip '.*00001_img1\.ppm', whose frame is 18x12 and"),
        ({"crop_px": (8, 12), "scale_range": (0.5, 0.9)}, r"img1\.ppm scaled by 0\.9', whose frame is 16x11"),
        ({"scale_range": (0.4, 1.0)}, "scale_range is .*at least 0.5"),
        ({"scale_range": (1.0, 0.9)}, "scale_range is"),
        ({"augment": MTU_AUGMENTATION}, "augment has noise"),
    ],
)
def test_impossible_options_are_refused_before_the_first_batch(chairs, options, message):
    options = {"batch_size": 4, "crop_px": CROP_PX, "seed": 7, "augment": QUARTER_TURNS_AND_FLIPS} | options
    with pytest.raises(ValueError, match=message):
        flow_pair_batches(index_flying_chairs(chairs), **options)


def test_an_empty_index_is_refused():
    with pytest.raises(ValueError, match="index holds no pairs"):
        batches([], 1)


def test_threads_end_with_the_batches_and_read_only_a_little_ahead(chairs, monkeypatch):
    read = []

    def note(pair):
        read.append(pair)
        return read_flow_pair(pair)

    monkeypatch.setattr("jaxdeblur.data.flow_pairs.read_flow_pair", note)
    options = {"batch_size": 4, "crop_px": CROP_PX, "seed": 0, "augment": None}
    endless = flow_pair_batches(index_flying_chairs(chairs), **options)
    next(endless)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("flow_pairs")]
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("flow_pairs")]
    assert 4 <= len(read) <= 16


@pytest.mark.parametrize("end", ["raise RuntimeError('end')", "sys.exit(1)"])
def test_a_program_ends_while_batches_are_read(chairs, end):
    code = f"""if True:
        import sys
        from jaxdeblur.data.flow_pairs import *
        index = index_flying_chairs({str(chairs)!r})
        endless = flow_pair_batches(index, batch_size=64, crop_px=(8, 6), seed=0, augment=None)
        next(endless)
        {end}
    """
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 1
