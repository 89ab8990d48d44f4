"""Reblurring against the golden vectors, plain loops, and its laws."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import load_case

from benchmarks.measure import held_bytes
from jaxdeblur.data.video_io import VideoReader
from jaxdeblur.ops.reblur import (
    FORMS,
    kernel_reach_px,
    line_kernel,
    line_kernel_table,
    look_up_kernels,
    reblur,
)

CASES = ["case_a", "case_b_small"]
TABLE_FORMS = ["taps", "materialised"]


@functools.partial(jax.jit, static_argnames=("form", "exposure", "samples"))
def run(image, flow_next, flow_prev, **options):
    return reblur(image, flow_next, flow_prev, **options)


@functools.partial(jax.jit, static_argnames=("form", "exposure"))
def gradients(image, flow_next, flow_prev, cotangent, **options):
    _, transpose = jax.vjp(lambda *inputs: reblur(*inputs, **options), image, flow_next, flow_prev)
    return transpose(cotangent)


def segment_by_points(u, v, exposure, points=20_000):
    """The mean of bilinear splats of many points."""
    reach = kernel_reach_px(exposure)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for s in (np.arange(points) + 0.5) / points:
        x, y = s * exposure * u + reach, s * exposure * v + reach
        for row in {int(np.floor(y)), min(int(np.floor(y)) + 1, 2 * reach)}:
            for column in {int(np.floor(x)), min(int(np.floor(x)) + 1, 2 * reach)}:
                kernel[row, column] += max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column)) / points
    return kernel


def blur_oracle(image, flow_next, flow_prev, kernel_of):
    """Pixel by pixel; kernel_of(flow) -> (dy, dx)."""
    out = np.zeros(image.shape)
    height, width, _ = image.shape
    for y, x in np.ndindex(height, width):
        kernel = (kernel_of(flow_next[y, x]) + kernel_of(flow_prev[y, x])) / 2
        reach = len(kernel) // 2
        for row, column in zip(*np.nonzero(kernel), strict=True):
            py, px = np.clip([y + row - reach, x + column - reach], 0, [height - 1, width - 1])
            out[y, x] += kernel[row, column] * image[py, px]
    return out


def test_kernels_match_the_reference():
    arrays, _ = load_case("reblur_lut", "kernels")
    np.testing.assert_allclose(line_kernel_table()[16:, 16:, 16:, 16:], arrays["lut_quadrant"], atol=1e-7)
    looked_up = look_up_kernels(arrays["flows"][None, None])[0, 0]
    np.testing.assert_allclose(looked_up, arrays["kernel_lut"], atol=2e-7)
    exact = [line_kernel(*np.clip(flow.astype(float), -16, 16)) for flow in arrays["flows"]]
    np.testing.assert_allclose(exact, arrays["kernel_exact_line"], atol=2e-7)
    pairs = look_up_kernels(arrays["flow_pairs"][None])[0].mean(axis=1)
    np.testing.assert_allclose(pairs, arrays["kernel_pair"], atol=2e-7)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("form", "name"),
    [("path", "warp_path_16"), ("ends", "warp_ends"), ("taps", "reblurred"), ("materialised", "reblurred")],
)
def test_every_form_matches_the_reference(case, form, name):
    arrays, _ = load_case("reblur_lut", case)
    blurred = run(arrays["image"], arrays["flow_next"], arrays["flow_prev"], form=form)
    np.testing.assert_allclose(blurred, arrays[name], atol=2e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", TABLE_FORMS)
def test_gradients_match_the_reference(case, form):
    arrays, _ = load_case("reblur_lut", case)
    inputs = (arrays[name] for name in ("image", "flow_next", "flow_prev", "cotangent"))
    d_image, d_next, d_prev = gradients(*inputs, form=form)
    np.testing.assert_allclose(d_image, arrays["grad_image"], atol=4e-6)
    mask = arrays["gradient_mask"][..., None]
    np.testing.assert_allclose(d_next * mask, arrays["grad_flow_next"] * mask, atol=2e-6)
    np.testing.assert_allclose(d_prev * mask, arrays["grad_flow_prev"] * mask, atol=2e-6)


@pytest.mark.parametrize(
    ("u", "v", "exposure"), [(3.0, -2.0, 1.0), (16.0, 5.0, 1.0), (-7.0, 0.0, 0.44), (2.6, 11.3, 0.5)]
)
def test_a_kernel_is_the_segment(u, v, exposure):
    np.testing.assert_allclose(line_kernel(u, v, exposure), segment_by_points(u, v, exposure), atol=1e-6)


@pytest.mark.parametrize("exposure", [1.0, 0.44, 0.5])
def test_kernels_weigh_one_and_mirror(exposure):
    table = line_kernel_table(exposure)
    assert table.dtype == np.float32
    assert np.all(table >= 0)
    np.testing.assert_allclose(table.astype(np.float64).sum((2, 3)), 1, atol=1e-6)
    np.testing.assert_array_equal(table, table[::-1, ::-1, ::-1, ::-1])
    np.testing.assert_array_equal(table, table[:, ::-1, :, ::-1])
    middle = np.zeros(table.shape[2:])
    middle[len(middle) // 2, len(middle) // 2] = 1
    np.testing.assert_array_equal(table[16, 16], middle)


def picture(height=14, width=17, seed=0):
    rng = np.random.default_rng(seed)
    flows = rng.uniform(-5, 5, (2, height, width, 2)).astype(np.float32)
    return rng.random((height, width, 3), np.float32), *flows


@pytest.mark.parametrize("form", FORMS)
def test_without_motion_nothing_is_blurred(form):
    image, flow, _ = picture()
    np.testing.assert_allclose(run(image, 0 * flow, 0 * flow, form=form), image, atol=1e-6)
    constant = np.full_like(image, 0.3)
    np.testing.assert_allclose(run(constant, 9 * flow, flow, form=form), 0.3, rtol=1e-5)


@pytest.mark.parametrize("form", TABLE_FORMS)
@pytest.mark.parametrize("exposure", [1.0, 0.44])
def test_the_table_forms_equal_the_plain_loop(form, exposure):
    image, flow_next, flow_prev = picture()

    def kernel_of(flow):
        i, j = (min(int(np.floor(f)), 15) for f in flow)
        a, b = flow[0] - i, flow[1] - j
        corners = ((0, 0, (1 - a) * (1 - b)), (1, 0, a * (1 - b)), (0, 1, (1 - a) * b), (1, 1, a * b))
        return sum(weight * line_kernel(float(i + du), float(j + dv), exposure) for du, dv, weight in corners)

    expected = blur_oracle(image, flow_next.astype(float), flow_prev.astype(float), kernel_of)
    np.testing.assert_allclose(run(image, flow_next, flow_prev, form=form, exposure=exposure), expected, atol=1e-5)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in TABLE_FORMS])
def test_reading_along_a_part_of_a_flow_is_reading_along_a_shorter_one(form):
    image, flow_next, flow_prev = picture()
    expected = run(image, 0.44 * flow_next, 0.44 * flow_prev, form=form)
    np.testing.assert_allclose(run(image, flow_next, flow_prev, form=form, exposure=0.44), expected, atol=1e-5)


def test_the_path_is_near_the_exact_segment_on_a_photograph():
    """16 reads of each segment, flows of up to 16 px: 65 dB or more."""
    demo = Path(__file__).parents[2] / "demo" / "dog_forest.mp4"
    with VideoReader(demo) as video:
        frame = next(iter(video)).rgb
    image = np.asarray(frame)[120:156, 200:240].astype(np.float32) / np.iinfo(frame.dtype).max
    rng = np.random.default_rng(0)
    flow_next = rng.uniform(-16, 16, (*image.shape[:2], 2)).astype(np.float32)
    flow_prev = rng.uniform(-16, 16, (*image.shape[:2], 2)).astype(np.float32)
    expected = blur_oracle(image, flow_next, flow_prev, lambda flow: line_kernel(*flow.astype(float)))
    blurred = np.asarray(run(image, flow_next, flow_prev), np.float64)
    assert -10 * np.log10(np.mean((blurred - expected) ** 2)) >= 65


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_values(form):
    image, flow_next, flow_prev = picture(8, 9)
    # Away from whole flows and from samples on pixel borders the value is smooth.
    rng = np.random.default_rng(1)
    cotangent = rng.standard_normal(image.shape).astype(np.float32)
    found = gradients(image, flow_next, flow_prev, cotangent, form=form)
    directions = [rng.standard_normal(x.shape).astype(np.float32) for x in (image, flow_next, flow_prev)]
    step = 2e-4

    def value(sign):
        moved = [x + sign * step * d for x, d in zip((image, flow_next, flow_prev), directions, strict=True)]
        return float(np.sum(np.float64(run(*moved, form=form)) * cotangent))

    slope = (value(1) - value(-1)) / (2 * step)
    expected = sum(float(np.sum(np.float64(g) * d)) for g, d in zip(found, directions, strict=True))
    np.testing.assert_allclose(slope, expected, rtol=0.02, atol=0.05)


def test_long_flows_are_clipped_and_have_no_gradient():
    image, flow, _ = picture()
    long = np.where(flow > 0, flow + 20, flow).astype(np.float32)
    clipped = np.clip(long, -16, 16)
    for form in FORMS:
        np.testing.assert_allclose(run(image, long, flow, form=form), run(image, clipped, flow, form=form), atol=1e-6)
        _, d_next, _ = gradients(image, long, flow, np.ones_like(image), form=form)
        np.testing.assert_array_equal(d_next[long > 16], 0)


def test_two_frames_are_three_of_even_motion():
    image, flow, _ = picture()
    for form in FORMS:
        np.testing.assert_allclose(run(image, flow, None, form=form), run(image, flow, -flow, form=form), atol=1e-7)


def test_a_uniform_motion_blurs_along_it():
    """A vertical edge that moves by (4, 0) a frame becomes a ramp of four pixels to either side."""
    image = np.zeros((5, 40, 1), np.float32)
    image[:, 20:] = 1
    flow = np.broadcast_to(np.float32([4, 0]), (5, 40, 2))
    ramp = np.asarray(run(image, flow, -flow, form="taps"))[2, :, 0]
    assert np.all(np.diff(ramp) >= -1e-6)
    assert ramp[15] == 0
    assert ramp[24] == pytest.approx(1)
    assert ramp[19] + ramp[20] == pytest.approx(1)
    half = np.asarray(run(image, flow, -flow, form="taps", exposure=0.5))[2, :, 0]
    assert half[17] == 0
    assert half[22] == pytest.approx(1)


@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMS))
def test_reblurring_is_linear_in_the_image(seed, form):
    image, flow_next, flow_prev = picture(6, 7, seed)
    other = picture(6, 7, seed + 1)[0]
    both = run(image + 2 * other, flow_next, flow_prev, form=form)
    apart = run(image, flow_next, flow_prev, form=form) + 2 * run(other, flow_next, flow_prev, form=form)
    np.testing.assert_allclose(both, apart, atol=1e-5)


def test_leading_axes_are_a_loop_and_half_precision_is_summed_in_float32():
    pictures = [picture(seed=seed) for seed in range(3)]
    stacked = [np.stack(arrays)[:, None] for arrays in zip(*pictures, strict=True)]
    for form in FORMS:
        together = run(*stacked, form=form)
        for number, arrays in enumerate(pictures):
            np.testing.assert_allclose(together[number, 0], run(*arrays, form=form), atol=1e-6)
    image, flow_next, flow_prev = pictures[0]
    half = run(jnp.asarray(image, jnp.bfloat16), flow_next, flow_prev)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), run(image, flow_next, flow_prev), atol=6e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exposure": 0.0}, "exposure is 0.0; expected a part of the motion"),
        ({"exposure": 2.5}, "exposure is 2.5"),
        ({"samples": 0}, "samples is 0; expected 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    image, flow, _ = picture()
    with pytest.raises(ValueError, match=message):
        reblur(image, flow, **options)
    with pytest.raises(ValueError, match="expected one size, resize the flow"):
        reblur(image, flow[:-1])
    with pytest.raises(ValueError, match="is longer than 16 px"):
        line_kernel(17.0, 0.0)


@pytest.mark.slow
def test_720p_with_both_flows_forward_and_backward_takes_less_than_a_gigabyte():
    """By the compiler's account of what it holds at once, arguments and results included."""
    shapes = [jax.ShapeDtypeStruct((1, 720, 1280, channels), np.float32) for channels in (3, 2, 2, 3)]
    compiled = gradients.lower(*shapes).compile()
    assert held_bytes(compiled) < 1e9
