import dataclasses

import numpy as np
import pytest

from jaxdeblur.evaluation.protocols import PROTOCOLS, Protocol
from jaxdeblur.evaluation.scores import EvaluationClip, FrameScore, clip_scores, frames_of, score_clip


def level(image):
    """A score that is plain to see through: the first value of each frame, in 8-bit levels."""
    return float(image[0, 0, 0] * 255)


def protocol(over="clips", **options):
    return Protocol("plain", lambda image, sharp: (level(image) - level(sharp), level(image)), over, **options)


def clip(name, levels, sharp=10):
    """Frames of one value each."""

    def frames():
        for value in levels:
            yield np.full((8, 9, 3), value, np.uint8), np.full((8, 9, 3), sharp, np.uint8)

    return EvaluationClip(name, frames)


def brighter(frames):
    """Restores by adding two levels."""
    for frame in frames:
        assert frame.dtype == np.float32
        assert frame.max() <= 1
        yield frame + np.float32(2 / 255)


def rows(scores):
    fields = ("psnr_blurred_db", "psnr_restored_db", "ssim_blurred", "ssim_restored")
    return [(score.clip, score.frame, *(round(getattr(score, field)) for field in fields)) for score in scores]


def test_each_frame_is_scored_against_its_own_truth():
    scores = list(score_clip(clip("a", [20, 30, 40]), brighter, protocol()))
    assert rows(scores) == [("a", 0, 10, 12, 20, 22), ("a", 1, 20, 22, 30, 32), ("a", 2, 30, 32, 40, 42)]
    np.testing.assert_allclose([score.gain_db for score in scores], 2, atol=1e-4)


def test_frames_left_out_are_restored_but_not_scored():
    seen = []

    def restore(frames):
        for frame in frames:
            seen.append(level(frame))
            yield frame

    scores = list(score_clip(clip("a", [20, 30, 40]), restore, protocol(skip_first=2)))
    assert rows(scores) == [("a", 2, 30, 30, 40, 40)]
    np.testing.assert_allclose(seen, [20, 30, 40], atol=1e-4)
    scores = list(score_clip(clip("a", [20, 30, 40, 50]), restore, protocol(skip_first=1, skip_last=2)))
    assert [score.frame for score in scores] == [1]
    assert not list(score_clip(clip("a", [20, 30]), restore, protocol(skip_last=2)))


def test_frames_are_cut_before_they_are_restored():
    def restore(frames):
        for frame in frames:
            assert frame.shape == (8, 8, 3)
            yield frame

    assert list(score_clip(clip("a", [20]), restore, protocol(size_multiple=4)))
    with pytest.raises(ValueError, match="9x8 have nothing left when cut to multiples of 16, as protocol plain does"):
        list(score_clip(clip("a", [20]), restore, protocol(size_multiple=16)))


@pytest.mark.parametrize(("height", "width"), [(9, 6), (6, 9), (6, 6)])
def test_portrait_frames_are_laid_down_before_they_are_restored(height, width):
    blurred, sharp = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    seen = []

    def restore(frames):
        for frame in frames:
            seen.append(frame)
            yield frame

    def score(restored, sharp):
        seen.extend([restored, sharp])
        return 0.0, 0.0

    one = EvaluationClip("one", lambda: iter([(blurred, sharp)]))
    list(score_clip(one, restore, dataclasses.replace(protocol(laid_down=True), score=score)))
    expected = [image.swapaxes(0, 1) if height > width else image for image in (blurred, sharp)]
    restored = frames_of(one, lambda frames: frames, protocol(laid_down=True), 0)
    np.testing.assert_array_equal(restored[0], expected[0])
    np.testing.assert_array_equal(restored[2], expected[1])
    # What is restored; then the blurred frame and the restored one, each with the sharp one.
    for image, number in zip(seen, (0, 0, 1, 0, 1), strict=True):
        np.testing.assert_array_equal(np.rint(255 * image), expected[number])


def test_frames_are_streamed():
    pulled = []

    def frames():
        for number in range(100):
            pulled.append(number)
            yield np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)

    scores = score_clip(EvaluationClip("long", frames), lambda frames: frames, protocol())
    next(scores)
    assert len(pulled) < 5


def test_a_real_protocol():
    scores = list(score_clip(clip("a", [20, 30], sharp=22), brighter, PROTOCOLS["mtu_inloop"]))
    np.testing.assert_allclose(scores[0].psnr_blurred_db, 20 * np.log10(255 / 2), atol=1e-3)
    assert scores[0].psnr_restored_db == 100.0  # equal frames: infinite, capped so that means and gains exist
    np.testing.assert_allclose(scores[1].psnr_restored_db, 20 * np.log10(255 / 10), atol=1e-3)


def test_a_restorer_that_loses_frames_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        list(score_clip(clip("a", [20, 30, 40]), lambda frames: list(brighter(frames))[:2], protocol()))


def frame_score(name, frame, value):
    return FrameScore(name, frame, value, value + 2 + frame, value / 100, value / 50)


SCORES = [frame_score("b", 0, 10.0), frame_score("b", 1, 20.0), frame_score("b", 2, 30.0), frame_score("a", 0, 60.0)]


@pytest.mark.parametrize(("over", "mean", "gain"), [("frames", 30.0, 2.75), ("clips", 40.0, 2.5)])
def test_means_of_clips_and_of_everything(over, mean, gain):
    b, a, everything = clip_scores(SCORES, protocol(over=over))
    rows = ((b, ("b", 3, 20, 23, 3, 0.2, 0.4)), (a, ("a", 1, 60, 62, 2, 0.6, 1.2)))
    for row, expected in (*rows, (everything, ("mean", 4, mean, mean + gain, gain, mean / 100, mean / 50))):
        assert dataclasses.astuple(row)[:2] == expected[:2]
        np.testing.assert_allclose(dataclasses.astuple(row)[2:], expected[2:])


def test_no_scored_frame_is_an_error():
    scores = score_clip(clip("a", [20]), brighter, protocol(skip_first=1))
    with pytest.raises(
        ValueError, match="no frame was scored: protocol plain leaves out the first 1 and the last 0 frames of each"
    ):
        clip_scores(scores, protocol(skip_first=1))


def test_frames_for_a_picture():
    def restore(frames):
        return (frame + 1 for frame in frames)

    blurred, restored, sharp = frames_of(clip("a", [20, 30, 40]), restore, protocol(), 1)
    assert [int(image[0, 0, 0]) for image in (blurred, restored, sharp)] == [30, 31, 10]
    assert all(image.dtype == np.uint8 for image in (blurred, restored, sharp))
    # A clip shorter than that shows its last.
    assert [int(image[0, 0, 0]) for image in frames_of(clip("a", [20, 30, 40]), restore, protocol(), 7)] == [40, 41, 10]
