import contextlib
import functools
import inspect

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import load_case

from jaxdeblur.ops.spatial_rnn import DIRECTIONS, FORMS, four_direction_recurrence
from jaxdeblur.training.sharding import along_batch, make_mesh

recurrence = jax.jit(four_direction_recurrence, static_argnames="form")


@functools.partial(jax.jit, static_argnames="form")
def recurrence_and_gradients(f, w, cotangent, form=None):
    h, transpose = jax.vjp(functools.partial(four_direction_recurrence, form=form), f, w)
    return h, *transpose(cotangent)


def line_oracle(f, w):
    """One line in the direction of travel, number by number."""
    h, state = [], 0.0
    for f_i, w_i in zip(f, w, strict=True):
        state = (1 - w_i) * f_i + w_i * state
        h.append(state)
    return h


def oracle(f, w):
    """All lines of (B, H, W, C) and (B, H, W, 4 C), in the arrays' own precision."""
    batch, height, width, channels = f.shape
    h = np.zeros(w.shape, w.dtype)
    for b, c in np.ndindex(batch, channels):
        blocks = [d * channels + c for d in range(4)]
        for y in range(height):
            h[b, y, :, blocks[0]] = line_oracle(f[b, y, :, c], w[b, y, :, blocks[0]])
            h[b, y, ::-1, blocks[1]] = line_oracle(f[b, y, ::-1, c], w[b, y, ::-1, blocks[1]])
        for x in range(width):
            h[b, :, x, blocks[2]] = line_oracle(f[b, :, x, c], w[b, :, x, blocks[2]])
            h[b, ::-1, x, blocks[3]] = line_oracle(f[b, ::-1, x, c], w[b, ::-1, x, blocks[3]])
    return h


def gradient_oracle(f, w, cotangent):
    """Derivatives of sum(cotangent h) by steps in the imaginary direction: exact to rounding, for any formula."""
    step = 1e-30
    gradients = []
    for which, array in enumerate((f, w)):
        gradient = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            moved = [f.astype(complex), w.astype(complex)]
            moved[which][index] += 1j * step
            gradient[index] = np.sum(cotangent * oracle(*moved).imag) / step
        gradients.append(gradient)
    return gradients


def random_case(seed, shape):
    rng = np.random.default_rng(seed)
    wide = (*shape[:-1], 4 * shape[-1])
    return rng.normal(size=shape), np.tanh(rng.normal(size=wide)), rng.normal(size=wide)


def assert_close(value, expected, tolerance=2e-6):
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("case", ["case_a", "case_b_near_unit_weights", "case_c_long"])
@pytest.mark.parametrize("form", FORMS)
def test_matches_the_golden_vectors(case, form):
    arrays, _ = load_case("svrnn_recurrence", case)
    h, df, dw = recurrence_and_gradients(arrays["f"], arrays["w"], arrays["cotangent"], form=form)
    assert_close(h, arrays["h"])
    assert_close(df, arrays["df"])
    assert_close(dw, arrays["dw"])


def test_the_oracle_gives_the_golden_vectors():
    arrays, _ = load_case("svrnn_recurrence", "case_a")
    assert_close(oracle(*(arrays[name].astype(np.float64) for name in ("f", "w"))), arrays["h"])


# Lines shorter than a block or a chunk, as long, longer, with and without a rest; more lanes than a program's.
SHAPES = [(1, 1, 1, 1), (2, 1, 9, 1), (1, 8, 2, 2), (1, 2, 33, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_oracle_in_value_and_both_gradients(shape, form):
    f, w, cotangent = random_case(3, shape)
    expected = [oracle(f, w), *gradient_oracle(f, w, cotangent)]
    found = recurrence_and_gradients(*(x.astype(np.float32) for x in (f, w, cotangent)), form=form)
    for value, truth in zip(found, expected, strict=True):
        assert_close(value, truth)


@pytest.mark.parametrize("shape", [(2, 65, 40, 3), (1, 31, 130, 2)])
@pytest.mark.parametrize("form", FORMS)
def test_long_lines_and_many(shape, form):
    f, w, cotangent = (x.astype(np.float32) for x in random_case(4, shape))
    h, df, dw = recurrence_and_gradients(f, w, cotangent, form=form)
    assert_close(h, oracle(f.astype(np.float64), w.astype(np.float64)))
    plain = recurrence_and_gradients(f, w, cotangent, form="sequential")  # held to the oracle on small arrays
    assert_close(df, plain[1])
    assert_close(dw, plain[2])


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_keeps_a_float32_state(form):
    # Weights near one: a state in bfloat16 would forget what comes in.
    f, w, cotangent = random_case(5, (1, 3, 200, 2))
    f, w, cotangent = (x.astype(jnp.bfloat16) for x in (f, 0.99 + 0.009 * w, cotangent))
    h, df, dw = recurrence_and_gradients(f, w, cotangent, form=form)
    assert (h.dtype, df.dtype, dw.dtype) == (jnp.bfloat16,) * 3
    wide = [np.asarray(x, np.float32) for x in (f, w, cotangent)]
    exact = recurrence_and_gradients(*wide, form="sequential")
    # Half a unit in the last of eight bits, of each value; gradients to weights also see a rounded h.
    np.testing.assert_allclose(np.asarray(h, np.float32), exact[0], rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(np.asarray(df, np.float32), exact[1], rtol=2**-8, atol=1e-5)
    assert_close(np.asarray(dw, np.float32), exact[2], tolerance=8e-3)


# Laws, of the form that is picked here; the others equal it.

SEEDS = st.integers(0, 2**32 - 1)


def random_arrays(seed):
    return tuple(x.astype(np.float32) for x in random_case(seed, (2, 6, 11, 3)))


def blocks_of(wide):
    return np.split(np.asarray(wide), 4, axis=-1)


@given(SEEDS)
def test_weight_zero_copies(seed):
    f, w, _ = random_arrays(seed)
    for block in blocks_of(recurrence(f, np.zeros_like(w))):
        np.testing.assert_array_equal(block, f)


@given(SEEDS)
def test_a_constant_stays_one_away_from_where_a_line_begins(seed):
    _, w, _ = random_arrays(seed)
    h = recurrence(np.full((2, 6, 11, 3), 0.7, np.float32), np.clip(w, -0.5, 0.5))
    left_to_right = blocks_of(h)[0]
    assert np.all(np.abs(left_to_right[:, :, -1] - 0.7) <= 0.7 * 0.5**11 + 1e-6)


@given(SEEDS)
def test_mirrored_lines_swap_the_senses(seed):
    f, w, _ = random_arrays(seed)
    right, left, down, up = blocks_of(recurrence(f, w))
    w_blocks = blocks_of(w)
    mirrored = np.concatenate([w_blocks[i][:, :, ::-1] for i in (1, 0, 2, 3)], axis=-1)
    found = blocks_of(recurrence(f[:, :, ::-1], mirrored))
    for value, expected in zip(found, (left, right, down, up), strict=True):
        np.testing.assert_allclose(value[:, :, ::-1], expected, rtol=0, atol=1e-5)


@given(SEEDS)
def test_a_transposed_picture_swaps_the_axes(seed):
    f, w, _ = random_arrays(seed)
    right, left, down, up = blocks_of(recurrence(f, w))
    w_blocks = blocks_of(w)
    turned = np.concatenate([w_blocks[i].swapaxes(1, 2) for i in (2, 3, 0, 1)], axis=-1)
    found = blocks_of(recurrence(f.swapaxes(1, 2), turned))
    for value, expected in zip(found, (down, up, right, left), strict=True):
        np.testing.assert_allclose(value.swapaxes(1, 2), expected, rtol=0, atol=1e-5)


@given(SEEDS)
def test_a_direction_sees_only_what_lies_behind_it(seed):
    f, w, _ = random_arrays(seed)
    changed = f.copy()
    changed[:, 3, 5] += 1
    for name, before, after in zip(DIRECTIONS, blocks_of(recurrence(f, w)), blocks_of(recurrence(changed, w))):
        ahead = {
            "left to right": np.s_[:, 3, 5:],
            "right to left": np.s_[:, 3, :6],
            "top to bottom": np.s_[:, 3:, 5],
            "bottom to top": np.s_[:, :4, 5],
        }[name]
        moved = np.any(before != after, axis=-1)
        assert moved[:, 3, 5].all()
        moved[ahead] = False
        assert not moved.any(), name


# Contracts.


@pytest.mark.parametrize("form", ["blocked", "kernel"])
def test_jit_equals_eager(form):
    f, w, _ = random_arrays(0)
    np.testing.assert_allclose(four_direction_recurrence(f, w, form=form), recurrence(f, w, form=form), atol=1e-6)


@pytest.mark.parametrize("form", [None, "kernel"])
def test_linearises_and_transposes_as_training_does(form):
    f, w, cotangent = random_arrays(1)
    _, tangent = jax.linearize(functools.partial(four_direction_recurrence, form=form), f, w)
    found = jax.linear_transpose(tangent, f, w)(cotangent)
    for value, expected in zip(found, recurrence_and_gradients(f, w, cotangent, form="sequential")[1:], strict=True):
        assert_close(value, expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_split_over_devices_stays_where_it_is(form):
    f, w, cotangent = (x.astype(np.float32) for x in random_case(6, (8, 5, 9, 2)))
    expected = recurrence_and_gradients(f, w, cotangent, form=form)
    mesh = make_mesh()
    arrays = [jax.device_put(x, along_batch(mesh, 0)) for x in (f, w, cotangent)]
    compiled = recurrence_and_gradients.lower(*arrays, form=form).compile()
    assert "all-gather" not in compiled.as_text()
    for value, single in zip(compiled(*arrays), expected, strict=True):
        assert len(value.sharding.device_set) == 8
        assert_close(value, single)


def test_little_is_held_beside_arguments_and_results():
    f, w, cotangent = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 64, 96, 8), (1, 64, 96, 32), (1, 64, 96, 32)))
    memory = recurrence_and_gradients.lower(f, w, cotangent).compile().memory_analysis()
    arrays = (1 + 4 + 4) + (4 + 1 + 4)  # f, w, g and h, df, dw, in units of f
    unit = 64 * 96 * 8 * 4
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert total <= 1.5 * arrays * unit  # with lambda and what XLA lays out twice


def _as_on_a_gpu():
    """From jax 0.12 on kernels are lowered for a GPU that is there, or for one that is named."""
    if jax.__version_info__ < (0, 12):
        return contextlib.nullcontext()
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu))


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")  # by jax 0.12
@pytest.mark.parametrize(
    ("features", "weights"), [("float32", "float32"), ("bfloat16", "float32"), ("float16", "float16")]
)
def test_the_kernel_is_what_a_gpu_runs_and_no_one_else(features, weights):
    f, cotangent = (jax.ShapeDtypeStruct((2, 13, 20, channels), features) for channels in (24, 96))
    w = jax.ShapeDtypeStruct((2, 13, 20, 96), weights)
    with _as_on_a_gpu():
        traced = recurrence_and_gradients.trace(f, w, cotangent)
        kernels = {p: traced.lower(lowering_platforms=(p,)).as_text().count("triton") for p in ("cuda", "cpu", "tpu")}
    assert kernels == {"cuda": 2, "cpu": 0, "tpu": 0}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_compiled_kernel_equals_the_oracle(dtype):
    f, w, cotangent = (x.astype(dtype) for x in random_case(7, (2, 96, 160, 24)))
    found = recurrence_and_gradients(f, w, cotangent, form="kernel")
    wide = [np.asarray(x, np.float32) for x in (f, w, cotangent)]
    tolerance = 2e-6 if dtype == "float32" else 8e-3
    assert_close(np.asarray(found[0], np.float32), oracle(*(x.astype(np.float64) for x in wide[:2])), tolerance)
    for value, expected in zip(found, recurrence_and_gradients(*wide, form="sequential"), strict=True):
        assert_close(np.asarray(value, np.float32), expected, tolerance)


def test_one_trace_for_many_calls():
    traces = []

    @jax.jit
    def run(f, w):
        traces.append(0)
        return four_direction_recurrence(f, w)

    f, w, _ = random_arrays(0)
    for _ in range(3):
        run(f, w)
    assert len(traces) == 1


def test_what_does_not_fit_says_so():
    f, w, _ = random_arrays(0)
    with pytest.raises(ValueError, match=r"features \(2, 6, 11, 3\) and weights \(2, 6, 11, 3\) must be"):
        four_direction_recurrence(f, f)
    with pytest.raises(ValueError, match="not empty"):
        four_direction_recurrence(f[:, :0], w[:, :0])
    with pytest.raises(ValueError, match="form is 'tree'; expected one of sequential"):
        inspect.unwrap(four_direction_recurrence)(f, w, form="tree")  # as without the type checker
    with pytest.raises(ValueError, match="features are int32 and weights float32; expected floating numbers"):
        inspect.unwrap(four_direction_recurrence)(f.astype(np.int32), w)


def test_what_is_too_large_for_the_kernel_goes_another_way():
    huge = [jax.ShapeDtypeStruct((1, 2**15, 2**12, channels), jnp.bfloat16) for channels in (4, 16)]
    with pytest.raises(ValueError, match=r"less than 2\^31 weights a device, not 2147483648; use form='chunked'"):
        recurrence.trace(*huge, form="kernel")
    assert "triton" not in recurrence.trace(*huge).lower(lowering_platforms=("cuda",)).as_text()


def test_what_is_exported_serves_every_size_and_platform_without_the_kernel():
    size = jax.export.symbolic_shape("8*h, 8*w")
    shapes = (jax.ShapeDtypeStruct((1, *size, channels), np.float32) for channels in (2, 8))
    exported = jax.export.export(recurrence, platforms=("cpu", "cuda", "tpu"))(*shapes)
    assert "triton" not in exported.mlir_module()
    for height, width in ((8, 8), (40, 16)):
        f, w, _ = (x.astype(np.float32) for x in random_case(9, (1, height, width, 2)))
        assert_close(exported.call(f, w), oracle(f, w))


@pytest.mark.parametrize("form", [None, "chunked", "kernel"])
def test_vmap_is_a_loop(form):
    f, w, cotangent = (x.astype(np.float32) for x in random_case(8, (3, 2, 5, 9, 2)))
    run = functools.partial(recurrence_and_gradients, form=form)
    each = [run(f[0], *rest) for rest in zip(w, cotangent, strict=True)]
    mapped = jax.jit(jax.vmap(run, in_axes=(None, 0, 0)))(f[0], w, cotangent)
    for found, expected in zip(mapped, zip(*each, strict=True), strict=True):
        assert_close(found, np.stack(expected))
