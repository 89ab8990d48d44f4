"""The four-directional recurrence in all its forms, at the three scales of a 1280 x 768 picture.

    python -m benchmarks.recurrence [--size 1280x768] [--runs 5] [--dtype float32]

Times are medians. "x floor" is what the compiled program moves (its loops included) over what must be moved: for each
axis the features are read once for both senses, weights read and results written; backwards likewise. Memory is what
the compiled program holds at once: arguments, results, and what lies between. Last stands the tree of the
associative form as automatic differentiation leaves it, without the recurrence's own gradient.

On a GPU the kernel takes part (its bytes are not in the compiler's listing), and the floor's time is printed for
--bandwidth, in bytes a second.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.hlo_bytes import bytes_moved
from jaxdeblur.compilation import jit
from jaxdeblur.ops import spatial_rnn
from jaxdeblur.ops.spatial_rnn import FORMS, four_direction_recurrence
from jaxdeblur.types import Array, Features

SCALES = ((2, 24), (4, 48), (8, 96))  # coarser by, channels
# Arrays of the features' size that must be moved, both senses of an axis together.
FORWARD_UNITS, BACKWARD_UNITS = 10, 21
HELD_UNITS = 18  # f, w, h, the gradient to h, and those to f and w


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="1280x768")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--bandwidth", type=float, default=4.8e12)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    on_gpu = jax.default_backend() == "gpu"
    forms = [form for form in FORMS if form != "kernel" or on_gpu]

    console = Console(width=None if Console().is_terminal else 110)
    console.print(
        f"{measure.machine()}, {arguments.dtype}, median of {arguments.runs}; form=None is what is picked here"
    )
    totals: dict[str, list[tuple[float, float]]] = {}
    for coarser, channels in SCALES:
        shape = (1, height // coarser, width // coarser, channels)
        table = Table(title=f"scale 1/{coarser}: {shape[2]} x {shape[1]} x {channels}")
        table.add_column("form", no_wrap=True)
        for heading in ("forward ms", "x floor", "+ backward ms", "x floor", "held MiB", "x arrays"):
            table.add_column(heading, justify="right")
        keys = jax.random.split(jax.random.key(0), 3)
        f = jax.random.normal(keys[0], shape, arguments.dtype)
        w, g = (jax.random.normal(key, (*shape[:-1], 4 * channels), arguments.dtype) for key in keys[1:])
        w = jnp.tanh(w)
        unit = f.nbytes
        for form in (None, *forms, "associative, no own gradient"):
            one, both = jit(functools.partial(forward, form)), jit(functools.partial(forward_backward, form))
            compiled, compiled_both = one.lower(f, w).compile(), both.lower(f, w, g).compile()
            forward_ms = measure.median_ms(functools.partial(compiled, f, w), runs=arguments.runs)
            both_ms = measure.median_ms(functools.partial(compiled_both, f, w, g), runs=arguments.runs)
            held = measure.held_bytes(compiled_both)
            moved = [over_floor(c.as_text() or "", units * unit) for c, units in
                     ((compiled, FORWARD_UNITS), (compiled_both, FORWARD_UNITS + BACKWARD_UNITS))]  # fmt: skip
            name = "form=None" if form is None else form
            totals.setdefault(name, []).append((forward_ms, both_ms))
            table.add_row(
                name, f"{forward_ms:.2f}", moved[0], f"{both_ms:.2f}", moved[1], f"{held / 2**20:.1f}",
                f"{held / (HELD_UNITS * unit):.2f}", end_section=form in (None, forms[-1]),
            )  # fmt: skip
        console.print(table)
    table = Table(title="all three scales")
    table.add_column("form", no_wrap=True)
    for heading in ("forward ms", "+ backward ms"):
        table.add_column(heading, justify="right")
    for name, times_ms in totals.items():
        table.add_row(name, *(f"{sum(times):.2f}" for times in zip(*times_ms)))
    elements = sum(height // coarser * (width // coarser) * channels for coarser, channels in SCALES)
    floor = elements * jnp.dtype(arguments.dtype).itemsize / arguments.bandwidth
    table.add_section()
    table.add_row(
        f"floor at {arguments.bandwidth / 1e12:g} TB/s",
        f"{1e3 * FORWARD_UNITS * floor:.3f}",
        f"{1e3 * (FORWARD_UNITS + BACKWARD_UNITS) * floor:.3f}",
    )
    console.print(table)


def forward(form: str | None, f: Array, w: Array) -> Features:
    if form == "associative, no own gradient":
        return spatial_rnn._forward_by_scans(spatial_rnn._associative, f, w)
    return four_direction_recurrence(f, w, form=form)  # type: ignore[arg-type]


def forward_backward(form: str | None, f: Array, w: Array, gradient: Array) -> tuple[Array, ...]:
    h, transpose = jax.vjp(functools.partial(forward, form), f, w)
    return h, *transpose(gradient)


def over_floor(hlo: str, floor_bytes: int) -> str:
    return "" if "triton" in hlo else f"{bytes_moved(hlo) / floor_bytes:.1f}"


if __name__ == "__main__":
    main()
