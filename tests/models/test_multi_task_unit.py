import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import load_case, seeded_state_dict

from jaxdeblur.interop import from_torch
from jaxdeblur.layers.conv import Conv
from jaxdeblur.models import MODELS, create_model, example_inputs, multi_task_unit
from jaxdeblur.models.multi_task_unit import MultiTaskUnitConfig, MultiTaskUnits
from jaxdeblur.models.windows import clip_windows
from jaxdeblur.ops.correlation import best_displacement, local_cost_volume
from jaxdeblur.ops.filters import box_mean
from jaxdeblur.ops.warp import warp_blocks

# --- the released network ---

# Our float32 run may stray from float64 this many times as far as the reference's own float32 run did.
ERROR_FACTOR = 4
CASES = {
    "mtu1": ("mtu1", "rt_mtu1", "case_a"),
    "mtu2": ("mtu2", "rt_mtu2", "case_a"),
    "mtu2 batch of 2": ("mtu2", "rt_mtu2", "case_b_batch2"),
    "mtu10l": ("mtu10l", "rt_mtu10l", "case_a"),
}
# Golden name -> which of the recorded float32 errors bounds it; None: that of the restored frames.
ERROR_OF = {
    "base_f1": "base",
    "inp_prev_f1": "base",
    "unit1_f1": "unit1",
    "motion_f1": "unit1",
    "cost_f1": "cost",
    "unitN_f0": "unitN",
    "unitN_f1": "unitN",
    "warped_f1": "unitN",
    "raw": None,
    "aux": None,
    "aux_f1": None,
}


@functools.cache
def released(case):
    """Model and seeded weights."""
    name, folder, file = CASES[case]
    return create_model(name), from_torch(name, seeded_state_dict(load_case(folder, file)[1]))


def jit_step(model, **options):
    return jax.jit(lambda variables, carry, window: model.apply(variables, carry, window, method="step", **options))


@functools.cache
def golden_run(case):
    """(expected arrays, JSON, our arrays under the golden names, handed-on frames); frame by frame."""
    expected, provenance = load_case(*CASES[case][1:])
    model, variables = released(case)
    frames = expected["frames"]
    windows, step = clip_windows(frames), jit_step(model, train=True)
    carry, outputs = model.init_carry(frames.shape[0], *frames.shape[2:4]), []
    for t in range(frames.shape[1]):
        carry, out = step(variables, carry, windows[:, t])
        # train=True for the intermediate frames; the goldens feed the clamped frame back.
        carry = carry.replace(restored=jnp.clip(carry.restored, 0, 1))
        outputs.append(out)
    first, second = outputs[:2]
    made = {
        "raw": np.stack([out.restored for out in outputs], 1),
        "disp": np.stack([out.displacement_cur_to_prev for out in outputs], 1),
        "base_f1": second.structure,
        "inp_prev_f1": second.history[:, ::2, ::2],
        "unit1_f1": second.units[0],
        "motion_f1": second.motion_features,
        "cost_f1": second.cost,
        "unitN_f0": first.units[-1][:, ::2, ::2],
        "unitN_f1": second.units[-1],
        "warped_f1": second.warped[0],
    }
    if first.intermediate:
        made["aux"] = np.stack([np.stack(out.intermediate, -2) for out in outputs], 1)
        made["aux_f1"] = made["aux"][:, 1]
    return expected, provenance, made


def golden_arrays():
    rows = []
    for case, (_, folder, file) in CASES.items():
        stored = load_case(folder, file)[0]
        rows += [(case, name) for name in ERROR_OF if name in stored]
        assert set(stored) <= {*ERROR_OF, "frames", "disp", "margin", "gt_f1", "flow_half_f1"}
    return rows


@pytest.mark.parametrize(("case", "name"), golden_arrays())
def test_every_stage_matches_the_released_network(case, name):
    expected, provenance, made = golden_run(case)
    recorded = provenance["float32_reference_max_abs_error"]
    kind = ERROR_OF[name]
    tolerance = ERROR_FACTOR * (recorded[kind] if kind else provenance["float32_reference_max_abs_error_output"])
    assert tolerance < 2e-5
    assert made[name].shape == expected[name].shape
    np.testing.assert_allclose(made[name], expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_displacements_match_the_released_network(case):
    expected, provenance, made = golden_run(case)
    safe = expected["margin"] > 1e-6  # of a tie; float32 errs by 3e-7
    assert provenance["min_margin"] > 1e-6
    np.testing.assert_array_equal(made["disp"][safe], expected["disp"][safe])


@pytest.mark.parametrize("case", ["mtu1", "mtu2 batch of 2"])
def test_a_scanned_clip_equals_its_steps(case):
    expected, _, made = golden_run(case)
    model, variables = released(case)
    clip = jax.jit(model.apply)(variables, expected["frames"])
    np.testing.assert_allclose(clip, made["raw"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["matching_d10", "matching_d5"])
def test_matching_and_warping_alone_match_the_released_ones(case):
    expected, provenance = load_case("rt_mtu2", case)
    cost = local_cost_volume(
        expected["feat_current"], expected["feat_previous"], radius=provenance["D"], similarity="cosine"
    )
    np.testing.assert_allclose(cost, expected["cost_unpooled"], rtol=0, atol=1e-6)
    cost = box_mean(cost, 5)
    np.testing.assert_allclose(cost, expected["cost"], rtol=0, atol=1e-6)
    displacement, _ = best_displacement(cost)
    assert np.all(expected["margin"] > 1e-6)
    np.testing.assert_array_equal(displacement, expected["disp"])
    given = expected["disp_given"].astype(np.int32)
    assert provenance["fraction_of_disp_pointing_outside"] > 0.1
    for where, warped in ((displacement, "warped"), (given, "warped_by_disp_given")):
        # Not equal to the last bit: the released code samples between pixels, 1e-15 away from whole ones.
        out = warp_blocks(expected["feat_full"], where, block=4)
        np.testing.assert_allclose(out, expected[warped], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "inference", "training"),
    [
        ("mtu1", 538_073, 538_073),
        ("mtu2", 1_037_325, 1_038_732),
        ("mtu4", 2_035_829, 2_040_050),
        ("mtu10", 5_031_341, 5_044_004),
        ("mtu10l", 13_802_547, 13_825_902),
    ],
)
def test_parameter_counts(name, inference, training):
    model = create_model(name)
    params = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        sizes["/".join(entry.key for entry in path)] = leaf.size
    assert sum(sizes.values()) == training
    assert sum(size for path, size in sizes.items() if not MultiTaskUnits.is_training_only(path)) == inference


def test_weights_without_the_layers_for_training_restore():
    expected, provenance, made = golden_run("mtu2")
    state_dict = seeded_state_dict(provenance)
    bare = {key: value for key, value in state_dict.items() if "deblur_layer" not in key}
    assert len(bare) == len(state_dict) - 2
    model, _ = released("mtu2")
    carry = model.init_carry(1, 40, 56)
    _, outputs = jit_step(model)(from_torch("mtu2", bare), carry, clip_windows(expected["frames"])[:, 0])
    np.testing.assert_allclose(outputs.restored, made["raw"][:, 0], rtol=0, atol=1e-6)


# --- a small network of the same make ---

HEIGHT, WIDTH = 16, 20


def small(units=2, **options):
    return MultiTaskUnits(MultiTaskUnitConfig(units, channels=4, residual_blocks=1, match_radius=2, **options))


@functools.cache
def initial(**options):
    # This generator compiles several times faster than the default one.
    key = jax.random.key(0, impl="rbg")
    return jax.jit(small(**options).init)(key, jnp.zeros((1, 1, 4, 4, 3)))


@functools.cache
def weights(units=2):
    """Larger than the initial ones, so that no feature map is nearly constant."""
    params = jax.eval_shape(small(units).init, jax.random.key(0), jnp.zeros((1, 1, 4, 4, 3)))["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape).astype(np.float32)
        return 0.1 * normal if path[-1].key == "bias" else normal * np.float32(np.sqrt(1.3 / np.prod(leaf.shape[:-1])))

    return {"params": jax.tree_util.tree_map_with_path(draw, params)}


@functools.cache
def clip_of_noise(batch=1, time=4):
    """Blobs of a few pixels, moving."""
    rng = np.random.default_rng(1)
    still = rng.uniform(0, 1, (batch, HEIGHT // 2 + time, WIDTH // 2 + time, 3))
    large = np.repeat(np.repeat(still, 2, 1), 2, 2)
    frames = [large[:, 2 * t : 2 * t + HEIGHT, 4 * (t // 2) : 4 * (t // 2) + WIDTH] for t in range(time)]
    return np.stack(frames, 1).astype(np.float32)


def run_steps(model, variables, clip, **options):
    """Carries before each frame and outputs of each, under jit."""
    step, windows = jit_step(model, **options), clip_windows(clip)
    carry, carries, outputs = model.init_carry(clip.shape[0], *clip.shape[2:4]), [], []
    for t in range(clip.shape[1]):
        carries.append(carry)
        carry, out = step(variables, carry, windows[:, t])
        outputs.append(out)
    return carries, outputs


@functools.cache
def usual_run(units=2):
    return run_steps(small(units), weights(units), clip_of_noise(), train=True)


def step_at(t, **options):
    """Outputs of frame t under other options from the carry that the usual ones have at that frame."""
    carries, _ = usual_run()
    window = clip_windows(clip_of_noise())[:, t]
    return jit_step(small(**options), train=True)(weights(), carries[t], window)[1]


def assert_equal(a, b, atol=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def differ(a, b):
    return np.max(np.abs(np.asarray(a) - np.asarray(b))) > 1e-3


@functools.cache
def layer(name):
    return functools.partial(
        {"motion_conv": Conv(8, 5, 4, 1), "history_conv": Conv(4, 3)}[name].apply,
        {"params": weights()["params"][name]},
    )


def test_windows_repeat_the_end_frames():
    clip = np.arange(2 * 3, dtype=np.float32).reshape(2, 3, 1, 1, 1)
    windows = np.asarray(clip_windows(clip))[..., 0, 0, 0]
    np.testing.assert_array_equal(windows[0], [[0, 0, 0, 1, 2], [0, 0, 1, 2, 2], [0, 1, 2, 2, 2]])
    np.testing.assert_array_equal(windows[1], windows[0] + 3)
    np.testing.assert_array_equal(clip_windows(clip, past=1, future=0)[0, :, :, 0, 0, 0], [[0, 0], [0, 1], [1, 2]])


@pytest.mark.parametrize("kind", ["released", "he"])
def test_initial_weights(kind):
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(initial(weight_init=kind))):
        _, *names, parameter = (entry.key for entry in path)
        if parameter == "bias":
            assert not np.any(leaf)
            continue
        deviation = 0.03
        if kind == "he":
            # Inputs an output value sees; a quarter of a transposed convolution's kernel.
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]) * (4 if names[-1].startswith("dec") else 1))
            if names[-1] in ("conv2", "block_end"):
                deviation *= multi_task_unit._BRANCH
            if names[-1] in ("output_conv", "deblur_1"):
                deviation *= multi_task_unit._OUTPUT
        # Five standard errors of a standard deviation, and of a mean.
        np.testing.assert_allclose(leaf.std(), deviation, rtol=5 / np.sqrt(2 * leaf.size))
        np.testing.assert_allclose(leaf.mean(), 0, atol=5 * deviation / np.sqrt(leaf.size))


def test_edges_are_all_that_the_first_layers_see_to_begin_with():
    params = jax.device_get(initial(weight_init="edges"))["params"]
    he = jax.device_get(initial(weight_init="he"))["params"]
    for name in ("structure_conv", "history_conv"):
        kernel = params[name]["kernel"]
        np.testing.assert_allclose(kernel.sum((0, 1)), 0, atol=1e-5)
        np.testing.assert_allclose(kernel.std(), 4 * he[name]["kernel"].std() * np.sqrt(8 / 9), rtol=0.2)
    rest = [
        {name: tree[name] for name in tree if name not in ("structure_conv", "history_conv")} for tree in (params, he)
    ]
    jax.tree.map(np.testing.assert_array_equal, *rest)


def test_jit_equals_eager():
    carries, outputs = usual_run()
    window = clip_windows(clip_of_noise())[:, 1]
    carry, out = small().apply(weights(), carries[1], window, method="step", train=True)
    assert_equal(out, outputs[1])
    assert_equal(carry, carries[2])


def test_a_scanned_clip_equals_steps_that_clamp():
    _, outputs = run_steps(small(), weights(), clip_of_noise())
    scanned = jax.jit(small().apply)(weights(), clip_of_noise())
    assert scanned.dtype == jnp.float32
    np.testing.assert_allclose(scanned, np.stack([out.restored for out in outputs], 1), rtol=0, atol=1e-6)
    assert np.min(scanned) < 0  # yet what comes out is not clamped


def test_a_clip_of_one_frame():
    clip = clip_of_noise()[:, :1]
    _, outputs = run_steps(small(), weights(), clip)
    np.testing.assert_allclose(small().apply(weights(), clip)[:, 0], outputs[0].restored, rtol=0, atol=1e-6)


def test_examples_of_a_batch_do_not_meet():
    clip = clip_of_noise(batch=3)
    apply = jax.jit(small().apply)
    together = apply(weights(), clip)
    for b in range(3):
        np.testing.assert_allclose(together[b], apply(weights(), clip[b : b + 1])[0], rtol=0, atol=1e-6)


def test_many_steps_are_one_trace():
    for dtype in ("float32", "bfloat16"):
        model, traces = small(compute_dtype=dtype), []

        @jax.jit
        def step(carry, window, model=model, traces=traces):
            traces.append(1)
            return model.apply(weights(), carry, window, method="step")

        carry, windows = model.init_carry(1, HEIGHT, WIDTH), clip_windows(clip_of_noise())
        for t in range(4):
            carry, _ = step(carry, windows[:, t])
        assert len(traces) == 1


def test_the_first_frame_is_matched_with_itself():
    _, (first, *_) = usual_run()
    window = clip_windows(clip_of_noise())[:, 0]
    assert not np.any(first.displacement_cur_to_prev)
    assert_equal(first.warped[0], first.units[0])
    own = local_cost_volume(first.motion_features, first.motion_features, radius=2, similarity="cosine")
    assert_equal(first.cost, box_mean(own, 5))
    # The last restored frame is the blurred one.
    fifteen = jnp.concatenate([window[:, k] for k in (0, 1, 2, 3, 4)], axis=-1)
    assert_equal(first.history, jax.nn.relu(layer("history_conv")(fifteen)))


def test_each_unit_has_its_own_features_at_the_first_frame_and_the_last_units_later():
    carries, outputs = usual_run(3)
    for n in range(2):
        assert_equal(outputs[0].warped[n], outputs[0].units[n])
        moved = warp_blocks(outputs[0].units[2], outputs[1].displacement_cur_to_prev, block=4)
        np.testing.assert_array_equal(outputs[1].warped[n], moved)
    np.testing.assert_array_equal(carries[1].unit_features, outputs[0].units[2])
    assert len(outputs[1].units) == 3
    assert len(outputs[1].warped) == len(outputs[1].intermediate) == 2


def test_later_frames_read_the_carry():
    carries, outputs = usual_run()
    np.testing.assert_array_equal(carries[1].motion_features, outputs[0].motion_features)
    np.testing.assert_array_equal(carries[1].unit_features, outputs[0].units[-1])
    np.testing.assert_array_equal(carries[1].restored, outputs[0].restored)
    assert carries[1].seen
    second = outputs[1]
    cost = box_mean(
        local_cost_volume(second.motion_features, outputs[0].motion_features, radius=2, similarity="cosine"), 5
    )
    assert_equal(second.cost, cost)
    np.testing.assert_array_equal(second.displacement_cur_to_prev, best_displacement(second.cost)[0])
    assert np.any(second.displacement_cur_to_prev)
    window = clip_windows(clip_of_noise())[:, 1]
    fifteen = jnp.concatenate([window[:, 0], window[:, 1], outputs[0].restored, window[:, 3], window[:, 4]], -1)
    assert_equal(second.history, jax.nn.relu(layer("history_conv")(fifteen)))


def test_training_adds_intermediate_frames_and_feeds_back_the_frame_as_it_is():
    carries, outputs = usual_run()
    restored_carries, restored = run_steps(small(), weights(), clip_of_noise())
    assert restored[0].intermediate == ()
    assert len(outputs[0].intermediate) == 1
    assert_equal(restored[0]._replace(intermediate=()), outputs[0]._replace(intermediate=()))
    unclamped = outputs[0].restored
    assert np.min(unclamped) < 0
    np.testing.assert_array_equal(carries[1].restored, unclamped)
    np.testing.assert_allclose(restored_carries[1].restored, np.clip(unclamped, 0, 1), rtol=0, atol=1e-6)


def test_a_single_unit_estimates_motion_but_restores_without():
    carries, outputs = usual_run(1)
    assert len(outputs[1].units) == 1
    assert outputs[1].intermediate == ()
    other = {
        "params": {
            **weights(1)["params"],
            "motion_conv": jax.tree.map(lambda x: -x, weights(1)["params"]["motion_conv"]),
        }
    }
    _, changed = jit_step(small(1), train=True)(other, carries[1], clip_windows(clip_of_noise())[:, 1])
    assert differ(changed.cost, outputs[1].cost)
    np.testing.assert_array_equal(changed.restored, outputs[1].restored)


# --- switches ---


def test_without_residual_the_output_layers_are_the_frames():
    usual, without = usual_run()[1][1], step_at(1, residual=False)
    blurred = clip_of_noise()[:, 1]
    np.testing.assert_allclose(without.restored, usual.restored - blurred, rtol=0, atol=1e-6)
    np.testing.assert_allclose(without.intermediate[0], usual.intermediate[0] - blurred, rtol=0, atol=1e-6)
    assert_equal(
        without._replace(restored=(), intermediate=()),
        usual._replace(restored=(), intermediate=()),
    )


def test_without_structure_injection_the_motion_layer_reads_unit_1_alone():
    usual, without = usual_run()[1][1], step_at(1, structure_injection=False)
    for name in ("structure", "history"):
        assert_equal(getattr(without, name), getattr(usual, name))
    assert_equal(without.units[0], usual.units[0])
    relu = jax.nn.relu
    assert_equal(without.motion_features, relu(layer("motion_conv")(usual.units[0])))
    assert_equal(usual.motion_features, relu(layer("motion_conv")(usual.structure + usual.units[0])))
    assert differ(without.motion_features, usual.motion_features)


def test_without_motion_module_previous_features_stay_where_they_are():
    carries, outputs = usual_run()
    usual, without = outputs[1], step_at(1, motion_module=False)
    assert not np.any(without.displacement_cur_to_prev)
    np.testing.assert_array_equal(without.warped[0], carries[1].unit_features)
    assert differ(usual.warped[0], without.warped[0])
    for name in ("structure", "history", "motion_features", "cost"):
        assert_equal(getattr(without, name), getattr(usual, name))
    assert_equal(without.units[0], usual.units[0])
    assert differ(usual.restored, without.restored)


def test_the_papers_first_frame_has_zeros_before_it():
    zero, usual = step_at(0, first_frame="zero"), usual_run()[1][0]
    assert not np.any(zero.warped[0])
    assert not np.any(zero.cost)
    for name in ("structure", "history", "motion_features"):
        assert_equal(getattr(zero, name), getattr(usual, name))
    assert_equal(zero.units[0], usual.units[0])
    assert differ(zero.restored, usual.restored)
    assert_equal(step_at(1, first_frame="zero"), usual_run()[1][1])


# --- scales ---


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("scales", [2, 3])
def test_scales_are_the_network_at_smaller_sizes_first(scales, train):
    clip = clip_of_noise()[:, :, :16, :16]
    _, outputs = run_steps(small(scales=scales), weights(), clip, train=train)
    step, windows = jit_step(small(), train=train), np.asarray(clip_windows(clip))
    carries = {by: small().init_carry(1, 16 // by, 16 // by) for by in (1, 2, 4)}
    for t in range(clip.shape[1]):
        change = None
        for by in (4, 2, 1)[-scales:]:
            size = 16 // by
            window = windows[:, t].reshape(1, 5, size, by, size, by, 3).mean((3, 5))
            blurred = window[:, 2].copy()
            if change is not None:
                window[:, 2] = np.clip(blurred + jax.image.resize(change, (1, size, size, 3), "linear"), 0, 1)
            carries[by], expected = step(weights(), carries[by], window)
            change = expected.restored - blurred
        assert_equal(outputs[t]._replace(intermediate=()), expected._replace(intermediate=()), atol=1e-5)
        found = (window[:, 2], *expected.intermediate) if train else ()
        assert_equal(outputs[t].intermediate, found, atol=1e-5)


def test_scales_share_the_parameters_and_want_sizes_that_halve():
    clip, key = jnp.zeros((1, 1, 16, 16, 3)), jax.random.key(0)
    one, three = (jax.eval_shape(small(scales=scales).init, key, clip) for scales in (1, 3))
    assert one == three
    assert small(scales=3).size_multiple == 16
    with pytest.raises(ValueError, match="24 x 16; expected multiples of 16"):
        small(scales=3).init_carry(1, 24, 16)


def test_the_coarse_scale_learns_from_the_fine_one():
    model, window = small(scales=2), clip_windows(clip_of_noise()[:, :, :16, :16])[:, 0]

    def loss(variables, by_coarse):
        coarse = jax.lax.stop_gradient(variables) if not by_coarse else variables
        _, found = small().apply(coarse, small().init_carry(1, 8, 8), half, method="step")
        change = jax.image.resize(found.restored - half[:, 2], (1, 16, 16, 3), "linear")
        sharper = window.at[:, 2].set(jnp.clip(window[:, 2] + change, 0, 1))
        return jnp.sum(small().apply(variables, small().init_carry(1, 16, 16), sharper, method="step")[1].restored ** 2)

    half = window.reshape(1, 5, 8, 2, 8, 2, 3).mean((3, 5))
    found = jax.jit(
        jax.grad(lambda v: jnp.sum(model.apply(v, model.init_carry(1, 16, 16), window, method="step")[1].restored ** 2))
    )(weights())
    expected, of_fine_alone = (
        jax.jit(jax.grad(functools.partial(loss, by_coarse=b)))(weights()) for b in (True, False)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max() + 1e-6)
    kernels = [tree["params"]["structure_conv"]["kernel"] for tree in (found, of_fine_alone)]
    assert differ(*kernels)


# --- half precision ---


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 5e-2)])
def test_half_precision_stays_near_and_leaves_matching_and_frames_in_float32(dtype, tolerance):
    model = small(compute_dtype=dtype)
    carries, outputs = run_steps(model, weights(), clip_of_noise(), train=True)
    first, second = outputs[:2]
    usual = usual_run()[1][0]
    for out in (first.restored, first.cost, *first.intermediate):
        assert out.dtype == jnp.float32
    for out in (first.structure, first.history, first.motion_features, *first.units, *first.warped):
        assert out.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(first.restored, usual.restored, rtol=0, atol=tolerance)
    assert np.any(first.restored != usual.restored)
    # The blurred frame is added in float32.
    layer_output = np.asarray(step_at_dtype(dtype, residual=False).restored)
    np.testing.assert_allclose(first.restored, layer_output + clip_of_noise()[:, 0], rtol=0, atol=1e-6)
    features = (second.motion_features.astype(jnp.float32), carries[1].motion_features.astype(jnp.float32))
    cost = box_mean(local_cost_volume(*features, radius=2, similarity="cosine"), 5)
    np.testing.assert_allclose(second.cost, cost, rtol=0, atol=1e-6)
    clip = jax.jit(model.apply)(weights(), clip_of_noise())
    assert clip.dtype == jnp.float32


def step_at_dtype(dtype, **options):
    model = small(compute_dtype=dtype, **options)
    carry = model.init_carry(1, HEIGHT, WIDTH)
    return jit_step(model)(weights(), carry, clip_windows(clip_of_noise())[:, 0])[1]


def test_parameters_are_float32_in_half_precision():
    clip = jnp.zeros((1, 1, 4, 4, 3))
    for dtype in ("float16", "bfloat16"):
        shapes = jax.eval_shape(small(compute_dtype=dtype).init, jax.random.key(0), clip)
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}


# --- gradients ---


def loss_of(outputs, seed=0):
    """A weighted sum of everything a loss may read."""
    rng = np.random.default_rng(seed)
    total = 0.0
    for array in (outputs.restored, outputs.cost, *outputs.intermediate):
        total += jnp.sum(array * rng.standard_normal(array.shape).astype(np.float32))
    return total


@pytest.mark.parametrize("t", [0, 1])
def test_no_gradient_passes_through_the_carry(t):
    carry, window = usual_run()[0][t], clip_windows(clip_of_noise())[:, t]

    def loss(arrays, variables):
        before = carry.replace(**arrays)
        after, outputs = small().apply(variables, before, window, method="step", train=True)
        handed_on = sum(jnp.sum(x) for x in (after.motion_features, after.unit_features, after.restored))
        return loss_of(outputs), handed_on

    arrays = {name: getattr(carry, name) for name in ("motion_features", "unit_features", "restored")}
    (to_carry, to_params), (carry_to_carry, carry_to_params) = jax.jit(
        lambda arrays, variables: tuple(
            jax.grad(lambda *inputs, k=k: loss(*inputs)[k], argnums=(0, 1))(arrays, variables) for k in (0, 1)
        )
    )(arrays, weights())
    for leaf in jax.tree.leaves((to_carry, carry_to_carry, carry_to_params)):
        assert not np.any(leaf)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(to_params))


def test_the_first_frame_has_the_gradient_of_its_self_match_and_self_warp():
    """The first frame spelled out: two units, both sides of the match and the moved features left in the gradient."""
    window = clip_windows(clip_of_noise())[:, 0]
    carry = usual_run()[0][0]

    def spelled_out(variables):
        model = small().bind(variables)
        relu = jax.nn.relu
        structure = relu(model.structure_conv(window[:, 2]))
        history = relu(model.history_conv(jnp.concatenate([window[:, k] for k in range(5)], axis=-1)))
        u1 = model.unit["1"](jnp.concatenate([structure, history], axis=-1))
        motion = relu(model.motion_conv(structure + u1))
        cost = box_mean(local_cost_volume(motion, motion, radius=2, similarity="cosine"), 5)
        joined = jnp.concatenate([u1, u1], axis=-1)
        restored = window[:, 2] + model.output_conv(model.unit["2"](joined))
        intermediate = (window[:, 2] + model.deblur["1"](joined),)
        return loss_of(usual_run()[1][0]._replace(restored=restored, cost=cost, intermediate=intermediate))

    def as_it_is(variables):
        return loss_of(small().apply(variables, carry, window, method="step", train=True)[1])

    value, gradient = jax.jit(jax.value_and_grad(as_it_is))(weights())
    expected_value, expected = jax.jit(jax.value_and_grad(spelled_out))(weights())
    np.testing.assert_allclose(value, expected_value, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.max(np.abs(b)))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_gradients_are_finite_on_constant_images(dtype):
    model = small(compute_dtype=dtype)
    biasless = jax.tree_util.tree_map_with_path(lambda path, x: 0 * x if path[-1].key == "bias" else x, weights())

    @jax.jit
    def gradient(variables, clip):
        def loss(variables):
            carry, windows = model.init_carry(1, HEIGHT, WIDTH), clip_windows(clip)
            carry, first = model.apply(variables, carry, windows[:, 0], method="step", train=True)
            _, second = model.apply(variables, carry, windows[:, 1], method="step", train=True)
            return loss_of(first) + loss_of(second), (first, second)

        return jax.grad(loss, has_aux=True)(variables)

    letterbox = clip_of_noise()[:, :2].copy()
    letterbox[:, :, :6] = 0
    letterbox[:, :, -6:] = 0
    for clip in (0 * letterbox, 0 * letterbox + 1, letterbox):
        for variables in (weights(), biasless):
            gradients, outputs = gradient(variables, clip)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((gradients, outputs)))
    # All costs equal: the lowest channel.
    _, (first, _) = gradient(biasless, 0 * letterbox)
    assert np.all(first.displacement_cur_to_prev == -2)


# --- errors ---


def test_inputs_that_do_not_fit_are_refused():
    model = small()
    with pytest.raises(ValueError, match=r"height and width are 18 x 20; expected multiples of 4: use pad_to_multiple"):
        model.init_carry(1, 18, 20)
    with pytest.raises(ValueError, match=r"height and width are 16 x 22; expected multiples of 4"):
        model.apply(weights(), np.zeros((1, 2, 16, 22, 3), np.float32))
    with pytest.raises(
        ValueError, match=r"clip has shape \(2, 16, 20, 3\); expected \(batch, time, height, width, 3\)"
    ):
        model.apply(weights(), np.zeros((2, 16, 20, 3), np.float32))
    carry = model.init_carry(1, HEIGHT, WIDTH)
    for shape in ((1, 3, 16, 20, 3), (1, 5, 16, 20, 1), (5, 16, 20, 3)):
        with pytest.raises(ValueError, match=r"expected \(batch, 5, height, width, 3\)"):
            model.apply(weights(), carry, np.zeros(shape, np.float32), method="step")


@pytest.mark.parametrize("scales", [1, 2])
def test_a_single_unit_hands_on_no_features_unless_it_is_asked_to(scales):
    model, variables = small(1, scales=scales), weights(1)
    windows = clip_windows(clip_of_noise()[:, :, :16, :16])
    asked = model.init_carry(1, 16, 16)
    assert asked.motion_features is not None
    carry = model.apply(variables, windows[:, 0], method="start")
    step = jit_step(model)
    for t in range(windows.shape[1]):
        carry, found = step(variables, carry, windows[:, t])
        asked, expected = step(variables, asked, windows[:, t])
        np.testing.assert_allclose(found.restored, expected.restored, atol=1e-6)
        assert (found.cost, found.displacement_cur_to_prev, found.warped) == (None, None, ())
        assert expected.displacement_cur_to_prev is not None
        assert len(expected.warped) == 1
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(carry)]
    assert names == [".seen", ".restored", ".coarse.seen", ".coarse.restored"][: 2 * scales]
    # Two units use them.
    start = small(2).apply(weights(2), windows[:, 0], method="start")
    assert jax.tree.structure(start) == jax.tree.structure(small(2).init_carry(1, 16, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 0}, "units is 0; expected 1 or more"),
        ({"channels": 0}, "channels is 0; expected 1 or more"),
        ({"residual_blocks": -1}, "residual_blocks is -1; expected 0 or more"),
        ({"match_radius": 0}, "match_radius is 0; expected 1 or more"),
        ({"first_frame": "none"}, "first_frame is 'none'; expected 'self' or 'zero'"),
        ({"weight_init": "zeros"}, "weight_init is 'zeros'; expected 'released', 'he' or 'edges'"),
        ({"scales": 0}, "scales is 0; expected 1 or more"),
        ({"compute_dtype": "int8"}, "compute_dtype is 'int8'; expected float32, float16 or bfloat16"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    config = MultiTaskUnitConfig(2)
    ((field, value),) = options.items()
    object.__setattr__(config, field, value)  # the tests' type checker would refuse some before our own check
    with pytest.raises(ValueError, match=message):
        config.__post_init__()


def test_unknown_names_are_refused_with_the_near_ones():
    with pytest.raises(ValueError, match=r"no model is called 'mtu3'; did you mean 'mtu\d+'\? Models: mtu1, mtu2, "):
        create_model("mtu3")
    with pytest.raises(ValueError, match=r"no model is called 'sharpener'\. Models: mtu1, .*, liteflownet$"):
        create_model("sharpener")
    with pytest.raises(
        ValueError, match=r"has no option chanels, depth; options: units, channels, residual_blocks, .*scales$"
    ):
        create_model("mtu2", chanels=3, depth=2)
    with pytest.raises(ValueError, match=r"liteflownet has no option units; options: none"):
        create_model("liteflownet", units=2)


def test_options_replace_those_of_the_variant():
    config = create_model("mtu10l", compute_dtype="bfloat16", residual_blocks=2).config
    assert dataclasses.asdict(config) == {
        "units": 10,
        "channels": 48,
        "residual_blocks": 2,
        "match_radius": 10,
        "residual": True,
        "structure_injection": True,
        "motion_module": True,
        "first_frame": "self",
        "weight_init": "released",
        "compute_dtype": "bfloat16",
        "scales": 1,
    }
    assert {name for name in MODELS if name.startswith("mtu")} == {"mtu1", "mtu2", "mtu4", "mtu10", "mtu10l"}
