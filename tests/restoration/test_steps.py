"""Frames in tiles against whole frames, with a model whose memory is of several scales."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from identity_model import Outputs

from jaxdeblur.restoration.clip import restore
from jaxdeblur.restoration.memory import best_tiling, reach_px
from jaxdeblur.restoration.steps import BLEND_PX, Tiling, span_weights, tile_spans


def box(image, radius):
    padded = jnp.pad(image, [(0, 0), (radius, radius), (radius, radius), (0, 0)], mode="edge")
    shifts = [(y, x) for y in range(2 * radius + 1) for x in range(2 * radius + 1)]
    height, width = image.shape[1:3]
    return sum(padded[:, y : y + height, x : x + width] for y, x in shifts) / np.float32(len(shifts))


class Remembering(nn.Module):
    """Looks 3 pixels around in the frames and in its memory, and a quarter-size pixel around in a coarser one."""

    past_frames: int = 1
    future_frames: int = 1
    size_multiple: int = 4
    beyond_ends: str = "repeat"
    padding: str = "edge"

    def start(self, window):
        batch, _, height, width, _ = window.shape
        fine, coarse = jnp.zeros((batch, height, width, 3)), jnp.zeros((batch, height // 4, width // 4, 3))
        return {"fine": fine, "coarse": coarse, "seen": jnp.zeros((), bool)}

    def step(self, carry, window):
        current = window[:, 1]
        fine = jnp.where(carry["seen"], carry["fine"], current)
        quarter = current[:, ::4, ::4]
        coarse = jnp.where(carry["seen"], carry["coarse"], quarter)
        spread = jnp.repeat(jnp.repeat(box(coarse, 1), 4, axis=1), 4, axis=2)
        restored = current + 0.5 * (box(fine, 3) - spread) + 0.3 * box(window[:, 0] - window[:, 2], 2)
        memory = {"fine": (fine + box(current, 2)) / 2, "coarse": (coarse + quarter) / 2, "seen": jnp.ones((), bool)}
        return memory, Outputs(restored)


REACH_PX = 8
"""By the coarse memory: a pixel of it is four wide, and so is the one to its right that looks at it."""


def noise(count, height, width):
    return np.random.default_rng(0).random((count, height, width, 3), np.float32)


def test_the_reach_is_found():
    assert reach_px(Remembering(), {}) == REACH_PX


class SeesAll(Remembering):
    def step(self, carry, window):
        current = window[:, 1]
        return carry, Outputs(current - jnp.mean(current, axis=(1, 2, 3), keepdims=True))


def test_a_mean_over_the_frame_reaches_everywhere():
    assert reach_px(SeesAll(), {}) is None


@pytest.mark.parametrize(
    ("size", "tile"), [((150, 170), (96, 96)), ((97, 301), (100, 128)), ((260, 90), (124, 92)), ((50, 60), (96, 96))]
)
def test_tiles_with_halos_as_wide_as_the_reach_equal_the_whole(size, tile):
    frames = noise(4, *size)
    tiling = Tiling(*tile, REACH_PX)
    np.testing.assert_allclose(
        restore(frames, Remembering(), {}, tiling=tiling), restore(frames, Remembering(), {}), atol=1e-6
    )


def test_tiles_without_halos_do_not():
    frames = noise(4, 150, 170)
    model = Remembering()
    whole = restore(frames, model, {})
    # Where tiles meet they still overlap by what is blended, so the difference is to come from the edges of a tile.
    assert (
        np.abs(restore(frames, SeesAll(), {}, tiling=Tiling(96, 96, 0)) - restore(frames, SeesAll(), {})).max() > 1e-3
    )
    assert np.abs(restore(frames, model, {}, tiling=Tiling(96, 96, 0)) - whole).max() < 1e-5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_rounded_alike(dtype):
    largest = np.iinfo(dtype).max
    frames = np.rint(noise(3, 150, 170) * largest).astype(dtype)
    tiled = restore(frames, Remembering(), {}, tiling=Tiling(96, 96, REACH_PX))
    whole = restore(frames, Remembering(), {})
    assert tiled.dtype == dtype
    difference = np.abs(tiled.astype(np.int64) - whole)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99


def test_tiles_that_do_not_fit_the_model_are_refused():
    with pytest.raises(ValueError, match="expected multiples of the model's 4"):
        restore(noise(2, 150, 170), Remembering(), {}, tiling=Tiling(98, 96, 8))
    with pytest.raises(ValueError, match="choose larger tiles or a smaller halo"):
        restore(noise(2, 150, 170), Remembering(), {}, tiling=Tiling(96, 96, 40))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 80), st.integers(1, 40), st.integers(0, 70), st.sampled_from([1, 4, 8, 64]))
def test_tiles_cover_a_side_and_hand_over_smoothly(size, tile, halo, multiple):
    size, tile = size * 8 * multiple, tile * 8 * multiple
    try:
        spans = tile_spans(size, tile, halo, multiple)
    except ValueError:
        assume(False)
    weights = np.zeros(size)
    for span, of_span in zip(spans, span_weights(spans), strict=True):
        weights[span.begin : span.end] += of_span
        assert span.end - span.begin == min(tile, size)
        assert all(place % multiple == 0 for place in (span.begin, span.end, span.first, span.last))
        # What is used of a tile lies at least a halo from those of its ends that are not the frame's.
        used = span.begin + np.nonzero(of_span)[0]
        assert span.begin == 0 or used.min() >= span.begin + halo
        assert span.end == size or used.max() < span.end - halo
    np.testing.assert_allclose(weights, 1, atol=1e-6)
    assert [span.first for span in spans] == [0, *(span.last for span in spans[:-1])]
    assert spans[-1].last == size


def test_the_best_tiling_makes_the_least_work():
    """Against every tile there could be."""
    height, width, halo, multiple, most = 720, 1280, 40, 8, 400_000

    def work(tile_height, tile_width):
        try:
            rows, columns = (
                len(tile_spans(size, tile, halo, multiple))
                for size, tile in ((height, tile_height), (width, tile_width))
            )
        except ValueError:
            return np.inf
        return rows * columns * tile_height * tile_width

    found = best_tiling(height, width, halo, multiple, most)
    assert found.height * found.width <= most
    least = min(
        work(tile_height, tile_width)
        for tile_height in range(multiple, height + 1, multiple)
        for tile_width in range(multiple, width + 1, multiple)
        if tile_height * tile_width <= most
    )
    assert work(found.height, found.width) == least
    assert best_tiling(height, width, halo, multiple, 10_000) is None
    assert best_tiling(height, width, halo, multiple, height * width) == Tiling(height, width, halo)
    assert halo > 2 * BLEND_PX
