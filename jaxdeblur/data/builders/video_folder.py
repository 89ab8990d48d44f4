"""A video folder as a TensorFlow Datasets data set: one example a frame, in order, files as they are.

    config = VideoFolderConfig(name="gopro", root="/data/gopro")
    builder = VideoFolder(config=config, file_format="array_record")
    builder.download_and_prepare()
    frames = builder.as_data_source("train", decoders={"blurred": SkipDecoding(), "sharp": SkipDecoding()})

Examples are frames, not clips: a 720p clip of 200 pairs would be one example of half a gigabyte, read whole
for any window. They are stored clip after clip in time order and never shuffled, so frames i .. i+T-1 are a
window where `frames[i]["frames_to_end"] >= T-1`, and with array_record files a window is T random reads. The
images are the bytes of the source files, untouched. Training by `jaxdeblur.data.pipeline` reads the video
folder itself and needs none of this.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxdeblur.data.pipeline import import_tensorflow
from jaxdeblur.data.video_folder import index_video_folder, list_splits

import_tensorflow()
import tensorflow_datasets as tfds  # noqa: E402  (after TensorFlow was kept off the accelerators)


def frame_features() -> dict[str, Any]:
    """Of an example that is a frame with its partner."""
    return {
        "clip": tfds.features.Text(),
        "frame": tfds.features.Text(),  # file name of the blurred frame
        "frames_to_end": tfds.features.Scalar(np.int32),  # 0 at the last frame of a clip
        "blurred": tfds.features.Image(shape=(None, None, 3)),
        "sharp": tfds.features.Image(shape=(None, None, 3)),
    }


@dataclasses.dataclass(kw_only=True)
class VideoFolderConfig(tfds.core.BuilderConfig):
    """One video folder. `name` is what its prepared form is called under the data directory."""

    root: str | os.PathLike[str] = ""


class VideoFolder(tfds.core.GeneratorBasedBuilder):
    """Pairs of a blurred and a sharp frame, clip after clip in time order; its splits are the folder's."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}  # noqa: RUF012  (the base class declares it)
    # Nothing is downloaded. Looking for checksums would import importlib_resources, which TFDS 4.9 does not
    # require.
    url_infos = None

    def __init__(self, *, config: VideoFolderConfig | None = None, **options: Any) -> None:
        if not isinstance(config, VideoFolderConfig) or not config.root:
            raise ValueError(
                "VideoFolder needs config=VideoFolderConfig(name=..., root=<folder with <split>/<clip>/{blur,sharp}>)"
            )
        super().__init__(config=config, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(frame_features()),
            supervised_keys=("blurred", "sharp"),
            description="Blurred video frames with their sharp partners.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in list_splits(self.builder_config.root)}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0  # keys of an unshuffled data set are to be integers in order
        for clip in index_video_folder(self.builder_config.root, split):
            for frame, (blur_path, sharp_path) in enumerate(zip(clip.blur_paths, clip.sharp_paths)):
                yield (
                    number,
                    {
                        "clip": clip.name,
                        "frame": os.path.basename(blur_path),
                        "frames_to_end": clip.n_frames - 1 - frame,
                        "blurred": blur_path,
                        "sharp": sharp_path,
                    },
                )
                number += 1
