"""Convolutions with the padding written out.

"SAME" pads strided convolutions on one side only and shifts everything by a pixel against the papers' networks; these
layers pad both sides alike, as the networks' definitions do.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import Initializer, lecun_normal, zeros

from jaxdeblur.types import Features

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Conv(nn.Module):
    """2-D cross-correlation; kernel (height, width, in / groups, out), bias (out,).

    padding: pixels of zeros on (top and bottom, left and right); by default (k - 1) // 2, which keeps the size at
        stride 1.
    dtype: of the arithmetic and the result; None follows the input. Parameters are float32.
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int = 1
    padding: int | tuple[int, int] | None = None
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = lecun_normal()
    bias_init: Initializer = zeros
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Features) -> Features:
        size = (self.kernel_size, self.kernel_size) if isinstance(self.kernel_size, int) else self.kernel_size
        pad = self.padding
        if pad is None:
            pad = ((size[0] - 1) // 2, (size[1] - 1) // 2)
        elif isinstance(pad, int):
            pad = (pad, pad)
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1] // self.groups, self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype or x.dtype)
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.strides, self.strides),
            [(pad[0], pad[0]), (pad[1], pad[1])],
            dimension_numbers=DIMENSIONS,
            feature_group_count=self.groups,
        )
        return y if bias is None else y + bias.reshape(1, 1, 1, -1)


class ConvTranspose(nn.Module):
    """2-D transposed convolution of kernel 4 and stride 2 that doubles the size; kernel (4, 4, in / groups, out), bias
    (out,).

    Insert a zero between neighbours, pad 2 zeros on every side, cross-correlate with the kernel as stored here.
    Released PyTorch weights (in, out / groups, 4, 4) are flipped in both spatial axes when imported. Computed as four
    ordinary 2 x 2 convolutions, one for each parity of the output's row and column, which multiply no inserted zero.
    """

    features: int
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = lecun_normal()
    bias_init: Initializer = zeros
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Features) -> Features:
        kernel = self.param("kernel", self.kernel_init, (4, 4, x.shape[-1] // self.groups, self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype or x.dtype)
        batch, height, width, _ = x.shape
        parities = [
            jax.lax.conv_general_dilated(
                x,
                kernel[row::2, column::2],
                (1, 1),
                [(1 - row, row), (1 - column, column)],
                dimension_numbers=DIMENSIONS,
                feature_group_count=self.groups,
            )
            for row in (0, 1)
            for column in (0, 1)
        ]
        y = jnp.stack(parities, axis=3).reshape(batch, height, width, 2, 2, self.features)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, self.features)
        return y if bias is None else y + bias.reshape(1, 1, 1, -1)
