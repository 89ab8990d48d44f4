"""One run at a time, whatever became of the last, and nobody else's files are touched."""

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
