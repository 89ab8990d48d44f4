import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import load_case

from jaxdeblur.evaluation.protocols import (
    PROTOCOLS,
    SU_FRAMES,
    align_and_score,
    cdvd,
    common,
    estrnn,
    motion_accuracy,
    mtu_aligned,
    mtu_inloop,
    mtu_matlab,
    protocols_named,
    round_u8,
)
from jaxdeblur.ops.filters import correlate_axis
from jaxdeblur.ops.quality import GAUSSIAN_11, structural_similarity
from jaxdeblur.ops.resample import downsample_area
from jaxdeblur.ops.warp import warp_blocks

CASES = ("metrics_a", "metrics_b_shifted")
# Float32 against float64: a mean of 18,000 squares, and differences of nearly equal second moments.
PSNR_DB, SSIM = 1e-4, 1e-5


def golden(case):
    """Arrays, values, and the 8-bit pair scaled to [0, 1]; the float result lies on ties of rounding at places."""
    arrays, provenance = load_case("rt_mtu2", case)
    return arrays, provenance["values"], arrays["result8"] / np.float32(255), arrays["gt8"] / np.float32(255)


def check(score, values, psnr, ssim):
    np.testing.assert_allclose(score[0], values[psnr], rtol=0, atol=PSNR_DB)
    np.testing.assert_allclose(score[1], values[ssim], rtol=0, atol=SSIM)


def test_cdvd_matches_the_released_script():
    arrays, provenance = load_case("cdvd_tsp", "metrics")
    np.testing.assert_array_equal(np.round(round_u8(arrays["pred_float"]) * 255), arrays["pred_uint8"])
    check(cdvd(arrays["pred_float"], arrays["gt_uint8"] / np.float32(255)), provenance["values"], "psnr", "ssim")
    with pytest.raises(ValueError, match="frames of 40x8 have nothing left"):
        cdvd(np.zeros((8, 40, 3), np.float32), np.zeros((8, 40, 3), np.float32))


@pytest.mark.parametrize("case", CASES)
def test_inloop_matches_the_released_evaluation(case):
    arrays, values, _, sharp = golden(case)
    check(mtu_inloop(arrays["result"], sharp), values, "psnr_float", "ssim_float_uniform7_sample_covariance")


@pytest.mark.parametrize("case", CASES)
def test_matlab_matches_the_released_script(case):
    _, values, restored, sharp = golden(case)
    check(mtu_matlab(restored, sharp), values, "psnr_8bit_rgb", "ssim_8bit_gaussian_volume")


@pytest.mark.parametrize("case", CASES)
def test_aligned_matches_the_released_script(case):
    _, values, restored, sharp = golden(case)
    psnr, ssim, shift = align_and_score(restored, sharp)
    check((psnr, ssim), values, "psnr_aligned_luma", "ssim_aligned_luma")
    assert list(shift) == values["alignment_shift_rows_cols"]
    assert mtu_aligned(restored, sharp) == (psnr, ssim)


@pytest.mark.parametrize("case", CASES)
def test_common_has_the_same_psnr_and_its_window_per_channel(case):
    _, values, restored, sharp = golden(case)
    psnr, ssim = common(restored, sharp)
    np.testing.assert_allclose(psnr, values["psnr_8bit_rgb"], rtol=0, atol=PSNR_DB)

    # The golden per-channel value repeats the border; ours keeps to windows that lie inside.
    def mean(image):
        for axis in (-3, -2):
            pad = [(0, 0)] * 3
            pad[axis] = (5, 5)
            image = correlate_axis(jnp.pad(image, pad, mode="edge"), GAUSSIAN_11, axis)
        return image

    maps = structural_similarity(restored, sharp, mean)
    np.testing.assert_allclose(maps.mean(), values["ssim_8bit_gaussian_per_channel"], rtol=0, atol=SSIM)
    np.testing.assert_allclose(ssim, maps[5:-5, 5:-5].mean(), rtol=0, atol=SSIM)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("quarter", [True, False])
def test_motion_accuracy_matches_the_released_evaluation(case, quarter):
    arrays, values, _, _ = golden(case)
    displacement, size = arrays["disp"].astype(np.int32), "quarter" if quarter else "full"
    score = motion_accuracy(displacement, arrays["gt_prev"], arrays["gt_curr"], quarter=quarter)
    check(score, values, f"motion_psnr_masked_{size}", f"motion_ssim_masked_{size}")
    for image, name in ((arrays["gt_prev"], "aligned_quarter"), (np.ones((64, 96, 3), np.float32), "mask_quarter")):
        moved = downsample_area(warp_blocks(image[None], displacement[None], block=4)[0], 4)
        np.testing.assert_allclose(moved, arrays[name], rtol=0, atol=1e-6)


def test_every_golden_value_is_tested():
    assert set(golden("metrics_a")[1]) == {
        "psnr_float",
        "ssim_float_uniform7_sample_covariance",
        "psnr_8bit_rgb",
        "ssim_8bit_gaussian_volume",
        "ssim_8bit_gaussian_per_channel",
        "psnr_aligned_luma",
        "ssim_aligned_luma",
        "alignment_shift_rows_cols",
        "motion_psnr_masked_quarter",
        "motion_ssim_masked_quarter",
        "motion_psnr_masked_full",
        "motion_ssim_masked_full",
    }


def test_a_restored_frame_scores_as_the_released_evaluation_says():
    arrays, provenance = load_case("rt_mtu2", "case_a")
    values = provenance["metrics_frame_index_1"]
    restored, sharp = arrays["raw"][0, 1], arrays["gt_f1"][0]
    assert restored.min() < 0  # every protocol clamps
    check(mtu_inloop(restored, sharp), values, "psnr_float_clamped_vs_gt", "ssim_float_uniform7")
    check(mtu_matlab(restored, sharp), values, "psnr_8bit_rgb", "ssim_8bit_gaussian_volume")
    psnr, ssim, shift = align_and_score(restored, sharp)
    check((psnr, ssim), values, "psnr_aligned_luma", "ssim_aligned_luma")
    assert list(shift) == values["alignment_shift_rows_cols"]


# --- oracles ---


def pair(seed, height=14, width=18):
    rng = np.random.default_rng(seed)
    sharp = rng.uniform(0, 1, (height, width, 3)).astype(np.float32)
    return np.clip(0.8 * sharp + 0.1 * rng.standard_normal(sharp.shape), 0, 1).astype(np.float32), sharp


def ssim_oracle(x, y, weights, *, covariance_scale=1.0):
    """(H, W) pictures, every window that lies inside."""
    n = len(weights)
    out = np.zeros((x.shape[0] - n + 1, x.shape[1] - n + 1))
    for row, column in np.ndindex(out.shape):
        a, b = (image[row : row + n, column : column + n].astype(np.float64) for image in (x, y))
        mean_a, mean_b = np.sum(weights * a), np.sum(weights * b)
        variances = covariance_scale * np.sum(weights * ((a - mean_a) ** 2 + (b - mean_b) ** 2))
        covariance = covariance_scale * np.sum(weights * (a - mean_a) * (b - mean_b))
        out[row, column] = (
            (2 * mean_a * mean_b + 1e-4)
            * (2 * covariance + 9e-4)
            / ((mean_a**2 + mean_b**2 + 1e-4) * (variances + 9e-4))
        )
    return out


def gaussian(size=11):
    offset = np.arange(size) - (size - 1) / 2
    window = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * 1.5**2))
    return window / window.sum()


def to_u8(image):
    return np.rint(np.clip(image.astype(np.float64), 0, 1) * 255)


def test_common_equals_the_oracle():
    restored, sharp = pair(0)
    a, b = to_u8(restored) / 255, to_u8(sharp) / 255
    psnr, ssim = common(restored, sharp)
    np.testing.assert_allclose(psnr, -10 * np.log10(np.mean((a - b) ** 2)), atol=PSNR_DB)
    expected = np.mean([ssim_oracle(a[..., c], b[..., c], gaussian()) for c in range(3)])
    np.testing.assert_allclose(ssim, expected, atol=2e-5)


def test_inloop_equals_the_oracle():
    restored, sharp = pair(1)
    psnr, ssim = mtu_inloop(restored + 0.5, sharp)
    clamped = np.clip(restored + 0.5, 0, 1)
    difference = clamped.astype(np.float64) - sharp
    np.testing.assert_allclose(psnr, -10 * np.log10(np.mean(difference**2)), atol=PSNR_DB)
    window = np.full((7, 7), 1 / 49)
    expected = [ssim_oracle(clamped[..., c], sharp[..., c], window, covariance_scale=49 / 48) for c in range(3)]
    np.testing.assert_allclose(ssim, np.mean(expected), atol=2e-5)


def aligned_oracle(restored, sharp):
    """Every circular shift tried; its correlation summed pixel by pixel."""
    result, truth = to_u8(restored), to_u8(sharp)
    result *= np.sum(result * truth) / np.sum(result * result)
    height, width = truth.shape[:2]
    grey, grey_truth = result.mean(-1), truth.mean(-1)
    shifts = [
        (r, c) for r in range(-(height // 2), height - height // 2) for c in range(-(width // 2), width - width // 2)
    ]
    rows, columns = max(shifts, key=lambda shift: np.sum(np.roll(grey, shift, (0, 1)) * grey_truth))
    moved, kept = np.zeros_like(result), np.zeros_like(truth)
    for y, x in np.ndindex(height, width):
        if 0 <= y - rows < height and 0 <= x - columns < width:
            moved[y, x], kept[y, x] = result[y - rows, x - columns], truth[y, x]
    a, b = (image @ [0.299, 0.587, 0.114] for image in (moved, kept))
    ssim = ssim_oracle(a / 255, b / 255, gaussian()).mean()
    return 10 * np.log10(255**2 / np.mean((a - b) ** 2)), ssim, (rows, columns)


@pytest.mark.parametrize("shift", [(0, 0), (2, -3), (-4, 5), (3, 1)])
def test_aligned_equals_the_oracle(shift):
    restored, sharp = pair(2)
    restored = np.roll(restored, shift, (0, 1))
    psnr, ssim, found = align_and_score(restored, sharp)
    expected_psnr, expected_ssim, expected_shift = aligned_oracle(restored, sharp)
    assert found == expected_shift == (-shift[0], -shift[1])
    np.testing.assert_allclose(psnr, expected_psnr, atol=1e-6)  # float64 throughout
    np.testing.assert_allclose(ssim, expected_ssim, atol=2e-5)


def test_aligned_forgives_gain_and_copes_with_black():
    _, sharp = pair(3)
    levels = np.rint(sharp * 100)
    psnr, ssim, shift = align_and_score((levels / 255).astype(np.float32), (2 * levels / 255).astype(np.float32))
    assert shift == (0, 0)
    assert psnr > 150
    np.testing.assert_allclose(ssim, 1, atol=1e-6)
    black = np.zeros_like(sharp)
    assert align_and_score(black, black)[0] == np.inf
    assert np.isfinite(align_and_score(black, sharp)[0])


def motion_oracle(displacement, previous, current):
    height, width, _ = displacement.shape
    moved, mask, now = (np.zeros((height, width, 3)) for _ in range(3))

    def quarter(image, y, x):
        return image[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].astype(np.float64).mean((0, 1))

    for y, x in np.ndindex(height, width):
        now[y, x] = quarter(current, y, x)
        column, row = displacement[y, x] + [x, y]
        if 0 <= row < height and 0 <= column < width:
            moved[y, x], mask[y, x] = quarter(previous, row, column), 1
    psnr = 10 * np.log10(mask.sum() / np.sum(mask * (moved - now) ** 2))
    window = np.full((7, 7), 1 / 49)
    padded = (np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="symmetric") for image in (moved, now))
    a, b = padded
    maps = np.stack([ssim_oracle(a[..., c], b[..., c], window, covariance_scale=49 / 48) for c in range(3)], -1)
    return psnr, np.sum(mask * maps) / mask.sum()


def test_motion_accuracy_equals_the_oracle():
    previous, current = pair(4, 32, 40)
    displacement = np.random.default_rng(5).integers(-2, 3, (8, 10, 2)).astype(np.int32)
    psnr, ssim = motion_accuracy(displacement, previous, current)
    expected_psnr, expected_ssim = motion_oracle(displacement, previous, current)
    np.testing.assert_allclose(psnr, expected_psnr, atol=PSNR_DB)
    np.testing.assert_allclose(ssim, expected_ssim, atol=2e-5)


# --- laws ---


@given(st.floats(-0.5, 1.5, width=32))
def test_rounding_is_to_the_nearest_of_256_levels(value):
    level = np.asarray(round_u8(np.full((1, 1, 1), value, np.float32))) * 255
    np.testing.assert_allclose(level, np.rint(level), atol=1e-4)
    assert abs(level - np.clip(np.float64(value), 0, 1) * 255).item() <= 0.5 + 1e-4


@pytest.mark.parametrize("name", PROTOCOLS)
def test_equal_frames_score_best_and_worse_ones_lower(name):
    sharp = (to_u8(pair(6)[1]) / 255).astype(np.float32)  # estrnn cuts down to 8 bits
    rng = np.random.default_rng(7)
    near, far = (np.clip(sharp + s * rng.standard_normal(sharp.shape), 0, 1).astype(np.float32) for s in (0.03, 0.2))
    scores = [PROTOCOLS[name].score(image, sharp) for image in (sharp, near, far)]
    psnr, ssim = (np.asarray([float(score[k]) for score in scores]) for k in (0, 1))
    assert psnr[0] > 100
    np.testing.assert_allclose(ssim[0], 1, atol=1e-5)
    assert psnr[0] > psnr[1] > psnr[2]
    assert ssim[0] > ssim[1] > ssim[2]


@pytest.mark.parametrize("name", ["common", "mtu_matlab", "mtu_aligned", "cdvd"])
def test_8_bit_protocols_do_not_see_less_than_a_level(name):
    restored, sharp = pair(8)
    exact = (to_u8(restored) / 255).astype(np.float32)
    score = PROTOCOLS[name].score
    np.testing.assert_allclose(score(exact + 0.4 / 255, sharp), score(exact, sharp), rtol=1e-6)


def test_inloop_does_not_round():
    restored, sharp = pair(9)
    assert mtu_inloop(restored + 0.4 / 255, sharp)[0] != mtu_inloop(restored, sharp)[0]


def test_which_frames_count_and_what_is_averaged():
    rows = {(p.name, p.skip_first, p.skip_last, p.size_multiple, p.over) for p in PROTOCOLS.values()}
    assert rows == {
        ("common", 0, 0, 1, "clips"),
        ("mtu_inloop", 0, 0, 1, "frames"),
        ("mtu_matlab", 1, 0, 1, "frames"),
        ("mtu_aligned", 1, 0, 1, "frames"),
        ("svrnn", 0, 1, 1, "clips"),
        ("cdvd", 2, 2, 4, "frames"),
        ("su2017", 0, 0, 1, "clips"),
        ("reblur", 0, 0, 1, "frames"),
        ("vrt", 0, 0, 1, "frames"),
        ("nafnet", 0, 0, 1, "frames"),
        ("estrnn", 2, 2, 1, "frames"),
    }
    assert [p.name for p in PROTOCOLS.values() if p.laid_down] == ["svrnn"]
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
    for protocol in PROTOCOLS.values():
        assert all(np.ndim(jax.device_get(value)) == 0 for value in protocol.score(*pair(10)))


def test_the_published_list_of_frames():
    """30 of 100, as the authors give them, counted from 1; neighbours of none lie outside but for the first."""
    listed = [
        2,
        5,
        8,
        11,
        15,
        18,
        21,
        24,
        28,
        31,
        34,
        38,
        41,
        44,
        47,
        51,
        54,
        57,
        60,
        64,
        67,
        70,
        74,
        77,
        80,
        83,
        87,
        90,
    ]
    assert [number + 1 for number in SU_FRAMES] == [*listed, 93, 97]
    assert [number for number in range(120) if PROTOCOLS["su2017"].scores(number)] == list(SU_FRAMES)


def test_estrnn_cuts_down_where_others_round():
    sharp = np.full((12, 12, 3), 100 / 255, np.float32)
    for level, kept in ((100.9, 100), (101.0, 101), (99.6, 99), (300.0, 255), (-3.0, 0)):
        psnr, _ = estrnn(np.full_like(sharp, np.float32(level / 255)), sharp)
        if kept == 100:  # equal, but for what a compiler may make of a division
            assert psnr > 100
        else:
            np.testing.assert_allclose(psnr, 20 * np.log10(255 / abs(kept - 100)), rtol=1e-5)
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    every = np.broadcast_to(levels.reshape(16, 16, 1), (16, 16, 3))
    assert estrnn(every, every)[0] > 100


@pytest.mark.parametrize("size", [(14, 18), (64, 97)])
def test_ssim_is_scikit_images(size):
    """Of Wang et al.'s window per channel, where it lies inside; and of uniform windows with sample covariance."""
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    restored, sharp = (to_u8(image) / 255 for image in pair(12, *size))
    options = {"data_range": 1.0, "channel_axis": -1}
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = metrics.structural_similarity(restored, sharp, **gaussian, **options)
    single = restored.astype(np.float32), sharp.astype(np.float32)
    for name in ("common", "estrnn", "reblur", "svrnn"):
        np.testing.assert_allclose(PROTOCOLS[name].score(*single)[1], expected, rtol=0, atol=SSIM)
        psnr = metrics.peak_signal_noise_ratio(sharp, restored, data_range=1.0)
        np.testing.assert_allclose(PROTOCOLS[name].score(*single)[0], psnr, rtol=0, atol=PSNR_DB)
    uniform = metrics.structural_similarity(restored, sharp, win_size=7, **options)
    np.testing.assert_allclose(mtu_inloop(*single)[1], uniform, rtol=0, atol=SSIM)


def test_protocols_by_name():
    assert [protocol.name for protocol in protocols_named(["cdvd", "common", "cdvd"])] == ["cdvd", "common"]
    assert protocols_named(["vrt", "all"]) == list(PROTOCOLS.values())
    with pytest.raises(ValueError, match="there is no protocol 'psnr', 'vmaf'; expected common, su2017"):
        protocols_named(["common", "psnr", "vmaf"])
