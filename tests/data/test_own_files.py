"""Names that others can guess: what is planted there is neither followed nor emptied nor removed."""

import os
import stat

import pytest

from jaxdeblur.data import own_files
from jaxdeblur.data.own_files import becoming, make_own_folder, replacing

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
NOBODY = 65534


@pytest.fixture
def elsewhere(tmp_path):
    """Another's folder, which is to stay as it is."""
    folder = tmp_path / "elsewhere"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "letter.txt").write_text("dear")
    (folder / "lock").write_text("kept")
    yield folder
    assert (folder / "deep" / "letter.txt").read_text() == "dear"
    assert (folder / "lock").read_text() == "kept"
    assert sorted(os.listdir(folder)) == ["deep", "lock"]


def test_a_new_folder_is_ones_own(tmp_path):
    make_own_folder(tmp_path / "work", "lock")
    assert stat.S_IMODE(os.stat(tmp_path / "work").st_mode) == 0o700
    make_own_folder(tmp_path / "work", "lock")  # a run that was killed at once
    (tmp_path / "work" / "lock").touch()
    (tmp_path / "work" / "state").touch()
    os.chmod(tmp_path / "work", 0o777)
    make_own_folder(tmp_path / "work", "lock")
    assert stat.S_IMODE(os.stat(tmp_path / "work").st_mode) == 0o700
    assert sorted(os.listdir(tmp_path / "work")) == ["lock", "state"]
    make_own_folder(tmp_path / "result", "lock", private=False)
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "result").st_mode) == 0o777 & ~before


@pytest.mark.parametrize("take", [lambda path: make_own_folder(path, "lock"), lambda path: becoming(path).__enter__()])
def test_what_was_planted_is_refused(tmp_path, elsewhere, take):
    target = tmp_path / "work"
    names = {target, tmp_path / ".work.partial"}
    for name in names:
        name.symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(FileExistsError, match="is a link"):
        take(target)
    for name in names:
        name.unlink()
        name.write_text("a file")
    with pytest.raises(FileExistsError, match="no folder"):
        take(target)
    for name in names:
        name.unlink()
        (name / "photos").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="a folder of other things"):
        take(target)
    assert all(os.listdir(name) == ["photos"] for name in names)


@as_root
def test_anothers_folder_is_refused(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "lock").touch()
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match="another user"):
        make_own_folder(folder, "lock")


def test_a_folder_comes_to_be_whole_or_not_at_all(tmp_path):
    target = tmp_path / "result"
    with pytest.raises(FileNotFoundError), becoming(target) as partial:
        (partial / "half").write_text((tmp_path / "not there").read_text())
    assert os.listdir(tmp_path) == []
    with becoming(target) as partial:
        (partial / "whole").touch()
        assert not target.exists()
    assert os.listdir(tmp_path) == ["result"]
    assert os.listdir(target) == ["whole"]


def test_what_a_killed_run_has_left_gives_way(tmp_path):
    killed = becoming(tmp_path / "result")
    left = killed.__enter__()
    (left / "half").touch()
    with becoming(tmp_path / "result") as partial:
        assert partial == left
        assert "half" not in os.listdir(partial)
    assert os.listdir(tmp_path) == ["result"]
    assert os.listdir(tmp_path / "result") == []


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    monkeypatch.setattr(own_files.secrets, "token_hex", lambda count: "0" * 2 * count)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "x.partial-00000000.json").symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError), replacing(tmp_path / "x.json") as partial:
        partial.write_text("{}")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "x.partial-00000000.json").is_symlink()
    (tmp_path / "y.partial-00000000.json").symlink_to(tmp_path / "not there")
    with pytest.raises(FileExistsError), replacing(tmp_path / "y.json"):
        pass
    assert not (tmp_path / "not there").exists()


def test_killed_on_the_last_steps_the_next_run_goes_on(tmp_path, monkeypatch):
    """Whatever a run that is killed around the renaming leaves, is known for ours."""

    class KilledError(BaseException):
        pass

    def killed(*_, **__):
        raise KilledError

    monkeypatch.setattr(own_files.os, "replace", killed)
    monkeypatch.setattr(own_files.shutil, "rmtree", lambda *_, **__: None)  # a killed process tidies nothing up
    with pytest.raises(KilledError), becoming(tmp_path / "result") as partial:
        (partial / "whole").touch()
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [".result.partial"]
    with becoming(tmp_path / "result") as partial:
        (partial / "again").touch()
    assert os.listdir(tmp_path) == ["result"]
    assert os.listdir(tmp_path / "result") == ["again"]
