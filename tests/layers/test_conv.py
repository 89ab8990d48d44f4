import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from jaxdeblur.layers.conv import Conv, ConvTranspose


def correlate_oracle(x, kernel, bias, *, stride=1, padding=((0, 0), (0, 0)), groups=1, dilation=1):
    """Every output value as its own sum; kernel (kh, kw, in / groups, out)."""
    kh, kw, ins, outs = kernel.shape
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    batch, height, width, _ = x.shape
    reach_y, reach_x = dilation * (kh - 1) + 1, dilation * (kw - 1) + 1
    out = np.zeros((batch, (height - reach_y) // stride + 1, (width - reach_x) // stride + 1, outs))
    for b, row, column, o in np.ndindex(out.shape):
        group = o // (outs // groups)
        top, left = stride * row, stride * column
        window = x[b, top : top + reach_y : dilation, left : left + reach_x : dilation]
        window = window[..., group * ins : (group + 1) * ins]
        out[b, row, column, o] = np.sum(window * kernel[..., o]) + bias[o]
    return out


TRANSPOSED_PADDING = {4: ((2, 2), (2, 2)), 3: ((1, 2), (1, 2)), 2: ((1, 1), (1, 1))}


def transposed_oracle(x, kernel, bias, *, groups=1):
    """Insert a zero between neighbours, pad, cross-correlate."""
    batch, height, width, channels = x.shape
    spread = np.zeros((batch, 2 * height - 1, 2 * width - 1, channels))
    spread[:, ::2, ::2] = x
    return correlate_oracle(spread, kernel, bias, padding=TRANSPOSED_PADDING[len(kernel)], groups=groups)


def dilated(x, kernel, groups=1):
    """The same by XLA in one go."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        TRANSPOSED_PADDING[len(kernel)],
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def random_case(kernel_size, ins, outs, groups=1, shape=(2, 5, 6)):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*shape, ins)).astype(np.float32)
    kernel = rng.standard_normal((*kernel_size, ins // groups, outs)).astype(np.float32)
    return x, {"kernel": kernel, "bias": rng.standard_normal(outs).astype(np.float32)}


CASES = {
    "k3": ({"kernel_size": 3}, (1, 1)),
    "k3 stride 2": ({"kernel_size": 3, "strides": 2}, (1, 1)),
    "k5": ({"kernel_size": 5}, (2, 2)),
    "k5 stride 4 padding 1": ({"kernel_size": 5, "strides": 4, "padding": 1}, (1, 1)),
    "k5x3": ({"kernel_size": (5, 3)}, (2, 1)),
    "k3 padding (0, 2)": ({"kernel_size": 3, "padding": (0, 2)}, (0, 2)),
    "k1": ({"kernel_size": 1}, (0, 0)),
    "k3 groups 2 stride 2": ({"kernel_size": 3, "groups": 2, "strides": 2}, (1, 1)),
    "k3 dilation 2": ({"kernel_size": 3, "dilation": 2}, (2, 2)),
    "k2 dilation 3": ({"kernel_size": 2, "dilation": 3}, (1, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_conv_equals_the_oracle(name):
    options, padding = CASES[name]
    size, groups = options["kernel_size"], options.get("groups", 1)
    x, params = random_case(size if isinstance(size, tuple) else (size, size), 4, 6, groups)
    out = Conv(6, **options).apply({"params": params}, x)
    expected = correlate_oracle(
        x,
        *params.values(),
        stride=options.get("strides", 1),
        padding=[(pixels, pixels) for pixels in padding],
        groups=groups,
        dilation=options.get("dilation", 1),
    )
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("size", "padding", "dilation"),
    [((3, 3), None, 1), ((3, 3), None, 2), ((5, 3), (0, 2), 1), ((2, 4), 1, 1), ((1, 1), 0, 1)],
)
def test_a_channel_by_itself_equals_the_oracle_and_has_the_gradients_of_xlas_convolution(size, padding, dilation):
    x, params = random_case(size, 6, 6, groups=6)
    layer = Conv(6, size, padding=padding, dilation=dilation, groups=6)
    around = {None: tuple(dilation * (side - 1) // 2 for side in size), 0: (0, 0), 1: (1, 1)}.get(padding, padding)
    pad = [(pixels, pixels) for pixels in around]
    out, vjp = jax.vjp(lambda x, params: layer.apply({"params": params}, x), x, params)
    np.testing.assert_allclose(
        out, correlate_oracle(x, *params.values(), padding=pad, groups=6, dilation=dilation), atol=2e-5
    )

    def by_xla(x, params):
        y = jax.lax.conv_general_dilated(
            x,
            params["kernel"],
            (1, 1),
            pad,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=6,
        )
        return y + params["bias"].reshape(1, 1, 1, -1)

    cotangent = np.random.default_rng(1).standard_normal(out.shape).astype(np.float32)
    expected = jax.vjp(by_xla, x, params)[1](cotangent)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), vjp(cotangent), expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_channel_by_itself_is_summed_in_float32(dtype):
    x, params = random_case((3, 3), 6, 6, groups=6)
    narrow = [jnp.asarray(array, dtype) for array in (x, params["kernel"])]
    layer = Conv(6, 3, groups=6, use_bias=False)
    out = layer.apply({"params": {"kernel": narrow[1].astype(jnp.float32)}}, narrow[0])
    exact = layer.apply({"params": {"kernel": narrow[1].astype(jnp.float32)}}, narrow[0].astype(jnp.float32))
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, exact.astype(dtype))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 1), (1, 2, 5)])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_transposed_conv_equals_the_oracle(shape, groups, size):
    x, params = random_case((size, size), 4, 6, groups, shape)
    out = ConvTranspose(6, size, groups=groups).apply({"params": params}, x)
    assert out.shape == (shape[0], 2 * shape[1], 2 * shape[2], 6)
    np.testing.assert_allclose(out, transposed_oracle(x, *params.values(), groups=groups), atol=2e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_transposed_conv_has_the_gradients_of_the_dilated_convolution(groups, size):
    x, params = random_case((size, size), 4, 6, groups)
    layer = ConvTranspose(6, size, groups=groups, use_bias=False)
    out, vjp = jax.vjp(lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x), x, params["kernel"])
    expected, expected_vjp = jax.vjp(lambda x, kernel: dilated(x, kernel, groups), x, params["kernel"])
    np.testing.assert_allclose(out, expected, atol=2e-5)
    cotangent = np.random.default_rng(1).standard_normal(out.shape).astype(np.float32)
    for a, b in zip(vjp(cotangent), expected_vjp(cotangent), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


@pytest.mark.parametrize("layer", [Conv(3, 3, strides=2), ConvTranspose(3)], ids=["conv", "transposed"])
def test_gradients(layer):
    x, params = random_case((3, 3) if isinstance(layer, Conv) else (4, 4), 2, 3, shape=(1, 3, 4))
    value = jax.jit(lambda x, params: layer.apply({"params": params}, x))
    jax.test_util.check_grads(value, (x, params), order=1, modes=("fwd", "rev"), eps=1e-1, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("kind", [Conv, ConvTranspose])
def test_arithmetic_follows_dtype_and_parameters_stay_float32(kind):
    def make(dtype):
        return Conv(3, 3, dtype=dtype) if kind is Conv else ConvTranspose(3, dtype=dtype)

    x = np.random.default_rng(2).standard_normal((1, 4, 4, 8)).astype(np.float32)
    full, variables = make(None).init_with_output(jax.random.key(0), x)
    for dtype, given, expected in (
        (None, jnp.float32, jnp.float32),
        (None, jnp.bfloat16, jnp.bfloat16),
        (jnp.float16, jnp.float32, jnp.float16),
        (jnp.float32, jnp.bfloat16, jnp.float32),
    ):
        out, variables_here = make(dtype).init_with_output(jax.random.key(0), x.astype(given))
        assert out.dtype == expected
        jax.tree.map(np.testing.assert_array_equal, variables_here, variables)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables_here)} == {np.dtype("float32")}
        np.testing.assert_allclose(np.asarray(out, np.float32), full, atol=0.05)


def test_bias_is_optional_and_starts_at_zero():
    x = jnp.ones((1, 4, 4, 2))
    for layer in (Conv(3, 3, use_bias=False), ConvTranspose(3, use_bias=False)):
        assert set(layer.init(jax.random.key(0), x)["params"]) == {"kernel"}
    for layer in (Conv(3, 3), ConvTranspose(3)):
        assert not np.any(layer.init(jax.random.key(0), x)["params"]["bias"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("strides", [1, 2])
def test_several_arrays_are_convolved_as_if_joined(dtype, strides):
    random = np.random.default_rng(0)
    parts = [jnp.asarray(random.standard_normal((2, 9, 8, c)), dtype) for c in (3, 5, 2)]
    layer = Conv(4, 3, strides)
    variables = layer.init(jax.random.key(0), *parts)
    expected = layer.apply(variables, jnp.concatenate(parts, axis=-1))
    found = layer.apply(variables, *parts)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 if dtype == jnp.float32 else 0)
    with pytest.raises(ValueError, match="3 arrays for 2 groups"):
        Conv(4, 3, groups=2).init(jax.random.key(0), *parts)
