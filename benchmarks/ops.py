"""Time of the array ops, forward and with their gradients, at the sizes the networks use them.

    python -m benchmarks.ops [--runs 7]

The cost volume stands in both of its forms: by rows is what a CPU runs, by row displacements what an accelerator runs.
"""

import argparse
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks import measure
from jaxdeblur.compilation import jit
from jaxdeblur.ops import correlation
from jaxdeblur.ops.filters import box_mean
from jaxdeblur.ops.quality import ssim
from jaxdeblur.ops.resample import resize_bilinear
from jaxdeblur.ops.warp import warp_backward, warp_blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    print(f"{measure.machine()}, median of {runs}, milliseconds")
    print(f"{'op':52s} {'forward':>9s} {'+ gradient':>11s} {'GMAC':>7s} {'GFLOP/s':>8s}")

    def show(name: str, function: Callable, *arguments: jax.Array, macs: int | None = None) -> None:
        forward = jit(function)
        both = jit(jax.grad(lambda *args: jnp.sum(jnp.square(function(*args))), argnums=range(len(arguments))))
        forward_ms = measure.median_ms(lambda: forward(*arguments), runs=runs)
        both_ms = measure.median_ms(lambda: both(*arguments), runs=runs)
        rate = "" if macs is None else f"{macs / 1e9:7.2f} {measure.gflops(macs, forward_ms):8.1f}"
        print(f"{name:52s} {forward_ms:9.1f} {both_ms:11.1f} {rate}")

    key = jax.random.key(0)
    for height, width, channels, radius in ((180, 320, 64, 4), (90, 160, 52, 10)):
        features = jax.random.normal(key, (1, height, width, channels))
        macs = measure.cost_volume_macs(1, height, width, channels, radius)
        size = f"{width}x{height}x{channels} radius {radius}"
        show(f"cost volume {size}, by rows", partial(correlation._dot_by_rows, radius=radius), features, features,
             macs=macs)  # fmt: skip
        show(f"cost volume {size}, by displacements", partial(correlation._dot_by_row_displacements, radius=radius),
             features, features, macs=macs)  # fmt: skip
    cost = jax.random.normal(key, (1, 90, 160, 441))
    show("5 x 5 mean 160x90x441", partial(box_mean, size=5), cost)
    image = jax.random.normal(key, (1, 180, 320, 64))
    flow = 3 * jax.random.normal(key, (1, 180, 320, 2))
    show("bilinear warp 320x180x64", lambda x, f: warp_backward(x, f, border="zeros")[0], image, flow)
    whole = jnp.round(flow[:, ::4, ::4] / 4).astype(jnp.int32)
    show("block warp 320x180x64", lambda x: warp_blocks(x, whole, block=4), image)
    show("bilinear resize 320x180x64 to 640x360", lambda x: resize_bilinear(x, 360, 640, align_corners=False), image)
    frame = jax.random.uniform(key, (720, 1280, 3))
    show("SSIM 1280x720x3", lambda x: ssim(x, 0.5 * x), frame)


if __name__ == "__main__":
    main()
