"""Normalisation as PyTorch and Torch7 define it, so that released weights and running statistics mean the same.

Flax's own batch normalisation keeps the biased variance as the running one, and its layer normalisation, unless told
otherwise, takes the variance for the difference of two means, which loses digits.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jaxdeblur.types import Array, Features


class BatchNorm(nn.Module):
    """y = scale (x - mean) / sqrt(variance + eps) + bias, a mean and a variance for each channel (the last axis).

    train=True takes them from the batch (variance over n) and moves the running ones, collection "batch_stats", a
    `momentum` of the way to the batch's (variance over n - 1); train=False takes the running ones. Statistics and
    arithmetic are float32. Over a batch that is split over devices they are those of the whole batch.

    The result has the input's dtype.
    """

    eps: float
    momentum: float = 0.1
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Features:
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_variance = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        dtype, x = x.dtype, x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(x, axis=axes)
            variance = jnp.mean(jnp.square(x - _last(mean, x)), axis=axes)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                if count < 2:
                    raise ValueError(
                        f"a batch of features {x.shape} has one value a channel, of which there is no variance; train "
                        "on larger crops or batches"
                    )
                kept = 1 - self.momentum
                running_mean.value = kept * running_mean.value + self.momentum * jax.lax.stop_gradient(mean)
                unbiased = jax.lax.stop_gradient(variance) * (count / (count - 1))
                running_variance.value = kept * running_variance.value + self.momentum * unbiased
        else:
            mean, variance = running_mean.value, running_variance.value
        factor = scale * jax.lax.rsqrt(variance + self.eps)
        return ((x - _last(mean, x)) * _last(factor, x) + _last(bias, x)).astype(dtype)


class LayerNorm(nn.Module):
    """y = scale (x - mean) / sqrt(variance + eps) + bias, mean and variance (over n) of the channels, the last axis, at
    each position by itself. Statistics and arithmetic are float32; the result has the input's dtype."""

    eps: float

    @nn.compact
    def __call__(self, x: Features) -> Features:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        values = x.astype(jnp.float32)
        values = values - jnp.mean(values, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(values), axis=-1, keepdims=True)
        normalised = values * jax.lax.rsqrt(variance + self.eps)
        return (normalised * _last(scale, x) + _last(bias, x)).astype(x.dtype)


def _last(values: Array, x: Features) -> Array:
    """A value a channel, (C,), shaped so that it meets x's last axis."""
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def instance_norm(x: Features, *, eps: float = 1e-5) -> Features:
    """Every channel of every example less its mean over height and width, over its deviation (variance over n); there
    is no scale, no shift and nothing to remember. Statistics and arithmetic are float32, the result has x's dtype."""
    values = x.astype(jnp.float32)
    mean = jnp.mean(values, axis=(-3, -2), keepdims=True)
    variance = jnp.mean(jnp.square(values - mean), axis=(-3, -2), keepdims=True)
    return ((values - mean) * jax.lax.rsqrt(variance + eps)).astype(x.dtype)
