import contextlib
import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from official_factory import MINI_GOPRO, WRITERS, write_gopro, zipped

from jaxdeblur import cli
from jaxdeblur.data import preparation, sources
from jaxdeblur.data.clips import WindowSpec
from jaxdeblur.data.datasets import DATASETS
from jaxdeblur.data.flow_pairs import index_flying_chairs, index_sintel, read_flow_pair
from jaxdeblur.data.locks import lock
from jaxdeblur.data.pack import find_packed, only_writer
from jaxdeblur.data.preparation import prepare, read_record, verify
from jaxdeblur.data.sources import open_source
from jaxdeblur.data.video_folder import index_video_folder


def files_below(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def gopro(tmp_path_factory):
    return write_gopro(tmp_path_factory.mktemp("gopro"))


@pytest.mark.parametrize(
    ("name", "variant"), [("gopro", "blur_gamma"), ("dvd", None), ("reds", "blur_jpeg"), ("bsd", None)]
)
def test_videos_become_a_video_folder(tmp_path, name, variant):
    dataset, write_set = WRITERS[name]
    found = prepare(dataset, [write_set(tmp_path / "set")], tmp_path / "out", variant=variant)
    for count in found.counts:
        clips = index_video_folder(tmp_path / "out", count.split)
        assert (len(clips), sum(clip.n_frames for clip in clips)) == (count.clips, count.pairs)
    record = read_record(tmp_path / "out")
    assert record == {
        "name": name,
        "variant": variant or next(iter(dataset.variants)),
        "splits": list(dataset.splits),
        "partial": False,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]
    # What was prepared is whole, by the same rules and without being told which variant it is.
    assert verify(dataset, [tmp_path / "out"]).faults == []


def test_frames_are_the_archives_own(gopro, tmp_path):
    prepare(MINI_GOPRO, [gopro], tmp_path / "out", variant="blur_gamma")
    clip = gopro / "GOPRO_Large" / "train" / "GOPR0372_07_00"
    out = tmp_path / "out" / "train" / "GOPR0372_07_00"
    assert files_below(out / "blur") == files_below(clip / "blur_gamma")
    assert files_below(out / "sharp") == files_below(clip / "sharp")


def test_flow_sets_keep_their_layout(tmp_path):
    for name in ("sintel", "flying_chairs"):
        dataset, write_set = WRITERS[name]
        prepare(dataset, [write_set(tmp_path / f"{name}_set")], tmp_path / name)
        assert verify(dataset, [tmp_path / name]).faults == []
    pairs = index_sintel(tmp_path / "sintel")
    assert [pair.scene for pair in pairs] == ["alley_1"] * 3 + ["cave_2"] * 2
    pair = read_flow_pair(pairs[0])
    np.testing.assert_array_equal(pair["image_1"][:, 3:], pair["image_0"][:, :-3])
    assert not pair["valid_1to0"][:2].any()
    assert [pair.scene for pair in index_flying_chairs(tmp_path / "flying_chairs", split="validation")] == ["00002"]


@pytest.mark.parametrize("name", WRITERS)
def test_archives_and_what_is_unpacked_of_them_are_one(tmp_path, name):
    dataset, write_set = WRITERS[name]
    root = write_set(tmp_path / "set")
    (tmp_path / "archives").mkdir()
    archives = {f"{path.stem}.zip": path.name for path in root.iterdir() if path.is_dir()}
    zipped(root, {tmp_path / "archives" / archive: inside for archive, inside in archives.items()})
    for path in root.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path / "archives")
    prepare(dataset, [root], tmp_path / "of_folder")
    prepare(dataset, [tmp_path / "archives"], tmp_path / "of_archives")
    assert files_below(tmp_path / "of_folder") == files_below(tmp_path / "of_archives")


def test_an_archive_beside_what_was_unpacked_of_it_is_no_second_set(gopro, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(gopro, root)
    zipped(gopro, {root / "GOPRO_Large.zip": ""})
    found = verify(MINI_GOPRO, [root])
    assert found.faults == []
    assert [count.pairs for count in found.counts] == [11, 5]
    # One that differs is not passed over.
    (root / "GOPRO_Large" / "test" / "GOPR0384_11_00" / "blur" / "000003.png").write_bytes(b"damaged")
    assert {fault.kind for fault in verify(MINI_GOPRO, [root]).faults} == {"twice", "damaged"}


@contextlib.contextmanager
def interrupted_after_five(monkeypatch):
    """Expects the block to end in Ctrl-C, of which five files are left; gives their paths."""
    place, placed = sources.Item.place, []

    def stop_after_five(item, target):
        if len(placed) == 5:
            raise KeyboardInterrupt
        placed.append(target)
        place(item, target)

    with monkeypatch.context() as patch:
        patch.setattr(sources.Item, "place", stop_after_five)
        with pytest.raises(KeyboardInterrupt):
            yield placed
    assert len(placed) == 5


def test_what_is_prepared_inside_the_source_is_none_of_it(gopro, tmp_path, monkeypatch):
    root = tmp_path / "set"
    shutil.copytree(gopro, root)
    with interrupted_after_five(monkeypatch):
        prepare(MINI_GOPRO, [root], root / "data" / "gopro")
    prepare(MINI_GOPRO, [root], root / "data" / "gopro")
    dvd, write_dvd = WRITERS["dvd"]
    write_dvd(root)
    prepare(dvd, [root], root / "data" / "dvd")
    for dataset in (MINI_GOPRO, dvd):
        assert verify(dataset, [root]).faults == []


def test_an_archive_that_is_cut_short_is_named(gopro, tmp_path):
    zipped(gopro, {tmp_path / "GOPRO_Large.zip": ""})
    whole = (tmp_path / "GOPRO_Large.zip").read_bytes()
    (tmp_path / "GOPRO_Large.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"GOPRO_Large.zip: no .zip archive, or cut short .* download it again"):
        verify(MINI_GOPRO, [tmp_path])
    # A byte inside a member: the archive's own checksum finds it.
    at = whole.index(b"IDAT", whole.index(b"/blur/000048.png")) + 20
    (tmp_path / "GOPRO_Large.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    (fault,) = verify(MINI_GOPRO, [tmp_path]).faults
    assert fault.kind == "damaged"
    assert "GOPRO_Large.zip: GOPRO_Large/" in fault.where
    assert "cannot be taken out of the archive" in fault.what


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder; expected a data set's archive"):
        verify(MINI_GOPRO, [tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match="there is no file in it"):
        verify(MINI_GOPRO, [tmp_path])


def test_links_that_lead_in_circles_end(gopro, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(gopro, root)
    (root / "GOPRO_Large" / "again").symlink_to(root)
    with open_source([root]) as items:
        assert len(items) == len(files_below(gopro))


def test_a_broken_link_is_a_damaged_file(gopro, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(gopro, root)
    frame = root / "GOPRO_Large" / "test" / "GOPR0384_11_00" / "blur" / "000003.png"
    frame.unlink()
    frame.symlink_to(tmp_path / "gone.png")
    (fault,) = verify(MINI_GOPRO, [root]).faults
    assert str(fault) == f"{frame}: cannot be read: No such file or directory"


def test_folders_are_linked_where_possible(gopro, tmp_path):
    prepare(MINI_GOPRO, [gopro], tmp_path / "out", splits=["test"])
    name = "test/GOPR0384_11_00/sharp/000001.png"
    assert (tmp_path / "out" / name).samefile(gopro / "GOPRO_Large" / name)


def test_links_are_followed(gopro, tmp_path):
    """A hard link to a link that is relative would lead nowhere."""
    real, linked = tmp_path / "real", tmp_path / "linked" / "train" / "GOPR0372_07_00"
    shutil.copytree(gopro / "GOPRO_Large" / "train" / "GOPR0372_07_00", real)
    for side in ("blur", "sharp"):
        (linked / side).mkdir(parents=True)
        for path in (real / side).iterdir():
            (linked / side / path.name).symlink_to(Path("../../../../real") / side / path.name)
    prepare(MINI_GOPRO, [tmp_path / "linked"], tmp_path / "out", partial=True)
    shutil.rmtree(tmp_path / "linked")
    out = tmp_path / "out" / "train" / "GOPR0372_07_00"
    assert files_below(out / "sharp") == files_below(real / "sharp")
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_and_copied_where_not(gopro, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    prepare(MINI_GOPRO, [gopro], tmp_path / "out", splits=["test"])
    name = "test/GOPR0384_11_00/sharp/000001.png"
    assert not (tmp_path / "out" / name).samefile(gopro / "GOPRO_Large" / name)
    assert (tmp_path / "out" / name).read_bytes() == (gopro / "GOPRO_Large" / name).read_bytes()


def test_an_interrupted_run_goes_on(gopro, tmp_path, monkeypatch):
    """Stopped after some files; then other options start anew, the same ones go on."""
    with interrupted_after_five(monkeypatch) as placed:
        prepare(MINI_GOPRO, [gopro], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.preparing"]
    placed[2].unlink()  # a link: writing into it would change the source
    placed[2].write_bytes(b"half")
    place = sources.Item.place
    with monkeypatch.context() as patch:
        patch.setattr(sources.Item, "place", lambda item, target: (placed.append(target), place(item, target)))
        prepare(MINI_GOPRO, [gopro], tmp_path / "out")
    assert len(placed) == 33
    assert len(set(placed)) == 32
    assert verify(MINI_GOPRO, [tmp_path / "out"]).faults == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    with interrupted_after_five(monkeypatch):
        prepare(MINI_GOPRO, [gopro], tmp_path / "other")
    prepare(MINI_GOPRO, [gopro], tmp_path / "other", variant="blur_gamma")
    clip = "train/GOPR0372_07_00"
    assert files_below(tmp_path / "other" / clip / "blur") == files_below(gopro / "GOPRO_Large" / clip / "blur_gamma")


def test_what_is_there_is_not_touched(gopro, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="out: is there already; verify it, or name another folder"):
        prepare(MINI_GOPRO, [gopro], tmp_path / "out")
    assert files_below(tmp_path) == {"out/thesis.txt": b"dear"}


def test_two_runs_do_not_write_one_folder(gopro, tmp_path):
    staging = tmp_path / "out.preparing"
    staging.mkdir()
    with only_writer(staging), pytest.raises(BlockingIOError, match="another run is writing into this folder"):
        prepare(MINI_GOPRO, [gopro], tmp_path / "out")
    prepare(MINI_GOPRO, [gopro], tmp_path / "out")


def test_nothing_is_open_in_the_folder_when_it_gets_its_name(gopro, tmp_path, monkeypatch):
    """Windows would not move it."""
    replace = os.replace

    def replace_if_free(source, target):
        if Path(source).is_dir():
            with lock(Path(source) / ".lock"):
                pass
            (Path(source) / ".lock").unlink(missing_ok=True)
        replace(source, target)

    monkeypatch.setattr(preparation.os, "replace", replace_if_free)
    prepare(MINI_GOPRO, [gopro], tmp_path / "out", splits=["test"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert verify(MINI_GOPRO, [tmp_path / "out"]).faults == []
    assert not (tmp_path / "out" / ".lock").exists()


def test_the_folder_one_stands_in_is_not_exchanged(gopro, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileExistsError, match="name another folder, one that is not there yet"):
        prepare(MINI_GOPRO, [gopro], ".")
    prepare(MINI_GOPRO, [gopro], "new")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["new"]


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(gopro, tmp_path, monkeypatch):
    def walk(top, onerror=None, followlinks=False):
        onerror(PermissionError(errno.EACCES, "Permission denied", str(top)))
        return iter(())

    monkeypatch.setattr(sources.os, "walk", walk)
    with pytest.raises(PermissionError, match="Permission denied"):
        verify(MINI_GOPRO, [gopro])


def test_a_full_disk_is_noticed_before(gopro, tmp_path, monkeypatch):
    zipped(gopro, {tmp_path / "GOPRO_Large.zip": ""})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(OSError, match=r"GiB are needed, 0.0 GiB are free; free some space"):
        prepare(MINI_GOPRO, [tmp_path], tmp_path / "new" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["GOPRO_Large.zip"]


def test_the_packed_form_is_whole_and_fits(gopro, tmp_path):
    prepare(MINI_GOPRO, [gopro], tmp_path / "out", packed=True)
    clips = index_video_folder(tmp_path / "out", "train")
    assert all(find_packed(clips))
    dataset, write_set = WRITERS["sintel"]
    with pytest.raises(ValueError, match="sintel holds flow; only videos have a packed form"):
        prepare(dataset, [write_set(tmp_path / "sintel")], tmp_path / "flow", packed=True)


def test_windows_of_a_prepared_set(gopro, tmp_path):
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    from jaxdeblur.data.pipeline import video_folder_batches

    prepare(MINI_GOPRO, [gopro], tmp_path / "out", packed=True)
    batches = [
        next(
            video_folder_batches(
                index_video_folder(root, "train"),
                window=WindowSpec(3, 1, 1, "sliding"),
                batch_size=2,
                crop_px=(32, 32),
                seed=0,
                augmentation=None,
            )
        )
        for root in (tmp_path / "out", gopro / "GOPRO_Large")
    ]
    # The archive's own layout is a video folder with a side too many.
    np.testing.assert_array_equal(batches[0]["blurred"], batches[1]["blurred"])
    np.testing.assert_array_equal(batches[0]["sharp"], batches[1]["sharp"])


def test_a_prepared_folder_knows_what_it_is(gopro, tmp_path):
    prepare(MINI_GOPRO, [gopro], tmp_path / "out", variant="blur_gamma", splits=["test"])
    assert verify(MINI_GOPRO, [tmp_path / "out"]).counts[0].pairs == 5
    with pytest.raises(
        ValueError, match=r"out: was prepared from gopro, variant blur_gamma; asked for is gopro, variant blur$"
    ):
        verify(MINI_GOPRO, [tmp_path / "out"], variant="blur")
    with pytest.raises(ValueError, match="was prepared from gopro, variant blur_gamma; asked for is dvd"):
        verify(WRITERS["dvd"][0], [tmp_path / "out"])
    (tmp_path / "out" / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset.json: is damaged; prepare the data set again"):
        verify(MINI_GOPRO, [tmp_path / "out"])


@pytest.fixture
def mini(monkeypatch):
    for name, (dataset, _) in WRITERS.items():
        monkeypatch.setitem(DATASETS, name, dataset)


def test_the_commands(mini, gopro, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        cli.main(["data", "prepare", "gopro", str(gopro), f"--out={out}", "--variant=blur_gamma", "--form=packed"]) == 0
    )
    assert "train: 2 clips, 11 pairs of 2 and 11, 22 pictures of 64x48\n" in capsys.readouterr().out
    assert cli.main(["data", "verify", "gopro", str(out)]) == 0
    assert "whole and in order" in capsys.readouterr().out
    (out / "train" / "GOPR0372_07_00" / "blur" / "000050.png").unlink()
    assert cli.main(["data", "verify", "gopro", str(out)]) == 1
    printed = capsys.readouterr()
    assert "missing: train/GOPR0372_07_00/blur: has no frame 50\n" in printed.out
    assert printed.err.splitlines()[-1].endswith("faults were found (1)")


def test_a_damaged_set_is_not_prepared_by_the_command(mini, gopro, tmp_path, capsys):
    root = tmp_path / "set"
    shutil.copytree(gopro, root)
    clip = root / "GOPRO_Large" / "train" / "GOPR0372_07_00"
    (clip / "blur").rename(clip / "aside")
    (clip / "sharp").rename(clip / "blur")
    (clip / "aside").rename(clip / "sharp")
    assert cli.main(["data", "prepare", "gopro", str(root), f"--out={tmp_path / 'out'}"]) == 1
    printed = capsys.readouterr()
    assert "swapped: train/GOPR0372_07_00, frames" in printed.out
    assert "name it with --trust" in printed.out
    assert "so nothing was written" in printed.err
    assert not (tmp_path / "out").exists()
    command = ["data", "prepare", "gopro", str(root), f"--out={tmp_path / 'out'}", "--trust=GOPR0372_07_00"]
    assert cli.main(command) == 0


def test_info_names_all_and_each(capsys):
    assert cli.main(["data", "info"]) == 0
    listed = capsys.readouterr().out
    for name in DATASETS:
        assert name in listed
        assert cli.main(["data", "info", name]) == 0
        assert "Download by hand" in capsys.readouterr().out
    assert cli.main(["data", "info", "imagenet"]) == 2
    assert "expected one of dvd, gopro" in capsys.readouterr().err
