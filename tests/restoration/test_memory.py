"""Plans of memory: what they choose, and that they hold."""

import dataclasses
import os
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from identity_model import Outputs
from test_steps import REACH_PX, Remembering, SeesAll
from tiny_video import write_video_file

from jaxdeblur.restoration import memory
from jaxdeblur.restoration.clip import restore
from jaxdeblur.restoration.jobs import parse_bytes
from jaxdeblur.restoration.memory import Plan, free_bytes, plan, taken_bytes
from jaxdeblur.restoration.steps import Tiling


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4G", 4 * 2**30),
        ("800M", 800 * 2**20),
        ("2.5GiB", 5 * 2**29),
        (" 65536 kb ", 2**26),
        ("100000000", 10**8),
        ("1t", 2**40),
    ],
)
def test_sizes_in_words(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-4G", "4X", "0", "4 4G", "nan"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="expected a size such as 4G or 800M"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "said"), [("4", "4 bytes.*--memory=4G"), ("800", "800 bytes.*--memory=800M"), ("4k", "4096 bytes.*=4G")]
)
def test_sizes_that_nobody_can_mean(text, said):
    with pytest.raises(ValueError, match=f"--memory is '{text}', which is {said}"):
        parse_bytes(text)


def window(height=900, width=1000):
    return np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)


def test_what_fits_is_restored_whole():
    found = plan(Remembering(), {}, window(), budget_bytes=taken_bytes() + 2**31)
    assert (found.tiling, found.precision) == (None, None)
    assert "whole frames" in str(found)
    assert plan(Remembering(), {}, window(64, 64)).tiling is None  # in what is free


def test_what_does_not_is_cut_into_tiles_that_change_nothing():
    frames = window()
    whole = plan(Remembering(), {}, frames, budget_bytes=2**60).peak_bytes
    # Less than half of what the step takes, beside what was taken before.
    budget = taken_bytes() + (whole - taken_bytes()) * 2 // 3
    found = plan(Remembering(), {}, frames, budget_bytes=budget)
    assert found.peak_bytes <= budget
    assert (found.tiling.halo, found.reach_px, found.deviation) == (REACH_PX, REACH_PX, 0.0)
    assert found.tiling.height * found.tiling.width < 900 * 1000
    assert "halo of 8 pixels" in str(found)
    assert "as whole frames" in str(found)
    floats = frames.astype(np.float32) / 255
    np.testing.assert_allclose(
        restore(floats, Remembering(), {}, tiling=found.tiling), restore(floats, Remembering(), {}), atol=1e-6
    )


def test_how_far_tiles_differ_is_said_where_a_network_sees_everything():
    """A mean over the frame differs from that over a tile by about as much as the plan says."""
    frames = (
        np.repeat(np.rint(np.linspace(60, 180, 1000))[None, None, :, None], 900, 1)
        .repeat(3, 0)
        .repeat(3, 3)
        .astype(np.uint8)
    )
    whole = plan(SeesAll(), {}, frames, budget_bytes=2**60).peak_bytes
    found = plan(SeesAll(), {}, frames, budget_bytes=whole - 2**21, may_narrow=False)
    assert found.reach_px is None
    assert found.deviation > 1e-3
    assert f"looks more than 512 pixels far, and pixels differ from whole frames by up to {found.deviation:.1e}" in str(
        found
    )


@dataclasses.dataclass(frozen=True)
class Config:
    compute_dtype: str = "float32"


class Rounding(Remembering):
    """Rounds what it restores to the precision it has."""

    config: Config = Config()

    def step(self, carry, window):
        carry, outputs = super().step(carry, window)
        return carry, Outputs(outputs.restored.astype(self.config.compute_dtype).astype(jnp.float32))


@pytest.mark.parametrize(("narrow_side", "chosen"), [(128, "bfloat16"), (448, None)])
def test_bfloat16_is_taken_where_it_saves_work_and_its_rounding_is_said(monkeypatch, narrow_side, chosen):
    sides = {"float32": 96, "bfloat16": narrow_side}

    def tiles(model, *_):
        side = sides[model.config.compute_dtype]
        return Plan(Tiling(side, side, 8), None, 0, 8, 1e-5)

    monkeypatch.setattr(memory, "_plan_tiles", tiles)
    frames = np.full((3, 512, 512, 3), 200, np.uint8)
    found = plan(Rounding(), {}, frames, budget_bytes=taken_bytes())
    assert found.precision == chosen
    if chosen:
        half_a_step = np.float32(200 / 255) - np.float32(jnp.bfloat16(200 / 255))
        assert found.deviation == pytest.approx(1e-5 + abs(half_a_step), rel=1e-3)
    assert plan(Rounding(), {}, frames, budget_bytes=taken_bytes(), may_narrow=False).precision is None


def test_too_little_is_said():
    with pytest.raises(ValueError, match=r"0\.00 GiB of memory are too little for frames of 1000x900, of which"):
        plan(Remembering(), {}, window(), budget_bytes=2**20)


def test_where_nobody_tells_frames_stay_whole(monkeypatch):
    monkeypatch.setattr(memory, "_on_cpu", lambda: False)
    monkeypatch.setattr(memory.jax, "devices", lambda: [types.SimpleNamespace(memory_stats=lambda: None)])
    assert free_bytes() is None
    assert taken_bytes() == 0
    monkeypatch.undo()
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    assert plan(Remembering(), {}, window()) == Plan(None, None, 0)


def test_less_is_free_than_there_is():
    assert taken_bytes() < free_bytes() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_plan_in_words():
    text = str(Plan(Tiling(512, 640, 48), "bfloat16", 3 * 2**30, 60, 2e-4))
    assert text == (
        "tiles of 640x512 with a halo of 48 pixels, bfloat16, at most 3.00 GiB; the network looks 60 pixels far, and "
        "pixels differ from whole frames by up to 2.0e-04"
    )


_COMMAND = """
import re, sys
from jaxdeblur.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""


@pytest.mark.exhaustive
def test_budgets_are_kept(tmp_path, monkeypatch):
    """A process of its own each; `benchmarks.video memory` has larger frames, in tiles."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs Linux's /proc")
    from jaxdeblur.checkpoint import save_model
    from jaxdeblur.models import create_model, initial_variables

    options = {"channels": 16, "residual_blocks": 2}
    variables = initial_variables(jax.random.key(0), create_model("mtu2", **options))
    save_model(tmp_path / "model", name="mtu2", options=options, variables=variables)
    pattern = np.random.default_rng(0).integers(0, 256, (135, 240, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    write_video_file(tmp_path / "in.mp4", np.stack([np.roll(pattern, 3 * number, 1) for number in range(64)]))
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)  # of the tests: here the command keeps its own
    monkeypatch.delenv("XLA_FLAGS")  # programs take what they take when they are optimised
    ways, budget = [], "2G"
    for share in (0.9, 0.9, 0.0):  # of what the run before has planned, for the one after it
        command = ["deblur", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), "--overwrite"]
        done = subprocess.run(
            [sys.executable, "-c", _COMMAND, *command, f"--checkpoint={tmp_path / 'model'}", f"--memory={budget}"],
            env={**os.environ, "PYTHONPATH": root, "XDG_CACHE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        planned = 2**30 * float(re.search(r"at most (\S+) GiB", done.stderr)[1])
        taken = 1024 * int(done.stdout.split()[-1])
        ways.append("tiles" in done.stderr)
        assert planned <= parse_bytes(budget) + 2**23  # two decimals were printed
        # As many frames as fill the encoder's queue: before that, it takes less.
        assert 0.9 * planned < taken < 1.05 * planned, (budget, taken / 2**30, done.stderr)
        budget = f"{int(share * planned)}"
    assert ways == [False, True, True]
    assert list((tmp_path / "jaxdeblur").iterdir())  # what was compiled
