"""Restores video files and folders of frames."""

import collections
import dataclasses
import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxdeblur.data.image_io import ImageFile, StrPath, write_image
from jaxdeblur.data.own_files import becoming, replacing, write_through
from jaxdeblur.data.video_folder import list_images
from jaxdeblur.data.video_io import Cut, TimedFrame, VideoFormat, VideoReader
from jaxdeblur.data.video_writer import (
    Encoding,
    VideoWriter,
    choose_encoding,
    encoder_bytes,
    naming,
    refuse_same_file,
    refuse_unwritable,
    refuse_unwritable_folder,
    segment_frames,
)
from jaxdeblur.restoration.clip import Explain, Halfway, restore_stream
from jaxdeblur.restoration.explanation import contact_sheet
from jaxdeblur.restoration.gate import Gate
from jaxdeblur.restoration.jobs import naming_strict, refuse_existing, refuse_overlap, refuse_taken
from jaxdeblur.restoration.journal import Journal, fingerprint, identity_of_file
from jaxdeblur.restoration.memory import plan, with_precision
from jaxdeblur.restoration.pictures import Pictures, plan_pictures
from jaxdeblur.restoration.steps import Tiling
from jaxdeblur.types import Restorer, Variables

Progress = Callable[[int, int | None], None]
"""Called with the frames finished and, where known, how many there will be."""

_Frame = TypeVar("_Frame", TimedFrame, ImageFile)

# Between the two halves of a comparison. Even, so that it leaves the width's parity alone.
_DIVIDER_PX = 2

# A folder of frames has no time stamps; its comparison plays at the rate of film.
_FOLDER_RATE = Fraction(24)

_FRAMES, _EXPLAINED = "frames", "explained"
"""Folders in the journal's."""


@naming_strict()
def deblur_video(
    source: StrPath,
    target: StrPath,
    model: Restorer,
    variables: Variables,
    *,
    compare: StrPath | None = None,
    explain: StrPath | None = None,
    codec: str | None = None,
    crf: int | None = None,
    lossless: bool = False,
    cut: Cut | None = None,
    strict: bool = False,
    do_no_harm: bool = True,
    memory_bytes: int | None = None,
    may_narrow: bool = True,
    restart: bool = False,
    overwrite: bool = False,
    save_every_s: float = 20.0,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> int:
    """Restores a video: every frame, time stamp, sound and subtitle, in constant memory whatever its length.

    What is done is kept in a folder `.<target>.jaxdeblur` beside the target until the target is there; a run that was
    killed is gone on with by calling again, and ends with the same bytes as one that was not.

    Args:
        source: any video FFmpeg can open.
        target: see `data.video_writer` for its kinds.
        model: a deblurring model of this package.
        variables: its Flax variables.
        compare: where to write a second, silent video, blurred on the left, restored on the right.
        explain: a folder that does not exist yet or is empty, for a sheet of pictures a frame: how it came about.
        codec, crf, lossless: see `data.video_writer.choose_encoding`.
        cut: the part that is wanted.
        strict: damage of the source is an error; see `data.video_io.VideoReader` and, for what is beside the pictures,
            `data.video_writer.VideoWriter` for what it is otherwise.
        do_no_harm: leave frames that are sharp already as they are, see `restoration.gate`.
        memory_bytes: what may be taken, None for what is free: large frames are restored in tiles, see
            `restoration.memory`. Not with `explain`, whose pictures are of whole frames.
        may_narrow: and, where memory_bytes says what, with bfloat16, if that saves much of the work.
        restart: forget what an interrupted run has done.
        overwrite: replace `target` and `compare` if they are there.
        save_every_s: at most so much work is lost when killed, and what a segment takes.
        say: called with lines about how the frames are restored.
        progress: called after every frame.

    Returns:
        The number of frames.

    Raises:
        ValueError: source is not a video, or damaged and `strict`; a target is the source or of an unknown kind, or an
            interrupted run of another task waits.
        OSError: source cannot be read or a target not be written; FileExistsError, if it is there and `overwrite` is
            not said.
        In either case, and on Ctrl-C, the targets are as they were.
    """
    source, target = Path(source), Path(target)

    def first_frames(count: int) -> list[np.ndarray]:
        with VideoReader(source, cut, quietly=True) as another:
            return [frame.rgb for frame in itertools.islice(another, count)]

    with VideoReader(source, cut, strict=strict) as reader:
        form = reader.format
        refuse_same_file(source, target)
        refuse_overlap(source, target, compare, explain)
        choose: dict[str, Any] = {"codec": codec, "crf": crf, "lossless": lossless}
        outputs = {"restored": _output(target, form, **choose)}
        if compare is not None:
            outputs["compare"] = _output(Path(compare), _beside(form), **choose)
        task = {
            "source": identity_of_file(source),
            "part": [str(reader.cut.start_s), str(reader.cut.end_s)],
            **_task(model, variables, compare, explain, do_no_harm, memory_bytes),
            **choose,
            "strict": strict or None,
        }
        if restart:  # before it forgets what there is
            refuse_taken((target, compare), (explain,), overwrite=overwrite)
        with Journal(target, task, restart=restart, save_every_s=save_every_s, say=say) as journal:
            if journal.is_whole(_places(outputs, explain)):
                return _move_all(journal, _places(outputs, explain), overwrite)
            refuse_taken((target, compare), (explain,), overwrite=overwrite)
            writers = _writers(outputs, form, journal, {"restored": source}, reader.cut, strict)
            model, tiling = _planned(
                source, model, variables, first_frames, outputs, journal, memory_bytes, may_narrow, explain, say
            )

            def frames_from(number: int) -> Iterator[TimedFrame]:
                reader.skip(number)
                return iter(reader)

            count = _frames_done(journal)
            for frame, restored in _restored(
                frames_from, form, model, variables, tiling, journal, writers, explain, do_no_harm, say
            ):
                writers["restored"].write(dataclasses.replace(frame, rgb=restored))
                if compare is not None:
                    writers["compare"].write(dataclasses.replace(frame, rgb=side_by_side(frame.rgb, restored)))
                count += 1
                if progress is not None:
                    progress(count, form.frame_count)
            return _finish(journal, writers, outputs, count, _places(outputs, explain), overwrite)


def deblur_folder(source: StrPath, target: StrPath, model: Restorer, variables: Variables, **options: Any) -> int:
    """Restores a folder of frames, taken in order of their names with numbers counted as numbers.

    The target folder gets the same names and the same kinds of files, upright (see `data.image_io`): grey stays grey,
    alpha is kept as it is, 16 bit stays 16 bit. It is there whole or not at all; what is done of it is kept as for
    deblur_video.
    Files that are not images are left aside.

    Args:
        source: a folder of PNG, JPEG, BMP, TIFF or WebP files of one size and depth; each page of a file is a frame.
        target: a folder that does not exist yet or is empty.
        model: a deblurring model of this package.
        variables: its Flax variables.
        options: by name; compare: where to write a video at 24 frames a second, blurred on the left, restored on the
            right. crf: quality of that video. explain, do_no_harm, memory_bytes, may_narrow, restart, overwrite (of
            that video), save_every_s, say and progress: as for deblur_video.

    Returns:
        The number of frames.

    Raises:
        ValueError: no images, a damaged one, or frames of unequal size or depth; the message names the file.
        OSError: source cannot be read, or target is not empty or cannot be written.
        In either case, and on Ctrl-C, the targets are as they were.
    """
    pictures = plan_pictures(list_images(source), target)
    return _deblur_pictures(pictures, Path(source), model, variables, **options)


def deblur_pictures(
    sources: Sequence[StrPath], target: StrPath, model: Restorer, variables: Variables, *, is_file: bool, **options: Any
) -> int:
    """Restores exactly these images, as the frames of a clip; see `pictures.plan_pictures`.

    Args:
        sources: of one size and depth.
        target: a folder, as for deblur_folder; or, where is_file, what a single image becomes, in the form its suffix
            names.
        model, variables, options: as for deblur_folder.

    Returns:
        The number of frames.

    Raises:
        ValueError, OSError: as deblur_folder; also FileExistsError, if a file is there and `overwrite` is not said.
    """
    pictures = plan_pictures(sources, target, is_file=is_file)
    return _deblur_pictures(pictures, pictures.pages[0].path, model, variables, **options)


def _deblur_pictures(
    pictures: Pictures,
    source: Path,
    model: Restorer,
    variables: Variables,
    *,
    compare: StrPath | None = None,
    explain: StrPath | None = None,
    crf: int | None = None,
    do_no_harm: bool = True,
    memory_bytes: int | None = None,
    may_narrow: bool = True,
    restart: bool = False,
    overwrite: bool = False,
    save_every_s: float = 20.0,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> int:
    target, first = pictures.target, pictures.first
    refuse_unwritable_folder(target)
    if pictures.is_file:
        refuse_same_file(source, target)
    refuse_overlap(source, target, compare, explain)
    form = VideoFormat(
        height=first.rgb.shape[0],
        width=first.rgb.shape[1],
        time_base=1 / _FOLDER_RATE,
        average_rate=_FOLDER_RATE,
        bits=8 if first.bits == 8 else 10,
    )
    outputs = {} if compare is None else {"compare": _output(Path(compare), _beside(form), crf=crf)}
    task = {
        "source": [identity_of_file(path) for path in pictures.paths],
        **_task(model, variables, compare, explain, do_no_harm, memory_bytes),
        "crf": crf,
    }
    new_file, new_folder = (target, None) if pictures.is_file else (None, target)
    places = _places(outputs, explain, {f"{_FRAMES}/{pictures.result}".rstrip("/"): target})

    def first_frames(count: int) -> list[np.ndarray]:
        return [image.rgb for image in itertools.islice(pictures.frames(), count)]

    if restart:  # before it forgets what there is
        refuse_taken((compare, new_file), (new_folder, explain), overwrite=overwrite)
    with Journal(target, task, restart=restart, save_every_s=save_every_s, say=say) as journal:
        if journal.is_whole(places):
            return _move_all(journal, places, overwrite)
        refuse_taken((compare, new_file), (new_folder, explain), overwrite=overwrite)
        writers = _writers(outputs, form, journal)
        model, tiling = _planned(
            source, model, variables, first_frames, outputs, journal, memory_bytes, may_narrow, explain, say
        )
        folder = journal.folder / _FRAMES
        folder.mkdir(exist_ok=True)
        count = _frames_done(journal)
        written: list[Path] = []
        for image, restored in _restored(
            pictures.frames, form, model, variables, tiling, journal, writers, explain, do_no_harm, say, written
        ):
            written.append(pictures.write(folder, count, dataclasses.replace(image, rgb=restored)))
            for writer in writers.values():
                writer.write(TimedFrame(side_by_side(image.rgb, restored), pts=count, duration=1))
            count += 1
            if progress is not None:
                progress(count, len(pictures.pages))
        pictures.join(folder)
        return _finish(journal, writers, outputs, count, places, overwrite)


def side_by_side(blurred: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """Both frames in one, blurred on the left, a white line of two pixels between them."""
    height, _, channels = blurred.shape
    line = np.full((height, _DIVIDER_PX, channels), np.iinfo(blurred.dtype).max, blurred.dtype)
    return np.concatenate([blurred, line, restored], axis=1)


class _Output(NamedTuple):
    path: Path
    format: VideoFormat
    encoding: Encoding

    def part(self, name: str) -> str:
        """What it is called in the journal's folder."""
        return f"{name}{self.path.suffix}"


def _output(path: Path, form: VideoFormat, **choose: Any) -> _Output:
    refuse_unwritable(path)
    return _Output(path, form, choose_encoding(path, form, **choose))


def _beside(form: VideoFormat) -> VideoFormat:
    """Of a comparison."""
    return form.of_size(form.height, 2 * form.width + _DIVIDER_PX)


def _writers(
    outputs: dict[str, _Output],
    form: VideoFormat,
    journal: Journal,
    streams_from: dict[str, Path] | None = None,
    cut: Cut | None = None,
    strict: bool = False,
) -> dict[str, VideoWriter]:
    """Of every output, such that it goes on where the journal is; segments of all of them end together."""
    frames_a_segment = segment_frames(form)
    return {
        name: VideoWriter(
            output.path,
            journal.folder,
            output.format,
            output.encoding,
            streams_from=(streams_from or {}).get(name),
            cut=cut,
            strict=strict,
            segments_done=_frames_done(journal) // frames_a_segment,
            frames_a_segment=frames_a_segment,
            stem=name,
        )
        for name, output in outputs.items()
    }


def _task(
    model: Restorer,
    variables: Variables,
    compare: StrPath | None,
    explain: StrPath | None,
    do_no_harm: bool,
    memory_bytes: int | None,
) -> dict[str, Any]:
    """For the journal, what determines the result of a video and of a folder alike.

    Raises:
        ValueError: some of it does not go together.
    """
    if explain is not None and memory_bytes is not None:
        raise ValueError("--explain makes its pictures of whole frames, whatever they take; leave out --memory")
    return {
        "model": repr(model),
        "weights": fingerprint(variables),
        "do_no_harm": do_no_harm,
        "memory": memory_bytes,
        "compare": None if compare is None else os.path.abspath(compare),
        "explain": None if explain is None else os.path.abspath(explain),
    }


def _frames_done(journal: Journal) -> int:
    return 0 if journal.halfway is None else journal.halfway.frames_done


def _planned(
    source: Path,
    model: Any,
    variables: Variables,
    first_frames: Callable[[int], list[np.ndarray]],
    outputs: dict[str, _Output],
    journal: Journal,
    memory_bytes: int | None,
    may_narrow: bool,
    explain: StrPath | None,
    say: Callable[[str], None] | None,
) -> tuple[Any, Tiling | None]:
    """The network as it is to compute, and its tiles, None for whole frames: as planned when the job began."""
    if explain is not None:
        return model, None

    def find() -> dict[str, Any]:
        look = model.past_frames + 1 + model.future_frames
        frames = first_frames(look)
        window = np.stack([*frames, *[frames[-1]] * (look - len(frames))])
        encoders = sum(encoder_bytes(output.format, output.encoding) for output in outputs.values())
        try:
            found = plan(
                model,
                variables,
                window,
                budget_bytes=memory_bytes,
                beside_bytes=encoders,
                may_narrow=may_narrow and memory_bytes is not None,
            )
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        return {
            "tiling": None if found.tiling is None else dataclasses.asdict(found.tiling),
            "precision": found.precision,
            "text": str(found),
        }

    settled = journal.settle("plan", find)
    if say is not None and (settled["tiling"] is not None or memory_bytes is not None):
        say(settled["text"])
    narrow = model if settled["precision"] is None else with_precision(model, settled["precision"])
    return narrow, None if settled["tiling"] is None else Tiling(**settled["tiling"])


def _restored(
    frames_from: Callable[[int], Iterator[_Frame]],
    form: VideoFormat,
    model: Restorer,
    variables: Variables,
    tiling: Tiling | None,
    journal: Journal,
    writers: dict[str, VideoWriter],
    explain: StrPath | None,
    do_no_harm: bool,
    say: Callable[[str], None] | None,
    written: list[Path] | None = None,
) -> Iterator[tuple[_Frame, np.ndarray]]:
    """Each frame that the journal does not have yet, as it was read and restored; saves in between.

    Args:
        frames_from: reads the frames from that number on.
        written: files in the journal's folder that hold what was yielded; those of the writers come to it, and whenever
            they are saved it is emptied.
    """
    written = [] if written is None else written
    halfway, done = journal.halfway, _frames_done(journal)
    first = 0 if halfway is None else halfway.first_frame(model)
    waiting: collections.deque[_Frame] = collections.deque()

    def blurred() -> Iterator[np.ndarray]:
        for number, frame in enumerate(frames_from(first), first):
            if number >= done:
                waiting.append(frame)
            yield frame.rgb

    def save(now: Halfway) -> None:
        for writer in writers.values():
            if (segment := writer.end_segment()) is not None:
                written.append(segment)
        journal.save(now, written)
        written.clear()

    gate = Gate() if do_no_harm else None
    for restored in restore_stream(
        blurred(),
        model,
        variables,
        tiling=tiling,
        explain=_explainer(explain, journal, written),
        halfway=halfway,
        save=save,
        save_every=segment_frames(form),
    ):
        frame = waiting.popleft()
        yield frame, restored if gate is None else gate(frame.rgb, restored)
    if gate is not None and say is not None and (report := gate.report()):
        say(report)


def _explainer(folder: StrPath | None, journal: Journal, written: list[Path]) -> Explain | None:
    if folder is None:
        return None
    partial = journal.folder / _EXPLAINED
    partial.mkdir(exist_ok=True)

    def write_sheet(number: int, pictures_u8: dict[str, np.ndarray]) -> None:
        path = partial / f"frame_{number:06d}.png"
        write_image(path, ImageFile(contact_sheet(pictures_u8)))
        written.append(path)

    return write_sheet


def _places(
    outputs: dict[str, _Output], explain: StrPath | None, frames: dict[str, Path] | None = None
) -> dict[str, Path]:
    """Where each part of a journal belongs, by its name there. What was asked for comes last: then all is there."""
    places = {} if explain is None else {_EXPLAINED: Path(os.path.realpath(explain))}
    for name, output in reversed(outputs.items()):
        places[output.part(name)] = output.path
    return {**places, **(frames or {})}


def _finish(
    journal: Journal,
    writers: dict[str, VideoWriter],
    outputs: dict[str, _Output],
    count: int,
    places: dict[str, Path],
    overwrite: bool,
) -> int:
    """Makes whole what is there in parts, then gives all of it its name. Returns the number of frames."""
    for name, writer in writers.items():
        writer.assemble(journal.folder / outputs[name].part(name))
    journal.set_complete(count, [name for name in places if (journal.folder / name).exists()])
    return _move_all(journal, places, overwrite)


def _move_all(journal: Journal, places: dict[str, Path], overwrite: bool) -> int:
    """Moves what has not been moved yet. Returns the number of frames.

    Raises:
        FileExistsError: a file has come to be where one belongs, and may not be overwritten; nothing is moved then.
    """
    parts = {journal.folder / name: place for name, place in places.items() if (journal.folder / name).exists()}
    refuse_existing(*(place for part, place in parts.items() if part.is_file()), overwrite=overwrite)
    for part, place in parts.items():
        _move(part, place)
    assert journal.complete is not None
    return journal.complete


def _move(part: Path, place: Path) -> None:
    """There whole or not at all, also on another disk; what is moved goes last."""
    try:
        os.replace(part, place)
        write_through(place.parent)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    with naming(place):
        if part.is_dir():
            with becoming(place) as partial:
                shutil.copytree(part, partial, dirs_exist_ok=True)
            shutil.rmtree(part)
        else:
            with replacing(place) as partial:
                shutil.copy2(part, partial)
            part.unlink()
