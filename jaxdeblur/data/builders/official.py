"""The field's data sets as TensorFlow Datasets, from the archives that were downloaded by hand.

    builder = GoPro(config="blur_gamma", data_dir="data/tfds")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir="downloads"))
    frames = builder.as_data_source("train")    # with file_format="array_record"

`manual_dir` holds the archives or what was unpacked from them. Everything is verified before the first example is
written (`data.verification`): a data set with faults is not prepared. Video sets have an example a frame in the order
of time, as `builders.video_folder` explains; flow sets an example a pair.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxdeblur.data.builders.video_folder import frame_features
from jaxdeblur.data.datasets import (
    BSD,
    CHAIRS_SPLIT_FILE,
    DVD,
    FLYING_CHAIRS,
    GOPRO,
    REDS,
    SINTEL,
    FlowFiles,
    FlowSet,
    VideoSet,
    instructions,
)
from jaxdeblur.data.flow_io import decode_flo
from jaxdeblur.data.flow_pairs import CHAIRS_VALIDATION_EVERY, read_chairs_split
from jaxdeblur.data.image_io import StrPath, decode_image
from jaxdeblur.data.pipeline import import_tensorflow
from jaxdeblur.data.preparation import FaultsFoundError
from jaxdeblur.data.sources import Item, open_source
from jaxdeblur.data.verification import Inspection, inspect
from jaxdeblur.data.video_folder import SIDES

import_tensorflow()
import tensorflow_datasets as tfds  # noqa: E402  (after TensorFlow was kept off the accelerators)

_LISTED_FAULTS = 20


class _Official(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    # Nothing is downloaded. Looking for checksums would import importlib_resources, which TFDS 4.9 does not require.
    url_infos = None
    dataset: ClassVar[VideoSet | FlowSet]
    inspected: Inspection | None = None
    """By prepare_tfds, whose sources need not lie in one folder."""

    def _describe(self, features: dict[str, Any], **options: Any) -> tfds.core.DatasetInfo:
        dataset = self.dataset
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description=f"{dataset.title}. Licence: {dataset.licence}.",
            homepage=dataset.page,
            disable_shuffling=True,
            **options,
        )

    def _inspect(self, dl_manager: tfds.download.DownloadManager) -> Inspection:
        if self.inspected is not None:
            return self.inspected
        self._opened = contextlib.ExitStack()  # archives, as long as the builder lives
        items = self._opened.enter_context(open_source([dl_manager.manual_dir]))
        variant = self.builder_config.name if isinstance(self.dataset, VideoSet) else None
        found = inspect(items, self.dataset, variant=variant)
        if found.faults:
            listed = "\n".join(map(str, found.faults[:_LISTED_FAULTS]))
            raise FaultsFoundError(
                f"{self.dataset.title}: faults were found ({len(found.faults)}), so nothing was prepared:\n{listed}",
                found.faults,
            )
        return found


class _Videos(_Official, skip_registration=True):  # type: ignore[call-arg]
    dataset: ClassVar[VideoSet]

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe(frame_features(), supervised_keys=("blurred", "sharp"))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        found = self._inspect(dl_manager)
        clips: dict[str, dict[str, list[list[Item]]]] = {}
        for item, place in found.files:
            split, clip, side, _ = place.split("/")
            clips.setdefault(split, {}).setdefault(clip, [[], []])[SIDES.index(side)].append(item)  # type: ignore[arg-type]
        return {split: self._generate_examples(of_split) for split, of_split in clips.items()}

    def _generate_examples(self, clips: dict[str, list[list[Item]]]) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0  # keys of an unshuffled data set are to be integers in order
        for clip, sides in sorted(clips.items()):
            for position, (blurred, sharp) in enumerate(zip(*sides, strict=True), start=1):
                yield (
                    number,
                    {
                        "clip": clip,
                        "frame": blurred.key.rpartition("/")[2],
                        "frames_to_end": len(sides[0]) - position,
                        "blurred": _stored(blurred),
                        "sharp": _stored(sharp),
                    },
                )
                number += 1


def _stored(item: Item) -> Any:
    """A PNG as it is; of JPEG the pixels, since TensorFlow Datasets would decode it with a coarser transform."""
    return io.BytesIO(item.read()) if item.key.lower().endswith(".png") else item.picture()


class _Flows(_Official, skip_registration=True):  # type: ignore[call-arg]
    dataset: ClassVar[FlowSet]

    def _info(self) -> tfds.core.DatasetInfo:
        width, height = self.dataset.size_px
        image, one = tfds.features.Image(shape=(height, width, 3)), (height, width)
        return self._describe(
            {
                "scene": tfds.features.Text(),
                "image_1": image,
                "image_0": image,
                "flow_1to0": tfds.features.Tensor(shape=(*one, 2), dtype=np.float32, encoding="zlib"),
                "valid_1to0": tfds.features.Tensor(shape=one, dtype=np.bool_, encoding="zlib"),
            }
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files = {place: item for item, place in self._inspect(dl_manager).files}
        pairs = [pair for pair in self._pairs() if all(file in files for file in pair.files)]
        return {
            split: self._generate_examples(of_split, files) for split, of_split in self._splits(pairs, files).items()
        }

    def _pairs(self) -> Iterator[FlowFiles]:
        return self.dataset.pairs()

    def _splits(self, pairs: list[FlowFiles], files: dict[str, Item]) -> dict[str, list[FlowFiles]]:
        return {"train": pairs}

    def _generate_examples(
        self, pairs: list[FlowFiles], files: dict[str, Item]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, pair in enumerate(pairs):
            flow, valid = decode_flo(files[pair.flow_1to0].read(), files[pair.flow_1to0].where)
            for mask in (files[mask] for mask in pair.masks if mask in files):
                valid &= ~np.any(decode_image(mask.read(), mask.where).rgb > 0, axis=-1)
            flow[~valid] = 0
            images = {name: files[path].picture() for name, path in zip(("image_1", "image_0"), pair.files)}
            yield number, {"scene": pair.scene, **images, "flow_1to0": flow, "valid_1to0": valid}


def _configs(names: Iterable[str]) -> list[tfds.core.BuilderConfig]:
    return [tfds.core.BuilderConfig(name=name) for name in names]


class Dvd(_Videos):
    """Su et al., CVPR 2017."""

    dataset = DVD
    BUILDER_CONFIGS: ClassVar = _configs(DVD.variants)
    MANUAL_DOWNLOAD_INSTRUCTIONS = instructions(DVD)


class GoPro(_Videos):
    """Nah et al., CVPR 2017; configurations `blur` and `blur_gamma`."""

    dataset = GOPRO
    BUILDER_CONFIGS: ClassVar = _configs(GOPRO.variants)
    MANUAL_DOWNLOAD_INSTRUCTIONS = instructions(GOPRO)


class Reds(_Videos):
    """Nah et al., CVPRW 2019; configurations `blur`, `blur_comp` and `blur_jpeg`."""

    dataset = REDS
    BUILDER_CONFIGS: ClassVar = _configs(REDS.variants)
    MANUAL_DOWNLOAD_INSTRUCTIONS = instructions(REDS)


class Bsd(_Videos):
    """Zhong et al., ECCV 2020; configurations by the exposures of the two cameras."""

    dataset = BSD
    BUILDER_CONFIGS: ClassVar = _configs(BSD.variants)
    MANUAL_DOWNLOAD_INSTRUCTIONS = instructions(BSD)


class Sintel(_Flows):
    """Butler et al., ECCV 2012; configurations `final` (with motion blur and fog) and `clean`."""

    dataset = SINTEL
    BUILDER_CONFIGS: ClassVar = _configs(("final", "clean"))
    MANUAL_DOWNLOAD_INSTRUCTIONS = instructions(SINTEL)

    def _pairs(self) -> Iterator[FlowFiles]:
        return (pair for pair in super()._pairs() if f"/{self.builder_config.name}/" in pair.image_1)


class FlyingChairs(_Flows):
    """Dosovitskiy et al., ICCV 2015; splits `train` and `validation` as published."""

    dataset = FLYING_CHAIRS
    MANUAL_DOWNLOAD_INSTRUCTIONS = instructions(FLYING_CHAIRS)

    def _splits(self, pairs: list[FlowFiles], files: dict[str, Item]) -> dict[str, list[FlowFiles]]:
        listed = files.get(CHAIRS_SPLIT_FILE)
        published = read_chairs_split(listed.read().decode(), listed.where) if listed else None
        splits: dict[str, list[FlowFiles]] = {"train": [], "validation": []}
        for pair in pairs:
            number = int(pair.scene)
            if published is not None:
                splits[published[number - 1]].append(pair)
            else:
                splits["train" if number % CHAIRS_VALIDATION_EVERY else "validation"].append(pair)
        return splits


BUILDERS = {builder.dataset.name: builder for builder in (Dvd, GoPro, Reds, Bsd, Sintel, FlyingChairs)}


def prepare_tfds(
    dataset: VideoSet | FlowSet,
    sources: Sequence[StrPath],
    data_dir: StrPath,
    *,
    variant: str | None = None,
    **which: Any,
) -> str:
    """Writes a data set below data_dir, with random access (array_record); its folder.

    Args:
        variant: the builder's configuration; None takes the first.
        which: options of `verification.inspect`: splits, partial, trusted, quick.
    Raises:
        FileExistsError: it was prepared before.
        FaultsFoundError: the data set has faults; nothing was written.
        OSError, ValueError: a source cannot be read, an option does not fit the data set.
    """
    with open_source(sources) as items:
        found = inspect(items, dataset, variant=variant, **which)
        if found.faults:
            raise FaultsFoundError(
                f"{dataset.title}: faults were found ({len(found.faults)}), so nothing was prepared", found.faults
            )
        # Sintel's configurations are its render passes, of which the first is taken.
        builder = BUILDERS[dataset.name](data_dir=data_dir, config=variant, file_format="array_record")
        if builder.data_path.exists():
            raise FileExistsError(
                f"{builder.data_path}: is there already; remove it, or name another folder with --out"
            )
        builder.inspected = found
        builder.download_and_prepare()
    return str(builder.data_path)
