"""Blurred and sharp frames from video of a high frame rate: what a slower camera with a longer exposure had seen.

A blurred frame is the mean, in linear light, of the frames that its exposure covers; the middle one of them is its
sharp partner. With k sub-frames from one frame to the next (k = 1: the frames themselves; more are interpolated along
optical flow) a blurred frame at frame c is the mean of sub-frames c k - m ... c k + m:

    window w, a number of frames, odd:            m = (w - 1) k / 2
    duty d, the open share of the shutter's time: m = d stride k / 2, rounded down

and blurred frames follow each other at every stride-th frame. `PRESETS` has what is published of the field's data sets.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.compilation import jit
from jaxdeblur.data.image_io import ImageFile, StrPath, to_u8, write_image
from jaxdeblur.data.own_files import becoming
from jaxdeblur.data.streams import Stream
from jaxdeblur.data.video_folder import SIDES, alike, read_frames
from jaxdeblur.ops.colour import Gamma, from_light, to_light
from jaxdeblur.ops.interpolate import interpolate_frame
from jaxdeblur.types import Array, Variables

RECORD_FILE = "synthesis.json"


@dataclasses.dataclass(frozen=True)
class Synthesis:
    """How frames become blurred ones.

    window: frames averaged, odd, so that one is in the middle. Either this or duty.
    duty: the share of a stride in which the shutter is open, above 0 and up to 1.
    stride: frames from one blurred frame to the next.
    gamma: what makes light of the values of a file: their power, "srgb", or 1 to average the values themselves, as some
        data sets do and no camera.
    interpolate: sub-frames from one frame to the next; above 1 optical flow is needed.
    noise_levels: standard deviation of what is added to blurred frames, in 8-bit levels of the file.
    """

    window: int | None = 9
    duty: float | None = None
    stride: int = 9
    gamma: Gamma = "srgb"
    interpolate: int = 1
    noise_levels: float = 0.0

    def __post_init__(self) -> None:
        faults = []
        if (self.window is None) == (self.duty is None):
            faults.append("give either window or duty")
        if self.window is not None and (self.window < 1 or self.window % 2 == 0):
            faults.append(f"window is {self.window}; expected an odd number of frames, so that one is in the middle")
        if self.duty is not None and not 0 < self.duty <= 1:
            faults.append(f"duty is {self.duty}; expected above 0 and up to 1")
        for name in ("stride", "interpolate"):
            if getattr(self, name) < 1:
                faults.append(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.gamma != "srgb" and not 0.1 <= self.gamma <= 10:
            faults.append(f"gamma is {self.gamma}; expected 0.1 to 10, or srgb")
        if not 0 <= self.noise_levels < 256:
            faults.append(f"noise_levels is {self.noise_levels}; expected 0 to 255")
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def reach(self) -> int:
        """m: how many sub-frames on either side of the middle one are averaged."""
        if self.window is not None:
            return (self.window - 1) * self.interpolate // 2
        assert self.duty is not None
        return math.floor(self.duty * self.stride * self.interpolate / 2 + 1e-9)


PRESETS: dict[str, Synthesis] = {
    # Nah et al. 2017: 7, 11 or 13 frames of 240 a second, each group beside the next; values averaged as they are...
    "gopro": Synthesis(window=11, stride=11, gamma=1.0),
    # ...or as light, by a gamma of 2.2 (their own input).
    "gopro_gamma": Synthesis(window=11, stride=11, gamma=2.2),
    # Nah et al. 2019: 120 frames a second made 1920, 65 of them averaged (0.8 of the time), 24 blurred frames a second.
    # They go through the camera's measured response, for which a gamma of 2.2 stands here.
    "reds": Synthesis(window=None, duty=0.8, stride=5, gamma=2.2, interpolate=16),
    # Su et al. 2017: of 240 frames a second every 8th, its 7 nearest averaged with 10 more between each two of them.
    "dvd": Synthesis(window=7, stride=8, gamma=1.0, interpolate=11),
    # Chen et al. 2018: every 9 of 240 frames a second.
    "reblur2deblur": Synthesis(window=9, stride=9, gamma=1.0),
}

TwoWayFlow = Callable[[Array, Array], tuple[Array, Array]]
"""Two frames (1, H, W, 3) in [0, 1] -> the flow from the first to the second, and back."""


def flow_of_network(flow_net: nn.Module, variables: Variables) -> TwoWayFlow:
    """The flows that a network of this package estimates."""

    @jit
    def flows(image_0: Array, image_1: Array) -> tuple[Array, Array]:
        return flow_net.apply(variables, image_0, image_1), flow_net.apply(variables, image_1, image_0)  # type: ignore[return-value]

    return flows


def synthesize(
    frames: Iterable[np.ndarray],
    synthesis: Synthesis,
    *,
    flow: TwoWayFlow | None = None,
    seed: int = 0,
    name: str = "the source",
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blurred and sharp frames, each (H, W, 3) uint8, in the order of time; holds no more frames than a window has.

    Args:
        frames: (H, W, 3) uint8 or uint16, gamma-encoded, all alike.
        flow: needed where synthesis.interpolate is above 1.
        seed: of the noise.
        name: what errors call the source.
    Raises:
        ValueError: frames to be interpolated without flow; while iterating, a frame of another size or type.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected 0 or more")
    if synthesis.interpolate > 1 and flow is None:
        raise ValueError(
            f"interpolate is {synthesis.interpolate}, and frames between frames need optical flow; give a flow network "
            "or set interpolate to 1"
        )
    return _synthesize(frames, synthesis, flow, seed, name)


def _synthesize(
    frames: Iterable[np.ndarray], synthesis: Synthesis, flow: TwoWayFlow | None, seed: int, name: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    steps, reach, stride = synthesis.interpolate, synthesis.reach, synthesis.stride
    around = -(-reach // steps)  # whole frames needed on either side
    held: collections.deque[_Frame] = collections.deque(maxlen=2 * around + 1)
    for number, image in enumerate(alike(frames, name)):
        held.append(_Frame(image))
        centre = number - around
        if centre < around or (centre - around) % stride:
            continue
        total = np.zeros(image.shape, np.float32)
        for place in range(-reach, reach + 1):
            if place % steps == 0:
                total += held[around + place // steps].light(synthesis.gamma)
        if steps > 1:
            assert flow is not None
            for index in range(len(held) - 1):
                # Sub-frames strictly between two frames that the exposure covers.
                before = (index - around) * steps
                covered = [k for k in range(1, steps) if abs(before + k) <= reach]
                if covered:
                    total += _between(held[index], held[index + 1], covered, synthesis, flow)
        mean = total / np.float32(2 * reach + 1)
        blurred = np.asarray(from_light(mean, synthesis.gamma), np.float32) * np.float32(255)
        if synthesis.noise_levels:
            bits = np.random.Philox(np.random.SeedSequence((Stream.SYNTHETIC_NOISE, seed, centre)))
            blurred = blurred + synthesis.noise_levels * np.random.Generator(bits).standard_normal(
                blurred.shape, np.float32
            )
        yield np.rint(np.clip(blurred, 0, 255)).astype(np.uint8), to_u8(held[around].image)


@dataclasses.dataclass
class _Frame:
    """One frame, and the flow from it to the next and back once it is known."""

    image: np.ndarray
    flows: tuple[Array, Array] | None = None

    def light(self, gamma: Gamma) -> np.ndarray:
        return _light_of_values(self.image.dtype.str, gamma)[self.image]

    def unit(self) -> np.ndarray:
        return self.image[None].astype(np.float32) / np.float32(np.iinfo(self.image.dtype).max)


@functools.cache
def _light_of_values(dtype: str, gamma: Gamma) -> np.ndarray:
    """Of every value an integer type holds: looking up is many times faster than raising to a power."""
    values = np.arange(np.iinfo(dtype).max + 1)
    return np.asarray(to_light(values.astype(np.float32) / np.float32(values[-1]), gamma), np.float32)


def _between(frame: _Frame, following: _Frame, places: list[int], synthesis: Synthesis, flow: TwoWayFlow) -> np.ndarray:
    """The sum, in light, of sub-frames between two frames."""
    if frame.flows is None:
        frame.flows = flow(frame.unit(), following.unit())
    times = np.array(places, np.float32) / np.float32(synthesis.interpolate)
    return np.asarray(_sum_between(frame.unit(), following.unit(), *frame.flows, times, synthesis.gamma)[0])


@jit(static_argnames="gamma")
def _sum_between(
    image_0: Array, image_1: Array, flow_0to1: Array, flow_1to0: Array, times: Array, gamma: Gamma
) -> Array:
    def add(total: Array, time: Array) -> tuple[Array, None]:
        frame = interpolate_frame(jnp.asarray(image_0), jnp.asarray(image_1), flow_0to1, flow_1to0, time)
        return total + to_light(frame, gamma), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(jnp.asarray(image_0)), jnp.asarray(times))
    return total


def synthesize_clip(
    source: StrPath,
    root: StrPath,
    synthesis: Synthesis,
    *,
    split: str = "train",
    clip: str | None = None,
    flow: TwoWayFlow | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[Path, int]:
    """Writes <root>/<split>/<clip>/{blur,sharp}/<frame>.png from a video or a folder of frames.

    Frames are named by the place of the sharp one in the source. The clip is there whole or not at all; beside its
    frames lies what it was made with.

    Args:
        source: a video, or a folder of images in the order of their names.
        clip: its name; None takes the source's.
        progress: called with the pairs written.
    Returns:
        The clip's folder, and how many pairs it has.
    Raises:
        FileExistsError: the clip is there already.
        OSError, ValueError: the source cannot be read, is too short, or root cannot be written.
    """
    source = Path(source)
    name = clip or (source.name if source.is_dir() else source.stem)
    for option, value in (("clip", name), ("split", split)):
        if value in ("", ".", "..") or "/" in value:
            raise ValueError(f"{option} is {value!r}; expected the plain name of a folder")
    target = Path(root).absolute() / split / name
    if target.exists():
        raise FileExistsError(f"{target}: is there already; name another clip or split, or remove it")
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    pairs = synthesize(read_frames(source), synthesis, flow=flow, seed=seed, name=str(source))
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with becoming(target) as partial:
            count = _write_pairs(pairs, partial, synthesis, progress)
            if count == 0:
                around = -(-synthesis.reach // synthesis.interpolate)
                raise ValueError(f"{source}: is too short; one blurred frame takes {2 * around + 1} frames")
            record: dict[str, Any] = {
                "source": source.name,
                "seed": seed,
                "pairs": count,
                **dataclasses.asdict(synthesis),
            }
            (partial / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return target, count


def _write_pairs(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    folder: Path,
    synthesis: Synthesis,
    progress: Callable[[int, int | None], None] | None,
) -> int:
    """Writes blurred and sharp frames under the numbers of the sharp ones in the source; returns how many pairs."""
    for side in SIDES:
        (folder / side).mkdir()
    around, count = -(-synthesis.reach // synthesis.interpolate), 0
    for count, pair in enumerate(pairs, start=1):
        frame = around + (count - 1) * synthesis.stride
        for side, image in zip(SIDES, pair, strict=True):
            write_image(folder / side / f"{frame:06d}.png", ImageFile(image))
        if progress is not None:
            progress(count, None)
    return count
