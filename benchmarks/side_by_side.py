"""Our networks and ops against the same ones in PyTorch, on the CPU: restoring, training, warping, matching.

    pip install -e ".[bench]"
    python -m benchmarks.side_by_side [restoring] [training] [ops] [--sizes 320x180,1280x720] [--turns 7] [--threads 2]
    python -m benchmarks.side_by_side --before=FOLDER --output=docs/performance.md

Both compute with the same number of threads, on the same values and weights, and take turns within one run, so that
other load meets both. Their results are compared first. Times are medians. "NCHW" is PyTorch as most write it, "NHWC"
with `memory_format=torch.channels_last`; both are eager. The twins are in benchmarks/torch_twins.py.

--before names a checkout of an earlier version of this package. A process of its own runs the same rows with it, in the
same turns: the table then has a column "before". "First" is how long a process that has the weights waits for its first
frame: tracing, compiling and one step.

--output writes the table to a Markdown file; where that has the two comments of MARKS, between them.
"""

import argparse
import copy
import dataclasses
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import measure, torch_twins
from benchmarks.restoration import first_carry, frame_step
from jaxdeblur import create_model
from jaxdeblur.compilation import jit
from jaxdeblur.interop import cdvd_tsp, multi_task_unit
from jaxdeblur.interop.layout import to_variables
from jaxdeblur.objectives.cdvd_tsp import CDVDTSPObjective
from jaxdeblur.objectives.multi_task_unit import MultiTaskUnitObjective
from jaxdeblur.ops.correlation import local_cost_volume
from jaxdeblur.ops.warp import warp_backward
from jaxdeblur.training.optimizers import make_optimizer, make_schedule
from jaxdeblur.training.state import init_state
from jaxdeblur.training.step import make_train_step

MARKS = "<!-- side by side -->", "<!-- end of side by side -->"
TOLERANCE = 2e-3  # of the mean value: float32 sums in other orders, through a whole network
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: calls that do the same."""

    name: str
    ours: Callable[[], Any]
    theirs: Mapping[str, Callable[[], Any]]  # layout -> call
    first_s: float | None = None  # until our first frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--sizes", default="320x180,640x360,1280x720", help="width x height of restored frames")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="that restore")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; ours are as many as there are cores")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version")
    parser.add_argument("--output", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")
    torch.set_num_threads(arguments.threads)
    rows = (row for part in arguments.parts or PARTS for row in PARTS[part](arguments))
    if arguments.answer:
        _answer(rows)
        return
    versions = ["ours"] if arguments.before is None else ["ours", "before"]
    columns = [*versions, *LAYOUTS]
    title = (
        f"{measure.machine()}, PyTorch {torch.__version__}, {arguments.threads} threads, median of {arguments.turns}"
    )
    print(title)
    print(
        f"{'milliseconds, and ours over':44s}" + "".join(f"{name:>10s}" for name in (*columns, *columns[1:])),
        flush=True,
    )
    headings = [
        "",
        *(f"{name}, ms" for name in columns),
        *(f"ours / {name}" for name in columns[1:]),
        *(f"first, {name}, s" for name in versions),
    ]
    table = [f"{title}:", "", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    earlier = None if arguments.before is None else _Earlier(arguments.before)
    for row in rows:
        calls, firsts = {"ours": row.ours}, [row.first_s]
        if earlier is not None:
            calls["before"], first_s = earlier.call_of(row.name)
            firsts.append(first_s)
        ms = _in_turns({**calls, **row.theirs}, arguments.turns)
        ratios = [ms["ours"] / ms[name] for name in columns[1:]]
        print(f"{row.name:44s}" + "".join(f"{ms[name]:10.1f}" for name in columns) + "".join(
            f"{ratio:10.2f}" for ratio in ratios) + "".join(
            "" if first is None else f"{first:8.1f} s" for first in firsts), flush=True)  # fmt: skip
        cells = [
            row.name,
            *(f"{ms[name]:.1f}" for name in columns),
            *(f"{ratio:.2f}" for ratio in ratios),
            *("" if first is None else f"{first:.1f}" for first in firsts),
        ]
        table.append(f"| {' | '.join(cells)} |")
    if arguments.output is not None:
        measure.write_table("\n".join(table), arguments.output, MARKS)


def _in_turns(calls: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Median milliseconds of each. A call that returns seconds has measured itself."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            found = jax.block_until_ready(call())
            seconds = found if isinstance(found, float) else time.perf_counter() - start
            if turn > 0:  # the first compiles, and fills caches
                times[name].append(seconds)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


class _Earlier:
    """The same rows in a process that imports an earlier version."""

    def __init__(self, checkout: Path) -> None:
        package = checkout.absolute() / "jaxdeblur"
        if not package.is_dir():
            raise SystemExit(f"{checkout} has no folder jaxdeblur; --before names a checkout of this repository")
        self._folder = tempfile.TemporaryDirectory()
        (Path(self._folder.name) / "jaxdeblur").symlink_to(package)
        root = Path(__file__).parent.parent
        path = os.pathsep.join((self._folder.name, str(root)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.side_by_side", *sys.argv[1:], "--answer"],
            cwd=self._folder.name,  # the folder a module is started from comes first
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def call_of(self, name: str) -> tuple[Callable[[], float], float | None]:
        """Goes on to the row of that name: its call, and `Row.first_s`."""
        self._ask("next")
        found, _, first_s = self._said().partition("\t")
        if found != name:
            raise SystemExit(f"the earlier version has {found!r} where there is {name!r}")
        return self._seconds, float(first_s) if first_s else None

    def _seconds(self) -> float:
        self._ask("turn")
        return float(self._said())

    def _ask(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of the earlier version ended with code {self._process.wait()}")
        return line.rstrip("\n")


def _answer(rows: Iterator[Row]) -> None:
    """What the process of an earlier version does: a row at "next", the seconds of a call at "turn"."""
    row: Row | None = None
    for word in sys.stdin:
        if word.strip() == "next":
            row = next(rows)
            print(row.name, "" if row.first_s is None else row.first_s, sep="\t", flush=True)
        else:
            assert row is not None
            start = time.perf_counter()
            jax.block_until_ready(row.ours())
            print(time.perf_counter() - start, flush=True)


def _compare(name: str, ours: Any, theirs: torch.Tensor) -> None:
    """Ours has channels last. Means are compared: a gradient may jump where a position is whole but for rounding."""
    ours, theirs = np.asarray(ours), np.moveaxis(theirs.detach().numpy(), 1, -1)
    deviation = np.abs(ours - theirs).mean() / np.abs(theirs).mean()
    if not deviation < TOLERANCE:
        raise AssertionError(f"{name}: ours and PyTorch's differ by {deviation:.1e} of the mean value")


# Restoring.


def _mtu(name: str = "", **options: Any) -> tuple[Any, nn.Module, Any]:
    """A network of ours, its twin, and variables that are the twin's."""
    model = create_model(name, **options)
    config = model.config
    twin = torch_twins.MultiTaskUnits(
        config.units, config.channels, config.residual_blocks, config.match_radius, config.scales
    )
    table = functools.partial(
        multi_task_unit.table, units=config.units, channels=config.channels, blocks=config.residual_blocks
    )
    return model, twin, _variables(table, twin)


def _cdvd(**options: Any) -> tuple[Any, nn.Module, Any]:
    model = create_model("cdvd_tsp", **options)
    config = model.config
    twin = torch_twins.CDVDTSP(config.channels, config.residual_blocks, config.flow_width)
    return model, twin, _variables(cdvd_tsp.table, twin)


def _variables(table: Callable, twin: nn.Module) -> Any:
    """Of ours, with the values of the twin, which are made such that frames stay frames and nothing dies out."""
    torch.manual_seed(0)
    for module in twin.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            module.weight.data *= 0.5
            nn.init.zeros_(module.bias)
    arrays = {name: value.numpy() for name, value in twin.state_dict().items()}
    return jax.device_put(to_variables(table(arrays), arrays))


DEFAULT = {"channels": 24, "residual_blocks": 12, "scales": 3}
"""What the network of the package is made of."""

BY_WINDOWS = "cdvd_tsp by windows"
"""PyTorch as released restores every window of five by itself. In the row before, it keeps what the next one needs, as
ours does."""

NETWORKS: dict[str, Callable[[], tuple[Any, nn.Module, Any]]] = {
    "mtu1": functools.partial(_mtu, "mtu1"),
    "mtu2": functools.partial(_mtu, "mtu2"),
    "mtu10": functools.partial(_mtu, "mtu10"),
    "default network": functools.partial(_mtu, "mtu1", **DEFAULT),
    "cdvd_tsp stream": _cdvd,
    BY_WINDOWS: _cdvd,
}


def _restoring(arguments: argparse.Namespace) -> Iterator[Row]:
    for size in arguments.sizes.split(","):
        width, height = (int(side) for side in size.split("x"))
        for name in arguments.networks.split(","):
            model, twin, variables = NETWORKS[name]()
            multiple = 4 if isinstance(twin, torch_twins.CDVDTSP) else model.size_multiple
            filled = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
            count = model.past_frames + 1 + model.future_frames
            window = np.random.default_rng(0).random((1, count, *filled, 3), np.float32)
            start = time.perf_counter()
            step = jit(frame_step(model, variables))
            carry, first = jax.block_until_ready(
                step(jit(functools.partial(first_carry, model, variables))(window), window)
            )
            first_s = time.perf_counter() - start
            on_device = jax.device_put(window)
            their_step = _their_window if name == BY_WINDOWS else _their_step
            theirs = {
                layout: their_step(twin, torch.from_numpy(np.moveaxis(window, -1, 2)), memory_format)
                for layout, memory_format in LAYOUTS.items()
            }
            row = Row(f"{name} {size}", functools.partial(step, carry, on_device), theirs, first_s)
            restored = first if name == BY_WINDOWS else row.ours()[1]  # theirs has gone as many steps
            _compare(row.name, restored, theirs["NCHW"]())
            yield row


def _their_step(twin: nn.Module, window: torch.Tensor, memory_format: Any) -> Callable[[], torch.Tensor]:
    twin = twin.to(memory_format=memory_format)
    frames = [window[:, i].contiguous(memory_format=memory_format) for i in range(window.shape[1])]
    window = torch.stack(frames, dim=1)
    with torch.inference_mode():
        if isinstance(twin, torch_twins.CDVDTSP):
            carry = twin(window, twin.start(window))[0]
        else:
            carry = twin(window)[0]

    @torch.inference_mode()
    def call() -> torch.Tensor:
        found = twin.to(memory_format=memory_format)(window, carry)[1]
        return found["restored"] if isinstance(found, dict) else found

    return call


def _their_window(twin: nn.Module, window: torch.Tensor, memory_format: Any) -> Callable[[], torch.Tensor]:
    window = torch.stack([frame.contiguous(memory_format=memory_format) for frame in window.unbind(1)], dim=1)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        return twin.to(memory_format=memory_format).cascade(window)[-1][:, 0]

    return call


# Training.


def _train_step(model: Any, variables: Any, objective: Any, batch: dict[str, np.ndarray]) -> Callable[[], Any]:
    """A call that makes a batch's updates."""
    optimizers = {
        group: make_optimizer(
            {
                name: make_schedule(1e-4, kind="constant", steps=1)
                for name in ("deblur", "motion", "flow", "restoration")
            },
            functools.partial(objective.learning_rate_name, group),
            adam={"b1": 0.9, "b2": 0.999, "eps": 1e-8},
        )
        for group in objective.groups
    }
    train_step = make_train_step(objective, optimizers)
    state = init_state(jax.random.key(0), jax.tree.map(jnp.copy, variables), optimizers, ema=False)
    placed = jax.device_put(batch)

    def step() -> Any:
        nonlocal state
        state, metrics = train_step(state, placed, {})
        return metrics

    return step


def _training(arguments: argparse.Namespace) -> Iterator[Row]:
    del arguments
    rng = np.random.default_rng(0)

    def frames(*shape: int) -> np.ndarray:
        return rng.random((*shape, 3), np.float32)

    recipes: tuple[tuple[str, Any, int, int, int, Literal["mse+l1", "psnr"]], ...] = (
        ("mtu2, 2 x 96 px", _mtu("mtu2"), 2, 96, 4, "mse+l1"),
        ("default recipe, 4 x 160 px", _mtu("mtu1", **DEFAULT), 4, 160, 3, "psnr"),
    )
    for name, (model, twin, variables), batch_size, crop, count, loss in recipes:
        motion = model.config.units > 1
        objective = MultiTaskUnitObjective(model, count, image_loss=loss, motion_loss=motion)
        batch = {
            "blurred": frames(batch_size, count + 4, crop, crop),
            "sharp": frames(batch_size, count, crop, crop),
            "flow_cur_to_prev": np.ones((batch_size, count, crop, crop, 2), np.float32),
        }
        theirs = {
            layout: functools.partial(_Trained(twin, memory_format).mtu_updates, batch, loss)
            for layout, memory_format in LAYOUTS.items()
        }
        yield Row(f"training {name}, {count} updates", _train_step(model, variables, objective, batch), theirs)

    model, twin, variables = _cdvd(**SMALL_CDVD)
    batch = {"blurred": frames(2, 5, 96, 96), "sharp": frames(2, 3, 96, 96)}
    theirs = {
        layout: functools.partial(_Trained(twin, memory_format).cdvd_update, batch)
        for layout, memory_format in LAYOUTS.items()
    }
    step = _train_step(model, variables, CDVDTSPObjective(model), batch)
    yield Row("training cdvd_tsp (small), 2 x 96 px", step, theirs)


SMALL_CDVD = {"channels": 16, "flow_width": 0.5}


class _Trained:
    """A copy of a twin with its optimizers."""

    def __init__(self, twin: nn.Module, memory_format: Any) -> None:
        self.network = copy.deepcopy(twin).to(memory_format=memory_format)
        self.memory_format = memory_format
        named = dict(self.network.named_parameters())
        motion = [value for name, value in named.items() if name.startswith("motion_layer")]
        others = [value for name, value in named.items() if not name.startswith("motion_layer")]
        first = [value for name, value in named.items() if name.startswith(("base_conv", "inp_prev", "HGs.0"))]
        self.adam = torch.optim.Adam(others, 1e-4)
        self.motion_adam = torch.optim.Adam(first + motion, 1e-6) if motion else None

    def mtu_updates(self, batch: dict[str, np.ndarray], loss: str) -> torch.Tensor:
        """One a frame, as the released code makes them: two gradients of one forward pass, each with its Adam."""
        network, carry, restored = self.network, None, torch.zeros(())
        blurred, sharp = (self._frames(batch[name]) for name in ("blurred", "sharp"))
        for t, target in enumerate(sharp):
            window = torch.stack(blurred[t : t + 5], dim=1)
            carry, found = network(window, carry, train=True)
            restored = found["restored"]
            total = _image_loss(restored, target, loss)
            if found["intermediate"]:
                each = [_image_loss(image, target, loss) for image in found["intermediate"]]
                total = total + 0.1 * sum(each) / len(each)
            self.adam.zero_grad()
            if "cost" in found and self.motion_adam is not None:
                centre = found["cost"].shape[1] // 2
                classes = torch.full_like(found["cost"][:, 0], centre, dtype=torch.long)
                of_motion = [value for group in self.motion_adam.param_groups for value in group["params"]]
                gradients = torch.autograd.grad(
                    F.cross_entropy(found["cost"], classes), of_motion, retain_graph=True, allow_unused=True
                )
                total.backward()
                self.adam.step()
                for value, gradient in zip(of_motion, gradients):
                    value.grad = gradient
                self.motion_adam.step()
            else:
                total.backward()
                self.adam.step()
        return restored

    def cdvd_update(self, batch: dict[str, np.ndarray]) -> torch.Tensor:
        blurred, sharp = (self._frames(batch[name]) for name in ("blurred", "sharp"))
        stages = self.network.cascade(torch.stack(blurred, dim=1))
        restored = torch.cat([*stages[0].unbind(1), stages[1][:, 0]], dim=1)
        target = torch.cat([*sharp, sharp[1]], dim=1)
        residual = (restored - target).abs()
        with torch.no_grad():
            summed = residual.sum(dim=1).flatten(1)
            threshold = summed.sort(dim=1, descending=True).values[:, summed.shape[1] // 2, None]
            drawn = torch.rand_like(summed).argsort(dim=1) < summed.shape[1] // 10
            mask = ((summed > threshold) | drawn).reshape(residual[:, :1].shape).to(residual.dtype)
        total = residual.mean() + 2 * (mask * residual).mean()
        self.adam.zero_grad()
        total.backward()
        self.adam.step()
        return total

    def _frames(self, frames: np.ndarray) -> list[torch.Tensor]:
        tensor = torch.from_numpy(np.moveaxis(frames, -1, 2))
        return [tensor[:, i].contiguous(memory_format=self.memory_format) for i in range(tensor.shape[1])]


def _image_loss(image: torch.Tensor, target: torch.Tensor, loss: str) -> torch.Tensor:
    difference = image - target
    if loss == "psnr":
        return 10 * torch.log10(difference.square().mean(dim=(1, 2, 3)) + 1e-4).mean()
    return difference.square().mean() + difference.abs().mean()


# Ops.


def _ops(arguments: argparse.Namespace) -> Iterator[Row]:
    del arguments
    rng = np.random.default_rng(0)
    for height, width, channels in ((720, 1280, 3), (180, 320, 64)):
        image = rng.random((2, height, width, channels), np.float32)
        flow = 3 * rng.standard_normal((2, height, width, 2), np.float32)
        ours = functools.partial(warp_backward, border="zeros")
        yield from _op_rows(
            f"warp {width}x{height}x{channels}", lambda x, f, ours=ours: ours(x, f)[0], torch_twins.warp, image, flow
        )
    for height, width, channels, radius in ((180, 320, 32, 4), (90, 160, 52, 10)):
        one, zero = (rng.standard_normal((1, height, width, channels), np.float32) for _ in range(2))
        yield from _op_rows(
            f"cost volume {width}x{height}x{channels} radius {radius}",
            functools.partial(local_cost_volume, radius=radius, similarity="dot"),
            functools.partial(torch_twins.cost_volume, radius=radius),
            one,
            zero,
        )


def _op_rows(name: str, ours: Callable, theirs: Callable, *arrays: np.ndarray) -> Iterator[Row]:
    placed = jax.device_put(arrays)
    forward = jit(ours)
    both = jit(jax.grad(lambda *x: jnp.sum(jnp.square(ours(*x))), argnums=(0, 1)))
    forwards, gradients = {}, {}
    for layout, memory_format in LAYOUTS.items():
        tensors = [torch.from_numpy(np.moveaxis(x, -1, 1)).contiguous(memory_format=memory_format) for x in arrays]
        leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in tensors]
        forwards[layout] = functools.partial(torch.inference_mode()(theirs), *tensors)
        gradients[layout] = functools.partial(_gradients, theirs, leaves)
    _compare(name, forward(*placed), forwards["NCHW"]())
    for found, expected in zip(both(*placed), gradients["NCHW"](), strict=True):
        _compare(f"{name}, gradient", found, expected)
    yield Row(f"{name}, forward", functools.partial(forward, *placed), forwards)
    yield Row(f"{name}, and gradient", functools.partial(both, *placed), gradients)


def _gradients(op: Callable, leaves: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(op(*leaves).square().sum(), leaves)


PARTS = {"restoring": _restoring, "training": _training, "ops": _ops}

if __name__ == "__main__":
    main()
