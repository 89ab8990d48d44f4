"""VDFlow against its two branches alone, its switches, and streaming."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import create_model, restore
from jaxdeblur.models import example_inputs, initial_variables
from jaxdeblur.models.vdflow import with_zero_slices

FULL = 58_575_003
SMALL = 1 / 32
READS = [f"{reader}_at_{scale}" for reader in ("deblur_reads_flow", "flow_reads_deblur") for scale in (8, 4)]


def small(**options):
    return create_model("vdflow", **{"width": SMALL, **options})


@functools.cache
def small_variables(**options):
    """With statistics that are not those of the start, and biases that are not zero."""
    variables = initial_variables(jax.random.key(1), small(**options))
    noise = iter(np.random.default_rng(2).random((1000, 600), np.float32))
    return jax.tree.map(lambda x: x + 0.1 * next(noise)[: len(x)] if x.ndim == 1 else x, variables)


@functools.cache
def jit_window(model):
    return jax.jit(functools.partial(model.apply, method="restore_window"))


def window(batch=1, seed=0, height=64, width=64):
    return np.random.default_rng(seed).random((batch, 5, height, width, 3), np.float32)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, FULL),
        ({"flow_networks": "separate"}, 97_788_651),
        # Fewer by the further input channels of the layers that then see none (3 x 3 kernels, or 4 x 4).
        ({"deblur_reads_flow_at_8": False}, FULL - 16 * 2 * 386 * 256),
        ({"deblur_reads_flow_at_4": False}, FULL - 9 * 2 * 194 * 256),
        ({"flow_reads_deblur_at_8": False}, FULL - 512 * (9 * 2 + 16 * 64)),
        ({"flow_reads_deblur_at_4": False}, FULL - 256 * 9 * 2),
        (dict.fromkeys(READS, False), 15_305_291 + 38_675_536),
    ],
)
def test_parameter_counts(options, count):
    model = create_model("vdflow", **options)
    params = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_with_zero_slices_the_flows_are_those_of_flownets():
    flownets = create_model("flownets", width=SMALL)
    alone = initial_variables(jax.random.key(3), flownets)["params"]
    given = small_variables()
    params = {**given["params"], "flow_net": with_zero_slices(alone, given["params"]["flow_net"])}
    frames = window()
    outputs = jit_window(small())({**given, "params": params}, frames)
    for levels, neighbour in ((outputs.levels_cur_to_prev, 1), (outputs.levels_cur_to_next, 3)):
        levels_of = jax.jit(functools.partial(flownets.apply, method="levels"))
        expected = levels_of({"params": alone}, frames[:, 2], frames[:, neighbour])
        assert len(levels) == len(expected) == 5
        for level, reference in zip(levels, expected, strict=True):
            np.testing.assert_allclose(level, reference, atol=1e-5 * np.abs(reference).max())
    # Not so with what is initialised: the other branch is heard.
    heard = jit_window(small())(given, frames).levels_cur_to_next[0]
    flow_net = given["params"]["flow_net"]
    deaf = with_zero_slices(jax.tree.map(lambda x, like: x[..., : like.shape[-2], :] if x.ndim == 4 else x,
                                         flow_net, alone), flow_net)  # fmt: skip
    unheard = jit_window(small())({**given, "params": {**given["params"], "flow_net": deaf}}, frames)
    assert np.abs(heard - unheard.levels_cur_to_next[0]).max() > 1e-4


def test_with_zero_slices_the_frame_is_that_of_dbn():
    dbn, given, frames = create_model("dbn", width=SMALL), small_variables(), window()
    deblur = dict(given["params"]["deblur"])
    own = {"U1": 512, "F9": 256}
    bare = dict(deblur)
    for name, channels in own.items():
        kept = round(SMALL * channels)
        conv = deblur[name]["conv"]
        deblur[name] = {**deblur[name], "conv": {**conv, "kernel": conv["kernel"].at[:, :, kept:].set(0)}}
        bare[name] = {**deblur[name], "conv": {**conv, "kernel": conv["kernel"][:, :, :kept]}}
    joint = jit_window(small())({**given, "params": {**given["params"], "deblur": deblur}}, frames).restored
    statistics = {"deblur": given["batch_stats"]["deblur"]}
    alone = jit_window(dbn)({"params": {"deblur": bare}, "batch_stats": statistics}, frames).restored
    np.testing.assert_allclose(joint, alone, atol=1e-5)
    assert np.abs(jit_window(small())(given, frames).restored - alone).max() > 1e-4


def test_one_flow_network_for_each_direction():
    given, frames = small_variables(), window(2)
    flow_net = given["params"]["flow_net"]
    params = {"deblur": given["params"]["deblur"], "flow_net_prev": flow_net, "flow_net_next": flow_net}
    shared, separate = jit_window(small()), jit_window(small(flow_networks="separate"))
    expected = shared(given, frames)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-5),
        separate({**given, "params": params}, frames),
        expected,
    )
    other = jax.tree.map(lambda x: 1.1 * x, flow_net)
    changed = separate({**given, "params": {**params, "flow_net_next": other}}, frames)
    assert np.abs(changed.levels_cur_to_next[4] - expected.levels_cur_to_next[4]).max() > 1e-4
    np.testing.assert_allclose(changed.levels_cur_to_prev[4], expected.levels_cur_to_prev[4], atol=1e-5)


@pytest.mark.parametrize(
    "reads", [READS[0], READS[3], *(pytest.param(reads, marks=pytest.mark.exhaustive) for reads in READS[1:3])]
)
def test_each_switch_lets_one_branch_read_the_other(reads):
    model = small(**{**dict.fromkeys(READS, False), reads: True})
    given = initial_variables(jax.random.key(0), model)

    def results(branch=None, layer=()):
        """Flows and what goes into the sigmoid, one branch's first layer stretched."""
        params = given["params"]
        if branch:
            changed = functools.reduce(lambda tree, name: tree[name], layer, params[branch])["kernel"]
            params = jax.tree.map(lambda x: 1.5 * x if x is changed else x, params)
        outputs = jit_window(model)({**given, "params": params}, window())
        return {"deblur": outputs.restored, "flow_net": outputs.levels_cur_to_prev[0]}

    as_it_is = results()
    reader, read = ("deblur", "flow_net") if reads.startswith("deblur") else ("flow_net", "deblur")
    # A convolution under batch normalisation: only by running statistics does its size matter.
    for branch, layer in (("deblur", ("F0", "conv")), ("flow_net", ("conv1",))):
        changed = {name: np.abs(x - as_it_is[name]).max() for name, x in results(branch, layer).items()}
        assert changed[branch] > 1e-4
        assert (changed[reader if branch == read else read] > 1e-6) == (branch == read)


def test_gradients_pass_both_ways_between_the_branches():
    given = small_variables()

    def results(params):
        outputs = small().apply({**given, "params": params}, window(), method="restore_window")
        return {"deblur": jnp.sum(outputs.restored**2), "flow_net": jnp.sum(outputs.levels_cur_to_prev[0] ** 2)}

    reached = jax.jit(jax.jacrev(results))(given["params"])
    for result in ("deblur", "flow_net"):
        for leaf in (reached[result]["deblur"]["F0"]["conv"], reached[result]["flow_net"]["conv1"]):
            assert np.abs(leaf["kernel"]).max() > 0


def test_examples_of_a_batch_do_not_meet():
    frames = window(2)
    both = jit_window(small())(small_variables(), frames)
    for number in range(2):
        alone = jit_window(small())(small_variables(), frames[number : number + 1])
        one_of_both = jax.tree.map(lambda x, n=number: x[n : n + 1], both)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), alone, one_of_both)


def test_the_flows_lead_to_the_frames_on_their_sides():
    """Both directions are one network: exchanging the neighbours exchanges the flows, where no branch is read."""
    model = small(**dict.fromkeys(READS, False))
    variables, frames = initial_variables(jax.random.key(0), model), window()
    flows = functools.partial(model.apply, variables, method="flows")
    to_prev, to_next = jax.jit(flows)(frames)
    exchanged = jax.jit(flows)(frames[:, ::-1])
    assert to_prev.shape == (1, 64, 64, 2)
    np.testing.assert_allclose(exchanged[0], to_next, atol=1e-5)
    np.testing.assert_allclose(exchanged[1], to_prev, atol=1e-5)
    flownets = create_model("flownets", width=SMALL)
    pixels = jax.jit(flownets.apply)({"params": variables["params"]["flow_net"]}, frames[:, 2], frames[:, 3])
    np.testing.assert_allclose(to_next, pixels, atol=1e-5 * np.abs(pixels).max())


def test_a_stream_is_restored_from_windows_with_repeated_ends():
    frames = np.random.default_rng(3).random((4, 40, 50, 3), np.float32)
    restored = restore(frames, small(), small_variables())
    assert restored.shape == frames.shape
    padded = np.pad(frames, ((0, 0), (0, 24), (0, 14), (0, 0)))
    for t in range(4):
        seen = padded[np.clip(np.arange(t - 2, t + 3), 0, 3)][None]
        alone = jit_window(small())(small_variables(), seen).restored[0, :40, :50]
        np.testing.assert_allclose(restored[t], alone, atol=1e-5)


def test_only_the_deblurring_branch_has_statistics_and_training_moves_all_of_them():
    given = small_variables()
    assert list(given["batch_stats"]) == ["deblur"]
    run = functools.partial(small().apply, method="restore_window", mutable=("batch_stats",), train=True)
    after = jax.jit(run)(given, window(2))[1]["batch_stats"]
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, given["batch_stats"])
    assert jax.tree.leaves(moved) == [True] * 44


def test_half_precision_keeps_flows_and_frames_in_float32():
    exact = jit_window(small())(small_variables(), window())
    half = jit_window(small(compute_dtype="bfloat16"))(small_variables(), window())
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(exact), strict=True):
        assert a.dtype == np.float32
        assert np.abs(a - b).max() < 0.06 * max(1.0, float(np.abs(b).max()))
    assert np.abs(half.restored - exact.restored).max() > 0


def test_explain_names_its_pictures():
    pictures = jax.jit(functools.partial(small().apply, method="explain"))(small_variables(), (), window())
    assert set(pictures) == {"blurred", "flow to previous", "flow to next", "difference", "restored"}
    assert all(picture.shape == (1, 64, 64, 3) for picture in pictures.values())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected a fraction above 0"):
        small(width=0.0)
    with pytest.raises(ValueError, match="multiples of 64"):
        small().apply(small_variables(), window(height=72), method="restore_window")
    with pytest.raises(ValueError, match="expected \\(batch, 5, height, width, 3\\)"):
        small().apply(small_variables(), window()[:, :3], method="restore_window")
