"""Compressed clips: how much is lost, who is hit, and that it happens the same way every time."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdeblur.data import compression
from jaxdeblur.data.compression import Compression, compressed, compressed_clip, through_h264, through_jpeg
from jaxdeblur.training.sharding import make_mesh, shard_batch


def moving_texture(frames=5, height=48, width=64):
    """Smooth waves and a few hard edges, moving to the right."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [
        [120 + 60 * np.sin((x - 2 * t) / (3 + c)) + 40 * (((x - 2 * t) // 9 + y // 7) % 2) for c in range(3)]
        for t in range(frames)
    ]
    return np.rint(np.clip(np.moveaxis(np.array(waves), 1, -1), 0, 255)).astype(np.uint8)


def psnr_db(one, other):
    return 10 * np.log10(255**2 / np.mean(np.square(one.astype(float) - other)))


@pytest.mark.parametrize(("through", "fine", "coarse"), [(through_h264, 10.0, 35.0), (through_jpeg, 95, 40)])
def test_frames_come_back_in_order_and_lose_more_the_coarser_it_is(through, fine, coarse):
    frames = moving_texture()
    near, far = through(frames, fine), through(frames, coarse)
    assert near.shape == far.shape == frames.shape
    assert near.dtype == np.uint8
    assert psnr_db(near, frames) > psnr_db(far, frames) + 3
    assert psnr_db(near, frames) > 27
    for number, frame in enumerate(near):  # each is nearest to its own frame: none is lost, none is swapped
        assert np.argmax([psnr_db(frame, other) for other in frames]) == number
    np.testing.assert_array_equal(through(frames, coarse), far)


def test_colours_stay_where_they_are():
    flat = np.full((3, 32, 32, 3), (200, 60, 120), np.uint8)
    for back in (through_h264(flat, 16.0), through_jpeg(flat, 90)):
        assert np.abs(back.astype(int) - flat).max() <= 3


def test_shares_and_qualities_are_drawn_as_they_say(monkeypatch):
    drawn = {"through_h264": [], "through_jpeg": []}
    for name, qualities in drawn.items():
        monkeypatch.setattr(compression, name, lambda frames, quality, kept=qualities: kept.append(quality) or frames)
    frames = moving_texture(2, 16, 16)
    fields = Compression(0.3, 0.2, least_crf=16, most_crf=28, least_jpeg_quality=40, most_jpeg_quality=95)
    for seed in range(400):
        compressed_clip(frames, fields, np.random.default_rng(seed))
    assert len(drawn["through_h264"]) / 400 == pytest.approx(0.3, abs=0.06)
    assert len(drawn["through_jpeg"]) / 400 == pytest.approx(0.2, abs=0.06)
    for qualities, least, most in ((drawn["through_h264"], 16, 28), (drawn["through_jpeg"], 40, 95)):
        assert least <= min(qualities) < least + 0.1 * (most - least)
        assert most - 0.1 * (most - least) < max(qualities) <= most


def batch_of(clips_u8):
    blurred = (clips_u8 / np.float32(255)).astype(np.float32)
    return {"blurred": blurred, "sharp": blurred[:, 1:-1].copy()}


def test_a_clip_is_hit_alike_whatever_batch_and_device_it_is_on():
    clips = np.stack([moving_texture(3, 32, 32) + np.uint8(number) for number in range(8)])
    fields = Compression(h264_share=0.5, jpeg_share=0.4)
    mesh = make_mesh()
    assert mesh.devices.size == 8
    spread = compressed(shard_batch(batch_of(clips), mesh), fields, seed=3, first_index=16)
    late = compressed(jax.device_put(batch_of(clips[4:])), fields, seed=3, first_index=20)
    assert spread["blurred"].sharding == shard_batch(batch_of(clips), mesh)["blurred"].sharding
    np.testing.assert_array_equal(spread["blurred"][4:], late["blurred"])
    np.testing.assert_array_equal(spread["sharp"], batch_of(clips)["sharp"])
    levels = 255 * np.asarray(spread["blurred"], np.float64)
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert not np.array_equal(spread["blurred"], batch_of(clips)["blurred"])
    other_seed = compressed(jax.device_put(batch_of(clips)), fields, seed=4, first_index=16)
    assert not np.array_equal(spread["blurred"], other_seed["blurred"])


@pytest.mark.parametrize(
    "fields",
    [
        {"h264_share": -0.1},
        {"h264_share": 0.7, "jpeg_share": 0.4},
        {"least_crf": 30, "most_crf": 20},
        {"most_crf": 60},
        {"least_jpeg_quality": 0},
        {"most_jpeg_quality": 100},
    ],
)
def test_what_is_out_of_range_is_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        dataclasses.replace(Compression(), **fields)
