"""Whether a data set is what its authors published: every file there, whole, of its size, and in its place.

All files are read. A PNG is held to the checksums inside it, a JPEG is decoded, a flow counted through. Then it is
looked at what frames show, all of them or a few of each clip:

- A blurred frame has less contrast between neighbouring pixels than its sharp partner, or the two are swapped.
- Seen from far away it shows the same as its partner, and more so than as the frames before and after it.
- Averaging frames in values x keeps the mean of x. So, with a the rise of the mean of gamma-encoded values from sharp
  to blurred and b the fall of the mean of linear ones, in units of encoded values, a / (a + b) is 0 where encoded
  values were averaged and 1 where light was, whatever the motion: GoPro's `blur` and `blur_gamma` (Nah et al. 2017,
  Eq. 1-2). Where nothing moved, a + b is near 0 and it cannot be told.

Such signs can be wrong about unusual footage, so clips can be trusted by name.
"""

import collections
import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Literal, TypeVar

import numpy as np

from jaxdeblur.data.datasets import CHAIRS_SPLIT_FILE, FlowFiles, FlowSet, Unnamed, VideoSet
from jaxdeblur.data.flow_io import decode_flo
from jaxdeblur.data.flow_pairs import decode_ppm
from jaxdeblur.data.image_io import decode_image
from jaxdeblur.data.sources import Item
from jaxdeblur.data.video_folder import FRAME_SUFFIXES, PNG_SIGNATURE, SIDES, Side

GAMMA = 2.2
"""Of the camera response that GoPro's authors assume."""

Kind = Literal[
    "missing", "extra", "twice", "damaged", "another size", "another kind", "swapped", "not a pair", "out of step",
    "copy", "another variant", "in the wrong split",
]  # fmt: skip

_THREADS = 8
_SAMPLED = 3
_FAR_PX, _NEAR_PX = 24, 90
_SAME_SCENE = 0.5
_OUT_OF_STEP = 0.7
_SWAPPED_CLIP, _SWAPPED_FRAME = 1.03, 1.1  # a still and noisy frame may come close to 1
_LEAST_GAP, _CLEAR_GAP = 3e-4, 2e-3
_PNG_KINDS = {0: "grey", 2: "RGB", 3: "a palette", 4: "grey with alpha", 6: "RGB with alpha"}


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong, where (a path, or a clip and its frames), and in words."""

    kind: Kind
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"

    @property
    def is_a_judgement(self) -> bool:
        """Whether it follows from what frames show, and `trusted` would silence it."""
        return self.kind in ("copy", "swapped", "not a pair", "out of step", "another variant")


@dataclasses.dataclass(frozen=True)
class Count:
    """Of one split: clips or scenes, pairs of frames, how many there should be (None: as many as there are), and how
    many pictures there are of each size (width, height)."""

    split: str
    clips: int
    pairs: int
    expected_clips: int | None
    expected_pairs: int | None
    sizes_px: dict[tuple[int, int], int]

    def __str__(self) -> str:
        expected = "" if self.expected_pairs is None else f" of {self.expected_clips} and {self.expected_pairs}"
        sizes = "".join(f", {number} pictures of {_by(size)}" for size, number in sorted(self.sizes_px.items()))
        return f"{self.split}: {self.clips} clips, {self.pairs} pairs{expected}{sizes}"


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found: counts, faults, and where every file that belongs to the set goes in its prepared form."""

    counts: list[Count]
    faults: list[Fault]
    files: list[tuple[Item, str]]


_RUNS_LISTED_AT_MOST = 10

Progress = Callable[[int, int], None]
"""Called with the files read and how many there are."""

_Frames = dict[Side, dict[int, Item]]
T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class _State:
    """What reading a file told: the size of what it shows (None if it is damaged) and a checksum of its bytes."""

    size_px: tuple[int, int] | None
    checksum: int
    fault: tuple[Kind, str] | None = None


def inspect(
    items: Sequence[Item],
    dataset: VideoSet | FlowSet,
    *,
    variant: str | None = None,
    splits: Collection[str] | None = None,
    partial: bool = False,
    prepared: bool = False,
    trusted: Collection[str] = (),
    quick: bool = False,
    progress: Progress | None = None,
) -> Inspection:
    """Looks at everything that belongs to a data set.

    Args:
        items: what `open_source` listed.
        variant: which blurred frames, of dataset.variants; None: the first.
        splits: which of a video set's splits; None: all.
        partial: take what is there for all there is to be: clips or scenes that are missing altogether, and frames
            before the first or after the last one that is there, are no faults.
        prepared: the source is what `prepare` made.
        trusted: names of clips, or scenes, that are taken to show what they should.
        quick: look at what three frames of each clip show, not all. All files are read in any case.
    Raises:
        ValueError: an unknown variant, split or trusted clip; nothing of the data set is there.
    """
    if isinstance(dataset, FlowSet):
        for option, value in (("variant", variant), ("splits", splits)):
            if value:
                raise ValueError(f"{dataset.name} has no {option} to choose; leave --{option} out")
        return _inspect_flow(items, dataset, partial, trusted, progress)
    variant = variant or next(iter(dataset.variants))
    splits = splits or list(dataset.splits)
    unknown = [f"variant {variant!r}"] if variant not in dataset.variants else []
    unknown += [f"split {split!r}" for split in splits if split not in dataset.splits]
    if unknown:
        raise ValueError(
            f"{dataset.name} has no {' and no '.join(unknown)}; variants are {', '.join(dataset.variants)}, splits "
            f"{', '.join(dataset.splits)}"
        )
    return _inspect_videos(items, dataset, variant, splits, partial, prepared, trusted, quick, progress)


def _inspect_videos(
    items: Sequence[Item],
    dataset: VideoSet,
    variant: str,
    splits: Collection[str],
    partial: bool,
    prepared: bool,
    trusted: Collection[str],
    quick: bool,
    progress: Progress | None,
) -> Inspection:
    faults: list[Fault] = []
    clips: dict[tuple[str, str], _Frames] = {}
    clip_of_folder: dict[str, str] = {}
    frame_folders: set[str] = set()
    strays: list[Item] = []
    for item in items:
        place = dataset.place(item.key, variant, prepared=prepared)
        if place is None:
            strays.append(item)
            continue
        frame_folders.add(item.key.rpartition("/")[0])
        clip_of_folder[f"{item.key.rpartition(f'{place.clip}/')[0]}{place.clip}"] = place.clip
        if place.side is None or (place.split and place.split not in splits):
            continue
        if place.split not in dataset.splits:
            where = f"clip {place.clip}"
            if not any(fault.where == where for fault in faults):
                faults.append(Fault("extra", where, f"{dataset.title} has no such clip ({item.where})"))
            continue
        frames = clips.setdefault((place.split, place.clip), {side: {} for side in SIDES})[place.side]
        if place.frame in frames:
            if _is_same_file(item, frames[place.frame]):
                continue  # the archive lies beside what was unpacked from it
            faults.append(Fault("twice", item.where, f"is the same frame as {frames[place.frame].where}"))
            continue
        frames[place.frame] = item
    if not clips:
        raise _nothing_there(dataset, "<split>/<clip>/{blur,sharp}/<frame>" if prepared else dataset.official_layout)
    for item in strays:
        within = [str(folder) for folder in PurePosixPath(item.key).parents]
        clip = next((clip_of_folder[folder] for folder in within if folder in clip_of_folder), None)
        # Beside folders of frames there may be notes and raw frames, but not more pictures.
        if clip and (within[0] in frame_folders or item.key.lower().endswith(FRAME_SUFFIXES)):
            faults.append(Fault("extra", item.where, f"is no frame of clip {clip}"))
    _check_trusted(trusted, {clip for _, clip in clips})
    folder_of = {side: side if prepared else folder for folder, side in dataset.sides[variant].items()}
    faults += _clips_amiss(clips, dataset, splits, partial)
    for (split, clip), frames_of in clips.items():
        published = dataset.splits[split]
        numbers = published.frames if isinstance(published, Unnamed) else published.get(clip)
        named = {f"{split}/{clip}/{folder_of[side]}": frames for side, frames in frames_of.items()}
        faults += _frames_amiss(named, numbers, partial)

    items = [item for item, _ in _each(clips)]
    total = len(items) + len(clips)
    states = dict(zip((item.where for item in items), _each_done(_readable(_picture_state), items, progress, 0, total)))
    for (split, clip), frames_of in clips.items():
        faults += _files_amiss(f"{split}/{clip}", frames_of, states, dataset, trusted=clip in trusted)
    sound = [
        (name, {side: {n: i for n, i in frames.items() if states[i.where].size_px} for side, frames in of.items()})
        for name, of in clips.items()
        if name[1] not in trusted
    ]
    look = functools.partial(_content_amiss, light=dataset.light.get(variant), quick=quick)
    faults += itertools.chain.from_iterable(_each_done(look, sound, progress, len(items), total))
    counts = []
    for split in splits:
        found = [frames_of for (of, _), frames_of in clips.items() if of == split]
        pairs = sum(len(frames_of["blur"].keys() & frames_of["sharp"].keys()) for frames_of in found)
        sizes = _sizes(states[item.where] for of in found for frames in of.values() for item in frames.values())
        expected_clips, expected_pairs = (None, None) if partial else dataset.count(split)
        counts.append(Count(split, len(found), pairs, expected_clips, expected_pairs, sizes))
    # Frames keep their names: those of both sides are the same in all sets.
    files = [(item, f"{place}/{item.key.rpartition('/')[2]}") for item, place in _each(clips)]
    return Inspection(counts, faults, files)


def _check_trusted(trusted: Collection[str], known: Collection[str]) -> None:
    if unknown := [name for name in trusted if name not in known]:
        raise ValueError(f"there is no clip {', '.join(unknown)} to be trusted")


def _each(clips: Mapping[tuple[str, str], _Frames]) -> Iterator[tuple[Item, str]]:
    """Every frame and the folder it has in a video folder."""
    for (split, clip), frames_of in clips.items():
        for side, frames in frames_of.items():
            for _, item in sorted(frames.items()):
                yield item, f"{split}/{clip}/{side}"


def _clips_amiss(
    clips: Mapping[tuple[str, str], _Frames], dataset: VideoSet, splits: Collection[str], partial: bool
) -> Iterator[Fault]:
    for split in splits:
        published, found = dataset.splits[split], [clip for of, clip in clips if of == split]
        if isinstance(published, Unnamed):
            if len(found) < published.clips and not partial:
                yield Fault("missing", split, f"has {len(found)} of {published.clips} clips")
            elif len(found) > published.clips:
                yield Fault("extra", split, f"has {len(found)} clips, {published.clips} are published")
            continue
        if not partial:
            for clip in (clip for clip in published if clip not in found):
                yield Fault("missing", f"{split}/{clip}", f"the whole clip of {len(published[clip])} frames is missing")
        for clip in (clip for clip in found if clip not in published):
            home = dataset.split_of(clip)
            if home:
                yield Fault("in the wrong split", f"{split}/{clip}", f"is published in {home}")
            else:
                yield Fault("extra", f"{split}/{clip}", f"{dataset.title} has no such clip")


def _frames_amiss(sides: Mapping[str, dict[int, Item]], published: range | None, partial: bool) -> Iterator[Fault]:
    there = sorted(set().union(*sides.values()))
    numbers: Sequence[int] = there if published is None else published
    if partial and published is not None:  # a frame of a wild number is extra, and does not make all before it missing
        numbers = range(max(there[0], published[0]), min(there[-1], published[-1]) + 1)
    for name, frames in sides.items():
        if not frames:
            yield Fault("missing", name, "has no frames")
        elif missing := [number for number in numbers if number not in frames]:
            yield Fault("missing", name, f"has no {_numbered(missing)}")
        if published is not None and (extra := [number for number in sorted(frames) if number not in published]):
            yield Fault(
                "extra",
                name,
                f"has {_numbered(extra)}; it is published with {published[0]} to {published[-1]}",
            )


def _sizes(states: Iterable[_State]) -> dict[tuple[int, int], int]:
    return dict(collections.Counter(state.size_px for state in states if state.size_px))


def _files_amiss(
    name: str, frames_of: _Frames, states: Mapping[str, _State], dataset: VideoSet, *, trusted: bool
) -> Iterator[Fault]:
    first_with: dict[int, tuple[Side, int, Item]] = {}
    sizes = _sizes(states[item.where] for frames in frames_of.values() for item in frames.values())
    usual = max(sizes, key=lambda size: sizes[size], default=None)
    allowed = {dataset.size_px, *([dataset.size_px[::-1]] if dataset.portrait else [])}
    if usual is not None and usual not in allowed:
        yield Fault(
            "another size", name, f"is {_by(usual)}; it is published as {' or '.join(map(_by, sorted(allowed)))}"
        )
    for side, frames in frames_of.items():
        for number, item in sorted(frames.items()):
            state = states[item.where]
            if state.fault:
                yield Fault(state.fault[0], item.where, state.fault[1])
            if state.size_px not in (None, usual):
                yield Fault("another size", item.where, f"is {_by(state.size_px)}, its clip {_by(usual)}")
            if state.size_px is None or trusted:
                continue
            of_side, of_number, same = first_with.setdefault(state.checksum, (side, number, item))
            if same is not item and (of_side == side or of_number == number):
                yield Fault("copy", item.where, f"is the same file as {same.where}")


@dataclasses.dataclass(frozen=True)
class _Seen:
    """Of a picture what its judges need: how it looks from afar and from nearer, its contrast, its values."""

    far: np.ndarray
    near: np.ndarray
    contrast: float
    histogram: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Look:
    """At a blurred frame beside its partner: likeness, the step to a sharp frame that fits better (0: none), contrast
    in units of the sharp frame's, and how much of an average of light it is, with how well that can be told."""

    likeness: float
    step: int
    contrast: float
    light_share: float
    light_gap: float


def _content_amiss(
    clip: tuple[tuple[str, str], _Frames], light: Literal["encoded", "linear"] | None, quick: bool
) -> list[Fault]:
    """What the frames of a clip show."""
    name, frames_of = clip
    try:
        return list(_shown_amiss("/".join(name), frames_of["blur"], frames_of["sharp"], light, quick))
    except (OSError, ValueError) as error:  # whole by its checksums, and yet no picture
        return [Fault("damaged", "/".join(name), str(error))]


def _shown_amiss(
    clip: str,
    blur: dict[int, Item],
    sharp: dict[int, Item],
    light: Literal["encoded", "linear"] | None,
    quick: bool,
) -> Iterator[Fault]:
    looks = dict(_looks(blur, sharp, quick))
    if not looks:
        return
    total_contrast = np.mean([look.contrast for look in looks.values()])

    def fault(kind: Kind, numbers: list[int], what: str) -> Iterator[Fault]:
        if numbers:
            yield Fault(kind, f"{clip}, {_numbered(numbers)}", what)

    late = {step: _in_runs([n for n, look in looks.items() if look.step == step], len(looks)) for step in (-1, 1)}
    for step, numbers in late.items():
        yield from fault("out of step", numbers, f"the blurred frame n shows the sharp frame n{step:+d}, not n")
    rest = {n: look for n, look in looks.items() if n not in late[-1] and n not in late[1]}
    strange = [n for n, look in rest.items() if look.likeness < _SAME_SCENE]
    what = f"blurred and sharp frame show different things (correlation below {_SAME_SCENE})"
    yield from fault("not a pair", strange, what)
    rest = {n: look for n, look in rest.items() if n not in strange}
    limit = 1.0 if total_contrast > _SWAPPED_CLIP else _SWAPPED_FRAME
    swapped = [n for n, look in rest.items() if look.contrast > limit]
    yield from fault("swapped", swapped, "the blurred frame is sharper than the sharp one: the two are swapped")
    if light is None:
        return
    rest = {n: look for n, look in rest.items() if n not in swapped and look.light_gap > _LEAST_GAP}
    wrong = [n for n, look in rest.items() if (look.light_share > 0.5) != (light == "linear")]
    if len(wrong) < len(rest):  # what a single frame says is taken where it says it clearly
        wrong = [n for n in wrong if abs(rest[n].light_share - 0.5) > 0.2 and rest[n].light_gap > _CLEAR_GAP]
    if wrong:
        found, expected = ("light", "gamma-encoded values") if light == "encoded" else ("gamma-encoded values", "light")
        share = np.mean([rest[n].light_share for n in wrong])
        what = (
            f"the blurred frame is an average of {found} (share of light {share:.2f}), not of {expected}: it is of "
            "another variant of the data set"
        )
        yield from fault("another variant", wrong, what)


def _looks(blur: dict[int, Item], sharp: dict[int, Item], quick: bool) -> Iterator[tuple[int, _Look]]:
    """Number of the frame -> what it is like; of frames that have a partner, all or a few."""
    numbers = [n for n in sorted(blur) if n in sharp]
    if quick and numbers:
        numbers = sorted({numbers[round(place)] for place in np.linspace(0, len(numbers) - 1, _SAMPLED + 2)[1:-1]})
    seen: dict[int, _Seen] = {}
    for number in numbers:
        around = [n for n in (number - 1, number, number + 1) if n in sharp]
        seen = {n: seen[n] if n in seen else _see(sharp[n]) for n in around}  # each is decoded once
        blurred, truth = _see(blur[number]), seen[number]
        if blurred.near.shape != truth.near.shape:
            continue  # said already
        steps = [
            n - number
            for n in around
            if n != number
            and seen[n].near.shape == truth.near.shape
            and _difference(blurred, seen[n]) < _OUT_OF_STEP * _difference(blurred, truth)
            and _likeness(blurred, seen[n]) >= _SAME_SCENE
        ]
        rise, gap = _rise_and_gap(blurred.histogram, truth.histogram)
        yield (
            number,
            _Look(
                likeness=_likeness(blurred, truth),
                step=steps[0] if len(steps) == 1 else 0,
                contrast=blurred.contrast / max(truth.contrast, 1e-3),
                light_share=rise / gap if gap > 0 else 0.0,
                light_gap=gap,
            ),
        )


def _in_runs(numbers: list[int], of: int) -> list[int]:
    """Those that stand in runs of at least three, since a single one may err; or all, if they are all there are."""
    if len(numbers) >= max(of - 2, 1):  # the first and the last frame have a neighbour on one side only
        return numbers
    there = set(numbers)
    return [n for n in numbers if any({n + k, n + k + 1, n + k + 2} <= there for k in (-2, -1, 0))]


def light_share(blurred_u8: np.ndarray, sharp_u8: np.ndarray) -> float | None:
    """0 where a blurred frame is an average of gamma-encoded values, 1 where of light; None if it cannot be told.

    See the head of this module. Values well above 1: a response steeper than a gamma of 2.2, as REDS has.
    """
    rise, gap = _rise_and_gap(*(np.bincount(image.ravel(), minlength=256) for image in (blurred_u8, sharp_u8)))
    return rise / gap if gap > _LEAST_GAP else None


def _rise_and_gap(blurred: np.ndarray, sharp: np.ndarray) -> tuple[float, float]:
    """a and a + b of the head of this module, from how often each of 256 values occurs."""

    def mean(histogram: np.ndarray, power: float) -> float:
        return float(np.average((np.arange(256) / 255) ** power, weights=histogram))

    rise = mean(blurred, 1.0) - mean(sharp, 1.0)
    fall = mean(sharp, GAMMA) - mean(blurred, GAMMA)
    return rise, rise + fall / (GAMMA * mean(sharp, GAMMA - 1) + 1e-9)


def _inspect_flow(
    items: Sequence[Item], dataset: FlowSet, partial: bool, trusted: Collection[str], progress: Progress | None
) -> Inspection:
    faults: list[Fault] = []
    found: dict[str, Item] = {}
    for item in items:
        match = dataset.pattern.search(item.key)
        if match is None:
            continue
        if match["path"] in found:
            if _is_same_file(item, found[match["path"]]):
                continue
            faults.append(Fault("twice", item.where, f"is the same file as {found[match['path']].where}"))
        else:
            found[match["path"]] = item
    if not found:
        raise _nothing_there(dataset, dataset.official_layout)
    scenes: dict[str, list[FlowFiles]] = {}
    for pair in dataset.pairs():
        scenes.setdefault(pair.scene, []).append(pair)
    _check_trusted(trusted, scenes)
    masks = any(path.startswith("training/invalid/") for path in found)
    wanted: set[str] = {CHAIRS_SPLIT_FILE} if "" in dataset.scenes else set()
    whole: list[FlowFiles] = []
    for scene, pairs in scenes.items():
        parts = {file for pair in pairs for file in (*pair.files, *pair.masks)}
        there = any(part in found for part in parts)
        if "" not in dataset.scenes:
            parts.add(f"training/invalid/{scene}/frame_{dataset.scenes[scene]:04d}.png")
        wanted |= parts
        if not there:
            if not partial:
                faults.append(Fault("missing", scene, f"all of its {len(pairs)} pairs are missing"))
            continue
        for pair in pairs:
            missing = [file for file in (*pair.files, *(pair.masks if masks else ())) if file not in found]
            faults += [Fault("missing", file, f"is missing from scene {scene}") for file in missing]
            whole += [] if missing else [pair]
    faults = list(dict.fromkeys(faults))  # neighbours share frames
    if "" in dataset.scenes and CHAIRS_SPLIT_FILE not in found and not partial:
        faults.append(
            Fault("missing", CHAIRS_SPLIT_FILE, "is missing, which says what validates; it is a download of its own")
        )
    for path, item in found.items():
        if path not in wanted:
            faults.append(Fault("extra", item.where, f"{dataset.title} has no such file"))
    kept = {path: item for path, item in found.items() if path in wanted}
    items = list(kept.values())
    each = _each_done(_readable(_flow_file_state), items, progress, 0, len(items))
    states = dict(zip((item.where for item in items), each))
    for item in kept.values():
        state = states[item.where]
        if state.fault:
            faults.append(Fault(state.fault[0], item.where, state.fault[1]))
        elif state.size_px not in (None, dataset.size_px):
            faults.append(
                Fault("another size", item.where, f"is {_by(state.size_px)}; it is published as {_by(dataset.size_px)}")
            )
    whole = [pair for pair in whole if all(states[kept[f].where].size_px == dataset.size_px for f in pair.files)]
    faults += _flow_content_amiss([pair for pair in whole if pair.scene not in trusted], kept)
    if split_file := kept.get(CHAIRS_SPLIT_FILE):
        lines = split_file.read().split()
        if len(lines) != dataset.scenes[""] or set(lines) - {b"1", b"2"}:
            what = f"has {len(lines)} entries; expected {dataset.scenes['']}, each 1 or 2"
            faults.append(Fault("damaged", split_file.where, what))
    expected = None if partial else sum(map(len, scenes.values()))
    sizes = _sizes(states[item.where] for item in items if not item.key.endswith(".flo"))
    found_scenes = len({pair.scene for pair in whole})
    count = Count("all", found_scenes, len(whole), None if partial else len(scenes), expected, sizes)
    return Inspection([count], faults, [(item, path) for path, item in kept.items()])


def _flow_content_amiss(pairs: Sequence[FlowFiles], found: Mapping[str, Item]) -> Iterator[Fault]:
    """Of a pair a scene (of single pairs: of a few hundred): whether the flow brings the second image to the first."""
    by_scene = {pair.scene: pair for pair in pairs}  # the last of each
    some = list(by_scene.values())
    for pair in some[:: max(1, len(some) // 200)]:
        image_1, image_0 = (found[file].picture().astype(np.float64) for file in (pair.image_1, pair.image_0))
        flow, valid = decode_flo(found[pair.flow_1to0].read(), pair.flow_1to0)
        (height, width), (y, x) = valid.shape, np.indices(valid.shape)
        to_y, to_x = np.rint(y + flow[..., 1]).astype(int), np.rint(x + flow[..., 0]).astype(int)
        seen = valid & (to_y >= 0) & (to_y < height) & (to_x >= 0) & (to_x < width)
        if not np.any(seen):
            continue
        still = np.mean(np.abs(image_1 - image_0)[seen])
        moved = np.mean(np.abs(image_1[seen] - image_0[to_y[seen], to_x[seen]]))
        if moved > max(1.1 * still, 1.0):
            what = (
                f"does not lead from {pair.image_1} to {pair.image_0}: they differ by {moved:.1f} levels with it and "
                f"{still:.1f} without"
            )
            yield Fault("not a pair", found[pair.flow_1to0].where, what)


def _each_done(
    work: Callable[[T], R], items: Sequence[T], progress: Progress | None, before: int, total: int
) -> Iterator[R]:
    """What work makes of each, in order, by several threads; counted from `before` up to `total`."""
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for done, result in enumerate(pool.map(work, items), start=before + 1):
                yield result
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _readable(state_of: Callable[[Item, bytes], _State]) -> Callable[[Item], _State]:
    def read(item: Item) -> _State:
        try:
            data = item.read()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).removeprefix(f"{item.where}: ")
            return _State(None, 0, ("damaged", f"cannot be read: {reason}"))
        return state_of(item, data)

    return read


def _picture_state(item: Item, data: bytes) -> _State:
    checksum = zlib.crc32(data)
    if not data:
        return _State(None, checksum, ("damaged", "is empty"))
    try:
        if data.startswith(PNG_SIGNATURE):
            width, height, bits, colours = _png_header(data)
            if (bits, colours) != (8, 2):
                kind = f"holds {bits}-bit {_PNG_KINDS.get(colours, 'samples of an unknown kind')}; expected 8-bit RGB"
                return _State((width, height), checksum, ("another kind", kind))
            return _State((width, height), checksum)
        image = decode_image(data, "file")
    except ValueError as error:
        return _State(None, checksum, ("damaged", str(error).removeprefix("file: ")))
    height, width, _ = image.rgb.shape
    return _State((width, height), checksum)


def _flow_file_state(item: Item, data: bytes) -> _State:
    name = item.key.lower()
    checksum = zlib.crc32(data)
    try:
        if name.endswith(".txt"):
            return _State(None, checksum)
        if name.endswith(".png"):
            state = _picture_state(item, data)
            mask = "/invalid/" in name and state.size_px is not None
            return dataclasses.replace(state, fault=None) if mask else state
        if name.endswith(".flo"):
            _, valid = decode_flo(data, "file")
            height, width = valid.shape
            fault: tuple[Kind, str] | None = None if np.any(valid) else ("damaged", "knows the flow of no pixel")
            return _State((width, height), checksum, fault)
        height, width, _ = decode_ppm(data, "file").shape
    except ValueError as error:
        return _State(None, checksum, ("damaged", str(error).removeprefix("file: ").removeprefix("'file' ")))
    return _State((width, height), checksum)


def _png_header(data: bytes) -> tuple[int, int, int, int]:
    """(width, height, bits, colour type) of a PNG file, after every chunk's checksum has been found right.

    Raises:
        ValueError: a chunk is damaged or the file ends too early.
    """
    position, kinds, packed = len(PNG_SIGNATURE), [], []
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        end = position + 12 + length
        if end > len(data):
            break
        chunk = memoryview(data)[position + 4 : end - 4]
        if zlib.crc32(chunk) != int.from_bytes(data[end - 4 : end]):
            raise ValueError(f"is damaged: its part {bytes(chunk[:4]).decode('latin-1')!r} does not fit its checksum")
        kinds.append(bytes(chunk[:4]))
        if kinds[-1] == b"IDAT":
            packed.append(chunk[4:])
        if kinds[-1] == b"IEND" and packed and kinds[0] == b"IHDR":
            header = data[16:29]
            width, height, bits, colours = (int.from_bytes(header[:4]), int.from_bytes(header[4:8]), *header[8:10])
            samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colours, 0)
            expected = height * (1 + -(-width * samples * bits // 8))
            # Interlaced ones hold a little more.
            try:
                if len(zlib.decompress(b"".join(packed))) < expected:
                    raise ValueError("is damaged: it holds fewer pixels than its size says")
            except zlib.error as error:
                raise ValueError(f"is damaged: its pixels cannot be unpacked ({error})") from error
            return width, height, bits, colours
        position = end
    raise ValueError("is cut short")


def _see(item: Item) -> _Seen:
    image_u8 = item.picture()
    grey = image_u8.sum(axis=-1, dtype=np.int32)
    contrast = np.mean(np.abs(np.diff(grey, axis=0))) + np.mean(np.abs(np.diff(grey, axis=1)))
    histogram = np.bincount(image_u8.ravel(), minlength=256)
    return _Seen(_small(grey, _FAR_PX), _small(grey, _NEAR_PX), float(contrast), histogram)


def _small(grey: np.ndarray, short_side_px: int) -> np.ndarray:
    """Averaged over squares so that the shorter side keeps about so many."""
    side = max(1, min(grey.shape) // short_side_px)
    height, width = (size // side for size in grey.shape)
    return grey[: height * side, : width * side].reshape(height, side, width, side).mean(axis=(1, 3))


def _likeness(one: _Seen, other: _Seen) -> float:
    """Correlation of what both show from afar; 1 where there is nothing to see."""
    x, y = (seen.far - seen.far.mean() for seen in (one, other))
    scale = np.sqrt(np.mean(x * x) * np.mean(y * y))
    return float(np.mean(x * y) / scale) if scale > 10 else 1.0


def _difference(one: _Seen, other: _Seen) -> float:
    return float(np.mean((one.near - other.near) ** 2))


def _is_same_file(one: Item, other: Item) -> bool:
    names = [item.key.rpartition("/")[2] for item in (one, other)]
    return names[0] == names[1] and one.size_bytes == other.size_bytes


def _nothing_there(dataset: VideoSet | FlowSet, layout: str) -> ValueError:
    return ValueError(
        f"nothing of {dataset.title} is there; expected {layout} in an archive or a folder. `jaxdeblur data info "
        f"{dataset.name}` says what to download"
    )


def _numbered(numbers: Iterable[int]) -> str:
    """`frames 3, 7 to 12`; of many runs the first."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:_RUNS_LISTED_AT_MOST]]
    if more := sum(map(len, runs[_RUNS_LISTED_AT_MOST:])):
        parts.append(f"and {more} more")
    return ("frame " if sum(map(len, runs)) == 1 else "frames ") + ", ".join(parts)


def _by(size_px: tuple[int, int] | None) -> str:
    return "nothing" if size_px is None else f"{size_px[0]}x{size_px[1]}"
