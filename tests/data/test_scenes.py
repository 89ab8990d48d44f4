"""Closed forms for explicit scenes, laws for random ones."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.data import scenes
from jaxdeblur.data.image_io import ImageFile, read_rgb_u8, write_image
from jaxdeblur.data.scenes import MotionPath, Scene, SceneConfig, scene_key
from jaxdeblur.ops.colour import linear_to_srgb
from jaxdeblur.ops.warp import warp_backward
from jaxdeblur.training.sharding import make_mesh

TINY = SceneConfig(frames=3, height=24, width=32, objects=1)
SQUARE = SceneConfig(frames=3, height=40, width=40)

render_scene = jax.jit(scenes.render_scene, static_argnames=("config", "past", "future"))
render_instant = jax.jit(scenes.render_instant, static_argnames=("height", "width"))


def path(drift=(0.0, 0.0, 0.0, 0.0)) -> MotionPath:
    drift = jnp.asarray(drift, jnp.float32)
    zeros = jnp.zeros((*drift.shape, 1))
    return MotionPath(drift, zeros, zeros, zeros)


def scene_of(
    *textures, camera=None, own=None, parallax=None, duty=0.5, sub_frames=16, averages_encoded=False, **noise
) -> Scene:
    count = len(textures)
    return Scene(
        textures_linear=jnp.asarray(np.stack(textures), jnp.float32),
        camera=path() if camera is None else camera,
        own=path(np.zeros((count, 4))) if own is None else own,
        parallax=jnp.ones(count) if parallax is None else jnp.asarray(parallax, jnp.float32),
        position_px=jnp.zeros((count, 2)),
        texels_per_px=jnp.float32(1),
        duty=jnp.float32(duty),
        sub_frames=jnp.int32(sub_frames),
        shot_noise=jnp.float32(noise.get("shot_noise", 0)),
        read_noise=jnp.float32(noise.get("read_noise", 0)),
        averages_encoded=jnp.asarray(averages_encoded),
        layers_shown=jnp.int32(count),
    )


def opaque(colours) -> np.ndarray:
    colours = np.asarray(colours, np.float32)
    return np.concatenate([colours, np.ones((*colours.shape[:2], 1), np.float32)], -1)


def waves(size: int, seed: int) -> np.ndarray:
    """A smooth texture, so that resampling it twice changes little."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    channels = [
        0.4 + 0.2 * np.sin(x * rng.uniform(0.1, 0.3) + channel) + 0.15 * np.sin(y * rng.uniform(0.1, 0.3))
        for channel in range(3)
    ]
    return opaque(np.stack(channels, -1))


def linear(image) -> np.ndarray:
    image = np.asarray(image, np.float64)
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def bilinear(image: np.ndarray, x: float, y: float) -> np.ndarray:
    column, row = min(int(x), image.shape[1] - 2), min(int(y), image.shape[0] - 2)
    fx, fy = x - column, y - row
    top = (1 - fx) * image[row, column] + fx * image[row, column + 1]
    bottom = (1 - fx) * image[row + 1, column] + fx * image[row + 1, column + 1]
    return (1 - fy) * top + fy * bottom


def seen_at(scene: Scene, layer: int, time: float, q: np.ndarray) -> np.ndarray:
    """Scene's docstring, literally and in float64: texture points (n, 2) to pixels from the frame's middle."""

    def value(motion: MotionPath, index) -> np.ndarray:
        drift, amplitude, frequency, phase = (np.asarray(field, np.float64)[index] for field in motion)
        return drift * time + np.sum(amplitude * (np.sin(frequency * time + phase) - np.sin(phase)), -1)

    def rotation(angle: float) -> np.ndarray:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    camera, own = value(scene.camera, ...), value(scene.own, layer)
    parallax = float(scene.parallax[layer])
    placed = np.asarray(scene.position_px[layer], np.float64) + parallax * camera[:2] + own[:2]
    placed = placed + np.exp(own[3]) * q @ rotation(own[2]).T
    return np.exp(parallax * camera[3]) * placed @ rotation(camera[2]).T


def texture_point(scene: Scene, layer: int, time: float, p: np.ndarray) -> np.ndarray:
    """Inverse of seen_at: an affine map is known from three points."""
    basis = seen_at(scene, layer, time, np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    return (p - basis[0]) @ np.linalg.inv(basis[1:] - basis[0])


# --- Closed forms ---


@pytest.mark.parametrize(("speed_px", "duty"), [(8.0, 0.5), (8.0, 1.0), (12.0, 0.25)])
@pytest.mark.parametrize("axis", [0, 1])
def test_translating_edge_gives_linear_ramp(speed_px, duty, axis):
    size, low, high = 64, 0.1, 0.8
    step = np.where(np.arange(size) < size // 2, low, high)
    texture = opaque(np.broadcast_to((step[None, :] if axis == 0 else step[:, None])[..., None], (size, size, 3)))
    drift = [0.0] * 4
    drift[axis] = speed_px
    scene = scene_of(texture, camera=path(drift), duty=duty, sub_frames=64)
    batch = render_scene(jax.random.key(0), scene, SQUARE)
    length_px = speed_px * duty
    for frame, time in enumerate((-1, 0, 1)):
        image = linear(batch["blurred"][frame])
        profile = image[20, :, 0] if axis == 0 else image[:, 20, 0]
        offset = np.arange(40) - (19.5 + speed_px * time)  # from the edge
        # The texture's own edge is one texel wide: it rounds the ramp's ends by half a pixel.
        ramp = low + (high - low) * np.clip(offset / length_px + 0.5, 0, 1)
        sure = np.abs(np.abs(offset) - length_px / 2) > 0.5
        assert np.max(np.abs(profile - ramp)[sure]) < 0.006
        assert np.sum(sure & (np.abs(offset) < length_px / 2)) >= 2
        sharp = linear(batch["sharp"][frame])
        np.testing.assert_allclose(
            sharp[20, :, 0] if axis == 0 else sharp[:, 20, 0],
            low + (high - low) * np.clip(offset + 0.5, 0, 1),
            atol=0.006,
        )
    flow = np.zeros(2)
    flow[axis] = speed_px
    np.testing.assert_allclose(batch["flow_cur_to_next"], np.broadcast_to(flow, (3, 40, 40, 2)), atol=1e-4)
    np.testing.assert_allclose(batch["flow_cur_to_prev"], np.broadcast_to(-flow, (3, 40, 40, 2)), atol=1e-4)


def test_still_scene_is_sharp():
    rng = np.random.default_rng(0)
    scene = scene_of(opaque(rng.uniform(size=(64, 64, 3))))
    batch = render_scene(jax.random.key(0), scene, SQUARE)
    difference = np.abs(np.asarray(batch["blurred"] - batch["sharp"]))
    assert np.mean(difference > 1e-6) < 1e-3  # the mean of equal numbers may round across a level
    assert np.max(difference) < 1.01 / 255
    assert not np.any(batch["flow_cur_to_prev"])
    assert np.all(batch["valid_cur_to_next"])


def test_light_is_kept():
    texture = np.full((64, 64, 3), 0.05)
    texture[28:36, 26:38] = (0.9, 0.5, 0.3)
    scene = scene_of(opaque(texture), camera=path((7.0, -4.0, 0.1, 0.0)), duty=1.0)
    batch = render_scene(jax.random.key(0), scene, SQUARE)
    blurred, sharp = linear(batch["blurred"][1]), linear(batch["sharp"][1])
    assert np.abs(blurred - sharp).max() > 0.3
    np.testing.assert_allclose(blurred.mean((0, 1)), sharp.mean((0, 1)), rtol=0.01)


def test_encoded_values_are_averaged_where_a_scene_says_so():
    """Data sets made by averaging a video's frames: the ramp of an edge is straight in encoded values, not in light."""
    step = np.where(np.arange(64) < 32, 0.1, 0.8)
    texture = opaque(np.broadcast_to(step[None, :, None], (64, 64, 3)))
    scene = scene_of(texture, camera=path((16.0, 0.0, 0.0, 0.0)), duty=1.0, sub_frames=64, averages_encoded=True)
    config = dataclasses.replace(SQUARE, encoded_share=0.5)
    batch = render_scene(jax.random.key(0), scene, config)
    offset = np.arange(40) - 19.5
    low, high = (float(linear_to_srgb(jnp.float32(light))) for light in (0.1, 0.8))
    ramp = low + (high - low) * np.clip(offset / 16 + 0.5, 0, 1)
    sure = np.abs(np.abs(offset) - 8) > 0.5
    np.testing.assert_allclose(np.asarray(batch["blurred"][1, 20, :, 0])[sure], ramp[sure], atol=0.01)
    in_light = render_scene(jax.random.key(0), scene._replace(averages_encoded=jnp.zeros((), bool)), config)
    np.testing.assert_array_equal(batch["sharp"], in_light["sharp"])
    assert np.abs(in_light["blurred"] - batch["blurred"]).max() > 0.05


def test_shares_of_scenes_and_textures():
    photographs = np.zeros((2, TINY.texture_size, TINY.texture_size, 3), np.uint8)
    draw = functools.partial(jax.jit(scenes.random_scene, static_argnums=1), photographs=photographs)
    mixed = dataclasses.replace(TINY, encoded_share=0.5, drawn_share=0.5)
    found = [draw(scene_key(0, index), mixed) for index in range(40)]
    assert np.mean([bool(scene.averages_encoded) for scene in found]) == pytest.approx(0.5, abs=0.2)
    # The photographs are black, drawn textures are not.
    assert np.mean([bool(np.any(scene.textures_linear[0, ..., :3])) for scene in found]) == pytest.approx(0.5, abs=0.2)
    plain = draw(scene_key(0, 0), TINY)
    assert not plain.averages_encoded
    assert not np.any(plain.textures_linear[..., :3])
    # What is new is drawn last: all else about the scene is as it is without.
    jax.tree.map(np.testing.assert_array_equal, plain.camera, found[0].camera)
    np.testing.assert_array_equal(plain.duty, found[0].duty)


def test_some_scenes_are_seen_softer():
    draw = jax.jit(scenes.random_scene, static_argnums=1)
    soft = dataclasses.replace(TINY, softest_texels_per_px=0.5)
    found = [draw(scene_key(0, index), soft) for index in range(40)]
    texels_per_px = np.array([scene.texels_per_px for scene in found])
    assert np.all((texels_per_px >= 0.5) & (texels_per_px <= 1.5))
    assert np.median(texels_per_px) == pytest.approx(np.sqrt(0.5 * 1.5), abs=0.15)
    plain = draw(scene_key(0, 0), TINY)
    # Two programs, whose last bits are the compiler's.
    same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=5e-5)
    jax.tree.map(same, plain._replace(texels_per_px=found[0].texels_per_px), found[0])
    # What moves a texture moves it as far, however near it is seen.
    np.testing.assert_allclose(scenes.corner_speeds_px(found[0], soft), scenes.corner_speeds_px(plain, TINY), rtol=1e-3)
    with pytest.raises(ValueError, match=r"softest_texels_per_px is 2\.0; expected None, or more than 0 and at most"):
        dataclasses.replace(TINY, softest_texels_per_px=2.0)


def test_the_more_blurred_and_the_still_of_several_clips_are_chosen():
    config = dataclasses.replace(TINY, height=16, width=16, min_speed_share=0.5)
    mesh = make_mesh()
    shares = mesh.devices.size
    batch = scenes.batch_renderer(config, batch_size=2 * shares, mesh=mesh, past=1, future=2, choose_from=3)(5, 8)
    every = jax.jit(functools.partial(scenes.render_batch, batch_size=6 * shares, config=config, past=1, future=2))(
        np.int32(5), np.int32(24)
    )
    error = np.mean(np.square(every["blurred"][:, 1:-2] - every["sharp"]), axis=(1, 2, 3, 4))
    is_still = np.max(np.abs(every["flow_cur_to_prev"]), axis=(1, 2, 3, 4)) < 1
    assert 0 < np.sum(is_still) < 2 * shares
    # Of each three the first that is still, or else the one that is blurred most.
    chosen = 3 * np.arange(2 * shares) + np.argmax(np.where(is_still, np.inf, error).reshape(-1, 3), axis=1)
    most = 1e-3 if jax.__version_info__ < (0, 12) else 5e-3  # 2.4e-3 with jax 0.12
    for name, values in batch.items():
        # The last bits are the compiler's, which has batches of two sizes before it: here and there a value on the
        # border of two levels becomes the other one.
        values, expected = (np.asarray(x, np.float64) for x in (values, every[name][chosen]))
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1.01 / 255, err_msg=name)
        assert np.mean(np.abs(values - expected) > 1e-4 * (1 + np.abs(expected))) < most, name
    with pytest.raises(ValueError, match="choose_from is 0; expected 1 or more"):
        scenes.batch_renderer(config, batch_size=2 * shares, mesh=mesh, choose_from=0)


def test_clips_get_the_ends_of_real_ones():
    config = dataclasses.replace(TINY, height=16, width=16, still_share=0.0)
    mesh = make_mesh()
    clips = -(-24 // mesh.devices.size) * mesh.devices.size
    whole = scenes.batch_renderer(config, batch_size=clips, mesh=mesh, past=1, future=2)(5, 8)
    cutter = functools.partial(scenes.clip_cutter, mesh, past=1)
    cut = cutter(share=1.0)(whole, 5, 8)
    ways = {"before": [1, 1, 2, 3, 4, 5], "after": [0, 1, 2, 3, 3, 3], "both": [1, 1, 2, 3, 3, 3], "single": [2] * 6}
    assert config.frames == 3
    found = []
    for clip in range(clips):
        blurred = whole["blurred"][clip]
        found += [
            name for name, order in ways.items() if np.array_equal(cut["blurred"][clip], blurred[np.array(order)])
        ]
        single = found[-1] == "single"
        np.testing.assert_array_equal(
            cut["sharp"][clip], whole["sharp"][clip][np.array([1, 1, 1] if single else [0, 1, 2])]
        )
        if single:
            assert not np.any(cut["flow_cur_to_prev"][clip])
            assert np.all(cut["valid_cur_to_next"][clip])
        else:
            np.testing.assert_array_equal(cut["flow_cur_to_prev"][clip], whole["flow_cur_to_prev"][clip])
    assert len(found) == clips
    assert set(found) == set(ways)
    assert found.count("single") >= 0.4 * clips
    # A clip's fate depends on nothing but seed and number.
    later = cutter(share=1.0)(jax.tree.map(lambda values: jnp.roll(values, 4, axis=0), whole), 5, 4)
    np.testing.assert_array_equal(later["blurred"][4:], cut["blurred"][:-4])
    half = cutter(share=0.5)(whole, 5, 8)
    assert {np.array_equal(half["blurred"][clip], cut["blurred"][clip]) for clip in range(clips)} == {True, False}
    with pytest.raises(ValueError, match=r"share of clips with ends is 1\.5; expected a fraction from 0 to 1"):
        cutter(share=1.5)


def test_layers_mix_in_linear_light():
    back = opaque(np.full((16, 16, 3), 0.8))
    glass = np.full((16, 16, 4), [0.25 * 0.4, 0.0, 0.25 * 1.0, 0.25], np.float32)
    light, shares = render_instant(scene_of(back, glass), jnp.float32(0), 8, 8)
    np.testing.assert_allclose(light, np.broadcast_to([0.7, 0.6, 0.85], (8, 8, 3)), atol=1e-6)
    np.testing.assert_allclose(shares, np.broadcast_to([0.75, 0.25], (8, 8, 2)), atol=1e-6)


def test_noise_has_shot_and_read_part():
    for level in (0.1, 0.5):
        scene = scene_of(opaque(np.full((64, 64, 3), level)), shot_noise=4e-3, read_noise=0.01, sub_frames=1)
        batch = render_scene(jax.random.key(1), scene, SQUARE)
        assert np.var(linear(batch["blurred"])) == pytest.approx(4e-3 * level + 0.01**2, rel=0.06)
        assert np.ptp(np.asarray(batch["sharp"])) == 0


def test_valid_is_what_stays_in_sight():
    back = opaque(np.full((33, 33, 3), 0.2))
    square = np.zeros((33, 33, 4), np.float32)
    square[12:21, 10:16] = 1.0
    config = SceneConfig(frames=1, height=33, width=33)
    scene = scene_of(back, square, own=path([[0.0] * 4, [4.0, 0.0, 0.0, 0.0]]))
    batch = render_scene(jax.random.key(0), scene, config)
    here, there = (np.pad(np.ones((9, 6), bool), ((12, 12), (left, 27 - left))) for left in (10, 14))
    np.testing.assert_array_equal(batch["valid_cur_to_next"][0], here | ~there)
    np.testing.assert_array_equal(batch["flow_cur_to_next"][0, ..., 0] == 4, here)


def test_flow_warps_neighbour_onto_frame():
    size = 96
    matte = np.zeros((size, size, 1))
    matte[30:70, 36:64] = 1.0
    motion = MotionPath(
        drift=jnp.array([3.0, -2.0, 0.02, 0.01]),
        amplitude=jnp.array([[4.0], [3.0], [0.03], [0.02]]),
        frequency=jnp.array([[0.9], [0.7], [1.1], [0.8]]),
        phase=jnp.array([[0.3], [1.0], [2.0], [0.5]]),
    )
    own = path([[0.0] * 4, [-2.0, 1.5, -0.05, 0.02]])
    scene = scene_of(waves(size, 0), waves(size, 1) * matte, camera=motion, own=own, parallax=[1.0, 1.3])
    scene = scene._replace(position_px=jnp.array([[0.0, 0.0], [5.0, -3.0]]))
    config = SceneConfig(frames=4, height=48, width=56)
    batch = jax.tree.map(np.asarray, render_scene(jax.random.key(0), scene, config))
    for name, step in {"prev": -1, "next": 1}.items():
        flow, valid = batch[f"flow_cur_to_{name}"], batch[f"valid_cur_to_{name}"]
        assert 0.6 < valid.mean() < 0.99
        for cur in range(max(0, -step), min(4, 4 - step)):
            errors, still_errors = [], []
            for y, x in zip(*np.nonzero(valid[cur])):
                u, v = flow[cur, y, x]
                warped = bilinear(batch["sharp"][cur + step], x + u, y + v)
                errors.append(np.abs(warped - batch["sharp"][cur, y, x]))
                still_errors.append(np.abs(batch["sharp"][cur + step, y, x] - batch["sharp"][cur, y, x]))
            assert np.max(errors) < 0.015
            assert np.mean(still_errors) > 20 * np.mean(errors)


def test_flow_and_picture_follow_the_documented_motion():
    dot = np.zeros((64, 64, 3))
    dot[40, 40] = 1.0
    scene = scene_of(opaque(dot), camera=path((2.0, 1.0, 0.1, 0.05)), parallax=[1.2])
    y, x = np.mgrid[:40, :40]
    for time in (-1.0, 0.0, 1.0):
        weight = np.asarray(render_instant(scene, jnp.float32(time), 40, 40)[0])[..., 0]
        centre = np.array([np.sum(weight * x), np.sum(weight * y)]) / weight.sum() - 19.5
        np.testing.assert_allclose(centre, seen_at(scene, 0, time, np.array([[8.5, 8.5]]))[0], atol=0.12)
    flow = render_scene(jax.random.key(0), scene, SQUARE)["flow_cur_to_next"]
    grid = np.stack([x, y], -1).reshape(-1, 2) - 19.5
    for frame, time in enumerate((-1.0, 0.0, 1.0)):
        expected = seen_at(scene, 0, time + 1, texture_point(scene, 0, time, grid)) - grid
        np.testing.assert_allclose(np.reshape(flow[frame], (-1, 2)), expected, atol=1e-4)


@functools.cache
def square_batch():
    return jax.jit(scenes.render_batch, static_argnums=(0, 1, 2, 3))(3, 0, 2, SQUARE)


@pytest.mark.parametrize("symmetry", range(8))
def test_a_turned_batch_is_the_scene_turned(symmetry):
    batch = square_batch()
    turned = scenes.turned(batch, symmetry)
    assert {name: (x.shape, x.dtype) for name, x in turned.items()} == {k: (x.shape, x.dtype) for k, x in batch.items()}
    # Where each pixel went, by the words of the docstring.
    for y, x in itertools.product((0, 7, 30), repeat=2):
        row, column = (39 - y if symmetry & 2 else y), (39 - x if symmetry & 1 else x)
        row, column = (column, row) if symmetry & 4 else (row, column)
        for name in ("blurred", "sharp", "valid_cur_to_next"):
            np.testing.assert_array_equal(turned[name][:, :, row, column], batch[name][:, :, y, x])
    # The turned flow brings the turned next frame where the flow brings the next frame.
    both = []
    for clip in (batch, turned):
        next_on_cur, _ = warp_backward(clip["sharp"][:, 1:], clip["flow_cur_to_next"][:, :-1], border="edge")
        both.append({**batch, "sharp": next_on_cur})
    np.testing.assert_allclose(scenes.turned(both[0], symmetry)["sharp"], both[1]["sharp"], atol=1e-4)


def test_symmetries_are_drawn_by_seed_and_number():
    drawn = [scenes.draw_symmetry(1, number) for number in range(200)]
    assert drawn == [scenes.draw_symmetry(1, number) for number in range(200)]
    assert drawn != [scenes.draw_symmetry(2, number) for number in range(200)]
    assert all(10 < drawn.count(symmetry) < 45 for symmetry in range(8))


def test_frames_that_are_no_squares_are_not_turned():
    with pytest.raises(ValueError, match="expected square frames"):
        scenes.turned({"sharp": jnp.zeros((1, 1, 8, 9, 3))}, 1)


def test_jit_equals_eager():
    scene = scene_of(waves(64, 3), camera=path((3.0, 1.0, 0.02, 0.01)), shot_noise=1e-4)
    eager = scenes.render_scene(jax.random.key(2), scene, SQUARE)
    jitted = render_scene(jax.random.key(2), scene, SQUARE)
    for name in eager:
        plain, fast = np.asarray(eager[name]), np.asarray(jitted[name])
        assert plain.shape == fast.shape
        assert plain.dtype == fast.dtype
        assert np.mean(np.abs(plain.astype(np.float32) - fast) > 1e-4) < 1e-3, name


# --- Random scenes ---


@functools.cache
def tiny_batch_function():
    return jax.jit(functools.partial(scenes.render_batch, batch_size=2, config=TINY, past=1, future=2))


def test_clip_is_a_function_of_seed_and_index():
    render = tiny_batch_function()
    first, again, later, other_seed = render(3, 5), render(3, 5), render(3, 6), render(4, 5)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        np.testing.assert_array_equal(first[name][1], later[name][0])
    assert np.mean(np.abs(first["sharp"][0] - first["sharp"][1])) > 0.05
    assert np.mean(np.abs(first["sharp"] - other_seed["sharp"])) > 0.05
    assert first["blurred"].shape == (2, 1 + 3 + 2, 24, 32, 3)
    assert first["sharp"].shape == (2, 3, 24, 32, 3)
    assert first["flow_cur_to_prev"].shape == first["flow_cur_to_next"].shape == (2, 3, 24, 32, 2)
    assert first["valid_cur_to_prev"].dtype == first["valid_cur_to_next"].dtype == bool


def test_clip_does_not_depend_on_frames_beyond_it():
    with_more = tiny_batch_function()(3, 5)
    alone = jax.jit(functools.partial(scenes.render_clip, config=TINY))(scenes.scene_key(3, 5))
    # Other code is generated for other shapes, so a value may round to the next level.
    assert np.mean(np.abs(with_more["blurred"][0, 1:4] - alone["blurred"]) > 1e-6) < 0.01
    assert np.mean(np.abs(with_more["sharp"][0] - alone["sharp"]) > 1e-6) < 0.01


def test_images_hold_8_bit_values():
    batch = tiny_batch_function()(0, 0)
    for name in ("blurred", "sharp"):
        values = np.asarray(batch[name])
        assert values.dtype == np.float32
        levels = np.round(values * 255)
        np.testing.assert_array_equal(values, levels.astype(np.float32) / np.float32(255))
        assert levels.min() >= 0
        assert levels.max() <= 255
        assert len(np.unique(levels)) > 100


def test_motion_of_random_scenes():
    config = SceneConfig(frames=1, height=24, width=32, objects=2)
    draw = jax.jit(functools.partial(scenes.random_scene, config=config))
    corners = np.array([[-15.5, -11.5], [15.5, -11.5], [-15.5, 11.5], [15.5, 11.5]])
    duties, blurs_px = [], []
    for index in range(40):
        scene = jax.tree.map(np.asarray, draw(scenes.scene_key(7, index)))
        duty, count = float(scene.duty), int(scene.sub_frames)
        duties.append(duty)
        longest_px = 0.0
        for mid_time in range(-scenes.MAX_EXTRA_FRAMES, 1 + scenes.MAX_EXTRA_FRAMES):
            times = mid_time + duty * ((np.arange(count) + 0.5) / count - 0.5)
            for layer in range(3):
                for before, after in itertools.pairwise(times):
                    moved = seen_at(scene, layer, after, texture_point(scene, layer, before, corners)) - corners
                    longest_px = max(longest_px, np.hypot(*moved.T).max())
        assert longest_px <= 1.0
        blurs_px.append(longest_px * count)
        alpha = np.asarray(scene.textures_linear[..., 3])
        assert np.all(alpha[0] == 1)
        border = np.concatenate([alpha[1:, 0], alpha[1:, -1], alpha[1:, :, 0], alpha[1:, :, -1]])
        assert not np.any(border)
        assert np.all(np.isfinite(scene.textures_linear))
    assert min(duties) >= config.min_duty
    assert max(duties) <= config.max_duty
    assert np.ptp(duties) > 0.6
    assert np.min(blurs_px) < 0.5
    assert np.median(blurs_px) > 2
    assert np.max(blurs_px) > 0.5 * config.max_speed_px


def test_smallest_scenes():
    config = SceneConfig(frames=1, height=8, width=8, max_speed_px=0.0, texels_per_px=1.0)
    clip = jax.jit(functools.partial(scenes.render_clip, config=config))(scenes.scene_key(0, 0))
    assert clip["sharp"].shape == (1, 8, 8, 3)
    assert np.std(clip["sharp"]) > 0.01


# --- Photographs in, video folders out ---


def write_photograph(file, height, width, detailed_column=None):
    rng = np.random.default_rng(0)
    rgb = np.full((height, width, 3), 90, np.uint8)
    if detailed_column is not None:
        rgb[:, detailed_column:] = rng.integers(0, 255, (height, width - detailed_column, 3))
    write_image(file, ImageFile(rgb))


def test_load_photographs_takes_the_detailed_part(tmp_path):
    write_photograph(tmp_path / "b.png", 32, 72, detailed_column=40)
    write_photograph(tmp_path / "a.png", 32, 32)
    (tmp_path / "notes.txt").write_text("no image")
    crops = scenes.load_photographs(tmp_path, 32, crops_per_photograph=1)
    assert crops.shape == (2, 32, 32, 3)
    assert crops.dtype == np.uint8
    assert np.ptp(crops[0]) == 0
    np.testing.assert_array_equal(crops[1], read_rgb_u8(tmp_path / "b.png")[:, 40:])


def test_large_photographs_are_reduced_in_linear_light(tmp_path):
    rgb = np.zeros((128, 128, 3), np.uint8)
    rgb[:, ::2] = 255
    write_image(tmp_path / "a.png", ImageFile(rgb))
    crops = scenes.load_photographs(tmp_path, 32)
    assert crops.shape == (4, 32, 32, 3)
    assert np.all(crops == 188)  # sRGB of one half


def test_load_photographs_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        scenes.load_photographs(tmp_path / "nowhere", 32)
    with pytest.raises(FileNotFoundError, match=r"no photographs here; expected files ending in \.png"):
        scenes.load_photographs(tmp_path, 32)
    write_photograph(tmp_path / "a.png", 20, 40)
    with pytest.raises(ValueError, match=r"a\.png: 40x20 pixels, but crops of 32x32"):
        scenes.load_photographs(tmp_path, 32)


def test_photographs_are_checked():
    too_small = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=rf"S at least the texture size of {TINY.texture_size}"):
        scenes.random_scene(jax.random.key(0), TINY, photographs=too_small)


def test_video_folder_of_photograph_scenes(tmp_path):
    config = SceneConfig(frames=2, height=16, width=24, objects=1, max_speed_px=4.0)
    size = config.texture_size + 3
    photographs = np.zeros((1, size, size, 3), np.uint8)
    photographs[..., 0] = np.random.default_rng(0).integers(30, 200, (size, size))
    write = functools.partial(scenes.write_video_folder, tmp_path, "train", seed=1, config=config)
    write(clips=1, photographs=photographs)
    blurred_file = tmp_path / "train/00000/blur/00001.png"
    blurred_file.unlink()
    write(clips=2, photographs=photographs)
    assert not blurred_file.exists()  # the clip was there and has been left alone
    assert sorted(p.relative_to(tmp_path / "train/00001").as_posix() for p in tmp_path.glob("train/00001/*/*")) == [
        "blur/00000.png",
        "blur/00001.png",
        "sharp/00000.png",
        "sharp/00001.png",
    ]
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == ["00000", "00001"]
    sharp_u8 = read_rgb_u8(tmp_path / "train/00001/sharp/00000.png")
    assert sharp_u8.shape == (16, 24, 3)
    assert np.ptp(sharp_u8[..., 0]) > 50
    assert not np.any(sharp_u8[..., 1:])  # red as the photograph is
    with pytest.raises(ValueError, match=r"train was begun with .*'seed': 1.* not with .*; choose another"):
        scenes.write_video_folder(tmp_path, "train", 2, 2, config, photographs=photographs)
    with pytest.raises(ValueError, match="clips is 0; expected at least 1"):
        scenes.write_video_folder(tmp_path, "train", 0, 1, config)


def test_interrupted_clip_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(scenes, "write_image", fail)
    frames = jnp.zeros((1, 8, 8, 3))
    with pytest.raises(OSError, match="disk full"):
        scenes._write_clip(tmp_path / "00000", {"blurred": frames, "sharp": frames})
    assert list(tmp_path.iterdir()) == []


def test_frames_beyond_are_bounded():
    with pytest.raises(ValueError, match="past is 5; expected 0 to 4 frames"):
        render_scene(jax.random.key(0), scene_of(waves(32, 0)), TINY, past=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 0}, "frames is 0; expected at least 1"),
        ({"height": 4, "objects": -1}, "height is 4; expected at least 8; objects is -1"),
        ({"min_duty": 0.0}, "min_duty, max_duty are 0.0, 1.0; expected 0 < min_duty"),
        ({"still_share": 1.5}, "still_share is 1.5; expected a fraction"),
        ({"max_speed_px": 30.0}, "sub_frames is 20, .* use at least 30 sub_frames"),
        ({"max_read_noise": float("nan")}, "max_read_noise is nan"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        SceneConfig(**fields)
