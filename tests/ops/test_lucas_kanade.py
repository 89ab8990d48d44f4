import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdeblur.ops.lucas_kanade import WINDOW_PX, _median_3x3, _refined, lucas_kanade_flow

flow_of = jax.jit(lucas_kanade_flow)


def texture(height, width, x, y, seed=0):
    """A smooth random picture, (height, width, 3) in [0, 1], read at any positions."""
    rng = np.random.default_rng(seed)
    grey = 0.0
    for _ in range(60):  # as many long waves as short ones
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        frequency = 0.7 * 0.04 ** rng.uniform()
        grey += np.sin(frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase) / 16
    return np.clip(0.5 + 0.25 * np.stack([grey, grey, 0.9 * grey], axis=-1), 0, 1).astype(np.float32)


def pair(height, width, motion):
    """Two frames such that what frame 0 shows at (x, y) is in frame 1 at (x, y) + motion(x, y)."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    u, v = motion(x, y)
    back_x, back_y = x.copy(), y.copy()
    for _ in range(30):  # where in frame 0 is what frame 1 shows at (x, y)
        u_there, v_there = motion(back_x, back_y)
        back_x, back_y = x - u_there, y - v_there
    return texture(height, width, x, y), texture(height, width, back_x, back_y), np.stack([u, v], axis=-1)


MOTIONS = {
    "shift": lambda x, y: (7.3 + 0 * x, -4.6 + 0 * x),
    "far": lambda x, y: (21.0 + 0 * x, 11.5 + 0 * x),
    "turn": lambda x, y: (-0.05 * (y - 120), 0.05 * (x - 150)),
    "zoom": lambda x, y: (0.04 * (x - 150), 0.04 * (y - 120)),
}


@pytest.mark.parametrize("motion", MOTIONS)
def test_known_motion_is_found(motion):
    image_0, image_1, flow = pair(240, 300, MOTIONS[motion])
    found = np.asarray(flow_of(image_0, image_1))
    inside = slice(32, -32)
    errors = np.linalg.norm((found - flow)[inside, inside], axis=-1)
    assert np.median(errors) < 0.03
    assert errors.max() < 0.3


def test_nothing_moves_between_equal_frames():
    image, _, _ = pair(50, 70, MOTIONS["shift"])
    np.testing.assert_array_equal(flow_of(image, image), 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (23, 24), (24, 25), (47, 49), (71, 130)])
def test_compiled_as_op_by_op_at_any_size(size):
    image_0, image_1, _ = pair(*size, lambda x, y: (1.5 + 0 * x, 0.5 + 0 * x))
    found = flow_of(image_0, image_1)
    assert found.shape == (*size, 2)
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(found, lucas_kanade_flow(image_0, image_1), atol=2e-3)


def test_leading_axes_are_apart():
    pairs = [pair(40, 48, MOTIONS["shift"])[:2], pair(40, 48, MOTIONS["zoom"])[:2]]
    images_0, images_1 = (np.stack(images)[:, None] for images in zip(*pairs, strict=True))
    together = flow_of(images_0, images_1)
    assert together.shape == (2, 1, 40, 48, 2)
    for number, (image_0, image_1) in enumerate(pairs):
        np.testing.assert_allclose(together[number, 0], flow_of(image_0, image_1), atol=1e-4)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="expected two alike"):
        lucas_kanade_flow(np.zeros((8, 8, 3), np.float32), np.zeros((8, 9, 3), np.float32))


@given(seed=st.integers(0, 2**32 - 1))
def test_median_is_that_of_nine(seed):
    values = np.random.default_rng(seed).integers(0, 5, (1, 4, 6, 2)).astype(np.float32)
    padded = np.pad(values[0], [(1, 1), (1, 1), (0, 0)], mode="edge")
    expected = [[np.median(padded[y : y + 3, x : x + 3], axis=(0, 1)) for x in range(6)] for y in range(4)]
    np.testing.assert_array_equal(_median_3x3(values)[0], expected)


def test_a_step_is_the_weighted_least_squares_fit():
    """Pixel by pixel, in float64; flow zero, so that nothing is warped."""
    rng = np.random.default_rng(3)
    height, width = 6, 8
    image_0, image_1 = (rng.uniform(0.4, 0.6, (height, width)) for _ in range(2))

    def gradient(image):
        padded = np.pad(image, 1, mode="edge")
        return (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2, (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2

    x, y = (np.mean(both, axis=0) for both in zip(gradient(image_0), gradient(image_1), strict=True))
    rest = image_1 - image_0
    robust = 1 / (1 + (rest / 0.02) ** 2)
    half = WINDOW_PX // 2
    falloff = np.exp(-0.5 * (np.arange(-half, half + 1) / (WINDOW_PX / 4)) ** 2)
    falloff = np.outer(falloff, falloff) / np.sum(falloff) ** 2
    steps = np.zeros((height, width, 2))
    for row, column in np.ndindex(height, width):
        normal, right = 1e-5 * np.eye(2), np.zeros(2)
        for dy, dx in np.ndindex(WINDOW_PX, WINDOW_PX):
            at = np.clip(row + dy - half, 0, height - 1), np.clip(column + dx - half, 0, width - 1)
            slope, weight = np.array([x[at], y[at]]), falloff[dy, dx] * robust[at]
            normal += weight * np.outer(slope, slope)
            right -= weight * slope * rest[at]
        steps[row, column] = np.clip(np.linalg.solve(normal, right), -1, 1)
    batched = [image[None, ..., None].astype(np.float32) for image in (image_0, image_1)]
    found = _refined(*batched, np.zeros((1, height, width, 2), np.float32))
    np.testing.assert_allclose(found, _median_3x3(steps[None].astype(np.float32)), atol=2e-3)
