"""Steadied frames against their definition, through every way frames are restored by."""

import dataclasses

import jax
import numpy as np
import pytest
from identity_model import IdentityModel
from test_clip import TinyModel, variables

from jaxdeblur.models import create_model
from jaxdeblur.ops.lucas_kanade import lucas_kanade_flow
from jaxdeblur.ops.warp import visible_in_next, warp_bicubic
from jaxdeblur.restoration.clip import Halfway, restore, restore_stream
from jaxdeblur.restoration.memory import with_precision
from jaxdeblur.restoration.steadying import Steadied, steadied
from jaxdeblur.restoration.steps import Tiling

flow_of = jax.jit(lucas_kanade_flow)


def moving(count=5, height=40, width=48, noise=0.0):
    """A smooth texture that moves by (2.5, -1.5) pixels a frame; noise is each frame's own."""
    rng = np.random.default_rng(0)
    waves = [(rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6), rng.uniform(0, 6.28)) for _ in range(30)]
    y, x = np.mgrid[:height, :width]
    frames = []
    for t in range(count):
        grey = sum(np.sin(a * (x - 2.5 * t) + b * (y + 1.5 * t) + c) for a, b, c in waves) / 30
        frames.append(
            np.repeat((0.5 + 0.3 * grey)[..., None], 3, axis=-1) + noise * rng.standard_normal((height, width, 3))
        )
    return np.clip(np.stack(frames), 0, 1).astype(np.float32)


def by_definition(restored, beyond):
    """Every frame with the one before and the one after; before the first stands the first, after the last `beyond`."""
    results = []
    for t, current in enumerate(restored):
        total, weights = current.astype(np.float64), 1.0
        before = restored[t - 1] if t else current
        after = restored[t + 1] if t + 1 < len(restored) else beyond
        for other in (before, after):
            there, back = flow_of(current, other), flow_of(other, current)
            moved = np.asarray(jax.jit(warp_bicubic)(other, there), np.float64)
            difference = np.mean((moved - current) ** 2, axis=-1)
            height, width = difference.shape
            padded = np.pad(difference, 2)
            around = sum(padded[y : y + height, x : x + width] for y, x in np.ndindex(5, 5)) / 25
            weight = np.exp(-around / (2 * 0.1**2)) * np.asarray(visible_in_next(there, back))
            total, weights = total + weight[..., None] * moved, weights + weight[..., None]
        results.append(np.clip(total / weights, 0, 1))
    return np.stack(results)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_follows_the_definition(count):
    frames = moving(count, noise=0.02)
    found = restore(frames, Steadied(IdentityModel()), {})
    np.testing.assert_allclose(found, by_definition(frames, frames[-1]), atol=2e-4)


@pytest.mark.parametrize("beyond_ends", ["repeat", "alternate"])
def test_the_models_own_memory_and_window_are_as_without(beyond_ends):
    """Frame by frame the model sees what it would have seen; after the last, whatever stands there."""
    model = TinyModel(past_frames=2, future_frames=1, beyond_ends=beyond_ends)
    frames = moving(5, noise=0.02)
    longer = np.concatenate([frames, frames[-1:] if beyond_ends == "repeat" else frames[-2:-1]])
    # Of the frame beyond the end, the model looks one further, as it would after any last frame of its own.
    ahead = frames[-1:]
    restored = restore(frames, model, variables())
    beyond = restore(np.concatenate([longer, ahead]), model, variables())[5]
    found = restore(frames, Steadied(model), variables())
    np.testing.assert_allclose(found, by_definition(restored, beyond), atol=2e-4)


def test_what_differs_from_frame_to_frame_becomes_less():
    clean, frames = moving(6), moving(6, noise=0.04)
    found = restore(frames, Steadied(IdentityModel()), {})
    before, after = (np.mean((x - clean)[1:-1] ** 2) for x in (frames, found))
    assert after < 0.6 * before


def test_across_a_cut_nothing_is_mixed():
    frames = np.stack([moving(1)[0] / 3, 1 - moving(1)[0] / 3, moving(1)[0] / 3])
    found = restore(frames, Steadied(IdentityModel()), {})
    assert np.abs(found - frames).max() < 0.01


def test_an_interrupted_stream_goes_on_as_if_nothing_had_been():
    model, frames, saved = Steadied(TinyModel()), moving(7, noise=0.02), []

    def save(now):
        saved.append(Halfway(now.frames_done, [np.asarray(leaf) for leaf in now.carry]))

    whole = list(restore_stream(iter(frames), model, variables(), save=save, save_every=3))
    halfway = saved[0]
    first = halfway.first_frame(model)
    rest = list(restore_stream(iter(frames[first:]), model, variables(), halfway=halfway))
    assert len(rest) == 4
    np.testing.assert_array_equal(rest, whole[3:])


def test_tiles_are_near_whole_frames():
    frames, model = moving(4, 96, 160, noise=0.02), Steadied(IdentityModel())
    whole = restore(frames, model, {})
    tiled = restore(frames, model, {}, tiling=Tiling(96, 128, 24))
    assert np.abs(whole - tiled).max() < 0.1  # whether a pixel is seen in a neighbour may fall the other way
    assert np.mean(np.abs(whole - tiled)) < 1e-3


def test_one_program_for_every_frame():
    traces = []

    @dataclasses.dataclass(frozen=True)
    class Counting:
        past_frames: int = 0
        future_frames: int = 0
        size_multiple: int = 1
        beyond_ends: str = "repeat"
        padding: str = "edge"

        def apply(self, variables, *arguments, method):
            if method == "start":
                return ()
            traces.append(method)
            return IdentityModel(past_frames=0).apply({}, *arguments, method="step")

        def step(self):
            raise NotImplementedError

    restore(moving(6), Steadied(Counting()), {})
    assert len(traces) == 2  # within start, and in step


def test_precision_is_the_models():
    narrow = with_precision(Steadied(create_model("mtu2")), "bfloat16")
    assert isinstance(narrow, Steadied)
    assert narrow.model.config.compute_dtype == "bfloat16"
    assert not hasattr(Steadied(IdentityModel()), "config")


def test_compiled_as_op_by_op_at_many_sizes():
    compiled = jax.jit(steadied)
    for size in [(1, 1), (5, 40), (33, 47)]:
        previous, current, following = moving(3, *size, noise=0.02)[:, None]
        neighbours = [(other, flow_of(current, other), flow_of(other, current)) for other in (previous, following)]
        np.testing.assert_allclose(compiled(current, *neighbours), steadied(current, *neighbours), atol=1e-5)
