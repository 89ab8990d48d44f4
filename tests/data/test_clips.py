import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxdeblur.data.clips import (
    ClipWindow,
    WindowSpec,
    blurred_frame_numbers,
    cut_windows,
    epoch_order,
    sharp_frame_numbers,
    window_of_sample,
)
from jaxdeblur.data.video_folder import ClipFiles

MTU_WINDOW = WindowSpec(frames=13, past=2, future=2, mode="grid")
ORDER_OF_EPOCH_0 = [2, 0, 1, 4, 5, 6, 7, 3]
ORDER_OF_EPOCH_1 = [3, 6, 5, 7, 4, 1, 2, 0]


def clip_of(n_frames: int, name: str = "c") -> ClipFiles:
    paths = tuple(f"{i}.png" for i in range(n_frames))
    return ClipFiles(f"/root/train/{name}", paths, paths, 8, 8)


def test_grid_has_starts_at_multiples_and_drops_the_tail():
    windows = cut_windows([clip_of(40), clip_of(13)], MTU_WINDOW)
    assert windows == [ClipWindow(0, 0), ClipWindow(0, 13), ClipWindow(0, 26), ClipWindow(1, 0)]


def test_sliding_has_every_start():
    windows = cut_windows([clip_of(5), clip_of(3)], WindowSpec(3, 1, 1, "sliding"))
    assert windows == [ClipWindow(0, 0), ClipWindow(0, 1), ClipWindow(0, 2), ClipWindow(1, 0)]


def test_interior_has_every_start_with_real_neighbours():
    spec = WindowSpec(3, 1, 1, "interior")
    windows = cut_windows([clip_of(6), clip_of(5)], spec)
    assert windows == [ClipWindow(0, 1), ClipWindow(0, 2), ClipWindow(1, 1)]
    assert [blurred_frame_numbers(w, 6, spec) for w in windows[:2]] == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]
    with pytest.raises(ValueError, match="window of 5 frames: '/root/train/c' has 4"):
        cut_windows([clip_of(4)], spec)


def test_only_the_first_frames_are_used():
    spec = WindowSpec(2, 1, 1, "sliding", first_frames=3)
    windows = cut_windows([clip_of(9), clip_of(2)], spec)
    assert windows == [ClipWindow(0, 0), ClipWindow(0, 1), ClipWindow(1, 0)]
    assert blurred_frame_numbers(windows[1], 9, spec) == [0, 1, 2, 2]


def test_grid_repeats_its_first_frame_as_past_and_reads_real_future_frames():
    numbers = blurred_frame_numbers(ClipWindow(0, 13), 28, MTU_WINDOW)
    assert numbers == [13, 13, *range(13, 26), 26, 27]
    assert sharp_frame_numbers(ClipWindow(0, 13), MTU_WINDOW) == list(range(13, 26))
    # One real future frame is left, then none.
    assert blurred_frame_numbers(ClipWindow(0, 13), 27, MTU_WINDOW)[-3:] == [25, 26, 26]
    assert blurred_frame_numbers(ClipWindow(0, 13), 26, MTU_WINDOW)[-3:] == [25, 25, 25]


def test_sliding_reads_real_frames_on_both_sides():
    spec = WindowSpec(frames=2, past=2, future=3, mode="sliding")
    assert blurred_frame_numbers(ClipWindow(0, 1), 9, spec) == [0, 0, 1, 2, 3, 4, 5]
    assert blurred_frame_numbers(ClipWindow(0, 6), 9, spec) == [4, 5, 6, 7, 8, 8, 8]


@hypothesis.given(st.data())
def test_frame_numbers_are_the_clipped_window_by_the_plain_loop(data):
    spec = WindowSpec(
        data.draw(st.integers(1, 5)),
        data.draw(st.integers(0, 3)),
        data.draw(st.integers(0, 3)),
        data.draw(st.sampled_from(["grid", "sliding"])),
    )
    n_frames = data.draw(st.integers(spec.frames, 20))
    for window in cut_windows([clip_of(n_frames)], spec):
        expected = []
        for i in range(window.first_frame - spec.past, window.first_frame + spec.frames + spec.future):
            first = window.first_frame if spec.mode == "grid" else 0
            expected.append(first if i < first else n_frames - 1 if i > n_frames - 1 else i)
        numbers = blurred_frame_numbers(window, n_frames, spec)
        assert numbers == expected
        own = numbers[spec.past : spec.past + spec.frames]
        assert own == sharp_frame_numbers(window, spec)


def test_short_clips_are_named_with_their_lengths():
    with pytest.raises(ValueError, match=r"window of 13 frames: '/root/train/a' has 12, '/root/train/c' has 1; choose"):
        cut_windows([clip_of(12, "a"), clip_of(13, "b"), clip_of(1, "c")], MTU_WINDOW)
    with pytest.raises(ValueError, match="and 5 more; choose"):
        cut_windows([clip_of(1)] * 15, MTU_WINDOW)
    with pytest.raises(ValueError, match="holds no clips"):
        cut_windows([], MTU_WINDOW)


@pytest.mark.parametrize("values", [(0, 0, 0), (1, -1, 0), (1, 0, -1)])
def test_impossible_windows(values):
    with pytest.raises(ValueError, match=r"a window needs frames >= 1.* not frames="):
        WindowSpec(*values, "grid")


def test_unknown_mode():
    # Made without __init__, whose annotation the tests' type checker enforces and a user's run does not.
    spec = object.__new__(WindowSpec)
    spec.__dict__.update(frames=1, past=0, future=0, mode="random")
    with pytest.raises(ValueError, match="'grid', 'sliding' or 'interior', not 'random'"):
        spec.__post_init__()


@hypothesis.given(st.integers(1, 50), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_order_is_a_permutation_and_repeatable(n_windows, seed, epoch):
    order = epoch_order(n_windows, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n_windows))
    epoch_order.cache_clear()
    np.testing.assert_array_equal(epoch_order(n_windows, seed=seed, epoch=epoch), order)


def test_order_differs_between_epochs_and_seeds():
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_order_is_uniform():
    # Where window 0 stands, over many epochs: every place about equally often (5 sigma).
    places = [int(np.flatnonzero(epoch_order(8, seed=5, epoch=epoch) == 0)[0]) for epoch in range(4000)]
    counts = np.bincount(places, minlength=8)
    assert np.all(np.abs(counts - 500) < 5 * np.sqrt(500 * 7 / 8))


def test_order_stays_what_it_was():
    # A run must go on in the same order after an upgrade.
    assert epoch_order(8, seed=0, epoch=0).tolist() == ORDER_OF_EPOCH_0
    assert epoch_order(8, seed=0, epoch=1).tolist() == ORDER_OF_EPOCH_1


def test_the_shared_order_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(8, seed=0, epoch=0)[0] = 1


def test_samples_run_through_the_epochs():
    windows = cut_windows([clip_of(7)], WindowSpec(1, 0, 0, "grid"))
    run = [window_of_sample(windows, seed=3, sample=sample).first_frame for sample in range(21)]
    assert run[:7] == epoch_order(7, seed=3, epoch=0).tolist()
    assert run[14:] == epoch_order(7, seed=3, epoch=2).tolist()
    assert [sorted(run[start : start + 7]) for start in (0, 7, 14)] == [list(range(7))] * 3
