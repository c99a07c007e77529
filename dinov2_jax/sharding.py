"""The device mesh and where every array lives on it.

One mesh with axes ("replica", "fsdp"), Auto axis types. A rule by shape shards the
state over `fsdp` (the reference's FSDP); batches are sharded over both axes on their
leading group axis. The model code only ever calls `constrain_batch`.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH = PartitionSpec(("replica", "fsdp"))
MIN_SHARDED_SIZE = 2048  # elements; smaller arrays are replicated


def make_mesh(replica: int = 1, devices: Any = None) -> Mesh:
    """Mesh ("replica", "fsdp") over `devices` (default: all of them)."""
    devices = jax.devices() if devices is None else devices
    shape = (replica, len(devices) // replica)
    return Mesh(
        np.asarray(devices).reshape(shape),
        ("replica", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every array of a batch: its group axis over all devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of parameters or optimizer state, by shape.

    The largest axis that the `fsdp` size divides is sharded, never the layer axis of
    the stacked blocks; arrays below `MIN_SHARDED_SIZE` elements are replicated.

    Args:
      state: Tree of arrays or `jax.ShapeDtypeStruct`.
      mesh: From `make_mesh`.

    Returns:
      The same tree of `NamedSharding`.
    """
    fsdp = mesh.shape["fsdp"]

    def rule(path, leaf):
        stacked = any(getattr(k, "key", None) == "blocks" for k in path)
        axes = [
            (size, -axis)
            for axis, size in enumerate(leaf.shape)
            if size % fsdp == 0 and not (stacked and axis == 0)
        ]
        spec = [None] * len(leaf.shape)
        if axes and leaf.size >= MIN_SHARDED_SIZE:
            spec[-max(axes)[1]] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(rule, state)


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keeps the leading group axis of `x` sharded; without a mesh in context, x."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)
