from pathlib import Path

import numpy as np
import pytest
from video_folder_factory import write_random_clip

pytest.importorskip("tensorflow_datasets", reason="TensorFlow Datasets is not installed")

import tensorflow_datasets as tfds

from jaxdeblur.data.builders.video_folder import VideoFolder, VideoFolderConfig
from jaxdeblur.data.video_folder import index_video_folder, read_clip_frame


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> VideoFolder:
    root = tmp_path_factory.mktemp("video")
    write_random_clip(root / "train" / "clip9", 11, 5, 7, seed=0)
    write_random_clip(root / "train" / "clip10", 2, 6, 4, seed=1)
    write_random_clip(root / "test" / "only", 1, 5, 7, seed=2)
    config = VideoFolderConfig(name="small", root=root)
    builder = VideoFolder(config=config, data_dir=tmp_path_factory.mktemp("prepared"), file_format="array_record")
    builder.download_and_prepare()
    return builder


def test_splits_and_frames_are_the_folders_in_order(builder):
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 13,
        "test": 1,
    }
    skip = {"blurred": tfds.decode.SkipDecoding(), "sharp": tfds.decode.SkipDecoding()}
    frames = builder.as_data_source("train", decoders=skip)
    clips = index_video_folder(builder.builder_config.root, "train")
    expected = [(clip, number) for clip in clips for number in range(clip.n_frames)]
    assert len(frames) == len(expected)
    for example, (clip, number) in zip(frames, expected):
        assert example["clip"].decode() == clip.name
        assert example["frame"].decode() == f"{number}.png"
        assert example["frames_to_end"] == clip.n_frames - 1 - number
        # The very bytes of the files.
        assert example["blurred"] == Path(clip.blur_paths[number]).read_bytes()
        assert example["sharp"] == Path(clip.sharp_paths[number]).read_bytes()


def test_frames_decode_to_the_images(builder):
    (clip,) = index_video_folder(builder.builder_config.root, "test")
    (example,) = builder.as_data_source("test")
    np.testing.assert_array_equal(example["blurred"], read_clip_frame(clip, 0, "blur"))
    np.testing.assert_array_equal(example["sharp"], read_clip_frame(clip, 0, "sharp"))


def test_a_builder_without_a_folder_is_refused():
    with pytest.raises(ValueError, match="needs config=VideoFolderConfig"):
        VideoFolder()
    with pytest.raises(ValueError, match="needs config=VideoFolderConfig"):
        VideoFolder(config=VideoFolderConfig(name="nothing"))
