"""Convolutions with the padding written out.

"SAME" pads strided convolutions on one side only and shifts everything by a pixel against the papers' networks; these
layers pad both sides alike, as the networks' definitions do.

float32 means float32 on every device: see `product_precision`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import Initializer, lecun_normal, zeros

from jaxdeblur.types import Array, Features

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def product_precision(dtype: Any) -> jax.lax.Precision | None:
    """How products of values of that type are to be computed: of float32 values, as float32 ones.

    Left to themselves, NVIDIA GPUs round the factors to TF32 and TPUs to bfloat16. Whoever wants that speed asks JAX
    for it (`JAX_DEFAULT_MATMUL_PRECISION=tensorfloat32` or `bfloat16`, or `jax.default_matmul_precision`), and is
    obeyed here.
    Narrower types are multiplied as they are.
    """
    config: Any = jax.config  # of whose options type checkers know nothing
    if jnp.dtype(dtype) != jnp.float32 or config.jax_default_matmul_precision is not None:
        return None
    return jax.lax.Precision.HIGHEST


class Conv(nn.Module):
    """2-D cross-correlation; kernel (height, width, in / groups, out), bias (out,).

    padding: pixels of zeros on (top and bottom, left and right); by default dilation (k - 1) / 2, rounded down, which
        keeps the size of odd kernels at stride 1.
    dilation: pixels from one tap to the next.
    dtype: of the arithmetic and the result; None follows the input. Parameters are float32.

    Called with several arrays, it convolves them joined along their channels. In float32 a CPU sums a convolution of
    each instead, which spares it a copy of them all; where gradients are taken, joining them first is faster.

    Where every channel is a group of its own (a depthwise convolution), a CPU sums products with the moved image, at
    stride 1: XLA has no convolution for that which would not take twenty times as long.
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int = 1
    padding: int | tuple[int, int] | None = None
    dilation: int = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = lecun_normal()
    bias_init: Initializer = zeros
    dtype: Any = None

    @nn.compact
    def __call__(self, *parts: Features) -> Features:
        if len(parts) > 1 and self.groups > 1:
            raise ValueError(f"{len(parts)} arrays for {self.groups} groups; join them before")
        size = (self.kernel_size, self.kernel_size) if isinstance(self.kernel_size, int) else self.kernel_size
        pad = self.padding
        if pad is None:
            pad = (self.dilation * (size[0] - 1) // 2, self.dilation * (size[1] - 1) // 2)
        elif isinstance(pad, int):
            pad = (pad, pad)
        channels = [part.shape[-1] for part in parts]
        kernel_shape = (*size, sum(channels) // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, kernel_shape, jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        kernel, bias, *inputs = promote_dtype(kernel, bias, *parts, dtype=self.dtype or parts[0].dtype)

        def convolved(x: Features, kernel: Array) -> Features:
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (self.strides, self.strides),
                [(pad[0], pad[0]), (pad[1], pad[1])],
                rhs_dilation=(self.dilation, self.dilation),
                dimension_numbers=DIMENSIONS,
                feature_group_count=self.groups,
                precision=product_precision(x.dtype),
            )

        def summed(kernel: Array, *parts: Features) -> Features:
            kernels = jnp.split(kernel, np.cumsum(channels[:-1]), axis=2)
            return functools.reduce(jnp.add, map(convolved, parts, kernels))

        def joined(kernel: Array, *parts: Features) -> Features:
            return convolved(jnp.concatenate(parts, axis=-1), kernel)

        if len(inputs) == 1 and 1 < self.groups == self.features == channels[0] and self.strides == 1:
            moved = functools.partial(_depthwise, padding=pad, dilation=self.dilation)
            y = jax.lax.platform_dependent(inputs[0], kernel, cpu=moved, default=convolved)
        elif len(inputs) == 1:
            y = convolved(inputs[0], kernel)
        elif kernel.dtype == jnp.float32:
            y = jax.lax.platform_dependent(kernel, *inputs, cpu=summed, default=joined)
        else:  # where sums of rounded values would be less exact
            y = joined(kernel, *inputs)
        return y if bias is None else y + bias.reshape(1, 1, 1, -1)


def _depthwise(x: Features, kernel: Array, *, padding: tuple[int, int], dilation: int) -> Features:
    """Cross-correlation at stride 1 of every channel with its own kernel, (kh, kw, 1, C); sums are float32."""
    around = [(0, 0), *((pixels, pixels) for pixels in padding), (0, 0)]
    padded = jnp.pad(x.astype(jnp.float32), around)
    height, width = (padded.shape[n + 1] - dilation * (kernel.shape[n] - 1) for n in (0, 1))
    total = jnp.zeros((), jnp.float32)
    for row, column in np.ndindex(kernel.shape[:2]):
        top, left = dilation * row, dilation * column
        moved = padded[:, top : top + height, left : left + width]
        total = total + moved * kernel[row, column].reshape(1, 1, 1, -1).astype(jnp.float32)
    return total.astype(x.dtype)


# Of each kernel size, for even and for odd outputs: the first of every other tap that meets an input, and the padding.
_PARITY_TAPS = {4: ((0, (1, 0)), (1, (0, 1))), 3: ((1, (0, 0)), (0, (0, 1))), 2: ((1, (0, 0)), (0, (0, 0)))}


class ConvTranspose(nn.Module):
    """2-D transposed convolution of stride 2 that doubles the size; kernel (k, k, in / groups, out), bias (out,).

    Insert a zero between neighbours, pad with zeros, cross-correlate with the kernel as stored here. Released PyTorch
    weights (in, out / groups, k, k) are flipped in both spatial axes when imported. Computed as four ordinary
    convolutions, one for each parity of the output's row and column, which multiply no inserted zero.

    kernel_size: 4, padded by 2 on every side (PyTorch: padding 1), or 3, padded by 1 before and 2 after (PyTorch:
        padding 1, output padding 1), or 2, padded by 1 on every side (PyTorch: no padding), which no two inputs share.
    """

    features: int
    kernel_size: int = 4
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = lecun_normal()
    bias_init: Initializer = zeros
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Features) -> Features:
        if self.kernel_size not in _PARITY_TAPS:
            raise ValueError(f"kernel_size is {self.kernel_size}; expected 2, 3 or 4")
        size = self.kernel_size
        shape = (size, size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype or x.dtype)
        batch, height, width, _ = x.shape
        parities = [
            jax.lax.conv_general_dilated(
                x,
                kernel[first_row::2, first_column::2],
                (1, 1),
                [pad_rows, pad_columns],
                dimension_numbers=DIMENSIONS,
                feature_group_count=self.groups,
                precision=product_precision(x.dtype),
            )
            for first_row, pad_rows in _PARITY_TAPS[size]
            for first_column, pad_columns in _PARITY_TAPS[size]
        ]
        y = jnp.stack(parities, axis=3).reshape(batch, height, width, 2, 2, self.features)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, self.features)
        return y if bias is None else y + bias.reshape(1, 1, 1, -1)


def passing_three(initializer: Initializer, *, first: int) -> Callable[..., jax.Array]:
    """Of a convolution's kernel: inputs first .. first + 2 come out as outputs 0 .. 2 and nothing else
    does; further outputs are as `initializer` has them."""

    def kernel(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        channels = jnp.arange(min(3, shape[3]))
        values = initializer(key, shape, dtype).at[..., channels].set(0)
        return values.at[shape[0] // 2, shape[1] // 2, first + channels, channels].set(1)

    return kernel
