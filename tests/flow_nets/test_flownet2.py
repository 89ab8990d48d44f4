import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_tensor

from jaxdeblur.flow_nets.flownet2 import FlowNet2, FlowNetC, FlowNetFusion, FlowNetSD
from jaxdeblur.flow_nets.flownet_s import FlowNetConfig, FlowNetS
from jaxdeblur.interop.flownet2 import flownet2_table
from jaxdeblur.interop.layout import to_variables
from jaxdeblur.ops.flow import resize_flow
from jaxdeblur.ops.resample import resize_bilinear

# Relative to an array's largest value; an independent float32 run strays by 2e-6.
RELATIVE_TOLERANCE = 8e-6

SINGLE = [FlowNetS, FlowNetC, FlowNetSD]
ALL = [*SINGLE, pytest.param(FlowNet2, marks=pytest.mark.slow)]
SMALL = FlowNetConfig(width=1 / 16)


@functools.partial(jax.jit, static_argnames=("model", "method"))
def run(model, variables, *inputs, method=None):
    return model.apply(variables, *inputs, method=method, mutable=["intermediates"])


# --- the released networks; heavy, so that nothing is made twice ---


def seeded(table, gain):
    """Variables from seeded weights, one tensor at a time: in float64 all of them would take 1.3 GB."""
    tensors = {name: seeded_tensor(name, row.official_shape, gain).astype(np.float32) for name, row in table.items()}
    return to_variables(table, tensors)


@pytest.fixture(scope="module")
def stack():
    """(golden arrays, variables, our arrays under the golden names)."""
    expected, provenance = load_case("flownet2", "case_a")
    variables = jax.device_put(seeded(flownet2_table({}), provenance["gain"]))
    flow_1to0, state = run(FlowNet2(), variables, expected["image1"] / 255, expected["image2"] / 255)
    sown = state["intermediates"]
    made = {
        "flow": flow_1to0,
        "corr_leaky_every4_channel": sown["flownet_c"]["cost"][0][..., ::4],
        "fusion_input_every4": sown["fusion_input"][0][:, ::4, ::4],
    }
    names = {
        "flownetc": "flownet_c",
        "flownets_1": "flownet_s_1",
        "flownets_2": "flownet_s_2",
        "flownets_d": "flownet_sd",
    }
    for theirs, ours in names.items():
        made[f"{theirs}_flow2"] = sown[ours]["levels"][0][0]
    return expected, variables, made


GOLDEN_NAMES = [
    "corr_leaky_every4_channel",
    "flownetc_flow2",
    "flownets_1_flow2",
    "flownets_2_flow2",
    "flownets_d_flow2",
    "fusion_input_every4",
    "flow",
]


def assert_close(made, expected):
    assert made.dtype == expected.dtype == np.float32
    assert made.shape == expected.shape
    np.testing.assert_allclose(made, expected, rtol=0, atol=RELATIVE_TOLERANCE * np.max(np.abs(expected)))


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_every_stage_matches_the_released_stack(stack, name):
    expected, _, made = stack
    assert_close(made[name], expected[name])


@pytest.mark.slow
def test_every_golden_array_is_compared(stack):
    assert set(stack[0]) == {"image1", "image2", *GOLDEN_NAMES}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "name", "golden"),
    [(FlowNetC(), "flownet_c", "flownetc_flow2"), (FlowNetSD(), "flownet_sd", "flownets_d_flow2")],
)
def test_single_networks_match_with_the_same_weights(stack, model, name, golden):
    expected, variables, _ = stack
    images = expected["image1"] / 255, expected["image2"] / 255
    levels_1to0, _ = run(model, {"params": variables["params"][name]}, *images, method="levels")
    assert_close(levels_1to0[0], expected[golden])


# --- sizes and numbers of the released networks, without their arithmetic ---


def count(shapes):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("model", "parameters"),
    [(FlowNet2, 162_518_834), (FlowNetC, 39_175_298), (FlowNetS, 38_676_506), (FlowNetSD, 45_371_666)],
)
def test_parameter_counts(model, parameters):
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(model().init, jax.random.key(0), image, image)
    assert list(shapes) == ["params"]
    assert count(shapes) == parameters


def test_parameter_counts_of_what_only_the_stack_has():
    key = jax.random.key(0)
    x = jax.ShapeDtypeStruct((1, 64, 64, 12), jnp.float32)
    network = functools.partial(FlowNetS().init, method="network")
    assert count(jax.eval_shape(network, key, x)) == 38_695_322
    x = jax.ShapeDtypeStruct((1, 64, 64, 11), jnp.float32)
    assert count(jax.eval_shape(FlowNetFusion(FlowNetConfig()).init, key, x)) == 581_226


# --- small versions ---
# Run eagerly where sizes vary: all networks then work on one padded size, whose operations are compiled once.


def random_images(*shape):
    return jnp.asarray(np.random.default_rng(0).random((2, *shape, 3), np.float32))


@functools.cache
def small(model):
    """(module, variables) of a narrow version with He normal kernels and zero biases."""
    module = model(SMALL)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image, image)
    rng = np.random.default_rng(0)

    def fill(leaf):
        kernel = len(leaf.shape) == 4
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if kernel else 0.0
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return module, jax.tree.map(fill, shapes)


def assert_same_flow(made, expected, tolerance=1e-5):
    assert made.dtype == expected.dtype == jnp.float32
    assert made.shape == expected.shape
    np.testing.assert_allclose(made, expected, rtol=0, atol=tolerance * np.max(np.abs(expected)))


@pytest.mark.parametrize("model", ALL)
def test_any_size_is_the_network_at_multiples_of_64(model):
    module, variables = small(model)
    assert module.size_multiple == 64
    for size in ((1, 1), (1, 7), (50, 63)):
        images = random_images(1, *size)
        large_1, large_0 = (resize_bilinear(image, 64, 64, align_corners=False) for image in images)
        expected = resize_flow(module.apply(variables, large_1, large_0), *size, align_corners=False)
        assert expected.shape == (1, *size, 2)
        assert_same_flow(module.apply(variables, *images), expected)


@pytest.mark.parametrize("model", ALL)
def test_matching_encodings_is_calling(model):
    module, variables = small(model)
    image_1, image_0 = random_images(1, 30, 50)
    encoding_1, encoding_0 = (module.apply(variables, image, method="encode") for image in (image_1, image_0))
    matched = module.apply(variables, encoding_1, encoding_0, 30, 50, method="match")
    assert_same_flow(matched, module.apply(variables, image_1, image_0))


@pytest.mark.parametrize("model", ALL)
def test_jit_is_eager(model):
    module, variables = small(model)
    images = random_images(1, 64, 64)
    jitted, _ = run(module, variables, *images)
    assert_same_flow(jitted, module.apply(variables, *images))


@pytest.mark.parametrize(("model", "unit_px"), [(FlowNetS, 20), (FlowNetC, 20), (FlowNetSD, 1 / 20)])
def test_levels_are_the_flow_in_network_units(model, unit_px):
    module, variables = small(model)
    images = random_images(1, 64, 64)
    levels_1to0 = module.apply(variables, *images, method="levels")
    assert [level.shape for level in levels_1to0] == [(1, size, size, 2) for size in (16, 8, 4, 2, 1)]
    expected = unit_px * resize_bilinear(levels_1to0[0], 64, 64, align_corners=False)
    assert_same_flow(module.apply(variables, *images), expected)
    assert module.flow_unit_px == unit_px


@pytest.mark.parametrize("model", ALL)
def test_batch_axes_may_be_none_or_many(model):
    module, variables = small(model)
    images = random_images(1, 64, 64)
    assert_same_flow(module.apply(variables, *images[:, 0]), module.apply(variables, *images)[0])
    image = jax.ShapeDtypeStruct((2, 4, 1, 70, 3), jnp.float32)
    flow_1to0, _ = jax.eval_shape(functools.partial(run, module), variables, image, image)
    assert flow_1to0.shape == (2, 4, 1, 70, 2)
    if model in SINGLE:
        image = jax.ShapeDtypeStruct((64, 128, 3), jnp.float32)
        levels_1to0, _ = jax.eval_shape(functools.partial(run, module, method="levels"), variables, image, image)
        assert [level.shape for level in levels_1to0] == [(size, 2 * size, 2) for size in (16, 8, 4, 2, 1)]


def test_the_mean_is_over_both_frames_of_an_example():
    module, variables = small(FlowNetS)
    image_1, image_0 = random_images(2, 64, 64)
    flow_1to0, _ = run(module, variables, image_1, image_0)
    colour = np.float32([[0.1, -0.2, 0.3], [0.0, 0.4, -0.1]]).reshape(2, 1, 1, 3)
    assert_same_flow(run(module, variables, image_1 + colour, image_0 + colour)[0], flow_1to0)
    one_1to0, _ = run(module, variables, image_1 + colour, image_0)
    assert np.max(np.abs(one_1to0 - flow_1to0)) > 0.01 * np.max(np.abs(flow_1to0))
    alone_1to0, _ = run(module, variables, image_1[1:], image_0[1:])
    assert_same_flow(alone_1to0, flow_1to0[1:])


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.04), ("float16", 0.005)])
def test_reduced_precision_stays_near_and_gives_float32(dtype, tolerance):
    config = FlowNetConfig(width=SMALL.width, compute_dtype=dtype)
    module, variables = small(FlowNetC)
    images = random_images(1, 64, 64)
    full, _ = run(module, variables, *images)
    reduced, _ = run(FlowNetC(config), variables, *images)
    assert np.any(reduced != full)
    assert_same_flow(reduced, full, tolerance)
    outputs = jax.eval_shape(functools.partial(run, FlowNet2(config)), small(FlowNet2)[1], *images.astype(dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
def test_gradients_are_finite_and_reach_everything():
    """Of the stack, which all the other networks are part of."""
    module, variables = small(FlowNet2)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradients(variables, image_1, image_0):
        return jnp.sum(jnp.sin(module.apply(variables, image_1, image_0)))

    image_1, image_0 = random_images(1, 64, 64)
    for leaf in jax.tree.leaves(gradients(variables, image_1, image_0)):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf != 0)
    # Without any contrast all features, flows and colour errors are zero; lengths have no slope there.
    grey = jnp.full_like(image_1, 0.5)
    np.testing.assert_array_equal(run(module, variables, grey, grey)[0], 0)
    for image in (image_1, grey):
        for leaf in jax.tree.leaves(gradients(variables, image, image)):
            assert np.all(np.isfinite(leaf))


def test_initial_values():
    key = jax.random.key(0, impl="rbg")  # compiles in a tenth of the default's time
    params = jax.jit(FlowNetFusion(FlowNetConfig()).init)(key, jnp.zeros((1, 4, 4, 11)))["params"]
    np.testing.assert_allclose(np.std(params["conv2"]["kernel"]), np.sqrt(2 / (9 * 128)), rtol=0.01)
    # Each output of a transposed convolution sees 4 of 16 taps.
    np.testing.assert_allclose(np.std(params["deconv1"]["kernel"]), np.sqrt(2 / (4 * 128)), rtol=0.01)
    assert all(np.all(layer["bias"] == 0) for layer in params.values())


def test_errors():
    module, variables = small(FlowNetSD)
    image = np.zeros((1, 64, 96, 3), np.float32)
    with pytest.raises(ValueError, match=r"multiples of 64, got height, width \(64, 96\); resize the images"):
        module.apply(variables, image, image, method="levels")
    for method in (None, "levels"):
        for other in (image[:, :39], image[..., :2], image[:0]):
            with pytest.raises(ValueError, match="RGB images of one shape"):
                module.apply(variables, image if len(other) and other.shape[-1] == 3 else other, other, method=method)
    with pytest.raises(ValueError, match=r"RGB images .* got \(1, 64, 96, 1\)"):
        module.apply(variables, image[..., :1], method="encode")
    encoding = module.apply(variables, image, method="encode")
    with pytest.raises(ValueError, match=r"\(60, 64\) are not those of the encoded images, which fill \(64, 128\)"):
        module.apply(variables, encoding, encoding, 60, 64, method="match")
    config = FlowNetConfig()
    for field, value, message in (
        ("compute_dtype", "float64", "compute_dtype is 'float64'; expected float32, float16 or bfloat16"),
        ("width", 0, "width is 0; expected a fraction above 0"),
    ):
        object.__setattr__(config, field, value)  # the tests' type checker would refuse some before our own check
        with pytest.raises(ValueError, match=message):
            config.__post_init__()
