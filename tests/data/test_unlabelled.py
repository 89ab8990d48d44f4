"""Windows of videos without truth, and the crops a run reads from them."""

import itertools

import numpy as np
import pytest
from PIL import Image

from jaxdeblur.data.unlabelled import (
    UnlabelledWindow,
    choose_windows,
    crop_of_sample,
    cut_out,
    unlabelled_batches,
    windows_of_clip,
)
from jaxdeblur.data.video_folder import read_frames


def frames(count, height=6, width=8, dtype=np.uint8):
    """Each frame is of its own number; columns and rows can be told apart in the second and third colour."""
    rows, columns = np.mgrid[:height, :width]
    return [np.stack([np.full_like(rows, t), rows, columns], axis=-1).astype(dtype) for t in range(count)]


def numbers(window):
    return [int(frame[0, 0, 0]) for frame in window.frames]


def test_windows_are_of_every_frame_with_two_neighbours():
    windows = list(windows_of_clip("a", frames(5), before=2, after=1))
    assert [window.frame for window in windows] == [1, 2, 3]
    assert [numbers(window) for window in windows] == [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4]]
    assert {window.clip for window in windows} == {"a"}


def test_beyond_the_ends_stands_what_the_network_is_used_to():
    windows = windows_of_clip("a", frames(4), before=2, after=2, beyond_ends="alternate")
    assert [numbers(window) for window in windows] == [[1, 0, 1, 2, 3], [0, 1, 2, 3, 2]]


def test_a_square_of_a_window_holds_no_more_than_itself():
    (window,) = windows_of_clip("a", frames(3, height=20, width=30), before=1, after=1)
    square = cut_out(window, 8, seed=1)
    assert {frame.shape for frame in square.frames} == {(8, 8, 3)}
    assert all(frame.base is None for frame in square.frames)
    assert numbers(square) == [0, 1, 2]
    assert len({tuple(frame[0, 0, 1:].tolist()) for frame in square.frames}) == 1  # one place for all
    assert {frame.shape for frame in cut_out(window, 25, seed=1).frames} == {(20, 25, 3)}
    places = {tuple(cut_out(window, 8, seed=seed).frames[0][0, 0, 1:].tolist()) for seed in range(20)}
    assert len(places) > 10


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 0), (2, 0), (3, 1)])
def test_short_clips_have_few_windows(count, expected):
    assert len(list(windows_of_clip("a", frames(count), before=3, after=3))) == expected


def test_frames_that_differ_are_refused_by_name_and_number():
    odd = [*frames(2), frames(1, height=5)[0]]
    with pytest.raises(ValueError, match=r"a: frame 2 is uint8 \(5, 8, 3\), frame 0 uint8 \(6, 8, 3\)"):
        list(windows_of_clip("a", odd, before=1, after=1))


def test_a_reservoir_keeps_what_fits_each_as_likely():
    windows = [UnlabelledWindow("a", t, (frame,)) for t, frame in enumerate(frames(40))]
    room = 8 * windows[0].frames[0].nbytes
    kept = np.zeros(40)
    for seed in range(300):
        chosen = [window.frame for window in choose_windows(iter(windows), most_bytes=room, seed=seed)]
        assert len(chosen) == 8
        assert chosen == sorted(chosen)
        kept[chosen] += 1
    assert np.all(np.abs(kept / 300 - 0.2) < 0.1)
    assert choose_windows(windows, most_bytes=10**9, seed=0) == windows
    assert len(choose_windows(windows, most_bytes=1, seed=0)) == 1
    assert choose_windows([], most_bytes=1, seed=0) == []


def test_crops_are_of_one_place_scaled_to_one():
    windows = list(windows_of_clip("a", frames(4, dtype=np.uint16), before=1, after=1))
    crop = crop_of_sample(windows, 5, crop_px=3, seed=1)
    assert crop.shape == (3, 3, 3, 3)
    assert crop.dtype == np.float32
    values = np.rint(crop * 65535).astype(int)
    top, left = values[0, 0, 0, 1:]
    assert np.all(values[..., 1] == top + np.arange(3)[:, None])
    assert np.all(values[..., 2] == left + np.arange(3))
    assert np.diff(values[:, 0, 0, 0]).tolist() == [1, 1]


def test_every_window_comes_once_a_pass_and_a_run_goes_on_where_it_stopped():
    windows = list(windows_of_clip("a", frames(8), before=1, after=1))
    options = {"batch_size": 2, "crop_px": 4, "seed": 3}
    batches = list(itertools.islice(unlabelled_batches(windows, **options), 6))
    middles = np.rint(255 * np.concatenate(batches)[:, 1, 0, 0, 0]).astype(int)
    assert sorted(middles[:6]) == sorted(middles[6:]) == [1, 2, 3, 4, 5, 6]
    assert middles[:6].tolist() != middles[6:].tolist()
    later = next(unlabelled_batches(windows, first_batch=4, **options))
    np.testing.assert_array_equal(later, batches[4])
    shares = [next(unlabelled_batches(windows, process_index=i, process_count=2, **options)) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(shares), batches[0])


def test_what_cannot_be_cropped_is_refused():
    windows = list(windows_of_clip("a.mp4", frames(3), before=1, after=1))
    with pytest.raises(ValueError, match=r"a\.mp4: frames are 8x6, smaller than crops of 7 px"):
        next(unlabelled_batches(windows, batch_size=1, crop_px=7, seed=0))
    with pytest.raises(ValueError, match="clips need 3 frames or more"):
        next(unlabelled_batches([], batch_size=1, crop_px=7, seed=0))


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    for number, frame in enumerate(frames(11)):
        Image.fromarray(frame).save(tmp_path / f"f{number}.png")
    assert [int(frame[0, 0, 0]) for frame in read_frames(tmp_path)] == list(range(11))
