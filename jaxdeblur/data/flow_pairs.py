"""Pairs of frames with true flow, for training flow networks: MPI Sintel, FlyingChairs, and batches of them.

In every pair image_1 is the first image and image_0 the second; flow_1to0 lies on the grid of the first and
points to the second, which is the flow that both data sets give.

As in `pipeline`, batch k of a run holds its samples k*B .. (k+1)*B-1, and what a sample is follows from
(seed, its number) alone: which pair from `clips.epoch_order`, its crop and turns from
`transforms.draw_geometry`. The threads are Python's own, not tf.data's: all reading here is done by NumPy and FFmpeg,
so TensorFlow would add nothing, and Python functions that it runs can keep a program from ending.
"""

import collections
import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from absl import logging

from jaxdeblur.data.clips import batch_share, check_start, epoch_order
from jaxdeblur.data.flow_io import read_flow
from jaxdeblur.data.image_io import StrPath, read_rgb_u8
from jaxdeblur.data.streams import Stream
from jaxdeblur.data.transforms import Augmentation, Geometry, check_crop, draw_geometry, orient
from jaxdeblur.data.video_folder import frame_size_px

WINDOW_AROUND = 2

_PREFETCHED_BATCHES = 2
_MOST_READ_THREADS = 16
_LISTED_AT_MOST = 10
_SCENES_LISTED_AT_MOST = 30
# Reading a header is waiting for a disk or a network, hardly computing.
_INDEX_THREADS = 16
CHAIRS_VALIDATION_EVERY = 36
"""Every so many-th pair of FlyingChairs validates where the published split is not at hand."""
_TRUTH = ("flow_1to0", "valid_1to0")
_PICTURES = (".png", ".jpg", ".jpeg", ".ppm")

_SINTEL_LAYOUT = "<root>/training/{clean,final,flow}/<scene>/frame_0001.png|.flo"
_CHAIRS_LAYOUT = "<root>/data/00001_img1.ppm, 00001_img2.ppm, 00001_flow.flo"
_PPM_HEADER = re.compile(rb"P6(?:\s|#.*\n)+(\d+)(?:\s|#.*\n)+(\d+)(?:\s|#.*\n)+(\d+)\s")
_PPM_HEADER_AT_MOST = 1024


@dataclasses.dataclass(frozen=True)
class FlowPair:
    """Where two frames and the flow between them lie."""

    image_1_path: str
    image_0_path: str
    flow_1to0_path: str
    """Anything that `flow_io.read_flow` reads."""
    scene: str
    invalid_path: str | None = None
    """A mask that is not zero where the flow is not to be trusted, beyond what the flow file itself says."""
    window_paths: tuple[str, ...] = ()
    """The frames WINDOW_AROUND before to WINDOW_AROUND after the first image, copies of a scene's end frames where it
    has none; () where pairs do not come from videos."""

    @property
    def has_whole_window(self) -> bool:
        """Whether there is a frame of its own in every place of the window."""
        return len(set(self.window_paths)) == 2 * WINDOW_AROUND + 1


def index_sintel(
    root: StrPath, *, render_pass: Literal["final", "clean"] = "final", scenes: Collection[str] | None = None
) -> list[FlowPair]:
    """Pairs of MPI Sintel's training part (Butler et al., ECCV 2012), scene after scene in the order of time.

    Layout: `<root>/training/{clean,final,flow}/<scene>/frame_0001.png|.flo`. The last frame of a scene has no
    flow. Where there is a folder training/invalid, its masks are used. Sintel has no validation part: set
    scenes aside, with `scenes` or with `hold_out_scenes`.

    Args:
        root: holds `training`.
        render_pass: with motion blur and fog ("final") or without ("clean").
        scenes: names of the scenes to take; None takes all.
    Raises:
        FileNotFoundError: a folder or files are missing; the message lists them.
        ValueError: an unknown scene or pass.
    """
    if render_pass not in ("final", "clean"):
        raise ValueError(f"render_pass is 'final' or 'clean', not {render_pass!r}")
    training = Path(root).absolute() / "training"
    images, flows, invalid = training / render_pass, training / "flow", training / "invalid"
    for folder in (images, flows):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {str(folder)!r}; expected layout {_SINTEL_LAYOUT}")
    # What stands on one side only is missing on the other.
    found = {path.name for folder in (images, flows) for path in folder.iterdir() if path.is_dir()}
    _check_scenes(found if scenes is None else scenes, found, f"MPI Sintel in {str(root)!r}")
    has_masks = invalid.is_dir()
    pairs = []
    for scene in sorted(found if scenes is None else set(scenes)):
        image_numbers = _numbers(images / scene, r"frame_(\d{4})\.png")
        flow_numbers = _numbers(flows / scene, r"frame_(\d{4})\.flo")
        numbers = image_numbers | flow_numbers | {number + 1 for number in flow_numbers}
        first, last = min(numbers, default=0), max(numbers, default=0)
        for number in range(first, last):
            around = (min(max(number + i, first), last) for i in range(-WINDOW_AROUND, WINDOW_AROUND + 1))
            pairs.append(
                FlowPair(
                    image_1_path=str(images / scene / f"frame_{number:04d}.png"),
                    image_0_path=str(images / scene / f"frame_{number + 1:04d}.png"),
                    flow_1to0_path=str(flows / scene / f"frame_{number:04d}.flo"),
                    scene=scene,
                    invalid_path=str(invalid / scene / f"frame_{number:04d}.png") if has_masks else None,
                    window_paths=tuple(str(images / scene / f"frame_{n:04d}.png") for n in around),
                )
            )
    _check_files(pairs, f"MPI Sintel in {str(root)!r}", _SINTEL_LAYOUT)
    return pairs


def index_flying_chairs(root: StrPath, *, split: Literal["train", "validation"] = "train") -> list[FlowPair]:
    """Pairs of FlyingChairs (Dosovitskiy et al., ICCV 2015), by number; each is a scene of its own.

    Layout: `<root>/data/00001_img1.ppm`, `00001_img2.ppm`, `00001_flow.flo`. The published split is in
    FlyingChairs_train_val.txt, in root or in root/data: line n is 1 where pair n trains and 2 where it
    validates. Without that file every 36th pair validates (635 of the 22872, where the published split has
    640), and the log says so.

    Raises:
        FileNotFoundError: the folder, or files of the split, are missing; the message lists them.
        ValueError: an unknown split, or a split file that is damaged or of another data set.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"split is 'train' or 'validation', not {split!r}")
    data = Path(root).absolute() / "data"
    if not data.is_dir():
        raise FileNotFoundError(f"no folder {str(data)!r}; expected layout {_CHAIRS_LAYOUT}")
    numbers = _numbers(data, r"(\d{5})_(?:img1\.ppm|img2\.ppm|flow\.flo)")
    names = [folder / "FlyingChairs_train_val.txt" for folder in (data.parent, data)]
    split_file = next((name for name in names if name.is_file()), None)
    if split_file is not None:
        parts = read_chairs_split(split_file.read_text(), str(split_file))
        if max(numbers, default=0) > len(parts):
            raise ValueError(f"{split_file} has {len(parts)} lines, but {str(data)!r} has a pair {max(numbers):05d}")
        chosen = [number for number, part in enumerate(parts, start=1) if part == split]
    else:
        logging.info(
            "FlyingChairs in %s has no FlyingChairs_train_val.txt; every %dth pair is for validation",
            os.fspath(root),
            CHAIRS_VALIDATION_EVERY,
        )
        validates = split == "validation"
        chosen = [number for number in sorted(numbers) if (number % CHAIRS_VALIDATION_EVERY == 0) == validates]
    pairs = [
        FlowPair(
            image_1_path=str(data / f"{number:05d}_img1.ppm"),
            image_0_path=str(data / f"{number:05d}_img2.ppm"),
            flow_1to0_path=str(data / f"{number:05d}_flow.flo"),
            scene=f"{number:05d}",
        )
        for number in chosen
    ]
    _check_files(pairs, f"the {split} part of FlyingChairs in {str(root)!r}", _CHAIRS_LAYOUT)
    return pairs


def hold_out_scenes(index: Iterable[FlowPair], scenes: Collection[str]) -> tuple[list[FlowPair], list[FlowPair]]:
    """(pairs of all other scenes, pairs of these scenes), to train on the one and validate on the other.

    Raises:
        ValueError: the index has no such scene; the message lists those it has.
    """
    index = list(index)
    _check_scenes(scenes, {pair.scene for pair in index}, "the index")
    return [pair for pair in index if pair.scene not in scenes], [pair for pair in index if pair.scene in scenes]


def index_flow_folders(root: StrPath) -> list[FlowPair]:
    """Pairs that lie in a folder each: two pictures, by name the first and the second, and flow.flo or flow.png (as
    KITTI stores flow). Folders of anything else are left out.

    Raises:
        FileNotFoundError: no folder, or none of such pairs.
        ValueError: a folder with a flow holds one picture, or three and more.
    """
    layout = "<root>/<pair>/{<first image>,<second image>,flow.flo or flow.png}"
    root = Path(root).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {str(root)!r}; expected layout {layout}")
    pairs = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        flow = next((file for name in ("flow.flo", "flow.png") if (file := folder / name).is_file()), None)
        if flow is None:
            continue
        pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES and p != flow)
        if len(pictures) != 2:
            raise ValueError(f"{str(folder)!r} holds {len(pictures)} pictures beside {flow.name}; expected two")
        pairs.append(FlowPair(str(pictures[0]), str(pictures[1]), str(flow), folder.name))
    _check_files(pairs, f"the folder {str(root)!r}", layout)
    return pairs


def read_flow_pair(pair: FlowPair) -> dict[str, np.ndarray]:
    """One whole pair, as it is stored.

    Returns:
        {"image_1": (H, W, 3) uint8, "image_0": likewise, "flow_1to0": (H, W, 2) float32 in pixels,
        "valid_1to0": (H, W) bool}. The flow is zero where it is not valid.
    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or not of the size of the first image; the message names it.
    """
    return _read(pair, {"image_1": pair.image_1_path, "image_0": pair.image_0_path})


def read_flow_window(pair: FlowPair) -> np.ndarray:
    """The frames of a pair's window, (5, H, W, 3) uint8: its own, or, where pairs do not come from videos, the first
    image three times and the second twice."""
    paths = pair.window_paths or (pair.image_1_path,) * (WINDOW_AROUND + 1) + (pair.image_0_path,) * WINDOW_AROUND
    return np.stack([_read_image_u8(path) for path in paths])


def _read(pair: FlowPair, image_paths: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Pictures by name, flow and validity; the errors of read_flow_pair."""
    images = {name: _read_image_u8(path) for name, path in image_paths.items()}
    flow, valid = read_flow(pair.flow_1to0_path)
    sizes_px = {pair.image_1_path: _image_size_px(pair.image_1_path)}
    sizes_px |= {path: images[name].shape[:2] for name, path in image_paths.items()}
    sizes_px[pair.flow_1to0_path] = valid.shape
    if pair.invalid_path is not None:
        invalid = np.any(_read_image_u8(pair.invalid_path) > 0, axis=-1)
        sizes_px[pair.invalid_path] = invalid.shape
    height_px, width_px = sizes_px[pair.image_1_path]
    unequal = [f"{path!r} is {size[1]}x{size[0]}" for path, size in sizes_px.items() if size != (height_px, width_px)]
    if unequal:
        raise ValueError(
            f"{pair.image_1_path!r} is {width_px}x{height_px} but {', '.join(unequal)}; "
            "the files of a pair have one size"
        )
    if pair.invalid_path is not None:
        valid &= ~invalid
        flow[~valid] = 0
    return {**images, "flow_1to0": flow, "valid_1to0": valid}


def flow_pair_batches(
    index: Sequence[FlowPair],
    *,
    batch_size: int,
    crop_px: tuple[int, int],
    seed: int,
    augment: Augmentation | None,
    scale_range: tuple[float, float] | None = None,
    windows: bool = False,
    first_batch: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, in an order that does not depend on threads.

    Args:
        index: what `index_sintel` or `index_flying_chairs` found.
        batch_size: B, over all processes.
        crop_px: (height, width) of the result, at a random place of each pair.
        seed: of the order and the geometry, 0 to 2**32-1.
        augment: rotations and flips, of the images and of the vectors; None crops only. It adds no noise.
        scale_range: each pair is resized (bilinear, half-pixel centres, vectors with it) by a factor drawn
            uniformly from this range before it is cropped, the lower end raised to what still holds the crop.
            VDFlow's is (0.5, 1). Not below 0.5, where pixels would be skipped. A resized vector is valid if all
            pixels it is made of are.
        windows: yield the frames around the first image in the place of the two images.
        first_batch: k to begin as an uninterrupted run goes on after k batches.
        process_index: which of process_count equal, consecutive parts of every batch this process yields.
        process_count: processes that share a batch.
    Yields:
        {"image_1": (B / process_count, h, w, 3) uint8, "image_0": likewise,
        "flow_1to0": (B / process_count, h, w, 2) float32 in pixels, "valid_1to0": (B / process_count, h, w) bool};
        with `windows` "window", (B / process_count, 5, h, w, 3) uint8, and no images.
        A vector may point out of the crop; it is valid all the same.
    Raises:
        ValueError: an empty index, an image smaller than the crop, batch_size cannot be shared out. While
            iterating: a file is damaged or changed; the message names it.
    """
    share = batch_share(batch_size, process_index, process_count)
    check_start(seed, first_batch)
    if not index:
        raise ValueError("the index holds no pairs; make one with index_sintel or index_flying_chairs")
    if augment is not None and augment.noise_probability * augment.noise_sigma > 0:
        raise ValueError("augment has noise, but pairs with flow are only turned and flipped; set noise_sigma=0")
    if augment is not None and (augment.lowest_scale < 1 or augment.permute_colours):
        raise ValueError("augment resizes or permutes colours, but pairs with flow are only turned and flipped")
    if scale_range is not None and not 0.5 <= scale_range[0] <= scale_range[1]:
        raise ValueError(f"scale_range is (lowest, highest) factor, at least 0.5, not {scale_range}")
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        sizes_px = list(pool.map(_image_size_px, [pair.image_1_path for pair in index]))
    largest = 1.0 if scale_range is None else scale_range[1]
    for pair, size_px in zip(index, sizes_px):
        name = pair.image_1_path if largest == 1 else f"{pair.image_1_path} scaled by {largest}"
        check_crop(name, _scaled(size_px, largest), crop_px, augment)
    if windows and not all(pair.window_paths for pair in index):
        raise ValueError("windows of frames were asked for, but the index holds pairs that do not come from videos")
    samples = _Samples(index, sizes_px, crop_px, seed, augment, scale_range, windows)
    return _iterate(
        samples,
        first_batch=first_batch,
        batch_size=batch_size,
        share=share,
    )


@dataclasses.dataclass(frozen=True)
class _Samples:
    """What sample n of a run is: a pair, resized, cropped and turned."""

    index: Sequence[FlowPair]
    sizes_px: Sequence[tuple[int, int]]
    crop_px: tuple[int, int]
    seed: int
    augment: Augmentation | None
    scale_range: tuple[float, float] | None
    windows: bool

    def read(self, sample: int) -> dict[str, np.ndarray]:
        epoch, position = divmod(sample, len(self.index))
        number = epoch_order(len(self.index), seed=self.seed, epoch=epoch)[position]
        stored_px = self.sizes_px[number]
        size_px = stored_px if self.scale_range is None else self._draw_size(stored_px, sample, self.scale_range)
        box = draw_geometry(
            seed=self.seed, sample=sample, frame_size_px=size_px, crop_px=self.crop_px, augmentation=self.augment
        )
        pair = self.index[number]
        if self.windows:
            places = {f"frame {place}": path for place, path in enumerate(pair.window_paths)}
            arrays = _read(pair, places)
        else:
            arrays = read_flow_pair(pair)
        found_px = arrays["valid_1to0"].shape
        if found_px != stored_px:
            raise ValueError(
                f"{self.index[number].image_1_path!r} is {found_px[1]}x{found_px[0]} but was {stored_px[1]}x"
                f"{stored_px[0]} when the run began; do not change a data set while it is read"
            )
        if size_px != stored_px:
            cropped = _resized_box(arrays, size_px, box)
        else:
            rows = slice(box.top_px, box.top_px + box.height_px)
            columns = slice(box.left_px, box.left_px + box.width_px)
            cropped = {name: array[rows, columns] for name, array in arrays.items()}
        turned = _turned(cropped, box)
        if self.windows:
            turned = {"window": np.stack([turned.pop(name) for name in places]), **turned}
        return turned

    def _draw_size(self, stored_px: tuple[int, int], sample: int, scale_range: tuple[float, float]) -> tuple[int, int]:
        turned = self.augment is not None and self.augment.swaps_axes
        crops_px = [self.crop_px, self.crop_px[::-1]] if turned else [self.crop_px]
        needed = max(max(height / stored_px[0], width / stored_px[1]) for height, width in crops_px)
        lowest, highest = max(scale_range[0], needed), scale_range[1]
        # NumPy promises to keep the bits of Philox.
        bits = np.random.Philox(np.random.SeedSequence((Stream.PAIR_SCALE, self.seed, sample))).random_raw()
        return _scaled(stored_px, lowest + (highest - lowest) * (bits >> 11) * 2.0**-53)


def _iterate(samples: _Samples, *, first_batch: int, batch_size: int, share: range) -> Iterator[dict[str, np.ndarray]]:
    numbers = (
        sample
        for batch in itertools.count(first_batch)
        for sample in (batch * batch_size + position for position in share)
    )
    pool = ThreadPoolExecutor(min(_MOST_READ_THREADS, os.cpu_count() or 1), thread_name_prefix="flow_pairs")
    try:
        ahead = itertools.islice(numbers, (1 + _PREFETCHED_BATCHES) * len(share))
        pending = collections.deque(pool.submit(samples.read, sample) for sample in ahead)
        while True:
            read = [pending.popleft().result() for _ in share]
            pending.extend(pool.submit(samples.read, sample) for sample in itertools.islice(numbers, len(share)))
            yield {name: np.stack([arrays[name] for arrays in read]) for name in read[0]}
    finally:  # the caller has had enough, or a file was damaged
        pool.shutdown(cancel_futures=True)


def _scaled(size_px: tuple[int, int], factor: float) -> tuple[int, int]:
    return round(size_px[0] * factor), round(size_px[1] * factor)


def _resized_box(arrays: dict[str, np.ndarray], size_px: tuple[int, int], box: Geometry) -> dict[str, np.ndarray]:
    """What resizing everything to size_px, vectors too, and then taking the box gives."""
    old_size_px = arrays["valid_1to0"].shape
    taps = []
    for first, length, size, old in zip((box.top_px, box.left_px), (box.height_px, box.width_px), size_px, old_size_px):
        position = np.clip((np.arange(first, first + length) + 0.5) * old / size - 0.5, 0, old - 1)
        near = np.minimum(position.astype(np.intp), max(old - 2, 0))
        taps.append((near, np.minimum(near + 1, old - 1), (position - near).astype(np.float32)))
    (top, bottom, weight_y), (left, right, weight_x) = taps

    def resize(array: np.ndarray) -> np.ndarray:
        # Rows first and only those needed: the second pass is then over the box's height alone.
        down = weight_y[:, None, None]
        rows = (1 - down) * array[top] + down * array[bottom]
        across = weight_x[:, None]
        return (1 - across) * rows[:, left] + across * rows[:, right]

    vector_scale = np.array([size_px[1] / old_size_px[1], size_px[0] / old_size_px[0]], np.float32)
    images = {name: np.rint(resize(arrays[name])).astype(np.uint8) for name in arrays if name not in _TRUTH}
    # Known if all pixels of weight above zero are.
    unknown = resize(~arrays["valid_1to0"][..., None])[..., 0] > 0
    flow = resize(arrays["flow_1to0"]) * vector_scale
    flow[unknown] = 0
    return {**images, "flow_1to0": flow, "valid_1to0": ~unknown}


def _turned(cropped: dict[str, np.ndarray], geometry: Geometry) -> dict[str, np.ndarray]:
    """The turns of a geometry, applied to the grid and to the vectors on it."""
    turn = functools.partial(
        orient,
        swap_axes=geometry.swap_axes,
        reverse_rows=geometry.reverse_rows,
        reverse_columns=geometry.reverse_columns,
    )
    flow = turn(cropped["flow_1to0"])
    if geometry.swap_axes:
        flow = flow[..., ::-1]
    signs = np.array([-1 if geometry.reverse_columns else 1, -1 if geometry.reverse_rows else 1], np.float32)
    return {
        **{name: np.ascontiguousarray(turn(image)) for name, image in cropped.items() if name not in _TRUTH},
        "flow_1to0": np.ascontiguousarray(flow * signs),
        "valid_1to0": np.ascontiguousarray(turn(cropped["valid_1to0"][..., None])[..., 0]),
    }


def _check_files(pairs: Sequence[FlowPair], what: str, layout: str) -> None:
    if not pairs:
        raise FileNotFoundError(f"{what} holds no pairs; expected layout {layout}")
    fields = ("image_1_path", "image_0_path", "flow_1to0_path", "invalid_path")
    paths = dict.fromkeys(getattr(pair, field) for pair in pairs for field in fields)  # neighbours share frames
    paths |= dict.fromkeys(path for pair in pairs for path in pair.window_paths)
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        there = list(pool.map(lambda path: path is None or os.path.isfile(path), paths))
    missing = [path for path, is_there in zip(paths, there) if not is_there]
    if missing:
        raise FileNotFoundError(
            f"{what}: {len(missing)} files are missing: {_listed(missing, _LISTED_AT_MOST)}; expected layout {layout}"
        )


def _check_scenes(scenes: Collection[str], known: Collection[str], where: str) -> None:
    unknown = {scenes} if isinstance(scenes, str) else set(scenes) - set(known)
    if unknown:
        raise ValueError(
            f"{where} has no scenes {_listed(map(repr, sorted(unknown)), _LISTED_AT_MOST)}; give a list of these "
            f"names: {_listed(sorted(known), _SCENES_LISTED_AT_MOST) or 'none'}"
        )


def _listed(names: Iterable[str], at_most: int) -> str:
    names = list(names)
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more} more" if more > 0 else "")


def _numbers(folder: Path, pattern: str) -> set[int]:
    """Numbers of the files in a folder whose whole name matches; none if there is no folder."""
    if not folder.is_dir():
        return set()
    matches = (re.fullmatch(pattern, name) for name in os.listdir(folder))
    return {int(match[1]) for match in matches if match}


def read_chairs_split(text: str, name: str) -> list[Literal["train", "validation"]]:
    """Of pair 1, 2, ...; errors call the file by the name given."""
    parts: dict[str, Literal["train", "validation"]] = {"1": "train", "2": "validation"}
    lines = text.split()
    strange = next((number for number, line in enumerate(lines, start=1) if line not in parts), None)
    if strange is not None:
        raise ValueError(f"{name}: line {strange} is {lines[strange - 1]!r}; expected 1 (train) or 2 (validation)")
    return [parts[line] for line in lines]


def _is_ppm(path: str) -> bool:
    return path.lower().endswith(".ppm")


def _image_size_px(path: str) -> tuple[int, int]:
    if not _is_ppm(path):
        return frame_size_px(path)
    with open(path, "rb") as file:
        height_px, width_px, _ = _ppm_header(path, file.read(_PPM_HEADER_AT_MOST))
    return height_px, width_px


def _read_image_u8(path: str) -> np.ndarray:
    """(H, W, 3) uint8 from a binary PPM, or from anything that image_io reads."""
    if not _is_ppm(path):
        return read_rgb_u8(path)
    return decode_ppm(Path(path).read_bytes(), path)


def decode_ppm(data: bytes, name: str) -> np.ndarray:
    """(H, W, 3) uint8 of a binary PPM file's bytes; errors call it by the name given."""
    height_px, width_px, start = _ppm_header(name, data[:_PPM_HEADER_AT_MOST])
    expected = start + 3 * height_px * width_px
    if len(data) < expected:
        raise ValueError(f"{name!r} is cut short: {len(data)} bytes, but {width_px}x{height_px} pixels take {expected}")
    return np.frombuffer(data, np.uint8, 3 * height_px * width_px, start).reshape(height_px, width_px, 3).copy()


def _ppm_header(path: str, start: bytes) -> tuple[int, int, int]:
    """(height, width, where the pixels begin)."""
    match = _PPM_HEADER.match(start)
    width_px, height_px, largest = map(int, match.groups()) if match else (0, 0, 0)
    if match is None or min(width_px, height_px) < 1 or largest != 255:
        raise ValueError(f"{path!r} is not a binary 8-bit PPM image (P6, largest value 255), or is cut short")
    return height_px, width_px, match.end()
