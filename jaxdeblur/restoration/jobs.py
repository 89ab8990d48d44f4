"""Which file becomes which, and whatever of it can be refused before a network is loaded: nothing here imports JAX."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from jaxdeblur.cache import kept_weights
from jaxdeblur.data.image_io import IMAGE_KINDS, StrPath, count_pictures_of_gif
from jaxdeblur.data.own_files import fitting_name
from jaxdeblur.data.video_folder import is_image, list_images
from jaxdeblur.data.video_io import Cut, DamagedVideoError, VideoFormat, VideoReader, open_input
from jaxdeblur.data.video_writer import (
    VIDEO_SUFFIXES,
    choose_encoding,
    refuse_same_file,
    refuse_unwritable,
    refuse_unwritable_folder,
)
from jaxdeblur.restoration.pictures import plan_pictures
from jaxdeblur.sources import OFFICIAL, missing_weights

_LONGEST_NAME_BYTES = 255

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_LEAST_MEMORY_BYTES = 16 * 2**20
"""Less is a slip: no network of the package fits."""

# What a video most often is; that of a file is known once it is opened.
_USUAL_FORMAT = VideoFormat(height=720, width=1280, time_base=Fraction(1, 25), average_rate=Fraction(25))


@dataclasses.dataclass(frozen=True)
class Job:
    """A video, a folder of frames, or images, and what is to be made of it.

    Attributes:
        source: the video or the folder; of images the first.
        target: the video or the folder; of a single image, where its suffix is that of one, an image.
        compare: where a comparison is to be written.
        explain: the folder of sheets.
        images: exactly these files are the frames; empty for a video or a folder.
    """

    source: Path
    target: Path
    compare: Path | None = None
    explain: Path | None = None
    images: tuple[Path, ...] = ()

    @property
    def is_video(self) -> bool:
        return not self.images and not self.source.is_dir()

    @property
    def target_is_image(self) -> bool:
        return bool(self.images) and self.target.suffix.lower() in IMAGE_KINDS

    @property
    def target_is_file(self) -> bool:
        return self.is_video or self.target_is_image


def plan_jobs(sources: Sequence[Path], target: Path, compare: Path | None, explain: Path | None) -> list[Job]:
    """Names what each source becomes.

    A single source becomes `target`, or, a video and a folder that is there, a file in it. Several videos or folders
    become files of their own names in the folder `target`; videos of a kind that is not written become .mkv, which
    holds every codec. Several images are the frames of one clip, and become a folder.

    Args:
        sources: videos and folders of images; or images.
        target: see above.
        compare: of a single source, the comparison; `Path()` for a name made of the target's; None for none.
        explain: of a single source, the folder of sheets.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: two sources would become one file, or `explain` or a name to compare with is given for several, or
            images are given beside something else, or the target is of another kind than the source.
    """
    for given in (target, compare, explain):
        _refuse_long_name(given)
    for source in sources:
        _refuse_missing(source)
    if images := [source for source in sources if is_image(source)]:
        if len(images) < len(sources):
            other = next(source for source in sources if not is_image(source))
            raise ValueError(
                f"{images[0]} is a picture and {other} is none; restore pictures and videos one after the other"
            )
        return [_job_of_images(images, target, compare, explain)]
    if len(sources) == 1:
        (source,) = sources
        if target.is_dir() and not source.is_dir():
            target = target / _video_name(source)
        _refuse_another_kind(source, target)
        return [Job(source, target, _compare_name(source, target, compare), explain)]
    if target.exists() and not target.is_dir():
        raise ValueError(
            f"{target}: is a file; of several sources, the last name is the folder for what becomes of them"
        )
    if explain is not None or compare not in (None, Path()):
        raise ValueError("--explain, and a name for --compare, go with a single source")
    jobs = []
    for source in sources:
        place = target / (source.name if source.is_dir() else _video_name(source))
        jobs.append(Job(source, place, _compare_name(source, place, compare)))
    _refuse_collisions(jobs)
    return jobs


def _refuse_missing(source: Path) -> None:
    try:
        source.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{source}: no such file or folder") from None
    except OSError as error:  # such as a link that leads to itself
        raise OSError(error.errno, error.strerror, os.fspath(source)) from None


def _job_of_images(images: list[Path], target: Path, compare: Path | None, explain: Path | None) -> Job:
    is_image_name = target.suffix.lower() in IMAGE_KINDS and not target.is_dir()
    if len(images) > 1 and (is_image_name or target.is_file()):
        raise ValueError(f"{target}: of {len(images)} pictures, the last name is a new folder for what becomes of them")
    if target.suffix.lower() in VIDEO_SUFFIXES and not target.is_dir():
        raise ValueError(
            f"{target}: pictures become pictures; name a new folder, and --compare={target} for a video beside it"
        )
    if len(images) == 1 and not is_image_name and target.suffix and not target.is_dir():
        raise ValueError(
            f"{target}: unknown image suffix {target.suffix!r}; use one of {', '.join(IMAGE_KINDS)}, or name a folder"
        )
    if compare == Path():
        stem = target.stem if is_image_name else target.name
        compare = target.with_name(f"{stem}-compare.mp4")
    return Job(images[0], target, compare, explain, tuple(images))


def _refuse_another_kind(source: Path, target: Path) -> None:
    suffix = target.suffix.lower()
    if source.is_dir() and suffix in (*VIDEO_SUFFIXES, *IMAGE_KINDS) and not target.is_dir():
        beside = f", and --compare={target} for a video beside it" if suffix in VIDEO_SUFFIXES else ""
        raise ValueError(f"{target}: a folder of frames becomes a folder; name a new one{beside}")
    if not source.is_dir() and suffix in IMAGE_KINDS:
        raise ValueError(
            f"{target}: is the name of a picture, and {source} is none of {', '.join(IMAGE_KINDS)}; name a video, "
            f"one of {', '.join(VIDEO_SUFFIXES)}"
        )


def _refuse_collisions(jobs: Sequence[Job]) -> None:
    """What is written must be nothing that is read, and nothing else that is written."""
    taken: dict[str, str] = {os.path.realpath(job.source): "itself to be restored" for job in jobs}
    for job in jobs:
        for written in (path for path in (job.target, job.compare) if path is not None):
            if (whose := taken.get(os.path.realpath(written))) is not None:
                raise ValueError(
                    f"{written} would be written for {job.source}, but is {whose}; restore them one by one"
                )
            taken[os.path.realpath(written)] = f"written for {job.source}"


def _video_name(source: Path) -> str:
    return source.name if source.suffix.lower() in VIDEO_SUFFIXES else source.with_suffix(".mkv").name


def _compare_name(source: Path, target: Path, compare: Path | None) -> Path | None:
    if compare != Path():
        return compare
    suffix = ".mp4" if source.is_dir() else target.suffix
    return target.with_name(f"{target.name if source.is_dir() else target.stem}-compare{suffix}")


def check_jobs(
    jobs: Sequence[Job],
    *,
    overwrite: bool = False,
    restart: bool = False,
    cut: Cut | None = None,
    codec: str | None = None,
    crf: int | None = None,
    lossless: bool = False,
    strict: bool = False,
) -> None:
    """Refuses what would be refused later, or only in the end.

    Of several jobs only what concerns all of them is looked at, since one that fails is not to keep the others. What an
    interrupted run has put at its place may be there, unless that run is to be forgotten (`restart`).

    Raises:
        ValueError, OSError: as deblur_video and deblur_folder; FileExistsError, if something is there and `overwrite`
            is not said.
    """
    several = len(jobs) > 1
    for job in jobs:
        if job.target_is_file:
            refuse_same_file(job.source, job.target)
        refuse_overlap(job.source, job.target, job.compare, job.explain)
        refuse_video_options(job, {"cut": cut, "codec": codec, "lossless": lossless, "strict": strict})
        for video in [*([job.target] if job.is_video else []), *([] if job.compare is None else [job.compare])]:
            choose_encoding(video, _USUAL_FORMAT, codec=codec, crf=crf, lossless=lossless)
        for path in (job.target, job.compare, job.explain):
            if path is not None:
                is_file = path is job.compare or (path is job.target and job.target_is_file)
                _refuse_unwritable(path, is_file=is_file, in_new_folder=several)
    fresh = [job for job in jobs if restart or not _is_begun(job)]
    _refuse_places_taken(fresh, overwrite=overwrite, skip_helps=several and not overwrite)
    if not several:
        for job in jobs:
            _check_source(job, cut, codec, crf, lossless, strict)


@contextlib.contextmanager
def naming_strict() -> Iterator[None]:
    """Errors that only --strict makes such say so."""
    try:
        yield
    except DamagedVideoError as error:
        raise DamagedVideoError(f"{error}; leave out --strict to restore the rest") from error


@naming_strict()
def _check_source(job: Job, cut: Cut | None, codec: str | None, crf: int | None, lossless: bool, strict: bool) -> None:
    """That it can be read and the targets hold it."""
    if not job.is_video:
        images = job.images or list_images(job.source)
        plan_pictures(images, job.target, is_file=job.target_is_image)
        return
    refuse_timeless_gif(job.source)
    with VideoReader(job.source, cut, strict=strict, quietly=True) as reader:
        choose_encoding(job.target, reader.format, codec=codec, crf=crf, lossless=lossless)


def refuse_timeless_gif(source: Path) -> None:
    """ValueError for a GIF whose pictures tell no time: FFmpeg takes them all for one, of which the last is shown."""
    if source.suffix.lower() != ".gif":
        return
    pictures = count_pictures_of_gif(source)
    with open_input(os.fspath(source)) as video:
        packets = sum(packet.size > 0 for packet in video.demux(video=0))
    if packets < pictures:
        raise ValueError(
            f"{source}: holds {pictures} pictures and does not say how long each is shown, so that FFmpeg reads fewer; "
            "save it as an animated .webp or .png, which is restored with all of them"
        )


def _refuse_places_taken(jobs: Sequence[Job], *, overwrite: bool, skip_helps: bool) -> None:
    """FileExistsError if something is where their results belong.

    Args:
        skip_helps: jobs whose target is there could be left out.
    """
    files = [path for job in jobs for path in (job.target if job.target_is_file else None, job.compare)]
    folders = [path for job in jobs for path in (None if job.target_is_file else job.target, job.explain)]
    try:
        refuse_taken(files, folders, overwrite=overwrite)
    except FileExistsError as error:
        left = [job for job in jobs if not job.target.exists()]
        if not skip_helps or any(os.path.lexists(path) for job in left for path in (job.target, job.compare) if path):
            raise
        raise FileExistsError(f"{error}, or leave what is there with --skip-existing") from error


def _is_begun(job: Job) -> bool:
    """Whether an interrupted run waits to be gone on with, which then is looked at more closely: once it is whole, its
    results are moved one by one."""
    return journal_folder(job.target if job.target_is_file else Path(os.path.realpath(job.target))).exists()


def refuse_video_options(job: Job, given: dict[str, object]) -> None:
    """ValueError if something is asked of pictures that only videos have."""
    # Damaged pictures are errors anyway.
    given = {name: value for name, value in given.items() if value and name != "strict"}
    asked = [f"--{name}" if name != "cut" else "--start and no --end" for name in given]
    if asked and not job.is_video:
        what = "a folder of frames" if job.source.is_dir() else "a picture"
        raise ValueError(f"{job.source}: is {what}, for which there is no {' and no '.join(asked)}")


def refuse_taken(files: Sequence[StrPath | None], folders: Sequence[StrPath | None], *, overwrite: bool) -> None:
    """FileExistsError if one of the files is there and may not be overwritten, or one of the folders has something."""
    refuse_existing(*files, overwrite=overwrite)
    refuse_used_folders(*folders)


def refuse_existing(*paths: StrPath | None, overwrite: bool) -> None:
    """FileExistsError if a file is there that may not be overwritten."""
    there = [path for path in paths if path is not None and os.path.lexists(path)]
    if there and not overwrite:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise FileExistsError(
            f"{os.fspath(there[0])}: exists already{more}; name another file, or replace it with --overwrite"
        )


def refuse_used_folders(*folders: StrPath | None) -> None:
    """FileExistsError if a folder that is to be made has something in it."""
    for folder in (Path(folder) for folder in folders if folder is not None):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder}: exists and is not an empty folder; name a new folder")


def refuse_overlap(source: Path, target: Path, compare: StrPath | None, explain: StrPath | None) -> None:
    """Raises ValueError where what is written would take the place of something else, or be in its way."""
    if compare is not None:
        refuse_same_file(source, compare)
        _refuse_within(Path(compare), "--compare", target, explain)
    if explain is not None:
        _refuse_within(Path(explain), "--explain", target, source)


def _refuse_within(path: Path, option: str, *others: StrPath | None) -> None:
    for other in (Path(other) for other in others if other is not None):
        real = Path(os.path.realpath(path))
        if Path(os.path.realpath(other)) in (real, *real.parents):
            raise ValueError(f"{path}: is {other} or lies in it; name another for {option}")


def _refuse_long_name(path: Path | None) -> None:
    if path is not None and len(os.fsencode(path.name)) > _LONGEST_NAME_BYTES:
        raise ValueError(f"{path}: the name is longer than {_LONGEST_NAME_BYTES} bytes; name a shorter one")


def _refuse_unwritable(path: Path, *, is_file: bool, in_new_folder: bool) -> None:
    _refuse_long_name(path)
    if in_new_folder and not path.parent.exists():
        path, is_file = path.parent, False
    refuse_unwritable(path) if is_file else refuse_unwritable_folder(path)


def refuse_missing_checkpoint(path: StrPath, option: str = "--checkpoint", *, default: str | None = None) -> None:
    """FileNotFoundError if there is nothing of that name, which is not that of the package's own weights, nor of a
    network whose official ones are kept."""
    if os.fspath(path) != default and not os.path.exists(path):
        if (name := os.fspath(path)) in OFFICIAL:
            if not kept_weights(name).exists():
                raise FileNotFoundError(f"{option} is {name}: {missing_weights(name)}")
            return
        own = f"; leave {option} out for the weights of this package" if default is not None else ""
        raise FileNotFoundError(f"{option} is {os.fspath(path)}: no such file or folder{own}")


def journal_folder(target: Path) -> Path:
    """Where an interrupted run keeps what it has done."""
    return target.with_name(fitting_name(target.name, ".jaxdeblur", "."))


def parse_bytes(text: str) -> int:
    """A size such as 4G, 800M or 2.5GiB, in bytes; units are powers of 1024.

    Raises:
        ValueError: it is none, or one that nobody can mean.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"--memory is {text!r}; expected a size such as 4G or 800M")
    size = round(float(found[1]) * _UNITS[found[2]])
    if size < _LEAST_MEMORY_BYTES:
        unit = "G" if float(found[1]) < 100 else "M"
        raise ValueError(
            f"--memory is {text!r}, which is {size} bytes, too few for any network; did you mean "
            f"--memory={found[1]}{unit}?"
        )
    return size
