"""Where batches of dense evaluations live: split over devices where they divide."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(batch_size: int | None = None) -> Mesh:
    """Return a mesh of all devices, or of as many as divide a batch.

    Args:
      batch_size: Length of all batches; None if it varies.
    """
    devices = jax.devices()
    while batch_size is not None and batch_size % len(devices):
        devices = devices[:-1]
    return Mesh(np.array(devices), ("batch",))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a copy of every array on every device, never sharing memory with the old."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()), may_alias=False)


def split(tree: Any, mesh: Mesh) -> Any:
    """Split arrays over the devices by their first axis, if that divides.

    Args:
      tree: Arrays with one first axis. One that the devices do not divide goes to each
        of them whole.
      mesh: The devices.
    """
    length = len(jax.tree.leaves(tree)[0])
    spec = PartitionSpec() if length % mesh.size else PartitionSpec("batch")
    return jax.device_put(tree, NamedSharding(mesh, spec))
