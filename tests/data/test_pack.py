import json
import logging
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from video_folder_factory import random_frames_u8, write_random_clip

from jaxdeblur.data.image_io import ImageFile, write_image
from jaxdeblur.data.locks import lock
from jaxdeblur.data.pack import find_packed, open_packed, pack_video_folder
from jaxdeblur.data.video_folder import SIDES, index_video_folder, read_clip_frame


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three clips in two splits; the first has more frames than are decoded at once."""
    for number, (clip, n_frames) in enumerate((("train/a", 19), ("train/b", 3), ("test/a", 2))):
        write_random_clip(tmp_path / "video" / clip, n_frames, 5, 7, seed=number)
    return tmp_path / "video"


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_packed_frames_equal_the_images(root):
    assert pack_video_folder(root) == root / "packed"
    for split in ("train", "test"):
        index = index_video_folder(root, split)
        for clip, folder in zip(index, find_packed(index)):
            assert folder == str(root / "packed" / split / clip.name)
            for side in SIDES:
                packed = open_packed(folder, side)
                assert isinstance(packed, np.memmap)
                assert packed.shape == (clip.n_frames, 5, 7, 3)
                assert packed.dtype == np.uint8
                images = [read_clip_frame(clip, frame, side) for frame in range(clip.n_frames)]
                np.testing.assert_array_equal(packed, np.stack(images))
    names = {"blur.npy", "sharp.npy", "index.json"}
    assert files_below(root / "packed") == {".lock"} | {
        f"{clip}/{name}" for clip in ("train/a", "train/b", "test/a") for name in names
    }


def test_packing_again_keeps_what_is_there_and_adds_what_is_missing(root):
    pack_video_folder(root)
    times_ns = {path: path.stat().st_mtime_ns for path in (root / "packed").rglob("*.npy")}
    shutil.rmtree(root / "packed" / "train" / "b")
    (root / "packed" / "train" / ".b.partial").mkdir()  # of a run that was killed
    pack_video_folder(root)
    for path, time_ns in times_ns.items():
        assert (path.stat().st_mtime_ns == time_ns) == ("train/b" not in str(path))
    assert not (root / "packed" / "train" / ".b.partial").exists()
    assert all(find_packed(index_video_folder(root, "train")))


def change_pixels(root: Path) -> None:
    write_image(root / "train/a/blur/3.png", ImageFile(random_frames_u8(1, 5, 7, seed=99)[0]))


def change_time(root: Path) -> None:
    os.utime(root / "train/a/sharp/3.png", ns=(0, 0))


def remove_a_frame(root: Path) -> None:
    for side in SIDES:
        (root / "train/a" / side / "18.png").unlink()


def rename_a_frame(root: Path) -> None:
    for side in SIDES:
        os.rename(root / "train/a" / side / "18.png", root / "train/a" / side / "19.png")


def cut_the_array(root: Path) -> None:
    os.truncate(root / "packed/train/a/sharp.npy", 300)


def damage_the_index(root: Path) -> None:
    (root / "packed/train/a/index.json").write_text("{")


def change_the_format(root: Path) -> None:
    path = root / "packed/train/a/index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_pixels, "its images changed, or"),
        (change_time, "its images changed, or"),
        (remove_a_frame, "its images changed, or"),
        (rename_a_frame, "its images changed, or"),
        (cut_the_array, "an array is cut short or missing"),
        (damage_the_index, "its index is damaged"),
        (change_the_format, "its images changed, or"),
    ],
)
def test_a_stale_clip_is_not_used_and_packed_anew(root, change, reason, caplog):
    pack_video_folder(root)
    change(root)
    index = index_video_folder(root, "train")
    with caplog.at_level(logging.INFO, logger="absl"):
        assert find_packed(index) == [None, str(root / "packed/train/b")]
    assert f"a ({reason}" in caplog.text
    assert "run `jaxdeblur data pack` again" in caplog.text
    assert "reading 1 of 2 clips from their packed form" in caplog.text
    pack_video_folder(root)
    folder, _ = find_packed(index)
    np.testing.assert_array_equal(open_packed(folder, "blur")[3], read_clip_frame(index[0], 3, "blur"))


def test_no_packed_form_is_no_fault(root, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        assert find_packed(index_video_folder(root, "train")) == [None, None]
    assert not caplog.text


def test_packing_elsewhere(root, tmp_path):
    out = tmp_path / "fast disk"
    assert pack_video_folder(root, out=out) == out
    index = index_video_folder(root, "test")
    assert find_packed(index) == [None]
    assert find_packed(index, packed=out) == [str(out / "test/a")]
    with pytest.raises(ValueError, match=r"no packed form at '.*slow disk'; make it with pack_video_folder"):
        find_packed(index, packed=tmp_path / "slow disk")


def test_a_full_disk_is_noticed_before_anything_is_written(root, monkeypatch):
    usage = shutil.disk_usage(root)._replace(free=24 * 2 * 5 * 7 * 3 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"needs 0\.0 GiB more but 0\.0 GiB are free; free some space") as caught:
        pack_video_folder(root)
    assert caught.value.filename == str(root / "packed")
    assert files_below(root / "packed") == {".lock"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=usage.free + 1))
    pack_video_folder(root)


def test_a_failing_write_leaves_whole_clips_only(root):
    # A limit on file size stands for a disk that fills up on the way: train/a no longer fits, test/a does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"packed form of clip 'a'.*finished clips are kept") as caught:
            pack_video_folder(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(root / "packed/train/.a.partial/blur.npy")
    assert files_below(root / "packed") == {
        ".lock",
        *(f"test/a/{n}" for n in ("blur.npy", "sharp.npy", "index.json")),
    }
    pack_video_folder(root)
    assert all(find_packed(index_video_folder(root, "train")))


def test_a_corrupt_frame_is_named_and_leaves_no_half_clip(root):
    path = root / "train/b/sharp/1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"train/b/sharp/1\.png"):
        pack_video_folder(root)
    assert {path.parent.name for path in (root / "packed/train").rglob("*.npy")} == {"a"}
    assert sorted(os.listdir(root / "packed/train")) == ["a"]


def test_a_second_run_at_the_same_time_is_refused(root):
    pack_video_folder(root)
    with lock(root / "packed/.lock"), pytest.raises(BlockingIOError, match="another run is writing"):
        pack_video_folder(root)


def test_only_packed_clips_give_way(root):
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    with pytest.raises(FileExistsError, match=r"test/a: exists and is no packed form of a clip; pack elsewhere"):
        pack_video_folder(root, out=root)
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before


def test_a_damaged_array_is_named(root):
    pack_video_folder(root)
    (root / "packed/train/b/blur.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train/b/blur\.npy' is damaged .*run `jaxdeblur data pack` again"):
        open_packed(str(root / "packed/train/b"), "blur")


def test_nothing_to_pack(tmp_path):
    with pytest.raises(ValueError, match="has no splits to pack"):
        pack_video_folder(tmp_path)
