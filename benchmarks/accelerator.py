"""Everything that waits for an accelerator, in one command on any machine with a GPU or a TPU.

    python -m benchmarks.accelerator [--minutes 8] [--parts values,steps] [--output docs/accelerator.md]

Values against a CPU's, times of the ops and of every model in three precisions, a training step of every recipe, tiles
and export on the device, memory against plan, and whether a run that is killed ends in the same numbers. Each case is a
row of one table, which is printed as it grows and written to --output after every row. A case that raises, dies or
hangs is a row that says so, and the next one begins. What there is no time for is listed as not run; JAX's own cache
(`JAX_COMPILATION_CACHE_DIR=FOLDER`) lets a second call get further. `--tiny` takes small sizes, to try the command on a
CPU; it writes no file unless --output is given.

The cases run in a process of their own, and only there is the accelerator touched. They are in
benchmarks/accelerator_cases.py.
"""

import argparse
import dataclasses
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_START_S = 240  # at most, until the first case begins
_GRACE_S = 20  # beyond the end of its part's time, before a case is taken for hung

PARTS: dict[str, float] = {
    "memory": 2,
    "device": 2,
    "values": 16,
    "ops": 10,
    "restoring": 6,
    "training": 18,
    "steps": 36,
    "killed": 14,
}
"""In this order, and how the time is shared out; what one part leaves the others have."""

KILLED = "killed"


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of a case. `result` is "ok", "skipped", "not run" for lack of time, or begins with FAILED."""

    part: str
    case: str
    result: str = "ok"
    ms: float | None = None
    rate: str = ""
    gib: float | None = None
    difference: str = ""

    def cells(self) -> list[str]:
        ms = "" if self.ms is None else f"{self.ms:.2f}"
        gib = "" if self.gib is None else f"{self.gib:.2f}"
        return [self.part, self.case, ms, self.rate, gib, self.difference, self.result]


HEADINGS = ["part", "case", "ms", "rate", "GiB", "difference", "result"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything, starting included")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of these, separated by commas")
    parser.add_argument("--cases", default="", help="only cases whose name has this in it")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the command")
    parser.add_argument("--output", type=Path, help="Markdown; docs/accelerator.md unless --tiny")
    arguments = parser.parse_args(argv)
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts has no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    output = arguments.output or (None if arguments.tiny else ROOT / "docs" / "accelerator.md")
    report = Report(output, arguments)
    for message in run(arguments, parts):
        report.take(message)
    print(report.summary())
    return 1 if report.failed else 0


class Report:
    """The table, on the screen and as a file."""

    def __init__(self, output: Path | None, arguments: argparse.Namespace) -> None:
        self._output, self._tiny = output, arguments.tiny
        self._rows: list[Row] = []
        self._machine = ""
        self._began = time.time()

    @property
    def failed(self) -> list[Row]:
        return [row for row in self._rows if row.result.startswith("FAILED")]

    def take(self, message: dict[str, Any]) -> None:
        if "machine" in message:
            if not self._machine:
                self._machine = message["machine"]
                print(self._machine, flush=True)
            return
        row = Row(**message["row"])
        self._rows.append(row)
        print("  ".join(cell for cell in row.cells() if cell), flush=True)
        if self._output is not None:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            partial = self._output.with_suffix(".tmp")
            partial.write_text(self.markdown())
            partial.replace(self._output)

    def summary(self) -> str:
        ran = [row for row in self._rows if row.result == "ok" or row in self.failed]
        late = [row for row in self._rows if row.result == "not run"]
        written = f"; {self._output}" if self._output is not None else ""
        return (
            f"{len(ran)} cases in {time.time() - self._began:.0f} s, {len(self.failed)} failed, "
            f"{len(late)} not run for lack of time{written}"
        )

    def markdown(self) -> str:
        lines = [
            "# On an accelerator",
            "",
            f"`python -m benchmarks.accelerator{' --tiny' if self._tiny else ''}` on {self._machine}.",
            f"{self.summary().partition(';')[0]}.",
            "",
            "Values: the mean difference from a CPU's, over the mean value. Steps: one frame, and how far it lies from",
            "the same frame in float32. Memory: what the compiled program holds at once.",
            "",
            f"| {' | '.join(HEADINGS)} |",
            f"|{'---|' * len(HEADINGS)}",
        ]
        return "\n".join(lines + [f"| {' | '.join(row.cells())} |" for row in self._rows]) + "\n"


def run(arguments: argparse.Namespace, parts: list[str]) -> Iterator[dict[str, Any]]:
    """Messages {"machine": ...} and {"row": ...}, as they come."""
    began, seconds = time.time(), 60 * arguments.minutes
    # Runs that are killed have processes of their own, which need the device to themselves.
    inside, outside = [part for part in parts if part != KILLED], [part for part in parts if part == KILLED]
    share = sum(PARTS[part] for part in inside) / sum(PARTS[part] for part in parts)
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--folder={folder}", f"--cases={arguments.cases}"] + ["--tiny"] * arguments.tiny
        on_cpu = {**os.environ, "JAX_PLATFORMS": "cpu"}
        references = None
        if "values" in parts:
            references = _start([*options, "--parts=values", f"--end={began + seconds}", "--references"], on_cpu)
        try:
            if inside:
                yield from _in_workers([*options, f"--parts={','.join(inside)}", f"--end={began + share * seconds}"])
            if outside:
                options += [f"--runs-on={os.environ.get('JAX_PLATFORMS', '')}"]
                yield from _in_workers([*options, f"--parts={KILLED}", f"--end={began + seconds}"], on_cpu)
        finally:
            if references is not None:
                references.kill()
                references.communicate()


def _start(options: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.accelerator_cases", *options]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _in_workers(options: list[str], environment: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """Runs all cases in one process; in another from the next case on, should that one end or hang in between."""
    first = 0
    while True:
        worker = _Worker([*options, f"--first={first}"], environment)
        begun: dict[str, Any] | None = None
        deadline = time.time() + _START_S
        while (message := worker.next(deadline)) is not None:
            if "begin" in message:
                begun, deadline = message, message["deadline"] + _GRACE_S
            else:
                yield message
                begun = None
        code, said = worker.end()
        if code == 0:
            return
        why = f"FAILED: hung, was ended{said}" if code is None else f"FAILED: the process ended with code {code}{said}"
        if begun is None:
            yield {"row": dataclasses.asdict(Row("device", "start", why))}
            return
        yield {"row": dataclasses.asdict(Row(begun["part"], begun["begin"], why))}
        first = begun["number"] + 1


class _Worker:
    """A process that sends messages, one line of JSON each."""

    def __init__(self, options: list[str], environment: dict[str, str] | None) -> None:
        self._process = _start(options, environment)
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._errors: list[str] = []
        self._is_hung = False
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def next(self, deadline: float) -> dict[str, Any] | None:
        """The next message; None when there are no more, or none until then."""
        try:
            return self._messages.get(timeout=max(0.0, deadline - time.time()))
        except queue.Empty:
            self._is_hung = True
            return None

    def end(self) -> tuple[int | None, str]:
        """The exit code, None if it had to be ended; and the last that it said on stderr."""
        if self._is_hung:
            self._process.kill()
        code = self._process.wait()
        for thread, stream in zip(self._threads, (self._process.stdout, self._process.stderr)):
            thread.join()
            assert stream is not None
            stream.close()
        last = next((line.strip() for line in reversed(self._errors) if line.strip()), "")
        return None if self._is_hung else code, f": {last[:200]}" if last else ""

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # what libraries print
            if isinstance(message, dict):
                self._messages.put(message)
        self._messages.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors = [*self._errors[-20:], line]


if __name__ == "__main__":
    sys.exit(main())
