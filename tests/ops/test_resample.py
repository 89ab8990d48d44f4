import functools
import inspect

import jax
import jax.export
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import load_case

from jaxdeblur.ops.resample import (
    BORDERS,
    _in_four_reads,
    _in_one_read,
    downsample_area,
    downsample_tent,
    enlarge_bilinear,
    pad_mirrored,
    pad_to_multiple,
    pixel_shuffle,
    resize_bilinear,
    sample_bicubic,
    sample_bilinear,
    shrink_bilinear,
    unpad,
)

SEEDS = st.integers(0, 2**32 - 1)


def sample_oracle(image, x, y, border):
    """One image (H, W, C), positions (h, w): values, and whether all taps of non-zero weight lie inside."""
    height, width, channels = image.shape
    out = np.zeros((*x.shape, channels))
    inside = np.ones(x.shape, bool)
    for index in np.ndindex(x.shape):
        px, py = float(x[index]), float(y[index])
        if border == "edge":
            inside[index] = 0 <= px <= width - 1 and 0 <= py <= height - 1
            px, py = min(max(px, 0.0), width - 1.0), min(max(py, 0.0), height - 1.0)
        for row in range(int(np.floor(py)), int(np.floor(py)) + 2):
            for column in range(int(np.floor(px)), int(np.floor(px)) + 2):
                weight = (1 - abs(px - column)) * (1 - abs(py - row))
                if weight == 0:
                    continue
                if 0 <= row < height and 0 <= column < width:
                    out[index] += weight * image[row, column]
                else:
                    inside[index] = False
    return out, inside


def resize_oracle(image, height, width, align_corners):
    """One image (H, W, C); every output pixel on its own."""
    old_height, old_width, channels = image.shape

    def position(i, old, new):
        if align_corners:
            return i * (old - 1) / (new - 1) if new > 1 else 0.0
        return min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)

    out = np.zeros((height, width, channels))
    for y in range(height):
        for x in range(width):
            at = np.array([[position(x, old_width, width)]]), np.array([[position(y, old_height, height)]])
            out[y, x] = sample_oracle(image, *at, "edge")[0][0, 0]
    return out


sample = jax.jit(sample_bilinear, static_argnames="border")
resize = jax.jit(resize_bilinear, static_argnames=("height", "width", "align_corners"))


def random_positions(seed, *, whole=False):
    """An image (4, 5, 2) and positions on (3, 6) that reach three pixels beyond it."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((4, 5, 2)).astype(np.float32)
    x, y = rng.uniform(-3, 7, (3, 6)).astype(np.float32), rng.uniform(-3, 6, (3, 6)).astype(np.float32)
    return image, *((np.round(x), np.round(y)) if whole else (x, y))


@pytest.mark.parametrize("border", BORDERS)
@given(seed=SEEDS, whole=st.booleans())
def test_samples_equal_the_oracle(border, seed, whole):
    image, x, y = random_positions(seed, whole=whole)
    out, inside = sample(image, x, y, border=border)
    expected, expected_inside = sample_oracle(image, x, y, border)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_array_equal(inside, expected_inside)


@pytest.mark.parametrize("border", BORDERS)
def test_leading_axes_are_a_loop(border):
    cases = [[random_positions(3 * i + j) for j in range(3)] for i in range(2)]
    image, x, y = (np.stack([np.stack([case[k] for case in row]) for row in cases]) for k in range(3))
    out, inside = sample(image, x, y, border=border)
    for i, j in np.ndindex(2, 3):
        one, one_inside = sample(*cases[i][j], border=border)
        np.testing.assert_allclose(out[i, j], one, atol=1e-6)
        np.testing.assert_array_equal(inside[i, j], one_inside)


@pytest.mark.parametrize("border", BORDERS)
def test_positions_that_are_not_finite_read_as_far_outside(border):
    image = np.arange(1, 13, dtype=np.float32).reshape(3, 4, 1)
    x = np.array([[np.nan, 1.0, np.inf, -np.inf, 1e30, 1.0]], np.float32)
    y = np.array([[1.0, np.nan, 1.0, 1.0, 1.0, -1e30]], np.float32)
    out, inside = sample(image, x, y, border=border)
    edge = [image[1, 0], image[0, 1], image[1, 3], image[1, 0], image[1, 3], image[0, 1]]
    np.testing.assert_array_equal(out[0], edge if border == "edge" else np.zeros((6, 1)))
    assert not np.any(inside)
    gradient = jax.grad(lambda image, x, y: sample(image, x, y, border=border)[0].sum(), argnums=(0, 1, 2))(image, x, y)
    assert all(np.all(np.isfinite(part)) for part in gradient)


@pytest.mark.parametrize("border", BORDERS)
def test_sampling_gradients(border):
    image, x, y = random_positions(0)
    # Away from whole pixels, where the surface has creases; the check steps by a hundredth.
    x, y = (np.floor(p) + np.clip(p - np.floor(p), 0.2, 0.8) for p in (x, y))
    value = jax.jit(lambda image, x, y: sample_bilinear(image, x, y, border=border)[0])
    jax.test_util.check_grads(value, (image, x, y), order=1, modes=("fwd", "rev"), eps=1e-2, atol=5e-3, rtol=5e-3)


def test_sampling_keeps_the_dtype_and_weighs_in_float32():
    image, x, y = random_positions(1)
    coarse = image.astype(jnp.bfloat16)
    out, _ = sample(coarse, x, y, border="edge")
    assert out.dtype == jnp.bfloat16
    expected, _ = sample_oracle(np.asarray(coarse, np.float64), x, y, "edge")
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2**-8, atol=1e-4)  # one rounding


def test_sampling_errors():
    image, x, y = random_positions(2)
    with pytest.raises(ValueError, match="border is 'reflect'; expected one of zeros, edge"):
        inspect.unwrap(sample_bilinear)(image, x, y, border="reflect")  # as without the run-time type checker
    with pytest.raises(ValueError, match=r"x_px \(3, 6\) and y_px \(2, 6\) must agree"):
        sample_bilinear(image, x, y[:2], border="edge")
    with pytest.raises(ValueError, match=r"start with the image's leading axes \(1,\)"):
        sample_bilinear(image[None], x, y, border="edge")


# --- sizes ---

SIZES = [(8, 10), (3, 9), (4, 2), (1, 1), (7, 5), (4, 5)]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resize_equals_the_oracle(height, width, align_corners):
    image = np.random.default_rng(0).standard_normal((4, 5, 2)).astype(np.float32)
    out = resize(image, height=height, width=width, align_corners=align_corners)
    np.testing.assert_allclose(out, resize_oracle(image, height, width, align_corners), atol=2e-6)


@pytest.mark.parametrize("border", ["zeros", "edge"])
def test_one_exported_sampling_serves_every_size(border):
    def sample(image):  # of a size that is only known to be a multiple of 2, and at positions around it
        size = [-(-size // 16) * 2 for size in image.shape[:2]]
        features = resize_bilinear(image, *size, align_corners=False)
        return sample_bilinear(
            features, *jnp.meshgrid(*(1.3 * jnp.arange(n).astype(jnp.float32) - 0.7 for n in size)), border=border
        )[0]

    image = jax.ShapeDtypeStruct(jax.export.symbolic_shape("h, w, 2"), np.float32)
    exported = jax.export.export(jax.jit(sample))(image)
    for size in ((1, 5), (16, 17), (40, 31)):
        x = np.random.default_rng(0).standard_normal((*size, 2)).astype(np.float32)
        np.testing.assert_allclose(exported.call(x), sample(jnp.asarray(x)), atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
def test_one_exported_resize_serves_every_size(align_corners):
    image = jax.ShapeDtypeStruct(jax.export.symbolic_shape("4*h, 4*w, 2"), np.float32)

    def down(size):
        return size // 4 * 3

    def up(size):  # to the next multiple of 7, which may be the size itself
        return -(-size // 7) * 7

    exported = [
        jax.export.export(
            jax.jit(lambda x, to=to: resize_bilinear(x, *map(to, x.shape[:2]), align_corners=align_corners))
        )(image)
        for to in (down, up)
    ]
    for height, width in ((4, 4), (8, 28), (12, 20)):
        x = np.random.default_rng(0).standard_normal((height, width, 2)).astype(np.float32)
        for function, to in zip(exported, (down, up), strict=True):
            expected = resize_oracle(x, to(height), to(width), align_corners)
            np.testing.assert_allclose(function.call(x), expected, atol=2e-6)


def test_resize_from_a_single_pixel_repeats_it():
    image = np.full((1, 1, 3), 0.25, np.float32)
    for align_corners in (False, True):
        out = resize(image, height=3, width=2, align_corners=align_corners)
        np.testing.assert_array_equal(out, np.full((3, 2, 3), 0.25))


@given(seed=SEEDS)
def test_resize_with_aligned_corners_keeps_a_plane(seed):
    a, b, c = np.random.default_rng(seed).uniform(-2, 2, 3)
    rows, columns = np.mgrid[0:4, 0:5]
    plane = (a * columns + b * rows + c).astype(np.float32)[..., None]
    rows, columns = np.mgrid[0:8, 0:10]
    expected = a * columns * 4 / 9 + b * rows * 3 / 7 + c
    out = resize(plane, height=8, width=10, align_corners=True)[..., 0]
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_resize_agrees_with_jax_image_on_half_pixel_centres():
    image = np.random.default_rng(1).standard_normal((2, 6, 7, 3)).astype(np.float32)
    for size in ((12, 14), (9, 8), (3, 4)):
        expected = jax.image.resize(image, (2, *size, 3), "bilinear", antialias=False)
        out = resize(image, height=size[0], width=size[1], align_corners=False)
        np.testing.assert_allclose(out, expected, atol=2e-6)


def test_resize_keeps_the_dtype_and_rounds_once():
    image = np.random.default_rng(1).uniform(100, 101, (6, 5, 1)).astype(jnp.bfloat16)
    out = resize(image, height=11, width=5, align_corners=True)
    assert out.dtype == jnp.bfloat16
    expected = resize_oracle(np.asarray(image, np.float64), 11, 5, True)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2**-8)


@pytest.mark.parametrize("factor", [2, 4, 6])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (5, 4)])
def test_even_factors_agree_with_jax_image(factor, size):
    rng = np.random.default_rng(1)
    small = rng.standard_normal((2, *size, 3)).astype(np.float32)
    large = rng.standard_normal((2, size[0] * factor, size[1] * factor, 3)).astype(np.float32)
    np.testing.assert_allclose(
        jax.jit(enlarge_bilinear, static_argnums=1)(small, factor),
        jax.image.resize(small, large.shape, "bilinear"),
        atol=2e-6,
    )
    np.testing.assert_allclose(
        jax.jit(shrink_bilinear, static_argnums=1)(large, factor),
        jax.image.resize(large, small.shape, "bilinear", antialias=True),
        atol=2e-6,
    )


def test_even_factors_keep_the_dtype_and_refuse_others():
    image = np.full((1, 4, 8, 2), 0.3, np.float32).astype(jnp.bfloat16)
    for resized, shape in ((enlarge_bilinear(image, 2), (1, 8, 16, 2)), (shrink_bilinear(image, 4), (1, 1, 2, 2))):
        assert resized.dtype == jnp.bfloat16
        np.testing.assert_array_equal(resized, np.broadcast_to(image[:1, :1, :1, :1], shape))
    for resize_by in (enlarge_bilinear, shrink_bilinear):
        for factor in (0, 1, 3):
            with pytest.raises(ValueError, match=f"factor is {factor}; expected an even number"):
                resize_by(image, factor)
    with pytest.raises(ValueError, match="size 4x8 is no multiple of 8; use pad_to_multiple first"):
        shrink_bilinear(image, 8)


@pytest.mark.parametrize("align_corners", [False, True])
def test_resize_gradients(align_corners):
    image = np.random.default_rng(2).standard_normal((3, 4, 2)).astype(np.float32)
    value = functools.partial(resize, height=5, width=3, align_corners=align_corners)
    jax.test_util.check_grads(value, (image,), order=1, modes=("fwd", "rev"), eps=1e-1, atol=2e-3, rtol=2e-3)


def test_area_is_the_mean_of_blocks():
    image = np.random.default_rng(3).standard_normal((2, 6, 9, 2)).astype(np.float32)
    out = downsample_area(image, 3)
    assert out.shape == (2, 2, 3, 2)
    for y, x in np.ndindex(2, 3):
        block = image[:, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3].reshape(2, 9, 2)
        np.testing.assert_allclose(out[:, y, x], block.mean(1), atol=1e-6)
    assert downsample_area(image.astype(jnp.bfloat16), 3).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="size 6x9 is no multiple of 2; use pad_to_multiple first"):
        downsample_area(image, 2)


@pytest.mark.parametrize("case", ["case_a", "case_b_batch2"])
def test_tents_are_those_of_the_released_layer(case):
    arrays, _ = load_case("svrnn_flow", case)
    for level in (2, 5):
        found = downsample_tent(arrays["image2"], 2**level)
        np.testing.assert_allclose(found, arrays[f"tent_downsample_image2_{level}"], rtol=0, atol=1e-6)


def test_tents_weigh_what_is_inside():
    image = np.random.default_rng(4).standard_normal((1, 6, 12, 2)).astype(np.float32)
    found = downsample_tent(image, 3)
    for y, x in np.ndindex(2, 4):
        total, weights = np.zeros(2), 0.0
        for row, column in np.ndindex(6, 12):
            weight = max(0, 1 - abs(row - y * 5) / 5) * max(0, 1 - abs(column - x * 11 / 3) / (11 / 3))
            total, weights = total + weight * image[0, row, column], weights + weight
        np.testing.assert_allclose(found[0, y, x], total / weights, atol=1e-6)
    np.testing.assert_allclose(downsample_tent(image[:, :, :6], 6)[0, 0, 0], image[0, :, :6].mean((0, 1)), atol=1e-6)
    assert downsample_tent(image.astype(jnp.bfloat16), 3).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"height, width \(6, 12\) are no multiples of 4"):
        downsample_tent(image, 4)


@given(
    seed=SEEDS,
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    multiple=st.integers(1, 5),
    border=st.sampled_from(["edge", "zeros"]),
)
def test_padding_comes_off_again(seed, height, width, multiple, border):
    image = np.random.default_rng(seed).standard_normal((2, height, width, 1)).astype(np.float32)
    padded, size = pad_to_multiple(image, multiple, border)
    assert padded.shape == (2, -(-height // multiple) * multiple, -(-width // multiple) * multiple, 1)
    np.testing.assert_array_equal(unpad(padded, size), image)
    for y, x in np.ndindex(*padded.shape[1:3]):
        added = y >= height or x >= width
        expected = 0 if added and border == "zeros" else image[:, min(y, height - 1), min(x, width - 1)]
        np.testing.assert_array_equal(padded[:, y, x], expected)


@pytest.mark.parametrize("around", [1, 3])
def test_mirrored_rows_and_columns_are_those_inside(around):
    image = jax.ShapeDtypeStruct(jax.export.symbolic_shape("2, h, w, 1"), np.float32)
    exported = jax.export.export(jax.jit(functools.partial(pad_mirrored, around=around)))(image)
    for height, width in ((1, 4), (around + 1, 7), (6, 5)):
        x = np.random.default_rng(0).standard_normal((2, height, width, 1)).astype(np.float32)

        def at(i, n):
            return 0 if n == 1 else n - 1 - abs(n - 1 - abs(i))

        expected = np.zeros((2, height + 2 * around, width + 2 * around, 1), np.float32)
        for row, column in np.ndindex(*expected.shape[1:3]):
            expected[:, row, column] = x[:, at(row - around, height), at(column - around, width)]
        np.testing.assert_array_equal(pad_mirrored(x, around), expected)
        np.testing.assert_array_equal(exported.call(x), expected)


@pytest.mark.parametrize("size", [(2, 2), (2, 4), (5, 3)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_read_of_four_pixels_is_four_reads(size, dtype):
    """Which a CPU and an accelerator make: values, tangents and gradients."""
    random = np.random.default_rng(0)
    image = jnp.asarray(random.standard_normal((*size, 3)), dtype)
    row, column = (jnp.asarray(random.integers(0, n - 1, (7, 6))) for n in size)
    weights = tuple(jnp.asarray(w, jnp.float32) for w in random.standard_normal((4, 7, 6)))
    out = random.standard_normal((7, 6, 3)).astype(np.float32)
    ways = []
    for way in (_in_one_read, _in_four_reads):

        def of_image_and_weights(image, weights, way=way):
            return way(image, row, column, weights)

        found, transpose = jax.vjp(of_image_and_weights, image, weights)
        _, tangent = jax.jvp(of_image_and_weights, (image, weights), (image + 1, weights))
        ways.append(jax.tree.leaves((found, tangent, transpose(out))))
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05  # sums of gradients are rounded one by one
    for one, other in zip(*ways, strict=True):
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_the_smallest_images_are_read_right(border, size):
    """Against sums over every pixel, at quarters of a pixel within and around the image."""
    image = np.random.default_rng(0).standard_normal((*size, 2)).astype(np.float32)
    y, x = np.mgrid[-9 : 4 * size[0] + 6, -9 : 4 * size[1] + 6] / 4
    within = [np.clip(p, 0, n - 1) if border == "edge" else p for p, n in ((y, size[0]), (x, size[1]))]
    across = [np.maximum(0, 1 - np.abs(p[..., None] - np.arange(n))) for p, n in zip(within, size, strict=True)]
    expected = np.einsum("hwr,hwc,rcf->hwf", *across, image)
    found, inside = sample_bilinear(image, x.astype(np.float32), y.astype(np.float32), border=border)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(inside, (y >= 0) & (y <= size[0] - 1) & (x >= 0) & (x <= size[1] - 1))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pixel_shuffle_is_pytorchs(factor):
    features = np.random.default_rng(0).standard_normal((2, 3, 4, 5 * factor**2)).astype(np.float32)
    out = pixel_shuffle(features, factor)
    assert out.shape == (2, 3 * factor, 4 * factor, 5)
    for b, y, x, c in np.ndindex(out.shape):
        channel = factor**2 * c + factor * (y % factor) + x % factor
        assert out[b, y, x, c] == features[b, y // factor, x // factor, channel]
    np.testing.assert_array_equal(pixel_shuffle(features[0], factor), out[0])


def test_pixel_shuffle_refuses_other_channels():
    with pytest.raises(ValueError, match=r"6 channels are no multiple of 2\^2"):
        pixel_shuffle(np.zeros((1, 2, 2, 6), np.float32), 2)


def keys_kernel(distance):
    """Keys 1981, Eq. 15."""
    s = abs(distance)
    if s < 1:
        return 1.5 * s**3 - 2.5 * s**2 + 1
    return -0.5 * s**3 + 2.5 * s**2 - 4 * s + 2 if s < 2 else 0.0


def bicubic_oracle(image, x, y):
    height, width, channels = image.shape
    out = np.zeros((*x.shape, channels))
    for index in np.ndindex(x.shape):
        px, py = min(max(float(x[index]), 0.0), width - 1.0), min(max(float(y[index]), 0.0), height - 1.0)
        for row in range(int(py) - 1, int(py) + 3):
            for column in range(int(px) - 1, int(px) + 3):
                pixel = image[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
                out[index] += keys_kernel(px - column) * keys_kernel(py - row) * pixel
    return out


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 3), (5, 7)])
@given(seed=SEEDS)
def test_bicubic_samples_equal_the_oracle(size, whole, seed):
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((*size, 2)).astype(np.float32)
    x, y = (rng.uniform(-3, side + 2, (3, 4)).astype(np.float32) for side in (size[1], size[0]))
    if whole:
        x, y = np.round(x), np.round(y)
    sampled = jax.jit(sample_bicubic)(image, x, y)
    np.testing.assert_allclose(sampled, bicubic_oracle(image.astype(np.float64), x, y), atol=5e-6)
    np.testing.assert_allclose(sampled, sample_bicubic(image, x, y), atol=2e-6)


def test_bicubic_samples_keep_leading_axes_and_types():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=(2, 3, 5, 6, 1)), jnp.bfloat16)
    x, y = (jnp.asarray(rng.uniform(0, 4, (2, 3, 4, 4)), jnp.float32) for _ in range(2))
    sampled = sample_bicubic(images, x, y)
    assert sampled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(sampled[1, 2], sample_bicubic(images[1, 2], x[1, 2], y[1, 2]))
    assert np.all(np.isfinite(sample_bicubic(images, x.at[0].set(np.nan), y)))
    with pytest.raises(ValueError, match="leading axes"):
        sample_bicubic(images, x[0], y[0])
