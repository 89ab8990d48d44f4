import dataclasses

import numpy as np
import pytest

from jaxdeblur.evaluation.protocols import PROTOCOLS, Protocol
from jaxdeblur.evaluation.scores import EvaluationClip, FrameScore, clip_scores, frames_of
from jaxdeblur.evaluation.scores import score_clip as score_clip_by
from jaxdeblur.evaluation.tables import label


def level(image):
    """A score that is plain to see through: the first value of each frame, in 8-bit levels."""
    return float(image[0, 0, 0] * 255)


def protocol(over="clips", **options):
    return Protocol("plain", lambda image, sharp: (level(image) - level(sharp), level(image)), over, "plain", **options)


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


def score_clip(clip, restore, protocol):
    """By a single protocol."""
    for by, score in score_clip_by(clip, restore, [protocol]):
        assert by is protocol
        yield score


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


def test_several_protocols_at_once_are_each_of_them_alone():
    """All frames are restored once for those that frame them alike, and once more for one that cuts them."""
    protocols = [
        dataclasses.replace(protocol(), name="all"),
        dataclasses.replace(protocol(skip_first=1, skip_last=2), name="inner"),
        dataclasses.replace(protocol(frames=(0, 3)), name="listed"),
        dataclasses.replace(protocol(size_multiple=4), name="cut"),
        dataclasses.replace(protocol(size_multiple=8, laid_down=True, skip_first=3), name="cut and laid down"),
    ]
    restored = []

    def restore(frames):
        for frame in frames:
            restored.append(frame.shape)
            yield frame + np.float32(2 / 255)

    levels = clip("a", [20, 30, 40, 50, 60])
    found = list(score_clip_by(levels, restore, protocols))
    assert restored == [(8, 9, 3)] * 5 + [(8, 8, 3)] * 5
    for by in protocols:
        expected = list(score_clip(levels, brighter, by))
        assert rows([score for of, score in found if of is by]) == rows(expected)
    numbers = {by.name: [score.frame for of, score in found if of is by] for by in protocols}
    assert numbers == {"all": [0, 1, 2, 3, 4], "inner": [1, 2], "listed": [0, 3], "cut": [0, 1, 2, 3, 4],
                       "cut and laid down": [3, 4]}  # fmt: skip


def test_without_a_restorer_the_frames_are_scored_as_they_are():
    (score,) = score_clip(clip("a", [20]), None, protocol())
    assert rows([score]) == [("a", 0, 10, 10, 20, 20)]
    images = frames_of(clip("a", [20, 30]), None, protocol(), 1)
    assert [int(image[0, 0, 0]) for image in images] == [30, 30, 10]


def test_every_frame_is_shown_once_as_the_first_protocol_has_it():
    seen = []
    protocols = [protocol(size_multiple=4, skip_first=2), protocol()]
    list(score_clip_by(clip("a", [20, 30, 40]), brighter, protocols[:]))
    list(score_clip_by(clip("a", [20, 30, 40]), brighter, protocols, see=lambda *images: seen.append(images)))
    assert [tuple(round(level(image)) for image in images) for images in seen] == [
        (20, 22, 10),
        (30, 32, 10),
        (40, 42, 10),
    ]
    assert {image.shape for images in seen for image in images} == {(8, 8, 3)}


def test_rows_come_in_the_order_of_the_papers_tables():
    scores = [frame_score("other", 0, 1.0), frame_score("IMG_0049", 0, 2.0), frame_score("IMG_0030", 0, 3.0)]
    names = [row.clip for row in clip_scores(scores, PROTOCOLS["su2017"])]
    assert names == ["IMG_0030", "IMG_0049", "other", "mean"]
    assert [label(name, PROTOCOLS["su2017"]) for name in names] == ["1 IMG_0030", "2 IMG_0049", "other", "mean"]
    assert label("IMG_0030", PROTOCOLS["common"]) == "IMG_0030"


def test_an_empty_clip_scores_nothing():
    assert list(score_clip(EvaluationClip("none", lambda: iter(())), brighter, protocol())) == []
