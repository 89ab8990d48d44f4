import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.evaluation.consistency import Consistency, mean_consistency, visible_in_next, warping_error


def visible_oracle(flow, back):
    """Lai et al.'s conditions pixel by pixel; bilinear reading of the way back, borders repeated."""
    height, width, _ = flow.shape
    visible = np.zeros((height, width), bool)

    def read(y, x):
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
        top, left = int(np.floor(y)), int(np.floor(x))
        down, right = min(top + 1, height - 1), min(left + 1, width - 1)
        a, b = y - top, x - left
        upper = (1 - b) * back[top, left] + b * back[top, right]
        return (1 - a) * upper + a * ((1 - b) * back[down, left] + b * back[down, right])

    for y, x in np.ndindex(height, width):
        u, v = flow[y, x]
        there = read(y + v, x + u)
        length = u * u + v * v
        covered = np.sum((flow[y, x] + there) ** 2) > 0.01 * (length + np.sum(there**2)) + 0.5
        to_right = flow[y, min(x + 1, width - 1)] - flow[y, x]
        to_below = flow[min(y + 1, height - 1), x] - flow[y, x]
        edge = np.sum(to_right**2) + np.sum(to_below**2) > 0.01 * length + 0.002
        visible[y, x] = not covered and not edge and 0 <= x + u < width and 0 <= y + v < height
    return visible


@pytest.mark.parametrize("seed", range(4))
def test_what_is_visible_equals_the_oracle(seed):
    rng = np.random.default_rng(seed)
    flow = np.repeat(np.repeat(rng.uniform(-3, 3, (3, 4, 2)), 4, 0), 4, 1) + 0.01 * rng.standard_normal((12, 16, 2))
    back = -flow + rng.choice([0.0, 0.4, 1.5], (12, 16, 1)) * rng.standard_normal((12, 16, 2))
    flow, back = flow.astype(np.float32), back.astype(np.float32)
    found = np.asarray(visible_in_next(flow, back))
    expected = visible_oracle(flow.astype(np.float64), back.astype(np.float64))
    assert 0.1 < expected.mean() < 0.9
    # A comparison may fall the other way where its sides are equal but for rounding.
    assert np.mean(found != expected) < 0.01


@pytest.mark.parametrize(("apart_px", "visible"), [(1.4, True), (1.6, False)])
def test_how_far_the_ways_may_be_apart_grows_with_the_length_of_both(apart_px, visible):
    """Ten pixels there, a little less back: the bound lies above what the way there alone would allow."""
    assert 0.01 * 100 + 0.5 < 1.4**2 < 0.01 * (100 + 8.6**2) + 0.5 < 1.6**2
    flow = np.broadcast_to(np.float32([10, 0]), (4, 30, 2))
    back = np.broadcast_to(np.float32([apart_px - 10, 0]), (4, 30, 2))
    assert np.all(np.asarray(visible_in_next(flow, back))[:, :20] == visible)


def test_the_error_is_that_of_visible_pixels_alone():
    rng = np.random.default_rng(1)
    following = rng.uniform(size=(6, 9, 3)).astype(np.float32)
    flow = np.broadcast_to(np.float32([2, -1]), (6, 9, 2))
    current = np.roll(following, (1, -2), (0, 1))
    visible = np.zeros((6, 9), bool)
    visible[2:, :6] = True
    np.testing.assert_allclose(warping_error(current, following, flow, visible), 0, atol=1e-12)
    current[3, 4] += 0.3
    current[0, 8] += 9.0
    expected = 0.3**2 / visible.sum()
    np.testing.assert_allclose(warping_error(current, following, flow, visible), expected, rtol=1e-5)


class Shift(nn.Module):
    """Knows the motion of the clips below: the first frame's pixels lie 2 px further right in the second or back."""

    @nn.compact
    def __call__(self, image_1, image_0):
        forwards = jnp.mean(jnp.abs(jnp.roll(image_0, -2, -2) - image_1)) < jnp.mean(
            jnp.abs(jnp.roll(image_0, 2, -2) - image_1)
        )
        step = jnp.where(forwards, 2.0, -2.0)
        return jnp.broadcast_to(jnp.stack([step, 0.0 * step]), (*image_1.shape[:-1], 2))


def clip(frames=4):
    texture = np.random.default_rng(2).uniform(0.2, 0.8, (12, 16, 3)).astype(np.float32)
    return [np.roll(texture, 2 * number, axis=1) for number in range(frames)]


def test_a_video_that_only_moves_does_not_flicker_and_brightness_that_jumps_does():
    found = Consistency(Shift(), {})
    for number, sharp in enumerate(clip()):
        found.see(sharp, sharp + np.float32(0.1 * (number % 2)), sharp)
    score = found.end("a")
    assert (score.clip, score.pairs) == ("a", 3)
    np.testing.assert_allclose([score.blurred, score.sharp], 0, atol=1e-9)
    np.testing.assert_allclose(score.restored, 1000 * 0.1**2, rtol=1e-5)
    assert found.end("nothing since") is None


def test_clips_do_not_run_into_each_other():
    found = Consistency(Shift(), {})
    for sharp in clip():
        found.see(sharp, sharp, sharp)
    found.end("a")
    other = [1 - frame for frame in clip(3)]
    for sharp in other:
        found.see(sharp, sharp, sharp)
    score = found.end("b")
    assert score.pairs == 2
    np.testing.assert_allclose(score.restored, 0, atol=1e-9)
    mean = mean_consistency([score, score])
    assert (mean.clip, mean.pairs) == ("mean", 4)


def test_restored_values_are_clamped_as_they_are_scored():
    found = Consistency(Shift(), {})
    for number, sharp in enumerate(clip()):
        found.see(sharp, np.float32(1 + number) * np.ones_like(sharp), sharp)
    np.testing.assert_allclose(found.end("a").restored, 0, atol=1e-9)
