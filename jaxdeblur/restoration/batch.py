"""One file or many: which becomes which, one after the other, and how each went."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import jax

from jaxdeblur.data.video_writer import VIDEO_SUFFIXES
from jaxdeblur.restoration.files import deblur_folder, deblur_video
from jaxdeblur.types import Restorer, Variables


@dataclasses.dataclass(frozen=True)
class Job:
    """A video or a folder of frames, and what is to be made of it."""

    source: Path
    target: Path
    compare: Path | None = None
    explain: Path | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job went; error is None where all is well."""

    job: Job
    frames: int
    seconds: float
    error: Exception | None = None


def plan_jobs(sources: Sequence[Path], target: Path, compare: Path | None, explain: Path | None) -> list[Job]:
    """Names what each source becomes.

    A single source becomes `target`, or, a video and a folder that is there, a file in it. Several become files of
    their own names in the folder `target`; videos of a kind that is not written become .mkv, which holds every codec.

    Args:
        sources: videos and folders of images.
        target: see above.
        compare: of a single source, the comparison; `Path()` for a name made of the target's; None for none.
        explain: of a single source, the folder of sheets.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: two sources would become one file, or `explain` or a name to compare with is given for several.
    """
    for source in sources:
        try:
            source.stat()
        except FileNotFoundError:
            raise FileNotFoundError(f"{source}: no such file or folder") from None
        except OSError as error:  # such as a link that leads to itself
            raise OSError(error.errno, error.strerror, os.fspath(source)) from None
    if len(sources) == 1:
        if target.is_dir() and not sources[0].is_dir():
            target = target / _video_name(sources[0])
        return [Job(sources[0], target, _compare_name(sources[0], target, compare), explain)]
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
    # What is written must be nothing that is read, and nothing else that is written.
    taken: dict[str, str] = {os.path.realpath(source): "itself to be restored" for source in sources}
    for job in jobs:
        for written in (path for path in (job.target, job.compare) if path is not None):
            if (whose := taken.get(os.path.realpath(written))) is not None:
                raise ValueError(
                    f"{written} would be written for {job.source}, but is {whose}; restore them one by one"
                )
            taken[os.path.realpath(written)] = f"written for {job.source}"
    return jobs


def _video_name(source: Path) -> str:
    return source.name if source.suffix.lower() in VIDEO_SUFFIXES else source.with_suffix(".mkv").name


def _compare_name(source: Path, target: Path, compare: Path | None) -> Path | None:
    if compare != Path():
        return compare
    suffix = ".mp4" if source.is_dir() else target.suffix
    return target.with_name(f"{target.name if source.is_dir() else target.stem}-compare{suffix}")


def run_job(
    job: Job,
    model: Restorer,
    variables: Variables,
    of_all: dict[str, Any],
    of_videos: dict[str, Any],
    progress: Callable[[int, int | None], None] | None = None,
) -> int:
    """Restores one source; see deblur_video and deblur_folder, whose arguments the dictionaries hold.

    Returns:
        The number of frames.
    Raises:
        ValueError: also where something is asked of a folder that only videos have.
    """
    options = {**of_all, "compare": job.compare, "explain": job.explain, "progress": progress}
    asked = [name for name, value in of_videos.items() if value]
    if job.source.is_dir() and asked:
        raise ValueError(f"{job.source}: is a folder of frames, for which there is no {' and no '.join(asked)}")
    try:
        if job.source.is_dir():
            return deblur_folder(job.source, job.target, model, variables, **options)
        return deblur_video(job.source, job.target, model, variables, **options, **of_videos)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise OSError(f"{job.source}: memory ran out; allow less, as with --memory=4G --restart") from error
        raise
    except av.FFmpegError as error:
        if isinstance(error, ValueError | OSError):
            raise
        raise OSError(f"{job.source}: FFmpeg fails with {error.strerror}") from error


def run_jobs(
    jobs: Sequence[Job],
    run: Callable[[Job], int],
    report: Callable[[Outcome], None],
) -> list[Outcome]:
    """Runs them all, whatever becomes of each; folders for the results are made.

    Args:
        run: restores a source and returns its number of frames.
        report: called after each.
    """
    outcomes = []
    for job in jobs:
        began = time.monotonic()
        try:
            job.target.parent.mkdir(exist_ok=True)
            frames, error = run(job), None
        except (ValueError, OSError) as caught:
            frames, error = 0, caught
            with contextlib.suppress(OSError):
                job.target.parent.rmdir()  # if it was made for this, and nothing came of it
        outcomes.append(Outcome(job, frames, time.monotonic() - began, error))
        report(outcomes[-1])
    return outcomes
