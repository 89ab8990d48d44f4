"""The field's data sets as their authors publish them: what is where, how much of it, and how to get it.

Nothing is downloaded: the archives are tens of gigabytes, behind pages that ask for consent or move. `sources` lists
what the user has, `verification` holds it to these tables, `preparation` makes of it what training reads.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Literal

from jaxdeblur.data.video_folder import DVD_TEST_VIDEOS, SIDES, Side

CHAIRS_SPLIT_FILE = "FlyingChairs_train_val.txt"

_PREPARED = re.compile(r"(?:^|/)(?P<split>[^/]+)/(?P<clip>[^/]+)/(?P<side>blur|sharp)/(?P<frame>\d+)\.(?:png|jpe?g)$")


@dataclasses.dataclass(frozen=True)
class Place:
    """What a file of a video set is. side None: frames of a variant that was not asked for."""

    split: str
    clip: str
    side: Side | None
    frame: int


@dataclasses.dataclass(frozen=True)
class Unnamed:
    """So many clips of the same frame numbers, whatever they are called."""

    clips: int
    frames: range


@dataclasses.dataclass(frozen=True)
class VideoSet:
    """Blurred videos with their sharp partners.

    splits: split -> clip -> the numbers of its frames.
    variants: name -> what the blurred frames of that name are; the first is taken where none is named.
    pattern: of the official archives; groups clip, side, frame and, where the path says so, split and variant.
    sides: variant -> the name of a side's folder -> the side.
    light: variant -> what was averaged: gamma-encoded values or light; where published, and told apart by content.
    """

    name: str
    title: str
    page: str
    licence: str
    by_hand: str
    splits: Mapping[str, Mapping[str, range] | Unnamed]
    variants: Mapping[str, str]
    pattern: re.Pattern[str]
    sides: Mapping[str, Mapping[str, Side]]
    official_layout: str
    size_px: tuple[int, int]
    portrait: bool = False
    light: Mapping[str, Literal["encoded", "linear"]] = dataclasses.field(default_factory=dict)

    def place(self, key: str, variant: str, *, prepared: bool) -> Place | None:
        """What a path inside an archive or a folder is; None for files of other kinds.

        prepared: the folder was made by `prepare`, where the blurred frames of any variant lie in blur.
        """
        if prepared:
            match = _PREPARED.search(key)
            sides: Mapping[str, Side] = {side: side for side in SIDES}
        else:
            match = self.pattern.search(key)
            sides = self.sides[variant]
        if match is None:
            return None
        groups = match.groupdict()
        side = sides.get(groups["side"]) if groups.get("variant") in (None, variant) else None
        split = groups.get("split") or self.split_of(groups["clip"])
        return Place(split, groups["clip"], side, int(groups["frame"]))

    def split_of(self, clip: str) -> str:
        """Of a clip whose path does not name its split; "" if it is in none."""
        return next(
            (split for split, clips in self.splits.items() if not isinstance(clips, Unnamed) and clip in clips), ""
        )

    def count(self, split: str) -> tuple[int, int]:
        """(clips, pairs of frames) that are published."""
        clips = self.splits[split]
        if isinstance(clips, Unnamed):
            return clips.clips, clips.clips * len(clips.frames)
        return len(clips), sum(map(len, clips.values()))


@dataclasses.dataclass(frozen=True)
class FlowSet:
    """Images with true optical flow between them.

    pattern: of its files; group path, from where on it is laid out as published.
    scenes: scene -> how many images; of a set of single pairs "" -> how many pairs.
    """

    name: str
    title: str
    page: str
    licence: str
    by_hand: str
    pattern: re.Pattern[str]
    scenes: Mapping[str, int]
    official_layout: str
    size_px: tuple[int, int]

    def pairs(self) -> Iterator["FlowFiles"]:
        """Every published pair, paths relative to the root of the prepared form."""
        for scene, count in self.scenes.items():
            if not scene:
                for number in range(1, count + 1):
                    first, second, flow = (f"data/{number:05d}_{part}" for part in ("img1.ppm", "img2.ppm", "flow.flo"))
                    yield FlowFiles(f"{number:05d}", first, second, flow)
                continue
            for number, render_pass in ((n, p) for n in range(1, count) for p in ("clean", "final")):
                first, second = (f"training/{render_pass}/{scene}/frame_{n:04d}.png" for n in (number, number + 1))
                name = f"{scene}/frame_{number:04d}"
                yield FlowFiles(scene, first, second, f"training/flow/{name}.flo", (f"training/invalid/{name}.png",))


@dataclasses.dataclass(frozen=True)
class FlowFiles:
    """Of one pair. Masks of invalid pixels may all be missing."""

    scene: str
    image_1: str
    image_0: str
    flow_1to0: str
    masks: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, str, str]:
        return self.image_1, self.image_0, self.flow_1to0


def _clips(*clips: tuple[str, int, int]) -> dict[str, range]:
    """(name, number of the first frame, how many)"""
    return {name: range(first, first + count) for name, first, count in clips}


_DVD_TRAIN = {
    **{f"720p_240fps_{n}": range(100) for n in (1, 3, 5, 6)},
    **{
        f"IMG_{n:04d}": range(100)
        for n in (
            *(1, 4, 5, 8, 10, 11, 12, 13, 14, 15, 17, 19, 22, 23, 24, 25, 26, 28, 29, 34, 35, 36, 38, 40),
            *(41, 42, 43, 44, 46, 47, 51, 53, 54, 55, 56, 58),
        )
    },
    **{"C0036": range(63), "C0041": range(229)},
    **{
        f"GOPR{n}": range(count)
        for n, count in (
            *((9633, 35), (9636, 48), (9641, 137), (9642, 83), (9643, 97)),
            *((9645, 65), (9648, 88), (9652, 71)),
        )
    },
    "IMG_0009": range(30, 71),
    **{
        f"IMG_{n:04d}": range(count)
        for n, count in (
            *((45, 61), (150, 50), (151, 60), (153, 120), (155, 78), (164, 46)),
            *((173, 70), (180, 50), (183, 113), (200, 103)),
        )
    },
}

DVD = VideoSet(
    name="dvd",
    title="DVD, Deep Video Deblurring (Su et al., CVPR 2017)",
    page="https://www.cs.ubc.ca/labs/imager/tr/2017/DeepVideoDeblurring/",
    licence="none found on the authors' page; take it for research only",
    by_hand="DeepVideoDeblurring_Dataset.zip (3.7 GB; a plain link on the page)",
    splits={"train": _DVD_TRAIN, "test": {name: range(100) for name in DVD_TEST_VIDEOS}},
    variants={"blur": "7 frames of 240 a second averaged, with frames between them by optical flow; every 8th is kept"},
    pattern=re.compile(
        r"(?:^|/)(?:quantitative_datasets|(?P<split>train|test))/(?P<clip>[^/]+)/(?P<side>input|GT)/(?P<frame>\d+)"
        r"\.(?:jpe?g|png)$"
    ),
    sides={"blur": {"input": "blur", "GT": "sharp"}},
    official_layout="quantitative_datasets/<video>/{input,GT}/00000.jpg",
    size_px=(1280, 720),
    portrait=True,
)

GOPRO = VideoSet(
    name="gopro",
    title="GoPro, GOPRO_Large (Nah et al., CVPR 2017)",
    page="https://seungjunnah.github.io/Datasets/gopro",
    licence="CC BY 4.0",
    by_hand="GOPRO_Large.zip (from Google Drive or the authors' server, both linked on the page)",
    splits={
        "train": _clips(
            ("GOPR0372_07_00", 47, 100),
            ("GOPR0372_07_01", 601, 75),
            ("GOPR0374_11_00", 1, 150),
            ("GOPR0374_11_01", 203, 80),
            ("GOPR0374_11_02", 541, 100),
            ("GOPR0374_11_03", 2481, 48),
            ("GOPR0378_13_00", 41, 110),
            ("GOPR0379_11_00", 188, 100),
            ("GOPR0380_11_00", 134, 60),
            ("GOPR0384_11_01", 951, 100),
            ("GOPR0384_11_02", 1301, 100),
            ("GOPR0384_11_03", 2101, 100),
            ("GOPR0384_11_04", 2801, 100),
            ("GOPR0385_11_00", 101, 100),
            ("GOPR0386_11_00", 247, 100),
            ("GOPR0477_11_00", 1, 80),
            ("GOPR0857_11_00", 1, 100),
            ("GOPR0868_11_01", 221, 100),
            ("GOPR0868_11_02", 681, 100),
            ("GOPR0871_11_01", 181, 100),
            ("GOPR0881_11_00", 1, 100),
            ("GOPR0884_11_00", 186, 100),
        ),
        "test": _clips(
            ("GOPR0384_11_00", 1, 100),
            ("GOPR0384_11_05", 4001, 100),
            ("GOPR0385_11_01", 3011, 100),
            ("GOPR0396_11_00", 1, 100),
            ("GOPR0410_11_00", 101, 134),
            ("GOPR0854_11_00", 1, 100),
            ("GOPR0862_11_00", 1, 77),
            ("GOPR0868_11_00", 1, 100),
            ("GOPR0869_11_00", 1, 100),
            ("GOPR0871_11_00", 1, 100),
            ("GOPR0881_11_01", 201, 100),
        ),
    },
    variants={
        "blur": "gamma-encoded values averaged; what most later papers train on and report",
        "blur_gamma": "light averaged, by a gamma of 2.2; the data set paper's own and the multi-task units' input",
    },
    pattern=re.compile(
        r"(?:^|/)(?P<split>train|test)/(?P<clip>[^/]+)/(?P<side>blur|blur_gamma|sharp)/(?P<frame>\d+)\.(?:png|jpe?g)$"
    ),
    sides={
        "blur": {"blur": "blur", "sharp": "sharp"},
        "blur_gamma": {"blur_gamma": "blur", "sharp": "sharp"},
    },
    official_layout="{train,test}/<clip>/{blur,blur_gamma,sharp}/000001.png",
    size_px=(1280, 720),
    light={"blur": "encoded", "blur_gamma": "linear"},
)

REDS = VideoSet(
    name="reds",
    title="REDS, deblurring tracks (Nah et al., CVPRW 2019)",
    page="https://seungjunnah.github.io/Datasets/reds",
    licence="CC BY 4.0",
    by_hand="train_sharp.zip and val_sharp.zip, and train_ and val_ of one of blur.zip, blur_comp.zip, blur_jpeg.zip",
    splits={
        "train": {f"{n:03d}": range(100) for n in range(240)},
        "val": {f"{n:03d}": range(100) for n in range(30)},
    },
    variants={
        "blur": "65 frames of 1920 a second, 120 of them filmed, averaged by the camera's own response curve",
        "blur_comp": "the same, compressed as video",
        "blur_jpeg": "the same, compressed as JPEG",
    },
    pattern=re.compile(
        r"(?:^|/)(?P<split>train|val)_(?P<side>sharp|blur|blur_comp|blur_jpeg)/(?P<clip>\d+)/(?P<frame>\d+)"
        r"\.(?:png|jpe?g)$"
    ),
    sides={variant: {variant: "blur", "sharp": "sharp"} for variant in ("blur", "blur_comp", "blur_jpeg")},
    official_layout="{train,val}_{sharp,<variant>}/000/00000000.png",
    size_px=(1280, 720),
)

BSD = VideoSet(
    name="bsd",
    title="BSD, beam-splitter data set (Zhong et al., ECCV 2020, IJCV 2022)",
    page="https://github.com/zzh-tech/ESTRNN",
    licence="none stated for the data; ask the authors before any use beyond research",
    by_hand="BSD.zip (from Google Drive or Baidu, linked in the repository's README; BSD_test100.zip, older, has test "
    "clips of 100 frames instead of 150: it takes --partial)",
    splits={
        "train": Unnamed(60, range(100)),
        "valid": Unnamed(20, range(100)),
        "test": Unnamed(20, range(150)),
    },
    variants={
        "1ms8ms": "exposures of 1 ms for the sharp and 8 ms for the blurred camera",
        "2ms16ms": "exposures of 2 ms and 16 ms",
        "3ms24ms": "exposures of 3 ms and 24 ms",
    },
    pattern=re.compile(
        r"(?:^|/)BSD_(?P<variant>1ms8ms|2ms16ms|3ms24ms)/(?P<split>train|valid|test)/(?P<clip>[^/]+)/(?P<side>Blur|Sharp)/RGB"
        r"/(?P<frame>\d+)\.png$"
    ),
    sides={variant: {"Blur": "blur", "Sharp": "sharp"} for variant in ("1ms8ms", "2ms16ms", "3ms24ms")},
    official_layout="BSD_<variant>/{train,valid,test}/<clip>/{Blur,Sharp}/RGB/00000000.png",
    size_px=(640, 480),
)

_SINTEL_FIFTY = (
    "alley_1 alley_2 ambush_5 ambush_7 bamboo_1 bamboo_2 bandage_1 bandage_2 cave_2 cave_4 market_2 market_5 "
    "mountain_1 shaman_2 shaman_3 sleeping_1 sleeping_2 temple_2 temple_3"
)
SINTEL = FlowSet(
    name="sintel",
    title="MPI Sintel (Butler et al., ECCV 2012)",
    page="http://sintel.is.tue.mpg.de/downloads",
    licence="CC BY 3.0 (the film's; see the page)",
    by_hand="MPI-Sintel-complete.zip (5.3 GB; a plain link on the page); its test part has no flow and is left aside",
    pattern=re.compile(r"(?:^|/)(?P<path>training/(?:clean|final|flow|invalid)/[^/]+/frame_\d+\.(?:png|flo))$"),
    scenes={**dict.fromkeys(_SINTEL_FIFTY.split(), 50), "ambush_2": 21, "ambush_4": 33, "ambush_6": 20, "market_6": 40},
    official_layout="training/{clean,final,flow,invalid}/<scene>/frame_0001.png|.flo",
    size_px=(1024, 436),
)

FLYING_CHAIRS = FlowSet(
    name="flying_chairs",
    title="FlyingChairs (Dosovitskiy et al., ICCV 2015)",
    page="https://lmb.informatik.uni-freiburg.de/resources/datasets/FlyingChairs.en.html",
    licence="research only, no commercial use",
    by_hand="FlyingChairs.zip, and FlyingChairs_train_val.txt, which says what validates (plain links on the page)",
    pattern=re.compile(r"(?:^|/)(?P<path>data/\d{5}_(?:img[12]\.ppm|flow\.flo)|FlyingChairs_train_val\.txt)$"),
    scenes={"": 22872},
    official_layout="FlyingChairs_release/data/00001_{img1.ppm,img2.ppm,flow.flo}, FlyingChairs_train_val.txt",
    size_px=(512, 384),
)

DATASETS: dict[str, VideoSet | FlowSet] = {
    dataset.name: dataset for dataset in (DVD, GOPRO, REDS, BSD, SINTEL, FLYING_CHAIRS)
}


def instructions(dataset: VideoSet | FlowSet) -> str:
    """What the user has to fetch, and from where."""
    return (
        f"Download by hand, from {dataset.page}: {dataset.by_hand}. Put the archives, or what is unpacked of them, "
        f"into one folder. Licence: {dataset.licence}. Layout: {dataset.official_layout}"
    )
