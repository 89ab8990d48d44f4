"""ESTRNN against the golden vectors and against plain NumPy, streaming against whole clips, the released windows."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur import create_model, restore
from jaxdeblur.interop import from_torch
from jaxdeblur.interop.estrnn import table
from jaxdeblur.interop.layout import find_faults, to_variables
from jaxdeblur.models import example_inputs
from jaxdeblur.models.estrnn import Cell, ESTRNNConfig, Fusion, Reconstructor, restore_by_windows, window_spans
from jaxdeblur.restoration import steps

TOLERANCE = 1e-5  # of an array's largest value; measured 2.4e-6 at most. GELU's other form is 1e-4 away


def check(value, expected, name):
    np.testing.assert_allclose(value, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=name)


@functools.cache
def official(case):
    """Arrays, the JSON, the model and its variables."""
    arrays, provenance = load_case("estrnn", case)
    given = provenance["config"]
    sizes = {"features": given["n_features"], "blocks": given["n_blocks"]}
    config = ESTRNNConfig(**sizes, past=given["past_frames"], future=given["future_frames"])
    state_dict = seeded_state_dict(provenance)
    rows = table(state_dict, config=config)
    assert find_faults(rows, state_dict) == []
    assert list(rows) == list(state_dict)
    return arrays, provenance, create_model("estrnn", **vars(config)), to_variables(rows, state_dict)


@functools.cache
def jit_method(model, method):
    return jax.jit(functools.partial(model.apply, method=method))


@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_every_stage_matches_the_reference(case):
    arrays, _, model, variables = official(case)
    expected, config, params = dict(arrays), model.config, variables["params"]
    frames = expected.pop("frames")

    def matches(name, value):
        if name in expected:
            check(value, expected.pop(name), name)

    seeing = jax.jit(functools.partial(Cell(config).apply, {"params": params["cell"]}, mutable="intermediates"))
    batch, time, height, width, _ = frames.shape
    state, features = np.zeros((batch, height // 4, width // 4, config.features), np.float32), []
    for t in range(time):
        (found, state), seen = seeing(frames[:, t, ..., ::-1] - np.float32(0.5), state)
        features.append(found)
        matches(f"h_{t}", found)
        matches(f"s_{t}", state)
        matches(f"F_B1_{t}", seen["intermediates"]["down1"][0])
        matches(f"F_B2_{t}", seen["intermediates"]["down2"][0])
    fuse = jax.jit(functools.partial(Fusion(config).apply, {"params": params["fusion"]}))
    make = functools.partial(Reconstructor(config).apply, {"params": params["reconstructor"]}, mutable="intermediates")
    make, outputs = jax.jit(make), expected.pop("output")
    for i in range(time - config.frames + 1):
        fused = fuse(np.concatenate(features[i : i + config.frames], axis=-1))
        image, seen = make(fused)
        matches(f"fused_{i}", fused)
        matches(f"up1_{i}", seen["intermediates"]["half"][0])
        check(image[..., ::-1] + np.float32(0.5), outputs[:, i], f"output {i}")
    assert expected == {}


def test_the_stream_is_the_reference():
    arrays, _, model, variables = official("case_a")
    frames, expected = arrays["frames"], arrays["output"]
    size, step = model.config.frames, jit_method(model, "step")
    carry = jit_method(model, "start")(variables, frames[:, :size])
    for i in range(expected.shape[1]):
        carry, outputs = step(variables, carry, frames[:, i : i + size])
        check(outputs.restored, expected[:, i], f"frame {i}")
    assert step._cache_size() == 1


def test_the_unrolled_clip_is_the_reference():
    arrays, _, model, variables = official("case_b")
    check(jit_method(model, "unroll")(variables, arrays["frames"]), arrays["output"], "output")


def test_the_released_tools_windows():
    arrays, provenance, model, variables = official("case_c_windows")
    frames, length = arrays["frames"], provenance["test_frames"]
    assert window_spans(frames.shape[1], length, 4) == list(map(tuple, provenance["windows"]))
    for overlaps, name in (("earlier", "output_first_seen"), ("later", "output")):
        restored = restore_by_windows(model, variables, frames, window_frames=length, overlaps=overlaps)
        check(restored, arrays[name], name)
    one_pass = restore_by_windows(model, variables, frames)
    check(one_pass, arrays["output_one_pass"], "one pass")
    # The second window begins with frame 4, so that frame 6 is the first it restores, and `memory_frames` later the
    # state is much as if it had gone on.
    deviation = np.abs(arrays["output"] - one_pass).max(axis=(0, 2, 3, 4))
    assert deviation[4] > 0.02
    assert deviation[4 + model.memory_frames] < 0.002


@pytest.mark.parametrize("count", [5, 19, 20, 21, 36, 37, 150])
def test_windows_reach_from_end_to_end_and_leave_no_frame_out(count):
    spans = window_spans(count, 20, 4)
    assert all(end - first == min(20, count) for first, end in spans)
    restored = {t for first, end in spans for t in range(first + 2, end - 2)}
    assert restored == set(range(2, count - 2))
    assert len(spans) == max(1, math.ceil((count - 4) / 16))


def test_what_windows_are_refused():
    _, _, model, variables = official("case_c_windows")
    frames = np.zeros((1, 6, 8, 8, 3), np.float32)
    for clip, options, message in (
        (frames[:, :4], {}, "the clip has 4 frames and window_frames is 20; expected 5 or more of both"),
        (frames, {"window_frames": 4}, "window_frames is 4; expected 5 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            restore_by_windows(model, variables, clip, **options)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 2_467_931),
        ({"blocks": 9}, 1_763_387),
        ({"features": 18, "blocks": 10}, 2_379_531),
        ({"features": 18}, 3_122_481),
    ],
)
def test_parameter_counts(options, parameters):
    model = create_model("estrnn", **options)
    params = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_released_files_are_read_with_and_without_prefix_and_other_sizes_refused():
    _, provenance, _, expected = official("case_a")
    given = seeded_state_dict(provenance)
    assert len(given) == 176
    jax.tree.map(np.testing.assert_array_equal, from_torch("estrnn", given), expected)
    bare = {name.removeprefix("module.model."): value for name, value in given.items()}
    jax.tree.map(np.testing.assert_array_equal, from_torch("estrnn", bare), expected)
    other = seeded_state_dict(official("case_c_windows")[1])
    with pytest.raises(ValueError, match=r"not the weights of estrnn:\n96 missing: module\.model\.cell\.F_R\.RDBs\.3"):
        from_torch("estrnn", other)


# --- against plain NumPy ---


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def convolved(x, layer, stride=1):
    """Zeros on all sides alike, float64."""
    kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
    reach = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    height, width = (-(-size // stride) for size in x.shape[1:3])
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for row, column in np.ndindex(kernel.shape[:2]):
        seen = padded[:, row : row + x.shape[1] : stride, column : column + x.shape[2] : stride]
        out += seen @ kernel[row, column]
    return out + bias


def dense(x, layers):
    read = x
    for name in ("dense1", "dense2", "dense3"):
        read = np.concatenate([read, gelu(convolved(read, layers[name]))], axis=-1)
    return x + convolved(read, layers["join"])


def seen_by_hand(frame, state, params, config):
    """The cell, a layer after the other."""
    x = convolved(frame, params["in_conv"])
    for name in ("down1", "down2"):
        x = convolved(dense(x, params[f"{name}_block"]), params[f"{name}_conv"], stride=2)
    x, results = np.concatenate([x, state], axis=-1), []
    for block in range(1, config.blocks + 1):
        x = dense(x, params[f"block_{block}"])
        results.append(x)
    every = np.concatenate(results, axis=-1)
    join = {"kernel": np.asarray(params["join"]["kernel"])[None, None], "bias": params["join"]["bias"]}
    features = convolved(convolved(every, join), params["features_conv"])
    state = convolved(dense(convolved(features, params["state_conv1"]), params["state_block"]), params["state_conv2"])
    return features, state


def fused_by_hand(features, params, past):
    """Neighbour by neighbour: pairs, gates, projection, condensing; features of every frame, the oldest first."""

    def layer(x, name):
        return x @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"])

    own, taken = features[past], []
    for neighbour in (*features[:past], *features[past + 1 :]):
        pair = np.concatenate([own, neighbour], axis=-1)
        logits = layer(gelu(layer(pair.mean(axis=(1, 2)), "gate1")), "gate2")
        gates = 1 / (1 + np.exp(-logits))
        projected = layer(layer(pair, "project1"), "project2")
        taken.append(layer(gates[:, None, None] * projected, "condense"))
    return layer(np.concatenate([*taken, own], axis=-1), "mix"), np.stack(taken, axis=1)


def small(**options):
    return create_model("estrnn", **{"features": 4, "blocks": 2, "past": 1, "future": 2, **options})


@functools.cache
def small_variables(**options):
    """Such that features do not fade and that neighbours and state have a say."""
    model, rng = small(**options), np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))

    def filled(path, leaf):
        name = path[-2].key
        gain = {"out_conv": 0.1, "state_conv1": 0.4, "join": 0.5, "gate1": 2.0, "gate2": 2.0}.get(name, 1.0)
        scale = gain * np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(filled, shapes)


def video(count, height=12, width=20, seed=0):
    return np.random.default_rng(seed).random((count, height, width, 3), np.float32)


def test_the_cell_is_its_layers_one_after_the_other():
    model, variables = small(), small_variables()
    rng = np.random.default_rng(2)
    frame, state = rng.standard_normal((2, 12, 20, 3)), rng.standard_normal((2, 3, 5, 4))
    params = variables["params"]["cell"]
    apply = jax.jit(functools.partial(Cell(model.config).apply, {"params": params}))
    found = apply(frame.astype(np.float32), state.astype(np.float32))
    for value, expected in zip(found, seen_by_hand(frame, state, params, model.config), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("past", "future"), [(1, 2), (0, 1), (2, 0)])
def test_the_fusions_matrix_is_the_layers_one_after_the_other(past, future):
    options = {"past": past, "future": future}
    config, params = small(**options).config, small_variables(**options)["params"]["fusion"]
    features = 2 * np.random.default_rng(3).standard_normal((config.frames, 2, 3, 5, config.channels))
    fused, taken = fused_by_hand(list(features), params, past)
    joined = np.concatenate(list(features), axis=-1).astype(np.float32)
    for value, expected in ((None, fused), ("taken", taken)):
        found = jax.jit(functools.partial(Fusion(config).apply, {"params": params}, method=value))(joined)
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


# --- streams and clips ---


@pytest.mark.parametrize("count", [1, 5])
def test_streaming_equals_the_whole_clip(count):
    model, variables, frames = small(), small_variables(), video(count)
    clip = jit_method(model, "__call__")(variables, frames[None])[0]
    restored = restore(frames, model, variables)
    assert np.ptp(restored) > 0.2
    np.testing.assert_allclose(restored, np.clip(clip, 0, 1), atol=1e-5)


def test_end_frames_are_repeated_through_the_cell():
    model, variables, frames = small(), small_variables(), video(5)
    clip = jit_method(model, "__call__")(variables, frames[None])
    around = frames[None, [0, 0, 1, 2, 3, 4, 4, 4]]
    np.testing.assert_allclose(clip, jit_method(model, "unroll")(variables, around), atol=1e-6)


def test_the_state_goes_on_within_a_clip_and_not_beyond():
    model, variables = small(), small_variables()
    unroll = functools.partial(jit_method(model, "unroll"), variables)
    clip, other = video(8)[None], video(8, seed=1)[None]
    whole = unroll(clip)
    same_beginning = unroll(np.concatenate([clip[:, :4], other[:, 4:]], axis=1))
    np.testing.assert_allclose(same_beginning[:, 0], whole[:, 0], atol=1e-6)
    assert np.abs(same_beginning[:, 1] - whole[:, 1]).max() > 1e-2
    same_end = unroll(np.concatenate([other[:, :4], clip[:, 4:]], axis=1))
    assert np.abs(same_end[:, -1] - whole[:, -1]).max() > 1e-4
    once = restore(clip[0], model, variables)
    restore(other[0], model, variables)
    np.testing.assert_array_equal(restore(clip[0], model, variables), once)


def test_the_cell_runs_once_a_frame_on_the_newest():
    model, variables, frames = small(), small_variables(), video(4)[None]
    calls = []

    def count(call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, Cell):
            calls.append(args[0])
        return call(*args, **kwargs)

    carry = jit_method(model, "start")(variables, frames)
    with nn.intercept_methods(count):
        jax.eval_shape(functools.partial(model.apply, method="step"), variables, carry, frames)
    assert len(calls) == 1
    older = np.concatenate([0 * frames[:, :-1], frames[:, -1:]], axis=1)
    step = jit_method(model, "step")
    kept, other = (step(variables, carry, window)[1].restored for window in (frames, older))
    np.testing.assert_array_equal(kept, other)


@pytest.mark.parametrize("size", [(12, 20), (36, 4)])
def test_compiled_equals_single_ops(size):
    model, variables, frames = small(), small_variables(), video(4, *size)[None]
    carry = jit_method(model, "start")(variables, frames)
    _, single = model.apply(variables, carry, frames, method="step")
    _, compiled = jit_method(model, "step")(variables, carry, frames)
    np.testing.assert_allclose(compiled.restored, single.restored, atol=3e-6)
    assert single.restored.shape == (1, *size, 3)


def test_other_sizes_are_filled_up_with_the_edge():
    model, variables, frames = small(), small_variables(), video(3, 1, 7)
    padded = np.pad(frames, ((0, 0), (0, 3), (0, 1), (0, 0)), mode="edge")
    expected = restore(padded, model, variables)[:, :1, :7]
    before = steps.step._cache_size()
    restored = restore(frames, model, variables)
    assert steps.step._cache_size() == before + 1
    np.testing.assert_allclose(restored, expected, atol=1e-6)


def test_examples_of_a_batch_keep_to_themselves():
    model, variables = small(), small_variables()
    clips = np.stack([video(8), 0.1 * video(8, seed=1)])  # so that gates and matrix differ
    together = jit_method(model, "unroll")(variables, clips)
    for clip, restored in zip(clips, together, strict=True):
        np.testing.assert_allclose(jit_method(model, "unroll")(variables, clip[None])[0], restored, atol=3e-6)


def test_the_gates_see_the_whole_frame():
    """Hence padding and tiles have an effect everywhere."""
    config, params = small().config, small_variables()["params"]["fusion"]
    joined = np.random.default_rng(4).standard_normal((1, 4, 50, 80)).astype(np.float32)
    other = joined.copy()
    other[0, 0, 0] += 10
    fuse = jax.jit(functools.partial(Fusion(config).apply, {"params": params}))
    assert np.abs(fuse(joined) - fuse(other))[0, 1:].min(axis=-1).max() > 1e-5


def test_gradients_reach_all_weights_through_time_with_and_without_keeping_what_they_need():
    model, variables, clip = small(), small_variables(), video(6, 8, 8)[None]

    def loss(params, clip, remat):
        restored = model.apply({"params": params}, clip, remat=remat, method="unroll")
        return jnp.mean(jnp.square(restored)), restored[0, -1]

    def gradients(remat):
        run = jax.jit(jax.grad(functools.partial(loss, remat=remat), argnums=(0, 1), has_aux=True))
        return run(variables["params"], clip)[0]

    kept, of_clip = gradients(False)
    for leaf in jax.tree.leaves(kept):
        assert np.all(np.isfinite(leaf))
        assert np.any(leaf)
    assert np.all(np.any(of_clip, axis=(2, 3, 4)))
    again, _ = gradients(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()), again, kept)


@pytest.mark.parametrize(("precision", "largest"), [("bfloat16", 0.02), ("float16", 0.003)])
def test_half_precision_stays_near(precision, largest):
    model, variables, clip = small(compute_dtype=precision), small_variables(), video(8)[None]
    exact = jit_method(small(), "unroll")(variables, clip)
    half = jit_method(model, "unroll")(variables, clip)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < largest
    carry = jax.eval_shape(jit_method(model, "start"), variables, clip[:, :4])
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(carry)} == {precision}


def test_explain_shows_what_is_taken_of_each_neighbour():
    model, variables, frames = small(), small_variables(), video(4)[None]
    carry = jit_method(model, "start")(variables, frames)
    pictures = jit_method(model, "explain")(variables, carry, frames)
    neighbours = [f"taken of frame {offset}" for offset in ("-1", "+1", "+2")]
    assert set(pictures) == {"blurred", *neighbours, "difference", "restored"}
    np.testing.assert_array_equal(pictures["blurred"], frames[:, 1])
    restored = jit_method(model, "step")(variables, carry, frames)[1].restored
    np.testing.assert_allclose(pictures["restored"], restored, atol=1e-6)
    taken = np.stack([pictures[name] for name in neighbours])
    assert taken.min() >= 0
    assert 0.5 < taken.max() <= 1
    assert np.abs(np.diff(taken, axis=0)).max() > 0.1


def test_initial_values_are_those_of_pytorch():
    config, joined = create_model("estrnn").config, jnp.zeros((1, 1, 1, 400))
    fusion, reconstructor = (part(config).init(jax.random.key(0), joined) for part in (Fusion, Reconstructor))
    for variables, name, fan_in in (
        (reconstructor, "out_conv", 25 * 16),
        (reconstructor, "up1", 9 * 32),  # PyTorch counts the outputs of transposed convolutions
        (fusion, "gate2", 320),
    ):
        kernel, bias = (variables["params"][name][kind] for kind in ("kernel", "bias"))
        np.testing.assert_allclose(np.var(kernel) * fan_in, 1 / 3, rtol=0.1)
        assert np.abs(kernel).max() <= fan_in**-0.5
        assert 0.3 * fan_in**-0.5 < np.abs(bias).max() <= fan_in**-0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features is 0; expected 1 or more"),
        ({"blocks": 0}, "blocks is 0; expected 1 or more"),
        ({"past": -1}, "past is -1; expected 0 or more"),
        ({"past": 0, "future": 0}, "past and future are both 0; expected at least one neighbour"),
        ({"width": 0.5}, "ESTRNNConfig has no option width"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("estrnn", **options)


def test_windows_and_clips_that_do_not_fit_are_refused():
    for method, shape, message in (
        ("start", (1, 5, 8, 8, 3), r"expected \(batch, 4, height"),
        ("start", (1, 4, 8, 10, 3), "8 x 10; expected multiples of 4"),
        ("unroll", (1, 3, 8, 8, 3), r"clip has shape \(1, 3, 8, 8, 3\); expected \(batch, 4 or more"),
        ("unroll", (1, 6, 6, 8, 3), "6 x 8; expected multiples of 4"),
        ("__call__", (5, 8, 8, 3), r"expected \(batch, time, height, width, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            small().apply(small_variables(), jnp.zeros(shape), method=method)
