"""Reblurring a frame along both its flows, in all forms: time, memory, and how far from the exact segment.

    python -m benchmarks.reblur [--size 1280x720] [--runs 3] [--forms path,ends,taps]

Times are medians, forward and forward with the gradients to the image and both flows. Memory is what the compiled
program holds at once: arguments, results, and what lies between. The form with whole kernels is measured on a crop of
64 x 64, since at this size it would take gigabytes by the dozen.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from jaxdeblur.compilation import jit
from jaxdeblur.ops.reblur import LARGEST_FLOW_PX, reblur
from jaxdeblur.types import Flow, Image

CROP = (64, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--forms", default="path,ends,taps")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))

    console = Console(width=None if Console().is_terminal else 110)
    console.print(f"{measure.machine()}, float32, median of {arguments.runs}; flows of up to {LARGEST_FLOW_PX} px")
    table = Table(title="reblurring")
    for heading in ("size", "form"):
        table.add_column(heading, no_wrap=True)
    for heading in ("forward s", "held MiB", "+ backward s", "held MiB"):
        table.add_column(heading, justify="right")
    whole = [(form, 16) for form in arguments.forms.split(",")] + [("path", 4)]
    rows = [((height, width), *row) for row in whole]
    rows += [(CROP, form, 16) for form in ("path", "taps", "materialised")]
    for number, (size, form, samples) in enumerate(rows, start=1):
        keys = jax.random.split(jax.random.key(0), 3)
        image = jax.random.uniform(keys[0], (1, *size, 3))
        flows = [LARGEST_FLOW_PX * jax.random.uniform(key, (1, *size, 2), minval=-1) for key in keys[1:]]
        cells = []
        for function in (forward, forward_backward):
            run = jit(functools.partial(function, form=form, samples=samples))
            compiled = run.lower(image, *flows).compile()
            ms = measure.median_ms(functools.partial(compiled, image, *flows), runs=arguments.runs)
            cells += [f"{ms / 1000:.3f}", f"{measure.held_bytes(compiled) / 2**20:.0f}"]
        name = f"path, {samples} samples" if form == "path" else form
        table.add_row(f"{size[1]}x{size[0]}", name, *cells, end_section=number == len(whole))
    console.print(table)


def forward(image: Image, flow_next: Flow, flow_prev: Flow, **options: Any) -> Image:
    return reblur(image, flow_next, flow_prev, **options)


def forward_backward(image: Image, flow_next: Flow, flow_prev: Flow, **options: Any) -> tuple[jax.Array, ...]:
    blurred, transpose = jax.vjp(functools.partial(reblur, **options), image, flow_next, flow_prev)
    return blurred, *transpose(jnp.ones_like(blurred))


if __name__ == "__main__":
    main()
