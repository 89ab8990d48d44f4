import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur.flow_nets.pwc_net import (
    CDVD_TSP,
    LEVELS,
    NVLABS,
    PWC_FLOW_SCALE,
    LevelDecoder,
    PWCNet,
    PWCNetConfig,
    mean_cost_volume,
    warp_features,
)
from jaxdeblur.interop import from_torch
from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.ops.warp import inside_weight, warp_backward

# Relative to an array's largest value. Ours reaches 2.1e-6, the reference's own float32 run 1.6e-6.
RELATIVE_TOLERANCE = 5e-6

TINY = {"width": 1 / 16, "dense_channels": (64, 64, 48, 32, 32)}
TINY_NVLABS, TINY_CDVD_TSP = (dataclasses.replace(config, **TINY) for config in (NVLABS, CDVD_TSP))


def apply(config, variables, *inputs, method=None):
    return PWCNet(config).apply(variables, *inputs, method=method, mutable=["intermediates"])


run = jax.jit(apply, static_argnames=("config", "method"))
# Of what runs once and small, most of the time is compilation; unoptimised it takes half as long.
once = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
run_once = once(apply, static_argnames=("config", "method"))


@functools.cache
def golden_run(case: str):
    """(expected arrays, our arrays under the golden names)."""
    expected, provenance = load_case("pwcnet", case)
    variables = from_torch("pwcnet", seeded_state_dict(provenance))
    frames = expected["frames"][:1], expected["frames"][1:]
    made = {}
    if case == "case_a":
        levels, state = run(NVLABS, variables, *frames, method="levels")
        made = {f"flow{level}": flow_1to0 for level, flow_1to0 in zip((2, 3, 4, 5, 6), levels)}
        flow_1to0 = PWC_FLOW_SCALE * resize_bilinear(levels[0], *frames[0].shape[1:3], align_corners=False)
    else:
        flow_1to0, state = run(CDVD_TSP, variables, *frames)
        made = {f"flow{level}": state["intermediates"][f"level_{level}"]["flow_1to0"][0] for level in (3, 4, 5, 6)}
    sown = state["intermediates"]
    made |= {
        "flow": flow_1to0,
        "network_output": sown["flow_1to0"][0],
        "flow2_before_context": sown["level_2"]["flow_1to0"][0],
        "resized_first": sown["frame"][0],
    }
    for level in LEVELS:
        values = sown[f"level_{level}"]
        made[f"corr{level}"] = values["cost"][0]
        made[f"feat{level}_first"], made[f"feat{level}_second"] = sown["features"][f"level_{level}"]
        if level < 6:
            made[f"up_flow{level + 1}"] = values["upsampled_flow"][0]
            made[f"up_feat{level + 1}"] = values["upsampled_features"][0]
    made["mask"] = inside_weight(flow_1to0)[..., None] >= 0.999
    warped, _ = warp_backward(frames[1], flow_1to0, border="edge")
    made["warped"] = warped * made["mask"].astype(jnp.float32)
    return expected, made


def golden_names():
    """(case, name) of every stored output of the network, from the coarsest level to the finest."""
    rows = [(case, name) for case in ("case_a", "case_b") for name in load_case("pwcnet", case)[0] if name != "frames"]

    def depth(row):
        digits = [int(letter) for letter in row[1] if letter.isdigit()]
        return -digits[0] if digits else 0

    return sorted(rows, key=lambda row: (row[0], depth(row)))


@pytest.mark.parametrize(("case", "name"), golden_names())
def test_every_array_matches_the_released_network(case, name):
    expected, made = golden_run(case)
    assert made[name].shape == expected[name].shape
    tolerance = RELATIVE_TOLERANCE * np.max(np.abs(expected[name]))
    np.testing.assert_allclose(np.float32(made[name]), expected[name], rtol=0, atol=tolerance)


def test_every_golden_array_is_compared():
    assert len(golden_names()) == 22 + 10


def test_cost_volume_matches_the_released_kernels():
    arrays, _ = load_case("pwcnet", "cost_volume")
    cost = jax.jit(mean_cost_volume)(arrays["first"], arrays["second"])
    np.testing.assert_allclose(cost, arrays["cost"], atol=1e-6 * np.max(np.abs(arrays["cost"])))


warp = jax.jit(warp_features, static_argnames="mask_threshold")


@pytest.mark.parametrize(("name", "config"), [("warped", CDVD_TSP), ("warped_nvlabs", NVLABS)])
def test_warp_matches_the_released_networks(name, config):
    arrays, _ = load_case("pwcnet", "feature_warp")
    warped = warp(arrays["feature"], arrays["flow"], mask_threshold=config.mask_threshold)
    np.testing.assert_allclose(warped, arrays[name], atol=1e-6)


def test_one_position_of_case_a_tells_the_thresholds_apart():
    # With the other threshold flow2 would be off by 0.023, and not pass the comparison above.
    expected, _ = golden_run("case_a")
    between = 0
    for level in (5, 4, 3, 2):
        flow_1to0 = expected[f"up_flow{level + 1}"] * (PWC_FLOW_SCALE / 2**level)
        ones = np.ones((*flow_1to0.shape[:-1], 1), np.float32)
        loose, strict = (warp(ones, flow_1to0, mask_threshold=c.mask_threshold) for c in (CDVD_TSP, NVLABS))
        assert np.all(np.asarray(strict)[np.asarray(strict) > 0] >= 0.999)
        between += np.count_nonzero(np.asarray(loose) != np.asarray(strict))
    assert between == 1


# --- the model as such ---


def images(seed, *shape):
    """A smooth picture and the same moved by a pixel or so, so that flows are neither nil nor wild."""
    rng = np.random.default_rng(seed)
    coarse = jnp.asarray(rng.random((*shape[:-2], 8, 9, 3), np.float32))
    image = resize_bilinear(coarse, *shape[-2:], align_corners=False)
    return image, jnp.roll(image, (1, -1), (-3, -2))


@functools.cache
def variable_shapes(config):
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(PWCNet(config).init, jax.random.key(0), image, image)


def filled(shapes):
    """He normal kernels and small biases; compiles nothing."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) == 4 else 0.1
        return np.float32(scale * rng.standard_normal(leaf.shape))

    return jax.tree.map(fill, shapes)


@functools.cache
def tiny_variables():
    """Of both variants, which differ in no parameter."""
    return filled(variable_shapes(TINY_NVLABS))


def shapes(config, *sizes, method=None, dtype=jnp.float32):
    images = [jax.ShapeDtypeStruct(size, dtype) for size in sizes]
    return jax.eval_shape(functools.partial(apply, config, method=method), variable_shapes(config), *images)


@pytest.mark.parametrize("config", [NVLABS, CDVD_TSP])
def test_parameter_count(config):
    variables = variable_shapes(config)
    assert list(variables) == ["params"]
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in variables["params"].items()}
    assert counts == {
        "features": 1_665_804,
        "level_6": 1_018_240 + 9_524,
        "level_5": 1_550_464 + 11_900 + 16_996,
        "level_4": 1_421_440 + 11_324 + 21_220,
        "level_3": 1_292_416 + 10_748 + 20_196,
        "level_2": 1_163_392 + 10_172 + 19_172,
        "context": 1_131_266,
    }
    assert sum(counts.values()) == 9_374_274


@functools.cache
def decoder_case():
    """(variables, inputs) of one level of the tiny model."""
    rng = np.random.default_rng(1)
    sizes = ((2, 8, 10, 6), (2, 8, 10, 6), (2, 4, 5, 2), (2, 4, 5, 70))
    features_1, features_0, coarse_1to0, dense = (rng.standard_normal(size).astype(np.float32) for size in sizes)
    inputs = features_1, features_0, (coarse_1to0, dense)
    return filled(jax.eval_shape(LevelDecoder(TINY_CDVD_TSP, 4).init, jax.random.key(0), *inputs)), inputs


def test_initial_values():
    _, inputs = decoder_case()
    params = once(LevelDecoder(TINY_CDVD_TSP, 4).init)(jax.random.key(0, impl="rbg"), *inputs)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "bias":
            np.testing.assert_array_equal(leaf, 0)
    conv, upsample = params["conv_5"]["kernel"], params["upsample_features"]["kernel"]
    np.testing.assert_allclose(np.std(conv), np.sqrt(2 / np.prod(conv.shape[:3])), rtol=0.1)
    np.testing.assert_allclose(np.std(upsample), np.sqrt(2 / (4 * 70)), rtol=0.1)


def test_width_and_channels_say_how_wide_the_layers_are():
    params = variable_shapes(TINY_NVLABS)["params"]
    assert params["features"]["conv1_1"]["kernel"].shape == (3, 3, 3, 1)
    assert params["features"]["conv6_3"]["kernel"].shape == (3, 3, 12, 12)
    assert params["level_2"]["conv_1"]["kernel"].shape == (3, 3, 81 + 2 + 2 + 2, 4)
    assert params["context"]["conv_4"]["kernel"].shape == (3, 3, 8, 6)


# --- calling it ---


def program(function, *images):
    bound = functools.partial(nn.apply(function, PWCNet(TINY_CDVD_TSP)), tiny_variables())
    return str(jax.make_jaxpr(bound)(*images))


def test_calling_it_is_encoding_and_matching_to_the_operation():
    pair = jnp.zeros((2, 1, 40, 70, 3))
    apart = program(lambda model, *pair: model.match(*(model.encode(image) for image in pair), 40, 70), *pair)
    assert apart == program(lambda model, *pair: model(*pair), *pair)
    assert apart != program(lambda model, *pair: model(*reversed(pair)), *pair)


def test_an_encoding_is_the_features_of_five_levels():
    encoding, _ = shapes(TINY_CDVD_TSP, (2, 40, 70, 3), method="encode")
    assert {level: x.shape for level, x in encoding.items()} == {
        2: (2, 16, 32, 2),
        3: (2, 8, 16, 4),
        4: (2, 4, 8, 6),
        5: (2, 2, 4, 8),
        6: (2, 1, 2, 12),
    }


def test_encodings_of_another_size_are_refused():
    encoding = {level: np.zeros((1, 64 // 2**level, 128 // 2**level, 2), np.float32) for level in LEVELS}
    with pytest.raises(ValueError, match=r"\(70, 40\) are not those of the encoded images, which fill \(64, 128\)"):
        PWCNet(TINY_CDVD_TSP).bind(tiny_variables()).match(encoding, encoding, 70, 40)


def test_jit_changes_nothing():
    variables, inputs = decoder_case()
    model = LevelDecoder(TINY_CDVD_TSP, 4)
    for compiled, eager in zip(jax.jit(model.apply)(variables, *inputs), model.apply(variables, *inputs)):
        np.testing.assert_allclose(compiled, eager, rtol=0, atol=1e-5 * np.max(np.abs(eager)))


def test_a_single_pixel():
    image = np.full((1, 1, 3), 0.5, np.float32)
    flow_1to0, _ = run_once(TINY_NVLABS, tiny_variables(), image, image)
    assert flow_1to0.shape == (1, 1, 2)
    assert np.all(np.isfinite(flow_1to0))


def test_leading_axes_and_levels():
    assert shapes(TINY_CDVD_TSP, (2, 4, 1, 45, 3), (2, 4, 1, 45, 3))[0].shape == (2, 4, 1, 45, 2)
    levels, _ = shapes(TINY_CDVD_TSP, (2, 4, 64, 128, 3), (2, 4, 64, 128, 3), method="levels")
    assert [level.shape for level in levels] == [(2, 4, 64 // 2**k, 128 // 2**k, 2) for k in (2, 3, 4, 5, 6)]
    assert shapes(TINY_CDVD_TSP, (2, 4, 1, 45, 3), method="encode")[0][6].shape == (2, 4, 1, 1, 12)


@functools.partial(jax.jit, static_argnames="config")
def frame_of(config, image):
    """What the network sees of an image."""
    _, state = PWCNet(config).apply(tiny_variables(), image, method="encode", mutable=["intermediates"])
    return state["intermediates"]["frame"][0]


def test_channel_order():
    image, _ = images(1, 1, 64, 64)
    np.testing.assert_array_equal(frame_of(TINY_CDVD_TSP, image), image)
    np.testing.assert_array_equal(frame_of(TINY_NVLABS, image), image[..., ::-1])


def test_resized_images_may_be_rounded_to_whole_levels_and_keep_their_gradient():
    levels_u8 = np.random.default_rng(0).integers(0, 256, (1, 50, 64, 3))
    image = np.float32(levels_u8 / 255)
    rounded, exact = frame_of(TINY_NVLABS, image)[..., ::-1], frame_of(TINY_CDVD_TSP, image)
    # Of integers and multiples of 1/64, so that halves are met, and go up as in OpenCV.
    position = np.clip((np.arange(64) + 0.5) * 50 / 64 - 0.5, 0, 49)
    above = np.int32(position)
    weight = (position - above)[:, None, None]
    expected = (1 - weight) * levels_u8[:, above] + weight * levels_u8[:, np.minimum(above + 1, 49)]
    np.testing.assert_allclose(255 * exact, expected, atol=1e-4)
    np.testing.assert_allclose(255 * rounded, np.floor(expected + 0.5), atol=1e-4)
    assert np.any(expected % 1 == 0.5)

    cotangent = np.random.default_rng(1).standard_normal(exact.shape).astype(np.float32)
    through = jax.grad(lambda image: jnp.sum(frame_of(TINY_NVLABS, image)[..., ::-1] * cotangent))(image)
    plain = jax.grad(lambda image: jnp.sum(frame_of(TINY_CDVD_TSP, image) * cotangent))(image)
    np.testing.assert_allclose(through, plain, atol=1e-6)

    not_resized, _ = images(2, 1, 64, 64)
    np.testing.assert_array_equal(frame_of(TINY_NVLABS, not_resized), not_resized[..., ::-1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_is_that_of_the_convolutions_alone(dtype):
    config = dataclasses.replace(TINY_CDVD_TSP, compute_dtype=dtype)
    flow_1to0, state = shapes(config, (1, 40, 70, 3), (1, 40, 70, 3))
    assert flow_1to0.dtype == jnp.float32
    sown = state["intermediates"]
    assert sown["level_2"]["upsampled_features"][0].dtype == sown["features"]["level_6"][0].dtype == jnp.dtype(dtype)
    for name in ("cost", "upsampled_flow", "flow_1to0"):
        assert sown["level_2"][name][0].dtype == jnp.float32
    encoding, _ = shapes(config, (1, 40, 70, 3), method="encode")
    assert {x.dtype for x in jax.tree.leaves(encoding)} == {jnp.dtype(dtype)}


def test_reduced_precision_changes_little():
    variables, inputs = decoder_case()
    features_1, features_0, (coarse_1to0, dense) = inputs
    reduced = LevelDecoder(dataclasses.replace(TINY_CDVD_TSP, compute_dtype="float16"), 4)
    flow_1to0, _ = jax.jit(LevelDecoder(TINY_CDVD_TSP, 4).apply)(variables, *inputs)
    half = [x.astype(np.float16) for x in (features_1, features_0, dense)]
    reduced_1to0, _ = once(reduced.apply)(variables, *half[:2], (coarse_1to0, half[2]))
    error = np.max(np.abs(reduced_1to0 - flow_1to0)) / np.max(np.abs(flow_1to0))
    assert 1e-5 < error < 2e-2


def test_images_of_reduced_precision_give_a_float32_flow():
    flow_1to0, _ = shapes(TINY_NVLABS, (1, 64, 64, 3), (1, 64, 64, 3), dtype=jnp.bfloat16)
    assert flow_1to0.dtype == jnp.float32


# --- gradients ---


@functools.cache
def gradient():
    def total(variables, image_1, image_0):
        levels = PWCNet(TINY_CDVD_TSP).apply(variables, image_1, image_0, method="levels")
        return sum(jnp.sum(jnp.square(level)) for level in levels)

    return once(jax.grad(total, argnums=(0, 1, 2)))


def test_every_parameter_and_both_images_take_a_gradient():
    to_variables, *to_images = gradient()(tiny_variables(), *images(3, 1, 64, 64))
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_variables):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf != 0), path
    for leaf in to_images:
        assert np.all(np.isfinite(leaf))
        assert np.mean(leaf != 0) > 0.5


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_gradients_at_equal_flat_images_are_finite(value):
    image = np.full((1, 64, 64, 3), value, np.float32)
    for leaf in jax.tree.leaves(gradient()(tiny_variables(), image, image)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_gradients_through_the_warp_and_the_costs(offset):
    rng = np.random.default_rng(0)
    features_1, features_0 = rng.standard_normal((2, 1, 4, 5, 3)).astype(np.float32)
    flow_1to0 = (rng.uniform(0.2, 0.8, (1, 4, 5, 2)) - rng.integers(0, 2, (1, 4, 5, 2)) + offset).astype(np.float32)

    def cost(features_1, features_0, flow_1to0):
        return mean_cost_volume(features_1, warp_features(features_0, flow_1to0, mask_threshold=0.999))

    arguments = (features_1, features_0, flow_1to0)
    if offset:
        total = once(jax.grad(lambda *arguments: jnp.sum(cost(*arguments)), argnums=(0, 1, 2)))
        for leaf in total(*arguments):
            np.testing.assert_array_equal(leaf, 0)
    else:
        jax.test_util.check_grads(jax.jit(cost), arguments, order=1, modes=("rev",), eps=1e-2, atol=1e-2, rtol=1e-2)


# --- what is refused ---


def test_sizes_and_shapes_are_checked():
    bound = PWCNet(TINY_CDVD_TSP).bind(tiny_variables())
    image = np.zeros((1, 40, 64, 3), np.float32)
    with pytest.raises(ValueError, match=r"multiples of 64, got height, width \(40, 64\); resize"):
        bound.levels(image, image)
    for other in (image[:, :39], image[..., :2], image[:0]):
        with pytest.raises(ValueError, match="RGB images of one shape"):
            bound(image, other)
    for other in (image[..., :2], image[:0]):
        with pytest.raises(ValueError, match="RGB images of one shape"):
            bound.encode(other)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("channel_order", "gbr", "'gbr'; expected one of bgr, rgb"),
        ("compute_dtype", "int8", "'int8'; expected one of float32, bfloat16, float16"),
        ("mask_threshold", 0.0, "0.0; expected a weight above 0"),
        ("mask_threshold", 1.001, "up to 1"),
        ("pyramid_channels", (16, 32), "tuple of 6 whole numbers"),
        ("dense_channels", (8, 8, 8, 8, 0), "tuple of 5 whole numbers above 0"),
        ("context_channels", [8, 8, 8, 8, 8], "expected a tuple of 6"),
        ("width", 0, "above 0"),
    ],
)
def test_config_checks_itself(field, value, message):
    config = dataclasses.replace(NVLABS)
    object.__setattr__(config, field, value)  # the tests' type checker would refuse some before our own check
    with pytest.raises(ValueError, match=f"{field} is .*{message}"):
        config.__post_init__()


def test_config_has_no_default_where_callers_differ():
    with pytest.raises(TypeError, match="channel_order"):
        PWCNetConfig()
