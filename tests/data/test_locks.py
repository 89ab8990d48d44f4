"""One run at a time, whatever became of the last, and nobody else's files are touched."""

import errno
import os
import subprocess
import sys
import time

import pytest

from jaxdeblur.data.locks import lock

HOLD = """
import sys, time
from pathlib import Path
from jaxdeblur.data.locks import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(50)
"""


def test_a_second_one_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    began_s = time.monotonic()
    with pytest.raises(BlockingIOError, match="another has it"), lock(tmp_path / "lock"):
        pass
    assert time.monotonic() - began_s < 1
    holder.kill()
    holder.communicate()
    with lock(tmp_path / "lock"), pytest.raises(BlockingIOError), lock(tmp_path / "lock"):
        pass
    with lock(tmp_path / "lock"):
        pass


def test_other_files_are_neither_followed_nor_emptied(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("mine", "link", "dangling"):
        with pytest.raises(FileExistsError, match=f"{name}: is in the place of a lock file"), lock(tmp_path / name):
            pass
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch, caplog, code):
    """And nothing is left that would keep the next run away."""
    fcntl = pytest.importorskip("fcntl")

    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with lock(tmp_path / "lock"), lock(tmp_path / "lock"):
            assert not any(path.stat().st_size for path in tmp_path.iterdir())
    assert (
        caplog.messages[0] == f"{tmp_path}: this file system has no locks; let no other run write here at the same time"
    )
