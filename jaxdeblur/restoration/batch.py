"""One file or many, one after the other, and how each went; `jobs` says which becomes which."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import av
import jax

from jaxdeblur.restoration.files import deblur_folder, deblur_pictures, deblur_video
from jaxdeblur.restoration.jobs import Job, refuse_timeless_gif, refuse_video_options
from jaxdeblur.types import Restorer, Variables


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job went; error is None where all is well."""

    job: Job
    frames: int
    seconds: float
    error: Exception | None = None


def run_job(
    job: Job,
    model: Restorer,
    variables: Variables,
    of_all: dict[str, Any],
    of_videos: dict[str, Any],
    progress: Callable[[int, int | None], None] | None = None,
) -> int:
    """Restores one source; see deblur_video and deblur_pictures, whose arguments the dictionaries hold.

    Returns:
        The number of frames.
    Raises:
        ValueError: also where something is asked of pictures that only videos have.
    """
    options = {**of_all, "compare": job.compare, "explain": job.explain, "progress": progress}
    refuse_video_options(job, of_videos)
    try:
        if job.images:
            return deblur_pictures(job.images, job.target, model, variables, is_file=job.target_is_image, **options)
        if job.source.is_dir():
            return deblur_folder(job.source, job.target, model, variables, **options)
        refuse_timeless_gif(job.source)
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
