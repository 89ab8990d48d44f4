import dataclasses
import itertools

import numpy as np
import pytest
from official_factory import WRITERS, zipped

pytest.importorskip("tensorflow_datasets", reason="TensorFlow Datasets is not installed")

import tensorflow_datasets as tfds

from jaxdeblur import cli
from jaxdeblur.data.builders.official import BUILDERS, FlyingChairs, GoPro, Sintel
from jaxdeblur.data.datasets import DATASETS
from jaxdeblur.data.image_io import read_rgb_u8
from jaxdeblur.data.preparation import FaultsFoundError


@pytest.fixture
def mini(monkeypatch):
    for name, (dataset, _) in WRITERS.items():
        monkeypatch.setattr(BUILDERS[name], "dataset", dataset)
        monkeypatch.setitem(DATASETS, name, dataset)


def prepared(builder, manual_dir):
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


def test_there_is_a_builder_for_every_data_set():
    assert BUILDERS.keys() == DATASETS.keys()
    for name, builder in BUILDERS.items():
        assert DATASETS[name].by_hand in builder.MANUAL_DOWNLOAD_INSTRUCTIONS


@pytest.mark.parametrize("name", ["gopro", "dvd", "reds", "bsd"])
def test_frames_of_videos(mini, tmp_path, name):
    dataset, write_set = WRITERS[name]
    root = write_set(tmp_path / "set")
    builder = prepared(BUILDERS[name](data_dir=tmp_path / "tfds", file_format="array_record"), root)
    assert builder.info.homepage == dataset.page
    for split in dataset.splits:
        frames = builder.as_data_source(split)
        assert len(frames) == dataset.count(split)[1]
        clips = [frame["clip"].decode() for frame in frames]
        assert clips == sorted(clips)
        ends = [frame["frames_to_end"] for frame in frames]
        assert ends.count(0) == dataset.count(split)[0]
        assert all(now - 1 == following for now, following in itertools.pairwise(ends) if now)


def test_a_frame_is_the_archives(mini, tmp_path):
    root = WRITERS["gopro"][1](tmp_path / "set")
    (tmp_path / "manual").mkdir()
    zipped(root, {tmp_path / "manual" / "GOPRO_Large.zip": ""})
    frames = prepared(
        GoPro(data_dir=tmp_path / "tfds", config="blur_gamma", file_format="array_record"), tmp_path / "manual"
    ).as_data_source("train")
    clip = root / "GOPRO_Large" / "train" / "GOPR0372_07_01"
    np.testing.assert_array_equal(frames[7]["blurred"], read_rgb_u8(clip / "blur_gamma" / "000602.png"))
    np.testing.assert_array_equal(frames[7]["sharp"], read_rgb_u8(clip / "sharp" / "000602.png"))


def test_pairs_with_flow(mini, tmp_path):
    root = WRITERS["sintel"][1](tmp_path / "sintel")
    pairs = list(
        prepared(Sintel(data_dir=tmp_path / "tfds", config="clean", file_format="array_record"), root).as_data_source(
            "train"
        )
    )
    assert [pair["scene"].decode() for pair in pairs] == ["alley_1"] * 3 + ["cave_2"] * 2
    for pair in pairs:
        np.testing.assert_array_equal(pair["image_1"][:, 3:], pair["image_0"][:, :-3])
        assert not pair["valid_1to0"][:2].any()
        np.testing.assert_array_equal(pair["flow_1to0"], np.where(pair["valid_1to0"][..., None], [-3, 0], 0))
    root = WRITERS["flying_chairs"][1](tmp_path / "chairs")
    builder = prepared(FlyingChairs(data_dir=tmp_path / "tfds", file_format="array_record"), root)
    scenes = {
        split: [pair["scene"].decode() for pair in builder.as_data_source(split)] for split in builder.info.splits
    }
    assert scenes == {"train": ["00001", "00003"], "validation": ["00002"]}


def test_a_damaged_set_is_not_prepared(mini, tmp_path):
    root = WRITERS["gopro"][1](tmp_path / "set")
    (root / "GOPRO_Large" / "test" / "GOPR0384_11_00" / "sharp" / "000002.png").unlink()
    builder = GoPro(data_dir=tmp_path / "tfds", file_format="array_record")
    with pytest.raises(FaultsFoundError, match=r"GOPR0384_11_00/sharp: has no frame 2"):
        prepared(builder, root)
    assert not list((tmp_path / "tfds").rglob("*record*"))


def test_the_command(mini, tmp_path, capsys):
    root = WRITERS["gopro"][1](tmp_path / "set")
    command = ["data", "prepare", "gopro", str(root), "--form=tfds", f"--out={tmp_path / 'tfds'}", "--splits=test"]
    assert cli.main(command) == 0
    folder = capsys.readouterr().out.strip().splitlines()[-1]
    builder = tfds.builder_from_directory(folder)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"test": 5}
    assert cli.main(command) == 2
    assert "is there already; remove it, or name another folder with --out" in capsys.readouterr().err
    assert cli.main([*command[:-2], "--variant=gamma", f"--out={tmp_path / 'other'}"]) == 2
    assert "gopro has no variant 'gamma'; variants are blur, blur_gamma" in capsys.readouterr().err
    wrong = dataclasses.replace(WRITERS["gopro"][0], size_px=(10, 10))
    DATASETS["gopro"] = BUILDERS["gopro"].dataset = wrong  # the fixture puts both back
    assert cli.main([*command[:-2], f"--out={tmp_path / 'other'}"]) == 2
    assert "another size: test/GOPR0384_11_00: is 64x48" in capsys.readouterr().out
    assert not (tmp_path / "other").exists()
