"""restore against a NumPy loop over frames, for every kind of input it takes."""

import gc
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from identity_model import Outputs

from jaxdeblur.data.clips import frame_windows
from jaxdeblur.restoration import steps
from jaxdeblur.restoration.clip import restore


class TinyModel(nn.Module):
    """Mixes the window, a fading memory and the mean of the padded picture, so that each of them shows."""

    past_frames: int = 1
    future_frames: int = 1
    size_multiple: int = 4
    beyond_ends: str = "repeat"
    padding: str = "edge"

    def start(self, window):
        batch, _, height, width, _ = window.shape
        return {"memory": jnp.zeros((batch, height, width, 3)), "seen": jnp.zeros((batch,), bool)}

    @nn.compact
    def step(self, carry, window):
        gain = self.param("gain", nn.initializers.constant(0.9), ())
        current = window[:, self.past_frames]
        memory = jnp.where(carry["seen"][:, None, None, None], carry["memory"], current)
        restored = (
            gain * current
            + 0.2 * (window[:, 0] - window[:, -1])
            + 0.3 * (memory - current)
            + 0.1 * jnp.mean(current, axis=(1, 2, 3), keepdims=True)
        )
        return {"memory": (memory + current) / 2, "seen": jnp.ones_like(carry["seen"])}, Outputs(restored)


def variables(gain=0.9):
    return {"params": {"gain": np.float32(gain)}}


def number_seen(number, count, beyond_ends):
    """Which frame stands for frame `number` of `count`."""
    if 0 <= number < count:
        return number
    end, inside, beyond = (0, 1, -number) if number < 0 else (count - 1, count - 2, number - count + 1)
    return inside if beyond_ends == "alternate" and beyond % 2 == 1 and count > 1 else end


def restored_by_loop(frames, model):
    """(T, H, W, 3) in [0, 1] -> the same, by definition."""
    count, height, width, _ = frames.shape
    pad = [(0, 0), (0, -height % model.size_multiple), (0, -width % model.size_multiple), (0, 0)]
    padded = np.pad(frames.astype(np.float64), pad, mode="edge" if model.padding == "edge" else "constant")
    results = []
    memory = padded[0]
    for t in range(count):
        around = range(t - model.past_frames, t + model.future_frames + 1)
        window = [padded[number_seen(number, count, model.beyond_ends)] for number in around]
        current = padded[t]
        restored = 0.9 * current + 0.2 * (window[0] - window[-1]) + 0.3 * (memory - current) + 0.1 * current.mean()
        memory = (memory + current) / 2
        results.append(restored[:height, :width].clip(0, 1))
    return np.stack(results)


def noise(count=6, height=7, width=9):
    return np.random.default_rng(0).random((count, height, width, 3), np.float32)


@pytest.mark.parametrize("future", [0, 1, 3])
@pytest.mark.parametrize("past", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("beyond_ends", ["repeat", "alternate"])
def test_follows_the_definition(count, past, future, beyond_ends):
    model = TinyModel(past_frames=past, future_frames=future, beyond_ends=beyond_ends)
    frames = noise(count)
    np.testing.assert_allclose(restore(frames, model, variables()), restored_by_loop(frames, model), atol=1e-6)


def test_alternating_ends_are_those_of_the_cdvd_release():
    windows = frame_windows([np.array(number) for number in range(6)], 2, 2, beyond_ends="alternate")
    assert ["".join(str(number) for number in window) for window in windows] == [
        "01012", "10123", "01234", "12345", "23454", "34545",
    ]  # fmt: skip


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 4), (7, 9), (8, 3)])
def test_any_size(size):
    frames = noise(3, *size)
    restored = restore(frames, TinyModel(), variables())
    assert restored.shape == frames.shape
    np.testing.assert_allclose(restored, restored_by_loop(frames, TinyModel()), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_rounded_and_clamped(dtype):
    largest = np.iinfo(dtype).max
    frames = np.rint(noise() * largest).astype(dtype)
    expected = np.rint(restored_by_loop(frames / largest, TinyModel()) * largest)
    restored = restore(frames, TinyModel(), variables())
    assert restored.dtype == dtype
    difference = np.abs(restored.astype(np.int64) - expected)
    # Values within float32's error of a half may go either way.
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99
    assert (restored == 0).any()
    assert (restored == largest).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_types_come_back(dtype):
    frames = noise().astype(dtype)
    restored = restore(frames, TinyModel(), variables())
    assert restored.dtype == dtype
    assert isinstance(restored, np.ndarray)
    np.testing.assert_allclose(restored, restored_by_loop(frames, TinyModel()), atol=1e-3)


def test_jax_arrays_give_jax_arrays():
    frames = jnp.asarray(noise())
    restored = restore(frames, TinyModel(), variables())
    assert isinstance(restored, jax.Array)
    np.testing.assert_array_equal(restored, restore(np.asarray(frames), TinyModel(), variables()))
    assert restore(frames.astype(jnp.bfloat16), TinyModel(), variables()).dtype == jnp.bfloat16


def test_streaming_equals_the_whole_clip():
    frames = np.rint(noise() * 255).astype(np.uint8)
    whole = restore(frames, TinyModel(), variables())
    for stream in (iter(frames), list(frames), (frame for frame in frames)):
        streamed = restore(stream, TinyModel(), variables())
        assert iter(streamed) is streamed
        np.testing.assert_array_equal(np.stack(list(streamed)), whole)
    assert list(restore([], TinyModel(), variables())) == []
    assert restore(frames[:0], TinyModel(), variables()).shape == (0, 7, 9, 3)


def test_a_producer_may_reuse_its_buffer():
    frames = np.rint(noise() * 255).astype(np.uint8)

    def reused():
        # Aligned, as JAX on CPU wants memory that it takes over without copying.
        raw = np.empty(frames[0].nbytes + 64, np.uint8)
        start = -raw.ctypes.data % 64
        buffer = raw[start : start + frames[0].nbytes].reshape(frames[0].shape)
        for frame in frames:
            buffer[...] = frame
            yield buffer
            buffer[...] = 0

    whole = restore(frames, TinyModel(), variables())
    for _ in range(20):  # whether memory that is shared is read in time is luck
        np.testing.assert_array_equal(np.stack(list(restore(reused(), TinyModel(), variables()))), whole)


def test_stream_is_lazy_and_holds_few_frames():
    references = []
    most = taken = 0

    class Frame(np.ndarray):
        pass

    def produce():
        nonlocal most, taken
        for _ in range(60):
            frame = np.zeros((8, 8, 3), np.uint8).view(Frame)
            references.append(weakref.ref(frame))
            taken += 1
            most = max(most, sum(reference() is not None for reference in references))
            yield frame

    for done, _ in enumerate(restore(produce(), TinyModel(), variables()), 1):
        assert taken <= done + 3  # the window's future, and two in flight
    gc.collect()
    assert taken == done == 60
    assert most <= 4


def test_one_compilation_per_size():
    model = TinyModel(past_frames=2, future_frames=2, size_multiple=2)
    before = steps.step._cache_size()
    for _ in range(2):
        restore(noise(5, 6, 6), model, variables())
        list(restore(iter(noise(3, 6, 6)), model, variables(0.5)))
    assert steps.step._cache_size() == before + 1
    restore(noise(2, 6, 8), model, variables())
    assert steps.step._cache_size() == before + 2


def test_the_carry_gives_its_memory_away():
    model = TinyModel()
    carry = model.start(jnp.zeros((1, 3, 8, 12, 3)))
    frame = jnp.zeros((7, 9, 3), jnp.uint8)
    steps.step(model, jax.tree.map(jnp.asarray, variables()), carry, (frame,) * 3)
    assert carry["memory"].is_deleted()


def test_progress_counts_frames():
    counts = []
    restore(noise(4), TinyModel(), variables(), progress=counts.append)
    assert counts == [1, 2, 3, 4]


def test_bad_frames_are_named():
    model = TinyModel()
    frames = list(noise(5))
    with pytest.raises(ValueError, match=r"shape \(7, 9, 3\); expected \(time.*frame\[None\]"):
        restore(frames[0], model, variables())
    with pytest.raises(ValueError, match=r"frame 0 has shape \(7, 9, 4\); expected \(height, width, 3\)"):
        restore(np.zeros((2, 7, 9, 4), np.uint8), model, variables())
    with pytest.raises(ValueError, match="frame 0 is int32; expected uint8, uint16 or floating"):
        restore(np.zeros((2, 7, 9, 3), np.int32), model, variables())
    with pytest.raises(ValueError, match=r"frame 3 is float32 \(7, 8, 3\), but frame 0 is float32 \(7, 9, 3\)"):
        list(restore([*frames[:3], frames[3][:, 1:]], model, variables()))
    with pytest.raises(ValueError, match=r"frame 1 is uint8 .*must be alike"):
        list(restore([frames[0], np.zeros((7, 9, 3), np.uint8)], model, variables()))
    frames[2] = frames[2] * 200
    with pytest.raises(ValueError, match=r"frame 2 has values in \[.*floating frames are in \[0, 1\]"):
        restore(np.stack(frames), model, variables())
    frames[2] = np.full_like(frames[0], np.nan)
    with pytest.raises(ValueError, match=r"frame 2 has values in \[nan"):
        restore(np.stack(frames), model, variables())


class Dividing(TinyModel):
    def step(self, carry, window):
        current = window[:, self.past_frames]
        return carry, Outputs(current / jnp.max(current, axis=(1, 2, 3), keepdims=True))


@pytest.mark.parametrize("tiling", [None, steps.Tiling(96, 96, 0)], ids=["whole", "tiles"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_no_number_is_not_handed_out(dtype, tiling):
    """As integers such values would be black or white pixels among others."""
    frames = np.ones((4, 100, 140, 3), dtype)
    frames[2] = 0
    restored = restore(iter(frames), Dividing(), {}, tiling=tiling)
    assert np.ptp([next(restored), next(restored)]) == 0
    with pytest.raises(ValueError, match="frame 2 cannot be restored: the network's values are not finite"):
        next(restored)
