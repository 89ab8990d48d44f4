"""Names that can be guessed, with something of another's under them: every command leaves it as it was."""

import os

import pytest
from identity_model import IdentityModel
from official_factory import WRITERS
from tiny_video import smooth_frames, write_video_file
from video_folder_factory import write_random_clip

from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.data.pack import pack_video_folder
from jaxdeblur.data.preparation import prepare
from jaxdeblur.data.synthesize import Synthesis, synthesize_clip
from jaxdeblur.restoration.files import deblur_folder, deblur_video


@pytest.fixture
def bystanders(tmp_path):
    folder = tmp_path / "bystanders"
    (folder / "deep").mkdir(parents=True)
    for name in ("letter.txt", "lock", ".lock", "job.json", "deep/photo.png"):
        (folder / name).write_text(f"mine: {name}")
    yield folder
    for name in ("letter.txt", "lock", ".lock", "job.json", "deep/photo.png"):
        assert (folder / name).read_text() == f"mine: {name}"
    assert sum(len(files) for _, _, files in os.walk(folder)) == 5


def a_video(folder):
    write_video_file(folder / "in.mp4", smooth_frames(3))
    return folder / "in.mp4"


def a_folder_of_frames(folder):
    (folder / "frames").mkdir()
    for number, frame in enumerate(smooth_frames(12)):
        write_image(folder / "frames" / f"{number}.png", ImageFile(frame))
    return folder / "frames"


def run_video(folder):
    deblur_video(a_video(folder), folder / "out.mp4", IdentityModel(), {}, overwrite=True)


def run_folder(folder):
    deblur_folder(a_folder_of_frames(folder), folder / "out", IdentityModel(), {})


def run_pack(folder):
    write_random_clip(folder / "video" / "train" / "a", 3, 5, 7, seed=0)
    pack_video_folder(folder / "video", out=folder / "packed")


def run_prepare(folder):
    dataset, write_set = WRITERS["gopro"]
    prepare(dataset, [write_set(folder / "set")], folder / "out", variant="blur_gamma")


def run_synthesize(folder):
    synthesize_clip(a_folder_of_frames(folder), folder / "out", Synthesis(window=3, stride=3), clip="a")


WAYS = {
    "video": (run_video, ".out.mp4.jaxdeblur"),
    "frames": (run_folder, ".out.jaxdeblur"),
    "prepare": (run_prepare, "out.preparing"),
    "pack": (run_pack, "packed/train/.a.partial"),
    "synthesize": (run_synthesize, "out/train/.a.partial"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_link_to_a_folder_is_not_followed(tmp_path, bystanders, way):
    run, name = WAYS[way]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).symlink_to(bystanders, target_is_directory=True)
    with pytest.raises(FileExistsError, match=r"is a link .*; move it away, or name another target"):
        run(tmp_path)
    assert (tmp_path / name).is_symlink()
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="is a link"):
        again(run, tmp_path)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_of_other_things_is_not_emptied(tmp_path, way):
    run, name = WAYS[way]
    (tmp_path / name / "photos").mkdir(parents=True)
    (tmp_path / name / "photos" / "1.png").write_text("mine")
    with pytest.raises(FileExistsError, match="is a folder of other things"):
        run(tmp_path)
    assert (tmp_path / name / "photos" / "1.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("video", ".out.mp4.jaxdeblur/lock"),
        ("frames", ".out.jaxdeblur/lock"),
        ("prepare", "out.preparing/.lock"),
        ("pack", "packed/.lock"),
    ],
)
def test_a_lock_that_is_a_link_is_not_emptied(tmp_path, bystanders, way, name):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).symlink_to(bystanders / "letter.txt")
    with pytest.raises(FileExistsError, match="in the place of a lock file"):
        WAYS[way][0](tmp_path)
    assert (tmp_path / name).is_symlink()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("way", WAYS)
def test_another_users_folder_is_not_taken(tmp_path, way):
    run, name = WAYS[way]
    (tmp_path / name).mkdir(parents=True)
    os.chown(tmp_path / name, 65534, 65534)
    with pytest.raises(PermissionError, match="belongs to another user"):
        run(tmp_path)
    assert os.listdir(tmp_path / name) == []


def test_moving_to_another_disk_follows_no_link(tmp_path, bystanders, monkeypatch):
    """Where a result cannot be moved but must be copied, too."""
    monkeypatch.setattr("jaxdeblur.restoration.files.os.replace", refuse_to_move(os.replace))
    (tmp_path / ".out.partial").symlink_to(bystanders, target_is_directory=True)
    with pytest.raises(FileExistsError, match="is a link"):
        run_folder(tmp_path)
    assert not (tmp_path / "out").exists()


def refuse_to_move(replace):
    def move(source, target):
        if ".jaxdeblur" in os.fspath(source) and ".jaxdeblur" not in os.fspath(target):
            raise OSError(18, "Invalid cross-device link", os.fspath(source))
        replace(source, target)

    return move


def again(run, folder):
    """Once more, beside what the first time has left of its input."""
    for name in ("in.mp4", "frames", "video", "set"):
        if (folder / name).exists():
            (folder / name).rename(folder / f"old {name}")
    run(folder)
