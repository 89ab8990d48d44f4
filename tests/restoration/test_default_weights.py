"""The weights of the package sharpen real frames, and are what is used when nothing else is named."""

from pathlib import Path

import numpy as np

import jaxdeblur
from jaxdeblur import cli
from jaxdeblur.data.image_io import read_rgb_u8
from jaxdeblur.data.video_folder import list_images
from jaxdeblur.evaluation.protocols import common
from jaxdeblur.variables import find_weights

REDS = Path(__file__).parents[2] / "demo" / "reds"


def frames(side):
    return np.stack([read_rgb_u8(path) for path in list_images(REDS / side)])


def scores(found, truth):
    return np.mean(
        [common(a / np.float32(255), b / np.float32(255)) for a, b in zip(found, truth, strict=True)], axis=0
    )


def test_real_frames_get_nearer_to_the_truth():
    blurred, sharp = frames("blur"), frames("sharp")
    restored = jaxdeblur.restore(blurred)
    gain_db, gain_ssim = scores(restored, sharp) - scores(blurred, sharp)
    assert gain_db > 0.9
    assert gain_ssim > 0.02
    # No shift of colours: the mean stays.
    np.testing.assert_allclose(restored.mean((0, 1, 2)), blurred.mean((0, 1, 2)), atol=1.0)


def test_the_command_uses_them(tmp_path, capsys):
    assert cli.main(["deblur", str(REDS / "blur"), str(tmp_path / "out"), "--no-gate"]) == 0
    found = np.stack([read_rgb_u8(path) for path in list_images(tmp_path / "out")])
    np.testing.assert_array_equal(found, jaxdeblur.restore(frames("blur")))


def test_where_float16_does_not_hold_their_features_nothing_is_written_and_bfloat16_named(tmp_path, capsys):
    command = ["deblur", str(REDS / "blur"), str(tmp_path / "out"), "--no-gate"]
    assert cli.main([*command, "--precision=float16"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "jaxdeblur: error: frame 1 cannot be restored: the network's values are not finite in float16, which ends at "
        "65504; take bfloat16 (--precision=bfloat16) or float32"
    )
    assert list(tmp_path.iterdir()) == []
    assert cli.main([*command, "--precision=bfloat16"]) == 0


def test_they_are_small():
    assert find_weights("default").stat().st_size < 5e6
