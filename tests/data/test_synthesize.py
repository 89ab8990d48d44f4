import dataclasses
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdeblur import cli
from jaxdeblur.data.image_io import ImageFile, read_rgb_u8, write_image
from jaxdeblur.data.synthesize import PRESETS, Synthesis, synthesize, synthesize_clip
from jaxdeblur.data.video_folder import index_video_folder


def frames_u8(count, seed=0, height=6, width=8):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def light(value, gamma):
    """One value in [0, 1], by the curve's definition."""
    if gamma != "srgb":
        return value**gamma
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def value(light, gamma):
    if gamma != "srgb":
        return light ** (1 / gamma)
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


def oracle(frames, window, stride, gamma):
    """Pixel by pixel, in float64: (blurred, before rounding; place of the sharp frame)."""
    half = (window - 1) // 2
    for centre in range(half, len(frames) - half, stride):
        group = frames[centre - half : centre + half + 1] / 255
        mean = np.mean(np.vectorize(lambda x: light(x, gamma))(group), axis=0)
        yield 255 * np.vectorize(lambda x: value(x, gamma))(mean), centre


@pytest.mark.parametrize("gamma", ["srgb", 2.2, 1.0])
@pytest.mark.parametrize(("window", "stride", "count"), [(3, 3, 10), (5, 2, 9), (1, 4, 6), (7, 8, 23)])
def test_a_blurred_frame_is_the_mean_of_its_window(window, stride, count, gamma):
    frames = frames_u8(count)
    found = list(synthesize(frames, Synthesis(window=window, stride=stride, gamma=gamma)))
    expected = list(oracle(frames, window, stride, gamma))
    assert len(found) == len(expected) > 0
    for (blurred, sharp), (mean, centre) in zip(found, expected):
        np.testing.assert_array_equal(sharp, frames[centre])
        # Rounded to the nearest, but for float32's rounding where two are as near.
        assert np.max(np.abs(blurred - mean)) <= 0.5 + 1e-3


def test_the_published_presets():
    """How many sub-frames are averaged, what part of the time that is, and what follows what."""
    spans = {name: (2 * preset.reach + 1, preset.stride * preset.interpolate) for name, preset in PRESETS.items()}
    assert spans == {
        "gopro": (11, 11),
        "gopro_gamma": (11, 11),
        "reds": (65, 80),
        "dvd": (67, 88),
        "reblur2deblur": (9, 9),
    }


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 40))
@settings(deadline=None, max_examples=60)
def test_how_many_come_of_how_many(half, stride, count):
    found = list(synthesize(frames_u8(count, height=1, width=1), Synthesis(window=2 * half + 1, stride=stride)))
    assert len(found) == len(range(half, count - half, stride))


def test_the_open_share_of_the_shutter():
    frames = frames_u8(30)
    # 0.8 of 5 frames: two on either side of the middle one.
    by_duty = list(synthesize(frames, Synthesis(window=None, duty=0.8, stride=5)))
    by_window = list(synthesize(frames, Synthesis(window=5, stride=5)))
    np.testing.assert_array_equal(np.array(by_duty), np.array(by_window))


@pytest.mark.parametrize("stride", range(1, 16))
@pytest.mark.parametrize("steps", [1, 4, 11])
def test_the_shutter_is_never_open_longer_than_there_is_time(stride, steps):
    """Whole sub-frames of which one is in the middle: an even number of them loses none and gains at most one."""
    reach = Synthesis(window=None, duty=1.0, stride=stride, interpolate=steps).reach
    assert stride * steps <= 2 * reach + 1 <= stride * steps + 1


def test_no_more_frames_are_held_than_a_window_has():
    alive = set()

    class Frame(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def frames():
        for frame in frames_u8(40):
            made = frame.copy().view(Frame)
            alive.add(id(made))
            yield made
            del made
            # The first, by which others are judged, the one that comes, and the pair that was just given away.
            assert len(alive) <= 5 + 3

    assert sum(1 for _ in synthesize(frames(), Synthesis(window=5, stride=3))) == 12


# --- sub-frames ---


def moving(count, step_px, height=8, width=40):
    """A texture that goes right by whole pixels, and the flow that is true of it but at its sides."""
    texture = np.random.default_rng(3).integers(40, 220, (height, width + count * step_px, 3), np.uint8)
    last = width + (count - 1) * step_px
    frames = np.stack([texture[:, last - width - k * step_px : last - k * step_px] for k in range(count)])

    def flow(image_0, image_1):
        forwards = np.broadcast_to(np.float32([step_px, 0]), (*image_0.shape[:-1], 2))
        return forwards, -forwards

    return frames, flow


def test_interpolated_frames_are_those_of_a_faster_camera():
    """Whole pixels from sub-frame to sub-frame: what a camera twelve times as fast sees, away from the sides."""
    fast, _ = moving(4 * 12 + 1, 1)
    slow, flow = fast[::12], moving(5, 12)[1]
    synthesis = Synthesis(window=3, stride=1, gamma=2.2, interpolate=12)
    found = list(synthesize(slow, synthesis, flow=flow))
    expected = list(synthesize(fast, Synthesis(window=25, stride=12, gamma=2.2)))
    assert len(found) == len(expected) == 3
    for (blurred, sharp), (wanted, same) in zip(found, expected):
        np.testing.assert_array_equal(sharp, same)
        assert np.max(np.abs(blurred.astype(int) - wanted)[:, 12:-12]) <= 1


def test_part_of_the_way_to_a_neighbour():
    """An exposure that ends between two frames."""
    fast, _ = moving(3 * 4 + 1, 1)
    flow = moving(4, 4)[1]
    found = list(
        synthesize(fast[::4], Synthesis(window=None, duty=0.75, stride=2, interpolate=4, gamma=1.0), flow=flow)
    )
    # 0.75 of 8 sub-frames: three on either side.
    (expected, _), *_ = synthesize(fast[1:8], Synthesis(window=7, stride=9, gamma=1.0))
    assert np.max(np.abs(found[0][0].astype(int) - expected)[:, 4:-4]) <= 1


def test_sub_frames_without_flow_are_refused():
    with pytest.raises(ValueError, match="interpolate is 4, and frames between frames need optical flow; give a flow"):
        synthesize(frames_u8(9), Synthesis(interpolate=4))


# --- noise, faults ---


def test_noise_is_as_strong_as_asked_and_follows_from_the_seed():
    frames = np.full((30, 40, 50, 3), 128, np.uint8)
    synthesis = Synthesis(window=3, stride=3, noise_levels=5.0)
    first, again, other = (list(synthesize(frames, synthesis, seed=seed)) for seed in (1, 1, 2))
    blurred = np.stack([pair[0] for pair in first]).astype(float)
    assert abs(blurred.mean() - 128) < 0.1
    assert abs(blurred.std() - 5) < 0.1
    np.testing.assert_array_equal(np.array(first), np.array(again))
    assert not np.array_equal(first[0][0], other[0][0])
    assert not np.array_equal(first[0][0], first[1][0])
    assert all(np.all(pair[1] == 128) for pair in first)  # the truth has none


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 8}, "window is 8; expected an odd number"),
        ({"window": 5, "duty": 0.5}, "give either window or duty"),
        ({"window": None}, "give either window or duty"),
        ({"window": None, "duty": 1.5}, "duty is 1.5; expected above 0 and up to 1"),
        ({"stride": 0, "gamma": 99.0}, "stride is 0; expected at least 1; gamma is 99.0; expected 0.1 to 10, or srgb"),
        ({"noise_levels": -1.0}, "noise_levels is -1.0"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Synthesis(**options)


def test_frames_of_two_sizes_are_refused():
    frames = [*frames_u8(2), *frames_u8(2, height=5)]
    with pytest.raises(
        ValueError, match=r"the source: frame 2 is uint8 \(5, 8, 3\), frame 0 uint8 \(6, 8, 3\); the frames of a clip"
    ):
        list(synthesize(frames, Synthesis(window=3, stride=1)))


def test_sixteen_bits_are_averaged_as_such():
    frames = np.array([1000, 1100, 1200], np.uint16)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint16)
    ((blurred, sharp),) = synthesize(frames, Synthesis(window=3, stride=3, gamma=1.0))
    assert blurred.dtype == sharp.dtype == np.uint8
    np.testing.assert_array_equal(blurred, round(1100 / 257))


# --- folders and the command ---


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "ball"
    folder.mkdir()
    for number, frame in enumerate(frames_u8(20)):
        write_image(folder / f"{number}.png", ImageFile(frame))
    return folder


def test_a_clip_is_a_video_folders(source, tmp_path):
    target, count = synthesize_clip(source, tmp_path / "out", Synthesis(window=5, stride=4))
    assert (target, count) == (tmp_path / "out" / "train" / "ball", 4)
    (clip,) = index_video_folder(tmp_path / "out", "train")
    assert clip.n_frames == 4
    np.testing.assert_array_equal(read_rgb_u8(target / "sharp" / "000006.png"), frames_u8(20)[6])
    expected = [blurred for blurred, _ in synthesize(frames_u8(20), Synthesis(window=5, stride=4))]
    for path, blurred in zip(sorted((target / "blur").iterdir()), expected, strict=True):
        np.testing.assert_array_equal(read_rgb_u8(path), blurred)
    record = json.loads((target / "synthesis.json").read_text())
    assert (record["window"], record["gamma"], record["pairs"], record["source"]) == (5, "srgb", 4, "ball")


def test_nothing_is_left_of_what_failed(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="ball: is too short; one blurred frame takes 21 frames"):
        synthesize_clip(source, out, Synthesis(window=21))
    assert not out.exists()
    (source / "13.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"13.png: not a PNG"):
        synthesize_clip(source, out, Synthesis(window=3, stride=2))
    assert not out.exists()
    with pytest.raises(ValueError, match="seed is -1; expected 0 or more"):
        synthesize_clip(source, out, Synthesis(window=3), seed=-1)
    for options in ({"clip": "a/b"}, {"split": ".."}):
        with pytest.raises(ValueError, match="expected the plain name of a folder"):
            synthesize_clip(source, out, Synthesis(window=3), **options)
    assert not out.exists()


def test_a_clip_that_is_there_is_kept(source, tmp_path):
    target, _ = synthesize_clip(source, tmp_path / "out", Synthesis(window=5))
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="is there already; name another clip or split, or remove it"):
        synthesize_clip(source, tmp_path / "out", Synthesis(window=3))
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


def test_the_command(source, tmp_path, capsys):
    command = ["data", "synthesize", str(source), str(tmp_path / "out")]
    assert cli.main([*command, "--window=5", "--stride=5", "--gamma=2.2", "--split=test", "--clip=c"]) == 0
    assert "test/c: 4 pairs, each blurred frame of 5 frames" in capsys.readouterr().out
    assert cli.main([*command, "--preset=reblur2deblur", "--gamma=srgb"]) == 0
    record = json.loads((tmp_path / "out" / "train" / "ball" / "synthesis.json").read_text())
    expected = dataclasses.asdict(dataclasses.replace(PRESETS["reblur2deblur"], gamma="srgb"))
    assert {name: record[name] for name in expected} == expected
    assert cli.main([*command, "--preset=reds"]) == 2
    assert "16 steps from frame to frame need optical flow: give --flow-checkpoint" in capsys.readouterr().err
    # A choice of one of window and duty takes the other's place in a preset.
    assert cli.main([*command, "--preset=reds", "--window=5", "--interpolate=1", "--clip=reds"]) == 0
    for wrong, words in (
        (["--preset=imagenet"], "there is no preset 'imagenet'; expected one of gopro"),
        (["--gamma=bright"], "--gamma is 'bright'; expected srgb, or a power such as 2.2"),
        (["--window=8"], "window is 8; expected an odd number of frames"),
        (["--window=5", "--duty=0.5"], "give either window or duty"),
    ):
        assert cli.main([*command, *wrong]) == 2
        assert words in capsys.readouterr().err


def test_the_command_with_a_flow_network(source, tmp_path, capsys):
    from jaxdeblur.checkpoint import save_model
    from jaxdeblur.models import create_model, initial_variables

    options = {"width": 0.03125}
    network = create_model("flownets", **options)
    variables = initial_variables(jax.random.key(0), network)
    save_model(tmp_path / "flow", name="flownets", options=options, variables=variables)
    command = ["data", "synthesize", str(source), str(tmp_path / "out"), f"--flow-checkpoint={tmp_path / 'flow'}"]
    assert cli.main([*command, "--preset=dvd", "--interpolate=2"]) == 0
    assert "2 pairs, each blurred frame of 13 sub-frames" in capsys.readouterr().out
