import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxdeblur.ops.interpolate import interpolate_frame


def random_case(seed, height=5, width=6, reach_px=9.0):
    rng = np.random.default_rng(seed)
    frames = rng.uniform(size=(2, height, width, 3)).astype(np.float32)
    return (*frames, *rng.uniform(-reach_px, reach_px, (2, height, width, 2)).astype(np.float32))


def oracle(image_0, image_1, flow_0to1, flow_1to0, time):
    """Pixel by pixel, in float64; borders repeated, weights by how much of the four taps lies inside."""
    height, width, _ = image_0.shape
    out = np.zeros(image_0.shape)

    def read(image, x, y):
        total, inside = np.zeros(3), 0.0
        left, top = int(np.floor(x)), int(np.floor(y))
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            total += weight * image[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
            inside += weight * (0 <= row < height and 0 <= column < width)
        return total, inside

    for y, x in np.ndindex(height, width):
        to_1, to_0 = flow_0to1[y, x].astype(np.float64), flow_1to0[y, x].astype(np.float64)
        step_0 = -(1 - time) * time * to_1 + time**2 * to_0
        step_1 = (1 - time) ** 2 * to_1 - time * (1 - time) * to_0
        (from_0, inside_0), (from_1, inside_1) = (
            read(image.astype(np.float64), x + step[0], y + step[1])
            for image, step in ((image_0, step_0), (image_1, step_1))
        )
        weight_0, weight_1 = (1 - time) * (inside_0 + 1e-6), time * (inside_1 + 1e-6)
        out[y, x] = (weight_0 * from_0 + weight_1 * from_1) / (weight_0 + weight_1)
    return out


@pytest.mark.parametrize("time", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_it_equals_the_oracle(seed, time):
    case = random_case(seed, reach_px=4.0)
    np.testing.assert_allclose(interpolate_frame(*case, time), oracle(*case, time), atol=2e-4)


@pytest.mark.parametrize("time", [0.0, 1.0])
def test_at_the_ends_of_the_way_it_is_the_frames_themselves(time):
    case = random_case(0)
    np.testing.assert_allclose(interpolate_frame(*case, time), case[int(time)], atol=1e-6)


def test_half_way_of_a_moving_texture():
    texture = np.random.default_rng(3).uniform(size=(8, 44, 3)).astype(np.float32)
    frame_0, between, frame_1 = (texture[:, 4 - 2 * k : 44 - 2 * k] for k in range(3))
    flow = np.broadcast_to(np.float32([4, 0]), (8, 40, 2))
    # To the sides one of the two frames knows it.
    np.testing.assert_allclose(interpolate_frame(frame_0, frame_1, flow, -flow, 0.5), between, atol=1e-4)


def test_jit_and_a_batch_change_nothing():
    cases = [random_case(seed) for seed in range(2)]
    batch = tuple(np.stack(parts) for parts in zip(*cases))
    together = jax.jit(interpolate_frame)(*batch, 0.3)
    for found, case in zip(together, cases):
        np.testing.assert_allclose(found, interpolate_frame(*case, 0.3), atol=3e-6)


def test_gradients_of_the_images():
    image_0, image_1, flow_0to1, flow_1to0 = random_case(4, reach_px=2.0)
    check_grads(
        lambda a, b: interpolate_frame(a, b, flow_0to1, flow_1to0, 0.4),
        (image_0, image_1),
        order=1,
        modes=["rev"],
        rtol=2e-2,
    )
