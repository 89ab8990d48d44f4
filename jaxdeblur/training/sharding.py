"""Data parallelism over every device of every process: parameters on all, the batch split."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdeblur.types import PyTree

AXIS = "data"


def make_mesh(devices: Any = None) -> Mesh:
    """One axis over all devices (or those given)."""
    devices = np.asarray(jax.devices() if devices is None else devices)
    return Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))


def along_batch(mesh: Mesh, axis: int | None) -> NamedSharding:
    """Splits an array's given axis over the devices; None: a whole copy on each."""
    return NamedSharding(mesh, P() if axis is None else P(*[None] * axis, AXIS))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts equal host values on every device. Every process must pass the same values."""
    sharding = along_batch(mesh, None)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Splits this process's share of a batch over its devices; the first axis of the result is the whole batch."""
    sharding = along_batch(mesh, 0)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def check_batch_size(batch_size: int, mesh: Mesh, microbatches: int) -> None:
    """Raises unless the batch splits evenly over devices and micro-batches."""
    share = mesh.devices.size * microbatches
    if batch_size < 1 or batch_size % share:
        raise ValueError(
            f"data.batch_size is {batch_size}; expected a multiple of {share} = {mesh.devices.size} devices x "
            f"training.microbatches {microbatches}"
        )
