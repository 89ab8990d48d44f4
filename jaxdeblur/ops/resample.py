"""Sampling at pixel coordinates, resizing with the alignment named, padding to a multiple, channels to pixels.

Pixel (x, y) = (0, 0) is the centre of the top-left pixel, so no alignment convention exists until a size changes.
Images may have any range and channel count; results keep the image's dtype, weights are computed in float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Float

from jaxdeblur.types import Array, Border, Features, Image, Mask, Pixels

BORDERS: tuple[Border, ...] = ("zeros", "edge")


def sample_bilinear(
    image: Image, x_px: Float[Array, "..."], y_px: Float[Array, "..."], *, border: Border
) -> tuple[Image, Mask]:
    """Reads an image at fractional pixel positions.

    out = sum over the four neighbours q of (1 - |x - x_q|) (1 - |y - y_q|) image[q].

    Args:
        image: (..., H, W, C).
        x_px, y_px: (..., h, w) with the image's leading axes; columns to the right, rows down. Not finite reads as far
            outside.
        border: "zeros": a neighbour outside contributes nothing; "edge": the position is moved to the nearest pixel
            inside.
    Returns:
        (..., h, w, C) in the image's dtype, and (..., h, w) True where every neighbour of non-zero weight lies inside.
        The gradient to the positions is that of the piecewise linear surface, one-sided at whole pixels.
    """
    if border not in BORDERS:
        raise ValueError(f"border is {border!r}; expected one of {', '.join(BORDERS)}")
    return _of_every_image(functools.partial(_sample_one, border), image, x_px, y_px)


def _of_every_image(sample: Callable[..., Any], image: Array, x_px: Array, y_px: Array) -> Any:
    """`sample` of one image (H, W, C) and positions (h, w), for all leading axes."""
    lead = image.shape[:-3]
    if x_px.shape != y_px.shape or x_px.shape[:-2] != lead:
        raise ValueError(
            f"x_px {x_px.shape} and y_px {y_px.shape} must agree and start with the image's leading axes {lead}"
        )
    for _ in lead:
        sample = jax.vmap(sample)
    return sample(jnp.asarray(image), jnp.asarray(x_px), jnp.asarray(y_px))


def _sample_one(border: Border, image: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    height, width, _ = image.shape
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    # NaN reads as far to the left or above; as it stands it would spread into the image, and into every gradient.
    x, y = jnp.where(jnp.isnan(x), -2.0, x), jnp.where(jnp.isnan(y), -2.0, y)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    image = jnp.pad(image, ((0, max(0, 2 - height)), (0, max(0, 2 - width)), (0, 0)))  # room for two pixels by two
    column, weights_x = _first_and_weights(x, width, border)
    row, weights_y = _first_and_weights(y, height, border)
    weights = tuple(weight_y * weight_x for weight_y in weights_y for weight_x in weights_x)
    out = jax.lax.platform_dependent(image, row, column, weights, cpu=_in_one_read, default=_in_four_reads)
    return out.astype(image.dtype), inside


def _first_and_weights(
    position: jax.Array, size: Pixels, border: Border
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Along one axis: the first of two pixels that are both inside, and their weights.

    Beyond the border the pair is the outermost one: its nearer pixel has what weight is left, its farther one none.
    """
    if border == "edge":
        position = jnp.clip(position, 0, size - 1)
    else:  # keeps the conversion to integers defined; two pixels outside all weights vanish
        position = jnp.clip(position, -2, size + 1)
    whole = jnp.floor(position)
    part = position - whole
    last = jnp.maximum(jnp.asarray(size - 2, jnp.int32), 0)  # of symbolic sizes known only on the device
    first = jnp.clip(whole.astype(jnp.int32), 0, last)
    off = whole.astype(jnp.int32) - first
    if border == "edge":  # the last pixel alone, and all of it
        return first, (jnp.where(off > 0, 0.0, 1 - part), jnp.where(off > 0, 1.0, part))
    near = jnp.where(off == 0, 1 - part, jnp.where(off == -1, part, 0.0))
    far = jnp.where(off == 0, part, jnp.where(off == 1, 1 - part, 0.0))
    return first, (near, far)


def _in_four_reads(image: jax.Array, row: jax.Array, column: jax.Array, weights: tuple[jax.Array, ...]) -> jax.Array:
    """The weighted sum over the 2 x 2 pixels from (row, column) on, in float32: (h, w, C), with four weights (h, w)."""

    def tap(n: int) -> jax.Array:
        pixels = image.at[row + n // 2, column + n % 2].get(mode="promise_in_bounds")
        return pixels.astype(jnp.float32) * weights[n][..., None]

    return tap(0) + tap(1) + tap(2) + tap(3)


@jax.custom_jvp
def _in_one_read(image: jax.Array, row: jax.Array, column: jax.Array, weights: tuple[jax.Array, ...]) -> jax.Array:
    """The same for a CPU, which takes pixels one after the other: where gradients are wanted, four are read at once,
    and so the gradient adds four at once."""
    return _in_four_reads(image, row, column, weights)


def _in_one_read_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    """Tangents as products that are summed: transposed, these are products alone, where slices become paddings."""
    (image, row, column, weights), (image_dot, _, _, weights_dot) = primals, tangents

    def read(image: jax.Array) -> jax.Array:
        """(h, w, 2, 2, C)"""
        windows = jax.lax.gather(
            image,
            jnp.stack([row, column], axis=-1),
            jax.lax.GatherDimensionNumbers(offset_dims=(2, 3, 4), collapsed_slice_dims=(), start_index_map=(0, 1)),
            slice_sizes=(2, 2, image.shape[-1]),
            mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
        )
        return windows.astype(jnp.float32)

    def factors(weights: tuple[jax.Array, ...]) -> jax.Array:
        return jnp.stack(weights, axis=-1).reshape(*row.shape, 2, 2, 1)

    windows = read(image)
    taps = [windows[:, :, n // 2, n % 2] * weight[..., None] for n, weight in enumerate(weights)]
    out = taps[0] + taps[1] + taps[2] + taps[3]
    dot = jnp.zeros_like(out)
    if not isinstance(image_dot, SymbolicZero):
        dot += jnp.sum(read(image_dot) * factors(weights), axis=(2, 3))
    if not all(isinstance(weight_dot, SymbolicZero) for weight_dot in weights_dot):
        given = tuple(jnp.zeros_like(w) if isinstance(d, SymbolicZero) else d for w, d in zip(weights, weights_dot))
        dot += jnp.sum(windows * factors(given), axis=(2, 3))
    return out, dot


_in_one_read.defjvp(_in_one_read_jvp, symbolic_zeros=True)


def sample_bicubic(image: Image, x_px: Float[Array, "..."], y_px: Float[Array, "..."]) -> Image:
    """Reads an image at fractional pixel positions by cubic convolution (Keys, IEEE TASSP 1981, Eq. 15, a = -1/2).

    out = sum over the 4 x 4 pixels q around of k(x - x_q) k(y - y_q) image[q]. It blurs far less than bilinear reads,
    and reproduces quadratic surfaces; next to edges it may leave the image's range by a little.

    Args:
        image: (..., H, W, C), floating.
        x_px, y_px: (..., h, w) with the image's leading axes; columns to the right, rows down. A position outside is
            moved to the nearest pixel inside, NaN to the first.
    Returns:
        (..., h, w, C) in the image's dtype.
    """
    return _of_every_image(_sample_one_bicubic, image, x_px, y_px)


def _sample_one_bicubic(image: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    columns, weights_x = _four_around(x.astype(jnp.float32), width)
    rows, weights_y = _four_around(y.astype(jnp.float32), height)
    pixels = image.astype(jnp.float32)
    total = jnp.zeros((*x.shape, image.shape[-1]), jnp.float32)
    for row, weight_y in zip(rows, weights_y, strict=True):
        for column, weight_x in zip(columns, weights_x, strict=True):
            total += (weight_y * weight_x)[..., None] * pixels[row, column]
    return total.astype(image.dtype)


def _four_around(position: jax.Array, size: Pixels) -> tuple[list[jax.Array], list[jax.Array]]:
    """Along one axis: the four pixels around, those outside replaced by the nearest inside, and their weights."""
    inside = jnp.clip(jnp.nan_to_num(position), 0, size - 1)
    first = jnp.floor(inside)
    t = inside - first
    weights = [
        ((-t + 2) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((-3 * t + 4) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    ]
    pixels = [jnp.clip(first.astype(jnp.int32) + offset, 0, size - 1) for offset in (-1, 0, 1, 2)]
    return pixels, weights


def resize_bilinear(image: Image, height: Pixels, width: Pixels, *, align_corners: bool) -> Image:
    """Resizes (..., H, W, C) to (..., height, width, C) by bilinear interpolation without anti-aliasing.

    With align_corners the centres of the corner pixels map onto each other; without, the outer edges of the frame do
    (half-pixel centres, positions beyond the outermost centres take the nearest pixel). Equals PyTorch's `interpolate`.
    """
    for axis, size in ((-3, height), (-2, width)):
        image = _resize_axis(image, axis, size, align_corners)
    return image


def _resize_axis(image: jax.Array, axis: int, size: Pixels, align_corners: bool) -> jax.Array:
    old = image.shape[axis]
    if old == size:
        return image
    # Positions are fractions of whole numbers: those of symbolic sizes (jax.export) are computed on the device, without
    # float64. There 32 bits reach as far as sizes whose product is 2^30.
    number: Any = (jnp if export.is_symbolic_dim(old * size) else np).arange(size)
    if align_corners:
        numerator, denominator = number * (old - 1), max(size - 1, 1)
    else:
        numerator, denominator = ((2 * number + 1) * old - size).clip(0, 2 * size * (old - 1)), 2 * size
    first = numerator // denominator
    second = (first + 1).clip(0, old - 1)
    shape = [1] * image.ndim
    shape[axis] = size
    weight = jnp.asarray((numerator % denominator / denominator).reshape(shape), jnp.float32)
    near, far = (jnp.take(image, index, axis=axis).astype(jnp.float32) for index in (first, second))
    return ((1 - weight) * near + weight * far).astype(image.dtype)


def enlarge_bilinear(image: Image, factor: int) -> Image:
    """Makes (..., H, W, C) an even number of times as large: `resize_bilinear` without align_corners, computed of whole
    shifted copies, which reads no pixel by its index."""
    _check_even(factor)
    image = jnp.asarray(image)
    x = image.astype(jnp.float32)
    for axis in (x.ndim - 3, x.ndim - 2):
        size = x.shape[axis]
        first, last = (jax.lax.slice_in_dim(x, at, at + 1, axis=axis) for at in (0, size - 1))
        before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis=axis)
        after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis=axis)
        offsets = [(2 * number + 1 - factor) / (2 * factor) for number in range(factor)]  # from the pixel's centre
        parts = [(1 - abs(offset)) * x + abs(offset) * (before if offset < 0 else after) for offset in offsets]
        x = jnp.stack(parts, axis=axis + 1).reshape(*x.shape[:axis], factor * size, *x.shape[axis + 1 :])
    return x.astype(image.dtype)


def shrink_bilinear(image: Image, factor: int) -> Image:
    """Makes (..., H, W, C) an even number of times smaller, with anti-aliasing as `jax.image.resize` has it.

    Over the middle of every block of factor pixels stands a tent that reaches `factor` pixels to either side; its
    weights sum to one over the pixels there are. Height and width must be multiples of factor.
    """
    _check_even(factor)
    height, width = image.shape[-3:-1]
    if height % factor or width % factor:
        raise ValueError(f"size {height}x{width} is no multiple of {factor}; use pad_to_multiple first")
    image = jnp.asarray(image)
    x, half = image.astype(jnp.float32), factor // 2
    tent = [(1 - abs(number + 0.5 - half) / factor) / factor for number in range(-half, factor + half)]
    for axis in (x.ndim - 3, x.ndim - 2):
        count = x.shape[axis] // factor
        blocks = x.reshape(*x.shape[:axis], count, factor, *x.shape[axis + 1 :])
        pixels = [jax.lax.index_in_dim(blocks, number, axis + 1, keepdims=False) for number in range(factor)]
        own = _weighted(pixels, tent[half:-half])
        of_previous = jax.lax.slice_in_dim(_weighted(pixels[half:], tent[:half]), 0, count - 1, axis=axis)
        of_next = jax.lax.slice_in_dim(_weighted(pixels[:half], tent[-half:]), 1, count, axis=axis)
        nothing = jnp.zeros_like(jax.lax.slice_in_dim(own, 0, 1, axis=axis))
        total = own + jnp.concatenate([nothing, of_previous], axis) + jnp.concatenate([of_next, nothing], axis)
        number, missing = jnp.arange(count), sum(tent[:half])
        present = 1 - missing * (number == 0).astype(jnp.float32) - missing * (number == count - 1).astype(jnp.float32)
        x = total / present.reshape((1,) * axis + (-1,) + (1,) * (x.ndim - axis - 1))
    return x.astype(image.dtype)


def _weighted(parts: list[jax.Array], weights: list[float]) -> jax.Array:
    return functools.reduce(jnp.add, [weight * part for part, weight in zip(parts, weights, strict=True)])


def _check_even(factor: int) -> None:
    if factor < 2 or factor % 2:
        raise ValueError(f"factor is {factor}; expected an even number")


def downsample_area(image: Image, factor: int) -> Image:
    """Mean over factor x factor blocks; height and width must be multiples of factor."""
    *lead, height, width, channels = image.shape
    if height % factor or width % factor:
        raise ValueError(f"size {height}x{width} is no multiple of {factor}; use pad_to_multiple first")
    blocks = image.reshape(*lead, height // factor, factor, width // factor, factor, channels)
    return blocks.mean(axis=(-4, -2))


def downsample_tent(image: Image, factor: int) -> Image:
    """Means under tents whose centres spread from the first pixel to the last: the down-sampling layer of the FlowNet
    authors' Caffe.

    Separable, n to m = n / factor: weights max(0, 1 - |i - j d| / d), d = (n - 1) / (m - 1), over the pixels i there
    are, scaled to sum to one. Where m is 1 all pixels weigh the same.

    Args:
        image: (..., H, W, C); H and W multiples of factor.
    Returns:
        (..., H / factor, W / factor, C), in the image's dtype.
    """
    height, width = image.shape[-3:-1]
    if height % factor or width % factor:
        raise ValueError(f"height, width ({height}, {width}) are no multiples of {factor}")

    def tents(size: int) -> np.ndarray:
        count = size // factor
        spacing = (size - 1) / (count - 1) if count > 1 else np.inf
        centres = np.arange(count) * spacing if count > 1 else np.zeros(1)
        weights = np.maximum(0, 1 - np.abs(np.arange(size) - centres[:, None]) / spacing)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    rows, columns = tents(height), tents(width)
    image = jnp.asarray(image)
    means = jnp.einsum(
        "yY,...YXc,xX->...yxc", rows, image.astype(jnp.float32), columns, precision=jax.lax.Precision.HIGHEST
    )
    return means.astype(image.dtype)


def pixel_shuffle(features: Features, factor: int) -> Features:
    """(..., H, W, C factor^2) -> (..., factor H, factor W, C), channels to pixels in PyTorch's order.

    Channel factor^2 c + factor dy + dx at (y, x) becomes channel c at (factor y + dy, factor x + dx).
    """
    *lead, height, width, channels = features.shape
    if channels % factor**2:
        raise ValueError(
            f"{channels} channels are no multiple of {factor}^2; expected {factor**2} for each that is to be"
        )
    x = features.reshape(-1, height, width, channels // factor**2, factor, factor)
    x = x.transpose(0, 1, 4, 2, 5, 3)  # batch, y, dy, x, dx, c
    return x.reshape(*lead, factor * height, factor * width, channels // factor**2)


def pad_to_multiple(image: Image, multiple: int, border: Border = "edge") -> tuple[Image, tuple[int, int]]:
    """Adds rows at the bottom and columns at the right until height and width are multiples; also returns the size for
    `unpad`.

    Args:
        border: what they hold. "edge": the last row or column again, which works from 1 x 1 pixels up, where mirroring
            could not; "zeros".
    """
    height, width = image.shape[-3:-1]
    pad = [(0, 0)] * (image.ndim - 3) + [(0, -height % multiple), (0, -width % multiple), (0, 0)]
    return jnp.pad(image, pad, mode="edge" if border == "edge" else "constant"), (height, width)


def pad_mirrored(image: Image, around: int) -> Image:
    """Adds rows and columns on all sides that mirror those inside; the edge is not repeated, unless it is all there is.

    Args:
        around: how many, fewer than rows and columns there are.
    """
    if not any(map(export.is_symbolic_dim, image.shape)):
        return jnp.pad(image, [(0, 0)] * (image.ndim - 3) + [(around, around)] * 2 + [(0, 0)], mode="reflect")
    # jnp.pad would have to know whether there is more than one.
    for axis in (-3, -2):
        last = image.shape[axis] - 1
        number = jnp.abs(jnp.arange(-around, last + 1 + around))
        image = jnp.take(image, jnp.clip(jnp.minimum(number, 2 * last - number), 0, last), axis=axis)
    return image


def unpad(image: Image, size: tuple[int, int]) -> Image:
    """Cuts what pad_to_multiple has added: keeps the top-left `size` = (height, width)."""
    height, width = size
    return image[..., :height, :width, :]
