import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.layers.norm import BatchNorm, LayerNorm, instance_norm
from jaxdeblur.training.sharding import along_batch, make_mesh

EPS = 1e-3


def features(seed=0):
    return 2 + 3 * np.random.default_rng(seed).standard_normal((2, 3, 4, 5)).astype(np.float32)


def variables(seed=1):
    rng = np.random.default_rng(seed)
    values = {name: (0.5 + rng.random(5)).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    return {
        "params": {name: values[name] for name in ("scale", "bias")},
        "batch_stats": {name: values[name] for name in ("mean", "var")},
    }


def oracle(x, mean, variance, params):
    """Value by value, in float64."""
    y = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        c = index[-1]
        y[index] = (x[index] - mean[c]) / np.sqrt(variance[c] + EPS) * params["scale"][c] + params["bias"][c]
    return y


def test_running_statistics_are_used_and_left_alone():
    x, given = features(), variables()
    y, after = BatchNorm(EPS).apply(given, x, train=False, mutable=["batch_stats"])
    stats = given["batch_stats"]
    np.testing.assert_allclose(y, oracle(x, stats["mean"], stats["var"], given["params"]), rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], stats)


@pytest.mark.parametrize("momentum", [0.1, 0.25])
def test_a_batchs_own_statistics_are_used_and_followed(momentum):
    x, given = features(), variables()
    y, after = BatchNorm(EPS, momentum).apply(given, x, train=True, mutable=["batch_stats"])
    channels = [x[..., c].astype(np.float64).reshape(-1) for c in range(5)]
    mean, biased = [values.mean() for values in channels], [values.var() for values in channels]
    np.testing.assert_allclose(y, oracle(x, mean, biased, given["params"]), rtol=1e-5, atol=1e-5)
    unbiased = [values.var(ddof=1) for values in channels]
    for name, batch in (("mean", mean), ("var", unbiased)):
        expected = (1 - momentum) * given["batch_stats"][name] + momentum * np.array(batch)
        np.testing.assert_allclose(after["batch_stats"][name], expected, rtol=1e-5)


def test_initial_values_are_the_identity_of_normalised_features():
    made = BatchNorm(EPS).init(jax.random.key(0), features(), train=True)
    for collection, name, value in (("params", "scale", 1), ("params", "bias", 0), ("batch_stats", "mean", 0)):
        np.testing.assert_array_equal(made[collection][name], value)
    np.testing.assert_array_equal(made["batch_stats"]["var"], 1)  # the initialising batch does not count


def test_gradients_pass_through_the_batchs_statistics():
    x, given, cotangent = features(), variables(), features(2)

    def total(x):
        y, _ = BatchNorm(EPS).apply(given, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y * cotangent)

    gradient = jax.grad(total)(jnp.asarray(x))
    # A shift or a stretch of a whole channel changes nothing but for eps.
    np.testing.assert_allclose(np.sum(gradient, axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(np.sum(gradient * (x - x.mean((0, 1, 2))), axis=(0, 1, 2)), 0, atol=0.1)
    assert np.abs(gradient).max() > 0.1


def test_no_gradient_passes_through_running_statistics():
    x, given = features(), variables()

    def moved(x):
        return BatchNorm(EPS).apply(given, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]["var"].sum()

    np.testing.assert_array_equal(jax.grad(moved)(jnp.asarray(x)), 0)


def test_bfloat16_is_normalised_in_float32():
    x, given = jnp.asarray(100 + features(), jnp.bfloat16), variables()
    y, after = BatchNorm(EPS).apply(given, x, train=True, mutable=["batch_stats"])
    exact, exact_after = BatchNorm(EPS).apply(given, x.astype(jnp.float32), train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
    jax.tree.map(np.testing.assert_array_equal, after, exact_after)


def test_a_batch_over_several_devices_is_one_batch():
    mesh, given = make_mesh(), variables()
    x = np.random.default_rng(3).random((mesh.devices.size, 2, 2, 5), np.float32)

    @jax.jit
    def run(x):
        return BatchNorm(EPS).apply(given, x, train=True, mutable=["batch_stats"])

    split = jax.device_put(x, along_batch(mesh, 0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), run(split), run(x))


def test_a_single_value_has_no_variance():
    with pytest.raises(ValueError, match="one value a channel"):
        BatchNorm(EPS).apply(variables(), np.zeros((1, 1, 1, 5), np.float32), train=True, mutable=["batch_stats"])


def test_instance_norm_is_of_each_example_and_channel():
    x = features()
    y = instance_norm(x)
    for b, c in np.ndindex(2, 5):
        plane = x[b, ..., c].astype(np.float64)
        np.testing.assert_allclose(
            y[b, ..., c], (plane - plane.mean()) / np.sqrt(plane.var() + 1e-5), rtol=1e-4, atol=1e-5
        )
    assert instance_norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(instance_norm(np.full((1, 3, 3, 2), 7, np.float32)), 0)


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_layer_norm_is_of_each_position(eps):
    rng = np.random.default_rng(0)
    params = {name: (0.5 + rng.random(5)).astype(np.float32) for name in ("scale", "bias")}
    # Little more than eps of variance, and much of a mean: a difference of means of squares would have no digits left.
    x = (30 + 2e-2 * rng.standard_normal((2, 3, 4, 5))).astype(np.float32)
    y = LayerNorm(eps).apply({"params": params}, x)
    for at in np.ndindex(x.shape[:-1]):
        values = x[at].astype(np.float64)
        expected = (values - values.mean()) / np.sqrt(values.var() + eps) * params["scale"] + params["bias"]
        np.testing.assert_allclose(y[at], expected, atol=5e-4)
    constant = LayerNorm(eps).apply({"params": params}, np.full((1, 2, 2, 5), 7, np.float32))
    np.testing.assert_allclose(constant, np.broadcast_to(params["bias"], constant.shape), atol=1e-5)


def test_layer_norm_is_float32_inside_and_starts_as_plain_normalisation():
    x = jnp.asarray(30 + features(), jnp.bfloat16)
    y, made = LayerNorm(1e-6).init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    exact = LayerNorm(1e-6).apply(made, x.astype(jnp.float32))
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
    np.testing.assert_allclose(np.mean(exact, axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(np.var(exact, axis=-1), 1, atol=1e-4)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype("float32")}
