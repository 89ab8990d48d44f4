"""The command for accelerators: whatever happens to a case, the others run and the table says so."""

import argparse
import subprocess
import sys
import time

import pytest

from benchmarks import accelerator

WORKER = """
import json, os, sys, time
first = int(next(o for o in sys.argv if o.startswith("--first=")).partition("=")[2])
def send(**message): print(json.dumps(message), flush=True)
send(machine="a test")
for number in range(first, 5):
    name = f"case {number}"
    send(begin=name, part="ops", number=number, deadline=time.time() + (0 if number == 3 else 60))
    print("what libraries print")
    if number == 1:
        print("out of memory", file=sys.stderr, flush=True)
        os.abort()
    if number == 3:
        time.sleep(60)
    send(row={"part": "ops", "case": name, "ms": 1.5})
"""


@pytest.fixture
def arguments():
    return argparse.Namespace(minutes=1.0, cases="", tiny=True)


def fake_worker(monkeypatch, script):
    def start(options, environment=None):
        return subprocess.Popen(
            [sys.executable, "-c", script, *options],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    monkeypatch.setattr(accelerator, "_start", start)
    monkeypatch.setattr(accelerator, "_GRACE_S", 0.3)


def test_a_case_that_dies_or_hangs_is_a_row_and_the_next_one_runs(monkeypatch, arguments):
    fake_worker(monkeypatch, WORKER)
    began = time.monotonic()
    messages = list(accelerator.run(arguments, ["ops"]))
    assert time.monotonic() - began < 30
    rows = [accelerator.Row(**message["row"]) for message in messages if "row" in message]
    assert [row.case for row in rows] == [f"case {number}" for number in range(5)]
    assert [row.result.partition(":")[0] for row in rows] == ["ok", "FAILED", "ok", "FAILED", "ok"]
    assert "code -6" in rows[1].result
    assert "out of memory" in rows[1].result
    assert "hung" in rows[3].result


def test_a_process_that_does_not_start_is_a_row(monkeypatch, arguments):
    fake_worker(monkeypatch, "raise SystemExit('no driver')")
    (message,) = accelerator.run(arguments, ["ops"])
    assert message["row"]["result"] == "FAILED: the process ended with code 1: no driver"


def test_the_table_is_written_as_it_grows(tmp_path):
    report = accelerator.Report(tmp_path / "new" / "table.md", argparse.Namespace(tiny=True))
    report.take({"machine": "1 x a test"})
    report.take({"row": {"part": "ops", "case": "warp", "ms": 1.234, "gib": 0.5, "rate": "9 GB/s"}})
    report.take({"row": {"part": "steps", "case": "mtu1", "result": "not run"}})
    report.take({"row": {"part": "steps", "case": "mtu2", "result": "FAILED: hung"}})
    text = (tmp_path / "new" / "table.md").read_text()
    assert "on 1 x a test." in text
    assert "| ops | warp | 1.23 | 9 GB/s | 0.50 |  | ok |" in text
    assert "2 cases in 0 s, 1 failed, 1 not run for lack of time" in text
    assert len(report.failed) == 1


def test_unknown_parts_are_named(capsys):
    with pytest.raises(SystemExit):
        accelerator.main(["--parts=ops,speed"])
    assert "--parts has no speed; there are memory, device, values" in capsys.readouterr().err


@pytest.mark.slow
def test_on_a_cpu_its_values_are_a_cpus(tmp_path, capfd):
    table = tmp_path / "table.md"
    code = accelerator.main(["--tiny", "--parts=values", "--cases=warp", f"--output={table}", "--minutes=5"])
    assert code == 0, capfd.readouterr().out
    rows = [line.split(" | ") for line in table.read_text().splitlines() if line.startswith("| values")]
    assert [row[1] for row in rows] == ["warp, zeros beyond", "warp, edge beyond", "block warp"]
    assert [float(row[5]) for row in rows] == [0.0] * 3


@pytest.mark.exhaustive
def test_every_case_runs_on_a_cpu(tmp_path, capfd):
    table = tmp_path / "table.md"
    code = accelerator.main(["--tiny", f"--output={table}", "--minutes=60"])
    assert code == 0, capfd.readouterr().out
    assert "| killed |" in table.read_text()
