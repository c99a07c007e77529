"""The device mesh and where every array lives on it.

One mesh with axes ("replica", "fsdp"), Auto axis types. A rule by shape shards the
state over `fsdp` (the reference's FSDP); batches are sharded over both axes on their
leading group axis. The model code only ever calls `constrain_batch` and `gather`.
"""

import collections
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH = PartitionSpec(("replica", "fsdp"))
MIN_SHARDED_SIZE = 2048  # elements; smaller arrays are replicated
_TILE_ROWS = 16  # of a bfloat16 array on TPUs; parts of a tile cannot be gathered


def make_mesh(replica: int = 0, fsdp: int = 0, devices: Any = None) -> Mesh:
    """Mesh ("replica", "fsdp"), devices on fast links side by side.

    Args:
      replica: Copies of the state. 0: what `fsdp` leaves; where that is 0 too, one for
        each slice (a TPU slice; GPUs joined by NVLink, which are a node's).
      fsdp: Devices that share one copy; 0: what `replica` leaves.
      devices: Default: all of them.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda d: (_slice(d), d.process_index))
    if not fsdp:
        fsdp = len(devices) // (replica or _num_slices(devices))
    return Mesh(
        np.asarray(devices).reshape(replica or -1, fsdp),
        ("replica", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
    )


def _slice(device: Any) -> int:
    """Which of the groups that fast links join; not every platform has them."""
    return getattr(device, "slice_index", 0)


def _num_slices(devices: list[Any]) -> int:
    """Slices that can each hold a copy: alike, and of several devices."""
    sizes = collections.Counter(map(_slice, devices)).values()
    return len(sizes) if len(set(sizes)) == 1 and max(sizes) > 1 else 1


def process_rank(mesh: Mesh) -> int:
    """Of this process among those of the mesh: whose rows of a batch come first."""
    order = dict.fromkeys(device.process_index for device in mesh.devices.flat)
    return list(order).index(jax.process_index())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every array of a batch: its group axis over all devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of parameters or optimizer state, by shape.

    Of the axes that the `fsdp` size divides into whole tiles the first is sharded, so
    that a matrix can be split by its outputs without moving anything; without such an
    axis the largest that it divides; never the layer axis of stacked blocks. Vectors
    and arrays below `MIN_SHARDED_SIZE` elements (a block's, where they are stacked) are
    replicated: gathering them would take longer than the megabytes are worth.

    Args:
      state: Tree of arrays or `jax.ShapeDtypeStruct`.
      mesh: From `make_mesh`.

    Returns:
      The same tree of `NamedSharding`.
    """

    specs = _specs(state, mesh.shape["fsdp"])
    return jax.tree.map(functools.partial(NamedSharding, mesh), specs)


def constrain_state(tree: Any) -> Any:
    """Keeps a tree of gradients where `state_shardings` has the parameters.

    Left to itself the compiler cuts the sums of vectors as well, and gathers what they
    change.
    """
    if not is_divided():
        return tree
    specs = _specs(tree, jax.sharding.get_abstract_mesh().shape["fsdp"])
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs)


def _specs(tree: Any, fsdp: int) -> Any:
    def rule(path, leaf):
        stacked = any(getattr(k, "key", None) == "blocks" for k in path)
        spec = _spec(leaf.shape[stacked:], fsdp)
        return PartitionSpec(*[None] * stacked, *spec)

    return jax.tree_util.tree_map_with_path(rule, tree)


def _spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Of one parameter, one block's where they are stacked."""
    axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    whole = [axis for axis in axes if shape[axis] // fsdp % _TILE_ROWS == 0]
    spec = [None] * len(shape)
    if axes and len(shape) > 1 and math.prod(shape) >= MIN_SHARDED_SIZE:
        axis = whole[0] if whole else max(axes, key=lambda axis: shape[axis])
        spec[axis] = "fsdp"
    return PartitionSpec(*spec)


def gather(weights: Any) -> Any:
    """The weights whole on every device; their gradients go back to their shards.

    Said where the weights are in the dtype of the matmuls, so that this is what
    travels; left to itself the compiler also gathers the float32 they were cast from,
    or moves activations instead.

    Args:
      weights: Tree of arrays sharded as `state_shardings` says.
    """
    return jax.tree.map(_gather, weights) if is_divided() else weights


@jax.custom_vjp
def _gather(x):
    # Without the first, "whole" spreads backwards through the cast.
    return jax.lax.with_sharding_constraint(_scatter(x), PartitionSpec())


def _scatter(x):
    fsdp = jax.sharding.get_abstract_mesh().shape["fsdp"]
    return jax.lax.with_sharding_constraint(x, _spec(x.shape, fsdp))


def _gather_backward(_, grad):
    return (_scatter(grad),)


_gather.defvjp(lambda x: (_gather(x), None), _gather_backward)


def on_groups(
    function: Callable[..., Any], *, in_specs: Any, out_specs: Any, num_groups: int
) -> Callable[..., Any]:
    """Runs a function on each device's groups, where devices divide the groups.

    For what the compiler cannot divide (kernels) or divides badly (loops over rows).

    Args:
      function: Takes arrays, and as keyword `axes` the mesh axes to sum over, () where
        it sees all groups.
      in_specs: Of its arguments: `BATCH`, or None for what every device has whole.
      out_specs: Of its results: `BATCH`, `scattered(K)`, or None.
      num_groups: G.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not is_divided() or not devices_divide(num_groups):
        return functools.partial(function, axes=())
    whole = functools.partial(
        jax.tree.map,
        lambda spec: PartitionSpec() if spec is None else spec,
        is_leaf=lambda spec: spec is None or isinstance(spec, PartitionSpec),
    )
    return jax.shard_map(
        functools.partial(function, axes=mesh.axis_names),
        mesh=mesh,
        in_specs=whole(in_specs),
        out_specs=whole(out_specs),
        check_vma=False,
    )


def scattered(size: int) -> PartitionSpec | None:
    """What `scatter_sum` does with the first axis of an array, for `out_specs`."""
    fsdp = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1)
    return PartitionSpec("fsdp") if size % fsdp == 0 else None


def scatter_sum(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Inside of `on_groups`: the sum of x [K, ...] over devices, scattered over K."""
    if not axes or scattered(len(x)) is None:
        return jax.lax.psum(x, axes)
    x = jax.lax.psum(x, "replica")
    return jax.lax.psum_scatter(x, "fsdp", scatter_dimension=0, tiled=True)


def devices_divide(num_groups: int) -> bool:
    """Whether each device of the mesh in context has whole groups."""
    return not is_divided() or num_groups % jax.sharding.get_abstract_mesh().size == 0


def is_divided() -> bool:
    """Whether the compiler divides this code among several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and not mesh.manual_axes and mesh.size > 1


def device_kind() -> str:
    """Of the devices that a traced function is for, such as "cpu" or "TPU v6 lite"."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.abstract_device is not None:
        return mesh.abstract_device.device_kind
    return jax.devices()[0].device_kind


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keeps the leading group axis of `x` sharded; without a mesh in context, x."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)
