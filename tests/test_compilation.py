"""Compiled programs: their options, the precision of their products, and their values beside those of single ops."""

import ast
import functools
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdeblur
from jaxdeblur import compilation, create_model
from jaxdeblur.layers.conv import Conv
from jaxdeblur.models import example_inputs, initial_variables, is_flow_network
from jaxdeblur.models.cdvd_tsp import CDVDTSP

SMALL = {
    "mtu2": {"channels": 16, "residual_blocks": 1},
    "cdvd_tsp": {"channels": 16, "residual_blocks": 1, "flow_width": 0.25},
    "svrnn": {"width": 0.5},
    "vdflow": {"width": 0.25},
    "dbn": {"width": 0.25},
    "deblurgan": {"width": 0.25, "blocks": 1},
    "maxim": {"stages": 2, "features": 16, "groups": 1, "bottleneck_blocks": 1},
    "nafnet32": {"width": 16, "encoder_blocks": (1, 2), "decoder_blocks": (1, 1), "training_px": 32},
    "estrnn": {"features": 8, "blocks": 1},
    "pwcnet": {"width": 0.25},
    "flownet2c": {"width": 0.125},
    "flownet2sd": {"width": 0.25},
    "flownet2s_small": {"width": 0.25},
    "flownets_bn": {"width": 0.125},
}
"""Narrow networks of every kind, with what makes them narrow: most layers have 16 channels, from which on compilers
take other ways."""


@functools.cache
def small(name, **options):
    model = create_model(name, **SMALL[name], **options)
    return model, initial_variables(jax.random.key(0), model)


def inputs(model, height, width, frames=None):
    """Smooth pictures of a size that the model takes: a window of a clip, or two images."""
    frames = frames or (2 if is_flow_network(model) else model.past_frames + 1 + model.future_frames)
    size = [-(-side // model.size_multiple) * model.size_multiple for side in (height, width)]
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    t = np.arange(frames, dtype=np.float32)[:, None, None, None]
    waves = np.sin((x[..., None] - 2 * t) / 5 + np.arange(3)) * np.cos((y[..., None] + t) / 7 + np.arange(3))
    clip = jnp.asarray(0.5 + 0.4 * waves, jnp.float32)[None]
    return (clip[:, 0], clip[:, 1]) if is_flow_network(model) else (clip,)


def value_and_gradients(model):
    """(variables, *inputs) -> what the model makes of them, and the gradients of its mean square."""

    def made(variables, *arguments):
        if is_flow_network(model):
            return model.apply(variables, *arguments)
        if isinstance(model, CDVDTSP):  # all stages, as in training
            return model.apply(variables, *arguments, method="cascade")[-1].restored
        carry = model.apply(variables, *arguments, method="start")
        return model.apply(variables, carry, *arguments, method="step")[1].restored

    def loss(params, rest, *arguments):
        value = made({**rest, "params": params}, *arguments)
        return jnp.mean(jnp.square(value)), value

    def run(variables, *arguments):
        params, rest = variables["params"], {name: v for name, v in variables.items() if name != "params"}
        (_, value), gradients = jax.value_and_grad(loss, has_aux=True)(params, rest, *arguments)
        return value, gradients

    return run


def largest_deviation(found, expected):
    """Of any array, beside its largest value; arrays of gradients next to nothing count beside the largest of all."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    floor = 1e-3 * max(np.abs(want).max() for _, want in pairs)
    return max(np.abs(have - want).max() / max(np.abs(want).max(), floor) for have, want in pairs)


def test_a_program_has_none_of_the_convolutions_that_go_wrong():
    x = jnp.ones((1, 24, 24, 32))
    layer = Conv(32, 3)
    variables = layer.init(jax.random.key(0), x)
    assert "ynn" not in compilation.jit(layer.apply).lower(variables, x).compile().as_text()


def test_options_are_those_that_the_installed_compiler_knows():
    options = compilation.compiler_options(optimized=False)
    assert options.pop("xla_backend_optimization_level") == "0"
    known = jax.default_backend() == "cpu" and jax.__version_info__ >= (0, 10)
    assert options == ({"xla_cpu_experimental_ynn_fusion_type": ""} if known else {})
    assert not compilation._is_known(("xla_no_such_option", ""))


def test_onednn_convolves_where_jaxlib_has_it_and_programs_are_not_kept(tmp_path):
    folder = jax.config.jax_compilation_cache_dir
    for kept in (None, str(tmp_path)):
        jax.config.update("jax_compilation_cache_dir", kept)
        try:
            convolved = compilation.jit(Conv(32, 3).apply)
            image, kernel = jnp.ones((1, 24, 24, 32)), jnp.ones((3, 3, 32, 32))
            lowered = convolved.lower({"params": {"kernel": kernel, "bias": jnp.ones(32)}}, image)
            has = "__onednn$convolution" in lowered.compile().as_text()
        finally:
            jax.config.update("jax_compilation_cache_dir", folder)
        known = jax.default_backend() == "cpu" and jax.__version_info__ >= (0, 12)
        assert compilation.has_onednn() == known
        assert has == (known and kept is None)


def test_no_program_is_compiled_by_other_ways():
    own_ways = {"compilation.py", "restoration/export.py"}  # what is exported, whoever loads it compiles
    package = Path(jaxdeblur.__file__).parent
    for file in package.rglob("*.py"):
        calls = [
            f"{ast.unparse(node)} in line {node.lineno}"
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("jax.jit", "jax.pmap", "nn.jit")
        ]
        assert not calls or file.relative_to(package).as_posix() in own_ways, (file, calls)


def test_programs_within_programs_and_derivatives():
    @compilation.jit
    def square(x):
        return x * x

    @functools.partial(compilation.jit, static_argnames="power")
    def of_power(x, *, power):
        return square(x) ** power

    assert square(3.0) == 9.0
    assert of_power(3.0, power=2) == 81.0
    assert jax.grad(square)(3.0) == 6.0
    np.testing.assert_array_equal(jax.vmap(square)(jnp.arange(3.0)), [0.0, 1.0, 4.0])
    assert square.__name__ == "square"
    assert jax.eval_shape(square, jax.ShapeDtypeStruct((2,), jnp.float32)).shape == (2,)


def test_one_trace_for_many_calls():
    traces = []

    @compilation.jit
    def run(x):
        traces.append(x.shape)
        return x + 1

    for _ in range(3):
        run(jnp.zeros(4))
    run.lower(jax.ShapeDtypeStruct((4,), jnp.float32)).compile()
    assert traces == [(4,)]


def products(program):
    """Every convolution and matrix product of a traced program: (types of its factors, their precision)."""
    found = []
    for equation in program.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            types = {str(factor.aval.dtype) for factor in equation.invars}
            found.append((equation.primitive.name, types, equation.params["precision"]))
        for values in equation.params.values():
            for value in values if isinstance(values, tuple | list) else (values,):
                if (inner := getattr(value, "jaxpr", value)) is not value or hasattr(inner, "eqns"):
                    found += products(inner)
    return found


def traced_products(model, *arguments):
    variables = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    return products(jax.make_jaxpr(model.apply)(variables, *(arguments or example_inputs(model))).jaxpr)


HIGHEST = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


@pytest.fixture
def as_jax_comes():
    """Without the precision that the other tests ask for."""
    with jax.default_matmul_precision(None):
        yield


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.usefixtures("as_jax_comes")
def test_float32_is_multiplied_as_float32(name):
    found = traced_products(create_model(name, **SMALL[name]))
    assert len(found) > 5
    assert [product for product in found if product[2] != HIGHEST] == []


@pytest.mark.usefixtures("as_jax_comes")
def test_gradients_of_a_convolution_are_multiplied_as_float32():
    layer, x = Conv(8, 3), jnp.ones((1, 8, 8, 4))
    variables = layer.init(jax.random.key(0), x)
    text = jax.jit(jax.grad(lambda v, x: layer.apply(v, x).sum(), argnums=(0, 1))).lower(variables, x).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) >= 2
    assert all(line.count("HIGHEST") == 2 for line in convolutions)


@pytest.mark.usefixtures("as_jax_comes")
def test_matching_stays_in_float32_where_the_network_is_narrower():
    model = create_model("mtu2", **SMALL["mtu2"], compute_dtype="bfloat16")
    found = traced_products(model, jnp.zeros((1, 3, 16, 16, 3)))
    matching = [product for product in found if product[0] == "dot_general"]
    assert matching
    assert all(types == {"float32"} and precision == HIGHEST for _, types, precision in matching)
    assert ("conv_general_dilated", {"bfloat16"}, None) in found


def test_who_asks_jax_for_tf32_gets_it():
    model = create_model("mtu2", **SMALL["mtu2"])
    with jax.default_matmul_precision("tensorfloat32"):
        found = traced_products(model)
    convolutions = [precision for name, _, precision in found if name == "conv_general_dilated"]
    assert convolutions
    assert HIGHEST not in convolutions


TOLERANCE = 1e-4
# As users have it, whatever the environment of the tests says.
OPTIMIZED = {"xla_backend_optimization_level": "3", "xla_llvm_disable_expensive_passes": "False"}
EMITTERS = {"xla_cpu_use_fusion_emitters": "True"}


def compiled(function, *arguments):
    """The function as a program of the package, for such arguments."""
    options = {**compilation.compiler_options(), **OPTIMIZED}
    if compilation._is_known(*EMITTERS.items()):
        options |= EMITTERS
    return jax.jit(function).lower(*arguments).compile(compiler_options=options)


@hypothesis.given(
    size=st.tuples(*[st.integers(5, 70)] * 2),
    channels=st.tuples(*[st.sampled_from([3, 8, 16, 24, 32, 64])] * 2),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    strides=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    frames=st.sampled_from([1, 3]),
)
def test_a_compiled_layer_is_its_single_ops(size, channels, kernel_size, strides, dilation, frames):
    layer = Conv(channels[1], kernel_size, strides=strides, dilation=dilation)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((frames, *size, channels[0]), np.float32)
    variables = layer.init(jax.random.key(0), x)

    def run(variables, x):
        return jax.value_and_grad(lambda v, x: jnp.mean(jax.nn.relu(layer.apply(v, x)) ** 2), argnums=(0, 1))(
            variables, x
        )

    assert largest_deviation(compiled(run, variables, x)(variables, x), run(variables, x)) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mtu2", (37, 61)),
        *(
            pytest.param(name, size, marks=pytest.mark.exhaustive)
            for name in SMALL
            for size in ((24, 24), (37, 61), (68, 108), (128, 64), (90, 33), (192, 256))
        ),
    ],
)
def test_a_compiled_network_is_its_single_ops(name, size):
    """Values and gradients at sizes odd and even, square and not, from one to four of the networks' multiples."""
    model, variables = small(name)
    run, arguments = value_and_gradients(model), inputs(model, *size)
    program = compiled(run, variables, *arguments)
    deviations, changes, before = [], [], None
    for seed in range(9):
        given = [moved(image, seed) if seed else image for image in arguments]
        (value, gradients), (expected, expected_gradients) = program(variables, *given), run(variables, *given)
        assert largest_deviation(value, expected) < TOLERANCE
        deviations.append(largest_deviation(gradients, expected_gradients))
        if before is not None:
            changes.append(largest_deviation(expected_gradients, before))
        before = expected_gradients
        # Normalisation leaves of some gradients nothing but rounding; then they change as much by themselves.
        if deviations[-1] < max(TOLERANCE, 3 * min(changes, default=0.0)):
            return
    pytest.fail(f"the gradients deviate by {deviations}; by themselves they change by {changes}")


def moved(image, seed):
    """The image but for rounding. Where a ReLU is given next to zero, rounding decides which side it takes, and with it
    a whole path's gradient comes or goes, 9e-3 of the largest; a little aside, both take the same."""
    rng = np.random.default_rng(seed)
    return image * (1 + 1e-6 * rng.uniform(-1, 1, image.shape).astype(np.float32))


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", [(64, 64), (68, 108)])
def test_the_whole_cascade_is_its_single_ops(size):
    """The full network, where the fault was found; on processors without AVX-512 it does not show."""
    model = create_model("cdvd_tsp")
    variables = initial_variables(jax.random.key(0), model)
    (window,) = inputs(model, *size, frames=5)

    def run(variables, window):
        return [stage.restored for stage in model.apply(variables, window, method="cascade")]

    assert largest_deviation(compiled(run, variables, window)(variables, window), run(variables, window)) < TOLERANCE
