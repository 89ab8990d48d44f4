import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxdeblur.data.transforms import (
    MTU_AUGMENTATION,
    SVRNN_AUGMENTATION,
    Augmentation,
    Geometry,
    check_crop,
    draw_geometry,
    orient,
    resize_to_crop,
    to_float_batch,
)

SIZE_PX = (6, 9)
GEOMETRY_OF_SAMPLE_0 = Geometry(
    top_px=135,
    left_px=773,
    height_px=256,
    width_px=256,
    swap_axes=False,
    reverse_rows=False,
    reverse_columns=False,
)


def numbered_frame(height_px: int, width_px: int) -> np.ndarray:
    """Every pixel holds its own number, so that a frame shows where each pixel went."""
    return np.arange(height_px * width_px).reshape(height_px, width_px, 1)


def apply(frame: np.ndarray, geometry: Geometry) -> np.ndarray:
    box = frame[
        geometry.top_px : geometry.top_px + geometry.height_px,
        geometry.left_px : geometry.left_px + geometry.width_px,
    ]
    return orient(
        box,
        swap_axes=geometry.swap_axes,
        reverse_rows=geometry.reverse_rows,
        reverse_columns=geometry.reverse_columns,
    )


def draw(sample: int, *, seed: int = 0, size_px=SIZE_PX, crop_px=(4, 5), augmentation=MTU_AUGMENTATION) -> Geometry:
    return draw_geometry(seed=seed, sample=sample, frame_size_px=size_px, crop_px=crop_px, augmentation=augmentation)


def recipe(frame: np.ndarray, rotation: str, flip: str, top_px: int, left_px: int, crop_px) -> np.ndarray:
    """The recipe in the order in which it is written down: rotate, flip, crop."""
    frame = {
        "none": frame,
        "ccw": np.rot90(frame, 1),
        "cw": np.rot90(frame, -1),
        "180": np.rot90(frame, 2),
    }[rotation]
    frame = {
        "none": frame,
        "up-down": np.flipud(frame),
        "left-right": np.fliplr(frame),
        "both": np.flipud(np.fliplr(frame)),
    }[flip]
    return frame[top_px : top_px + crop_px[0], left_px : left_px + crop_px[1]]


def always(rotation: str, flip: str) -> Augmentation:
    rotations, flips = ("ccw", "cw", "180"), ("up-down", "left-right", "both")
    unused = (1.0, 0.0, 0.0)
    return Augmentation(
        rotation_probability=float(rotation != "none"),
        rotation_weights=tuple(float(rotation == name) for name in rotations) if rotation != "none" else unused,
        flip_probability=float(flip != "none"),
        flip_weights=tuple(float(flip == name) for name in flips) if flip != "none" else unused,
        noise_probability=0.0,
        noise_sigma=0.0,
    )


@pytest.mark.parametrize("rotation", ["none", "ccw", "cw", "180"])
@pytest.mark.parametrize("flip", ["none", "up-down", "left-right", "both"])
@pytest.mark.parametrize("size_px", [(6, 9), (9, 6)])
def test_crop_first_equals_the_recipe_at_every_place(rotation, flip, size_px):
    frame, crop_px = numbered_frame(*size_px), (4, 5)
    results = {
        apply(frame, draw(n, size_px=size_px, augmentation=always(rotation, flip))).tobytes() for n in range(400)
    }
    turned_px = size_px[::-1] if rotation in ("ccw", "cw") else size_px
    expected = {
        np.ascontiguousarray(recipe(frame, rotation, flip, top_px, left_px, crop_px)).tobytes()
        for top_px in range(turned_px[0] - crop_px[0] + 1)
        for left_px in range(turned_px[1] - crop_px[1] + 1)
    }
    # All places come up, and nothing else.
    assert results == expected


def test_rotations_and_flips_come_as_often_as_the_recipe_says():
    n_samples, crop_px = 20_000, (3, 3)
    counts: dict[bytes, int] = {}
    for sample in range(n_samples):
        result = apply(numbered_frame(3, 3), draw(sample, size_px=(3, 3), crop_px=crop_px)).tobytes()
        counts[result] = counts.get(result, 0) + 1
    expected: dict[bytes, float] = {}
    for rotation, p_rotation in {"none": 0.5, "ccw": 0.15, "cw": 0.15, "180": 0.2}.items():
        for flip, p_flip in {"none": 0.5, "up-down": 0.15, "left-right": 0.15, "both": 0.2}.items():
            result = np.ascontiguousarray(recipe(numbered_frame(3, 3), rotation, flip, 0, 0, crop_px)).tobytes()
            expected[result] = expected.get(result, 0.0) + p_rotation * p_flip
    assert len(expected) == 8
    assert counts.keys() == expected.keys()
    for result, probability in expected.items():
        sigma = np.sqrt(n_samples * probability * (1 - probability))
        assert abs(counts[result] - n_samples * probability) < 5 * sigma


def test_crop_places_are_uniform():
    tops = np.bincount([draw(n, augmentation=None).top_px for n in range(3000)], minlength=3)
    lefts = np.bincount([draw(n, augmentation=None).left_px for n in range(3000)], minlength=5)
    assert tops.shape == (3,)
    assert lefts.shape == (5,)
    assert np.all(np.abs(tops - 1000) < 5 * np.sqrt(1000 * 2 / 3))
    assert np.all(np.abs(lefts - 600) < 5 * np.sqrt(600 * 4 / 5))


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(0, 2**40))
def test_geometry_is_a_function_of_seed_and_sample(seed, sample):
    geometry = draw(sample, seed=seed)
    draw(sample + 1, seed=seed)
    assert draw(sample, seed=seed) == geometry


def test_other_samples_and_seeds_draw_otherwise():
    geometries = {draw(sample, seed=seed, size_px=(1000, 1000)) for sample in range(30) for seed in range(30)}
    assert len(geometries) > 890


def test_geometry_stays_what_it_was():
    # A run must go on with the same crops after an upgrade.
    first = draw_geometry(
        seed=0, sample=0, frame_size_px=(720, 1280), crop_px=(256, 256), augmentation=MTU_AUGMENTATION
    )
    assert first == GEOMETRY_OF_SAMPLE_0


def test_boxes_are_up_to_twice_the_crop_and_colours_come_in_any_order():
    drawn = [
        draw_geometry(seed=0, sample=i, frame_size_px=(480, 640), crop_px=(100, 120), augmentation=SVRNN_AUGMENTATION)
        for i in range(3000)
    ]
    scales = []
    for geometry in drawn:
        height, width = (120, 100) if geometry.swap_axes else (100, 120)
        scales.append(height / geometry.height_px)
        assert abs(geometry.width_px - width / scales[-1]) <= 1.5
        assert 0 <= geometry.top_px <= 480 - geometry.height_px
        assert 0 <= geometry.left_px <= 640 - geometry.width_px
    assert min(scales) >= 0.5
    assert max(scales) <= 1
    np.testing.assert_allclose(np.quantile(scales, [0.25, 0.5, 0.75]), [0.625, 0.75, 0.875], atol=0.02)
    orders = [geometry.channels for geometry in drawn]
    counts = {order: orders.count(order) for order in set(orders)}
    assert len(counts) == 6
    assert min(counts.values()) > 3000 / 6 * 0.85


def test_a_small_frame_limits_how_much_is_seen():
    for i in range(200):
        geometry = draw_geometry(
            seed=0, sample=i, frame_size_px=(110, 130), crop_px=(100, 100), augmentation=SVRNN_AUGMENTATION
        )
        assert 100 <= geometry.height_px <= 110
        assert 100 <= geometry.width_px <= 111


def test_scaling_and_colours_move_no_other_draw():
    plain = dataclasses.replace(SVRNN_AUGMENTATION, lowest_scale=1.0, permute_colours=False)
    options = {"seed": 3, "frame_size_px": (480, 640), "crop_px": (64, 64)}
    for sample in range(50):
        one, other = (draw_geometry(sample=sample, augmentation=a, **options) for a in (plain, SVRNN_AUGMENTATION))
        fields = ("swap_axes", "reverse_rows", "reverse_columns")
        assert [getattr(one, field) for field in fields] == [getattr(other, field) for field in fields]
        assert one.channels == (0, 1, 2)


def test_resizing_is_antialiased_and_leaves_a_crop_alone():
    stripes = np.zeros((2, 16, 16, 3), np.uint8)
    stripes[:, :, ::2] = 200
    half = resize_to_crop(stripes, (8, 8))
    assert half.shape == (2, 8, 8, 3)
    assert np.abs(half[:, :, 1:-1].astype(int) - 100).max() <= 1  # every other column would be 0 or 200
    assert resize_to_crop(stripes, (16, 16)) is stripes
    ramp = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None, None], (1, 16, 16, 3))
    np.testing.assert_allclose(resize_to_crop(ramp, (8, 8))[0, 1:-1, 0, 0], np.arange(1, 7) * 20 + 5, atol=1)


def test_crop_must_fit():
    check_crop("c", (6, 9), (6, 9), None)
    check_crop("c", (6, 9), (6, 6), MTU_AUGMENTATION)
    check_crop("c", (6, 9), (6, 9), always("180", "both"))
    with pytest.raises(ValueError, match=r"crop of 9x7 does not fit clip 'c', whose frame is 9x6; .*1x1 to 9x6"):
        check_crop("c", (6, 9), (7, 9), None)
    with pytest.raises(ValueError, match="9x6 and is also turned by 90 degrees; choose a crop of 1x1 to 6x6"):
        check_crop("c", (6, 9), (6, 7), MTU_AUGMENTATION)
    with pytest.raises(ValueError, match="crop of 9x0 does not fit"):
        check_crop("c", (6, 9), (0, 9), None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rotation_probability", 1.5, "rotation_probability is a probability"),
        ("flip_weights", (0.5, 0.5, 0.5), "flip_weights are three shares that add to 1"),
        ("rotation_weights", (1.5, -0.5, 0.0), "rotation_weights are three shares"),
        ("noise_sigma", -1.0, "noise_sigma is a standard deviation >= 0"),
        ("lowest_scale", 0.0, "lowest_scale is a factor above 0 and up to 1, not 0"),
    ],
)
def test_impossible_augmentations(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MTU_AUGMENTATION, **{field: value})


def grey_batch_u8(value: int) -> dict[str, np.ndarray]:
    """Eight samples of 2 + 13 + 2 frames: one shape for all tests, traced once."""
    return {
        "blurred": np.full((8, 17, 16, 16, 3), value, np.uint8),
        "sharp": np.full((8, 13, 16, 16, 3), value, np.uint8),
    }


@functools.partial(jax.jit, static_argnames="seed")
def mtu_float_batch(batch_u8, *, first_sample, seed):
    return to_float_batch(batch_u8, seed=seed, first_sample=first_sample, augmentation=MTU_AUGMENTATION, past=2)


def noise_of(batch_u8, *, seed: int = 0, first_sample: int = 0):
    batch = mtu_float_batch(batch_u8, first_sample=first_sample, seed=seed)
    return {name: np.asarray(batch[name]) - images.astype(np.float32) / 255 for name, images in batch_u8.items()}


def test_without_noise_bytes_become_fractions_of_255():
    batch_u8 = {
        "blurred": np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1).repeat(3, -1),
        "sharp": np.arange(255, -1, -1, dtype=np.uint8).reshape(1, 1, 16, 16, 1).repeat(3, -1),
    }
    for augmentation in (None, always("cw", "both")):
        batch = to_float_batch(batch_u8, seed=0, first_sample=0, augmentation=augmentation, past=0)
        for name, images in batch_u8.items():
            assert batch[name].dtype == jnp.float32
            np.testing.assert_allclose(batch[name], images / 255.0, rtol=1e-7)


def test_noise_comes_in_half_of_the_frames_alike_in_both_and_independently():
    batches = [noise_of(grey_batch_u8(128), first_sample=first_sample) for first_sample in range(0, 64, 8)]
    noise = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    noisy = {name: np.any(values != 0, (2, 3, 4)) for name, values in noise.items()}
    n_frames = noisy["blurred"].size
    assert abs(noisy["blurred"].sum() - n_frames / 2) < 5 * np.sqrt(n_frames) / 2
    np.testing.assert_array_equal(noisy["blurred"][:, 2:15], noisy["sharp"])
    drawn = {
        "blurred": noise["blurred"][:, 2:15][noisy["sharp"]].ravel(),
        "sharp": noise["sharp"][noisy["sharp"]].ravel(),
    }
    for values in drawn.values():
        # 300,000 numbers: the mean within 5 of its own sigmas, the deviation within 1 %.
        assert abs(values.mean()) < 5e-4 / np.sqrt(values.size)
        assert abs(values.std() / 1e-4 - 1) < 0.01
        assert abs(np.mean(np.abs(values) < 1e-4) - 0.6827) < 0.005
    assert abs(np.corrcoef(drawn["blurred"], drawn["sharp"])[0, 1]) < 0.01
    # Nor does one repeat the numbers of the other from its first frame on.
    both = noisy["blurred"][:, :13] & noisy["sharp"]
    first, second = noise["blurred"][:, :13][both].ravel(), noise["sharp"][both].ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01


@pytest.mark.parametrize(("value", "sign"), [(0, 1), (255, -1)])
def test_noise_does_not_leave_the_range(value, sign):
    noise = noise_of(grey_batch_u8(value))
    for values in noise.values():
        assert np.all(sign * values >= 0)
        assert np.any(values != 0)


def test_noise_is_a_function_of_seed_and_sample_alone():
    noise = noise_of(grey_batch_u8(100), first_sample=6)
    elsewhere = noise_of(grey_batch_u8(100), first_sample=1)
    for name, values in noise.items():
        np.testing.assert_array_equal(values[:3], elsewhere[name][5:])
        assert len({sample.tobytes() for sample in values}) == 8
    assert np.any(noise["sharp"] != noise_of(grey_batch_u8(100), first_sample=6, seed=1)["sharp"])


def test_compiled_noise_equals_eager():
    batch_u8 = grey_batch_u8(100)
    eager = to_float_batch(batch_u8, seed=0, first_sample=4, augmentation=MTU_AUGMENTATION, past=2)
    compiled = mtu_float_batch(batch_u8, first_sample=4, seed=0)
    for name in batch_u8:
        np.testing.assert_allclose(compiled[name], eager[name], atol=1e-7)
