import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import load_case, seeded_state_dict

from jaxdeblur.flow_nets.lite_flow_net import (
    LEVELS,
    DepthwiseUpsample,
    LiteFlowNet,
    Regularization,
    weighted_mean,
)
from jaxdeblur.interop import from_torch
from jaxdeblur.interop.layout import depthwise_conv_transpose
from jaxdeblur.ops.resample import resize_bilinear

# Our float32 run may stray from float64 this many times as far as the reference's own float32 run, which the
# JSON records for the output and the flow after each level.
ERROR_FACTOR = 6  # 4.9 measured, with programs that are not optimised
# For arrays the JSON records no error of: relative to the largest value.
RELATIVE_TOLERANCE = 2e-5


@functools.cache
def variables_of(case: str):
    return from_torch("liteflownet", seeded_state_dict(load_case("liteflownet", case)[1]))


@functools.partial(jax.jit, static_argnames="method")
def run(variables, image_1, image_0, method=None):
    return LiteFlowNet().apply(variables, image_1, image_0, method=method, mutable=["intermediates"])


@functools.cache
def golden_run(case: str):
    """(expected arrays, JSON, our arrays under the golden names)."""
    expected, provenance = load_case("liteflownet", case)
    method = None if "flow_full" in expected else "half_resolution"
    output, state = run(variables_of(case), expected["image_first"], expected["image_second"], method=method)
    made = {"flow_half" if method else "flow_full": output}
    stages = {"match": "matching", "subpixel": "subpixel", "regular": "regularization"}
    for level in LEVELS:
        values = {name: state["intermediates"][f"{name}_{level}"] for name in stages.values()}
        for short, name in stages.items():
            made[f"{short}_l{level}"] = values[name]["flow_1to0"][0]
        made[f"cost_l{level}"] = values["matching"]["cost"][0]
        made[f"dist_l{level}"] = values["regularization"]["distances"][0]
        features = state["intermediates"]["features"][f"level_{level}"][0]
        made[f"feat_first_l{level}"], made[f"feat_second_l{level}"] = jnp.split(features, 2)
    made["feat_first_l2"] = made["feat_first_l2"][:, ::2, ::2]  # stored so
    made["flow_half_of_padded"] = made["regular_l2"] * 20.0
    return expected, provenance, made


def golden_names(kinds: str):
    """(case, name) of every stored output, from the coarsest level to the finest."""
    rows = []
    for case in ("case_a", "case_b_batch2", "case_c_wrapper"):
        names = [name for name in load_case("liteflownet", case)[0] if not name.startswith("image")]
        rows += [
            (case, name) for name in sorted(names, key=lambda name: (name.rpartition("_l")[2], name), reverse=True)
        ]
    return [row for row in rows if any(row[1].startswith(kind) for kind in kinds.split())]


@pytest.mark.parametrize(("case", "name"), golden_names("regular flow"))
def test_flow_after_each_level_matches_the_released_network(case, name):
    expected, provenance, made = golden_run(case)
    errors = provenance["float32_reference_max_abs_error"]
    tolerance = ERROR_FACTOR * errors.get(name, provenance["float32_reference_max_abs_error_output"])
    assert tolerance < 1e-4 * np.max(np.abs(expected[name]))
    assert made[name].shape == expected[name].shape
    np.testing.assert_allclose(made[name], expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("case", "name"), golden_names("feat cost match subpixel dist"))
def test_every_module_matches_the_released_network(case, name):
    expected, _, made = golden_run(case)
    tolerance = RELATIVE_TOLERANCE * np.max(np.abs(expected[name]))
    assert made[name].shape == expected[name].shape
    np.testing.assert_allclose(made[name], expected[name], rtol=0, atol=tolerance)


def test_every_golden_array_is_compared():
    assert len(golden_names("regular flow")) == 5 + 1 + 5 + 1 + 5 + 2
    assert len(golden_names("feat cost match subpixel dist")) == 3 + 2 + 5 + 5 + 1


def test_parameter_count():
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(LiteFlowNet().init, jax.random.key(0), image, image)
    assert list(shapes) == ["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 5_381_969


def regularization_inputs(level: int, channels: int):
    rng = np.random.default_rng(level)
    widths = (3, channels, 2)
    return tuple(rng.standard_normal((1, 4, 4, width)).astype(np.float32) for width in widths)


def test_initial_values():
    image, features_1, flow_1to0 = regularization_inputs(4, 96)
    init = jax.jit(Regularization(4).init)
    params = init(jax.random.key(0), image, image, features_1, flow_1to0)["params"]
    np.testing.assert_allclose(np.std(params["conv_2"]["kernel"]), np.sqrt(2 / (9 * 128)), rtol=0.01)
    assert np.all(params["conv_2"]["bias"] == 0)
    assert np.all(params["scale_x"] == 1)
    assert np.all(params["scale_bias_y"] == 0)


# --- up-sampling ---


def upsample_oracle(x, weight):
    """The transposed convolution by its definition: every input pixel spreads the official kernel."""
    batch, height, width, channels = x.shape
    out = np.zeros((batch, 2 * height + 2, 2 * width + 2, channels))  # a border of one, cut off below
    for y in range(height):
        for column in range(width):
            for ky in range(4):
                for kx in range(4):
                    out[:, 2 * y + ky, 2 * column + kx] += x[:, y, column] * weight[:, 0, ky, kx]
    return out[:, 1:-1, 1:-1]


def test_upsampling_is_the_official_transposed_convolution():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5, 7)).astype(np.float32)
    weight = rng.standard_normal((7, 1, 4, 4)).astype(np.float32)
    variables = {"params": {"kernel": depthwise_conv_transpose(weight)}}
    out = jax.jit(DepthwiseUpsample().apply)(variables, x)
    np.testing.assert_allclose(out, upsample_oracle(x, weight), atol=1e-5)


def test_upsampling_starts_out_bilinear():
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 2)).astype(np.float32)
    out, _ = DepthwiseUpsample().init_with_output(jax.random.key(0), x)
    expected = resize_bilinear(jnp.asarray(x), 8, 12, align_corners=False)
    np.testing.assert_allclose(out[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-6)


# --- weighted mean ---


def weighted_mean_oracle(flow, distances, scale, bias):
    batch, height, width, taps = distances.shape
    size = round(taps**0.5)
    out = np.zeros_like(flow)
    for b, y, x in np.ndindex(batch, height, width):
        exponents = -(distances[b, y, x] ** 2)
        weights = np.exp(exponents - exponents.max())
        total = bias.copy()
        for row in range(size):
            for column in range(size):
                yy, xx = y + row - size // 2, x + column - size // 2
                if 0 <= yy < height and 0 <= xx < width:
                    tap = size * row + column
                    total += weights[tap] * scale[tap] * flow[b, yy, xx]
        out[b, y, x] = total / weights.sum()
    return out


@pytest.mark.parametrize("size", [3, 5])
def test_weighted_mean_matches_the_loop(size):
    rng = np.random.default_rng(size)
    flow, distances = rng.standard_normal((2, 6, 4, 2)), 2 * rng.standard_normal((2, 6, 4, size**2))
    scale, bias = rng.standard_normal((size**2, 2)), rng.standard_normal(2)
    expected = weighted_mean_oracle(flow, distances, scale, bias)
    out = jax.jit(weighted_mean)(*(np.float32(x) for x in (flow, distances, scale, bias)))
    np.testing.assert_allclose(out, expected, atol=1e-5)


_mean_49 = jax.jit(weighted_mean)


@given(tap=st.integers(0, 48), seed=st.integers(0, 99))
def test_a_single_near_neighbour_is_copied(tap, seed):
    flow = np.random.default_rng(seed).standard_normal((1, 12, 10, 2)).astype(np.float32)
    # Far enough for exp(-d^2) to be zero, and for a sum without its largest subtracted to be 0 / 0.
    distances = np.full((1, 12, 10, 49), 40.0, np.float32)
    distances[..., tap] = 20.0
    out = _mean_49(flow, distances, np.ones((49, 2), np.float32), np.zeros(2, np.float32))
    dy, dx = tap // 7 - 3, tap % 7 - 3
    inside = np.s_[:, 3:-3, 3:-3]
    np.testing.assert_allclose(out[inside], np.roll(flow, (-dy, -dx), axis=(1, 2))[inside], rtol=1e-6)


def test_weighted_mean_keeps_a_constant_flow_inside_and_draws_it_to_zero_at_the_border():
    flow = np.broadcast_to(np.float32([3.0, -2.0]), (1, 9, 9, 2))
    distances = np.random.default_rng(0).standard_normal((1, 9, 9, 49)).astype(np.float32)
    out = np.asarray(_mean_49(flow, distances, np.ones((49, 2), np.float32), np.zeros(2, np.float32)))
    np.testing.assert_allclose(out[:, 3:-3, 3:-3], flow[:, 3:-3, 3:-3], rtol=1e-5)
    assert np.all(np.abs(out[:, 0]) < np.abs(flow[:, 0]))


# --- calling it ---


def test_any_size_comes_back():
    images = np.random.default_rng(0).random((2, 1, 1, 7, 3), np.float32)
    flow_1to0, _ = run(variables_of("case_c_wrapper"), *images)
    assert flow_1to0.shape == (1, 1, 7, 2)
    assert np.all(np.isfinite(flow_1to0))


def test_batch_axes_may_be_none_or_many():
    expected, provenance, _ = golden_run("case_a")
    images = expected["image_first"], expected["image_second"]
    single_1to0, _ = run(variables_of("case_a"), images[0][0], images[1][0], method="half_resolution")
    tolerance = ERROR_FACTOR * provenance["float32_reference_max_abs_error_output"]
    np.testing.assert_allclose(single_1to0, expected["flow_half"][0], rtol=0, atol=tolerance)

    image = jax.ShapeDtypeStruct((2, 4, 1, 45, 3), jnp.float32)
    flow_1to0, _ = jax.eval_shape(run, variables_of("case_a"), image, image)
    assert flow_1to0.shape == (2, 4, 1, 45, 2)


@pytest.mark.parametrize("method", [None, "half_resolution"])
def test_reduced_precision_images_give_a_float32_flow(method):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.bfloat16)
    traced = functools.partial(run, method=method)
    flow_1to0, _ = jax.eval_shape(traced, variables_of("case_a"), image, image)
    assert flow_1to0.dtype == jnp.float32


def test_colour_error_takes_no_gradient_and_spoils_none_where_it_vanishes():
    # Equal images and no flow: the square root of the error has an infinite slope everywhere.
    image, features_1, flow_1to0 = regularization_inputs(6, 192)
    params = {"params": variables_of("case_a")["params"]["regularization_6"]}

    def total(image_1, features_1, flow_1to0):
        return jnp.sum(Regularization(6).apply(params, image_1, image, features_1, flow_1to0))

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    to_image, to_features, to_flow = gradients(image, features_1, np.zeros_like(flow_1to0))
    np.testing.assert_array_equal(to_image, 0)
    for gradient in (to_features, to_flow):
        assert np.all(np.isfinite(gradient))
    assert np.any(to_flow != 0)


def test_sizes_and_shapes_are_checked():
    model, variables = LiteFlowNet(), variables_of("case_a")
    image = np.zeros((1, 40, 64, 3), np.float32)
    with pytest.raises(ValueError, match=r"multiples of 32, got height, width \(40, 64\); resize"):
        model.apply(variables, image, image, method="half_resolution")
    for other in (image[:, :39], image[..., :2], image[:0]):
        with pytest.raises(ValueError, match="RGB images of one shape"):
            model.apply(variables, image if other.shape[-1] == 3 and len(other) else other, other)
