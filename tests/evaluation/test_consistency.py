import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxdeblur.evaluation.consistency import Consistency, mean_consistency, warping_error


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
