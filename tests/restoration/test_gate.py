"""The gate on drawn pictures whose sharpness is known; and the strengths of detail against loops."""

import itertools

import numpy as np
import pytest

from jaxdeblur.ops.sharpness import detail_strengths
from jaxdeblur.restoration.gate import Gate, passing_share


def texture(height=192, width=256, seed=0):
    """Discs of all sizes, one over the other: edges everywhere, and a spectrum like that of natural pictures."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    picture = np.zeros((height, width, 3))
    for _ in range(600):
        radius = 3 / np.sqrt(generator.uniform(0.004, 1))
        inside = (x - generator.uniform(0, width)) ** 2 + (y - generator.uniform(0, height)) ** 2 < radius**2
        picture[inside] = generator.uniform(20, 235, 3)
    return picture


def blurred(picture, length, axis):
    return sum(np.roll(picture, shift, axis) for shift in range(length)) / length


def u8(picture):
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)


def sharpened(picture):
    soft = blurred(blurred(picture, 3, 0), 3, 1)
    return picture + 0.5 * (picture - np.roll(soft, (-1, -1), (0, 1)))


def test_detail_strengths_are_mean_squares_of_steps():
    image = np.random.default_rng(0).random((2, 6, 8, 3), np.float32)
    fine, coarse = detail_strengths(image)
    grey = image.mean(-1).astype(np.float64)
    half = np.zeros((2, 3, 4))
    for y in range(3):
        for x in range(4):
            half[:, y, x] = grey[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2))
    for found, of in ((fine, grey), (coarse, half)):
        down = [np.mean([(of[n, y + 1] - of[n, y]) ** 2 for y in range(of.shape[1] - 1)]) for n in range(2)]
        across = [np.mean([(of[n, :, x + 1] - of[n, :, x]) ** 2 for x in range(of.shape[2] - 1)]) for n in range(2)]
        np.testing.assert_allclose(found, np.stack([down, across], -1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("axis", [0, 1])
def test_sharp_frames_stay_and_blurred_ones_are_restored(axis, dtype):
    sharp = texture()
    scale = 1 if dtype == np.uint8 else 257

    def frame(picture):
        return u8(picture).astype(dtype) * dtype(scale)

    soft = blurred(sharp, 7, axis)
    assert passing_share(frame(sharp), frame(sharpened(sharp))) == 0
    assert passing_share(frame(soft), frame(sharpened(soft))) == 1
    gate = Gate()
    np.testing.assert_array_equal(gate(frame(sharp), frame(sharpened(sharp))), frame(sharp))
    np.testing.assert_array_equal(gate(frame(soft), frame(sharpened(soft))), frame(sharpened(soft)))
    assert (gate.kept_back, gate.in_part) == (1, 0)
    assert "being sharp: 1 frames" in gate.report()


def test_the_share_falls_as_frames_get_sharper():
    """Between the two a frame is a mixture, and follows how sharp it is without a jump."""
    sharp, soft = texture(), blurred(texture(), 7, 1)
    shares = []
    for part in np.linspace(0, 1, 30):
        picture = part * sharp + (1 - part) * soft
        shares.append(passing_share(u8(picture), u8(sharpened(picture))))
    assert shares[0] == 1
    assert shares[-1] == 0
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(shares))
    assert any(0.05 < share < 0.95 for share in shares)
    assert max(np.abs(np.diff(shares))) < 0.6
    middle = min(range(30), key=lambda number: abs(shares[number] - 0.5))
    picture = np.linspace(0, 1, 30)[middle] * sharp + (1 - np.linspace(0, 1, 30)[middle]) * soft
    before, after = u8(picture).astype(float), u8(sharpened(picture)).astype(float)
    mixed = Gate()(u8(picture), u8(sharpened(picture)))
    np.testing.assert_allclose(mixed, before + shares[middle] * (after - before), atol=0.51)


def test_what_moves_in_front_of_a_sharp_background_is_restored():
    picture = texture(256, 256)
    picture[:128] = blurred(picture, 9, 1)[:128]
    assert passing_share(u8(picture), u8(sharpened(picture))) == 1


def test_a_network_that_blurs_is_not_let_through():
    soft = blurred(texture(), 7, 1)
    assert passing_share(u8(soft), u8(blurred(soft, 3, 0))) == 0


def test_what_cannot_be_judged_is_restored():
    noise = np.random.default_rng(0).integers(0, 256, (40, 300, 3), np.uint8)
    assert passing_share(noise, noise) == 1  # no block fits in
    flat = np.full((128, 128, 3), 90, np.uint8)
    brighter = flat.copy()
    brighter[::2] += 1
    assert passing_share(flat, brighter) == 1


def test_large_frames_are_judged_by_a_part():
    sharp = np.tile(texture(), (12, 12, 1))
    assert passing_share(u8(sharp), u8(sharpened(sharp))) == 0
