"""The device mesh and the sharding of every array on it.

One mesh with axes ("replica", "fsdp") of type Auto. The state is sharded over `fsdp` by
a rule based on shapes (the reference's FSDP); batches are sharded over both axes on
their leading group axis. Model code calls only `constrain_batch` and `gather`, which
act on this mesh alone: under another one, of the program that a model is part of, the
compiler follows the sharding of what goes into the model.
"""

import collections
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("replica", "fsdp")
BATCH = PartitionSpec(AXES)
# Endings of the names of arrays [G, ...] in the state, see `losses.tiled.queue`.
_OF_GROUPS = ("_queue", "_queue_valid")
MIN_SHARDED_SIZE = 2048  # elements; smaller arrays are replicated
_TILE_ROWS = 16  # of bfloat16 arrays on TPUs; parts of a tile cannot be gathered


def make_mesh(replica: int = 0, fsdp: int = 0, devices: Any = None) -> Mesh:
    """Make the mesh ("replica", "fsdp"), with devices on fast links side by side.

    Args:
      replica: Number of copies of the state. 0 means all devices divided by `fsdp`; if
        that is 0 too, one for each slice (a TPU slice, or the GPUs of a node, which
        NVLink joins).
      fsdp: Number of devices that share one copy; 0 means all divided by `replica`.
      devices: Devices of the mesh; None takes all.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda d: (_slice(d), d.process_index))
    if not fsdp:
        fsdp = len(devices) // (replica or _num_slices(devices))
    return Mesh(
        np.asarray(devices).reshape(replica or -1, fsdp),
        AXES,
        axis_types=(AxisType.Auto,) * 2,
    )


def _slice(device: Any) -> int:
    """Return the index of the device's slice; 0 on platforms without slices."""
    return getattr(device, "slice_index", 0)


def _num_slices(devices: list[Any]) -> int:
    """Count the slices if they are equal in size and have several devices, else 1."""
    sizes = collections.Counter(map(_slice, devices)).values()
    return len(sizes) if len(set(sizes)) == 1 and max(sizes) > 1 else 1


def process_rank(mesh: Mesh) -> int:
    """Return the rank of this process on the mesh, which orders the rows of a batch."""
    order = dict.fromkeys(device.process_index for device in mesh.devices.flat)
    return list(order).index(jax.process_index())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch's arrays: the group axis over all devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Return the shardings of a tree of parameters or optimizer state, by shape.

    The first axis that the `fsdp` size divides into whole tiles is sharded, so that a
    matrix can be split by its outputs without moving data. If there is none, the
    largest axis that `fsdp` divides is sharded; the layer axis of stacked blocks never
    is. Vectors and arrays below `MIN_SHARDED_SIZE` elements (of one block, if stacked)
    are replicated: gathering them costs more time than the memory saved is worth. The
    queue of bottlenecks is divided by groups, as the batch is.

    Args:
      state: Tree of arrays or `jax.ShapeDtypeStruct`.
      mesh: The mesh, from `make_mesh`.

    Returns:
      A tree of `NamedSharding` with the structure of `state`.
    """

    specs = _specs(state, mesh.shape["fsdp"], mesh.size)
    return jax.tree.map(functools.partial(NamedSharding, mesh), specs)


def constrain_state(tree: Any) -> Any:
    """Constrain gradients to the shardings that `state_shardings` gives the parameters.

    Without this, the compiler shards the sums of vectors too and then gathers what they
    update.
    """
    if not is_divided():
        return tree
    mesh = jax.sharding.get_abstract_mesh()
    specs = _specs(tree, mesh.shape["fsdp"], mesh.size)
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs)


def _specs(tree: Any, fsdp: int, num_devices: int) -> Any:
    def rule(path, leaf):
        name = getattr(path[-1], "key", None) if path else None
        if str(name).endswith(_OF_GROUPS) and leaf.shape[0] % num_devices == 0:
            return BATCH
        stacked = any(getattr(k, "key", None) == "blocks" for k in path)
        spec = _spec(leaf.shape[stacked:], fsdp)
        return PartitionSpec(*[None] * stacked, *spec)

    return jax.tree_util.tree_map_with_path(rule, tree)


def _spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Return the spec of one parameter (of a single block, if blocks are stacked)."""
    axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    whole = [axis for axis in axes if shape[axis] // fsdp % _TILE_ROWS == 0]
    spec = [None] * len(shape)
    if axes and len(shape) > 1 and math.prod(shape) >= MIN_SHARDED_SIZE:
        axis = whole[0] if whole else max(axes, key=lambda axis: shape[axis])
        spec[axis] = "fsdp"
    return PartitionSpec(*spec)


def gather(weights: Any) -> Any:
    """Gather weights whole on every device; gradients go back to the weights' shards.

    Call it on weights in the dtype of the matmuls, so that this is what is transferred.
    Without it, the compiler also gathers the float32 they were cast from, or moves
    activations instead.

    Args:
      weights: Tree of arrays sharded as by `state_shardings`.
    """
    return jax.tree.map(_gather, weights) if is_divided() else weights


@jax.custom_vjp
def _gather(x):
    # Without the inner constraint, replication propagates back through the cast.
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
    """Run a function on each device's groups, if the devices divide the groups.

    For code that the compiler cannot partition (kernels) or partitions badly (loops
    over rows).

    Args:
      function: Function of arrays and a keyword `axes`: the mesh axes to sum over, ()
        if it sees all groups.
      in_specs: Specs of its arguments: `BATCH`, or None for replicated ones.
      out_specs: Specs of its results: `BATCH`, `scattered(K)`, or None for replicated.
      num_groups: Number of groups G.

    Returns:
      A function of only the arrays.
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
    """Return the spec of what `scatter_sum` returns for an array of length `size`."""
    fsdp = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1)
    return PartitionSpec("fsdp") if size % fsdp == 0 else None


def scatter_sum(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Inside `on_groups`: sum x [K, ...] over devices and scatter the result over K."""
    if not axes or scattered(len(x)) is None:
        return jax.lax.psum(x, axes)
    x = jax.lax.psum(x, "replica")
    return jax.lax.psum_scatter(x, "fsdp", scatter_dimension=0, tiled=True)


def devices_divide(num_groups: int) -> bool:
    """Whether each device gets whole groups, in this code or by `on_groups`."""
    mesh = jax.sharding.get_abstract_mesh()
    if _own_mesh() is not None:
        return num_groups % mesh.size == 0
    # Elsewhere nothing is known of the groups, unless all axes are mapped by hand.
    return mesh.size == 1 or len(mesh.manual_axes) == len(mesh.axis_names)


def num_devices() -> int:
    """Return the number of devices of our mesh; 1 if it is not in context."""
    mesh = _own_mesh()
    return 1 if mesh is None else mesh.size


def is_divided() -> bool:
    """Whether the compiler partitions this code over several devices of our mesh."""
    return num_devices() > 1


def _own_mesh() -> AbstractMesh | None:
    """Return the mesh in context if it is one of `make_mesh`, outside `on_groups`."""
    mesh = jax.sharding.get_abstract_mesh()
    own = mesh.axis_names == AXES and mesh.auto_axes == AXES
    return mesh if own else None


# Beginnings of `device_kind`, in lower case, of TPUs whose vector memory does not hold
# the blocks of our kernels.
OLD_TPUS = ("tpu v2", "tpu v3", "tpu v4")


def device_kind() -> str:
    """Return the device kind being traced for, such as "cpu" or "TPU v6 lite"."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.abstract_device is not None:
        return mesh.abstract_device.device_kind
    return jax.devices()[0].device_kind


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keep the leading group axis of `x` sharded, if our mesh is in context."""
    mesh = _own_mesh()
    if mesh is None or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)


def of_first_process(answer: bool) -> bool:
    """Return process 0's answer in all processes, which must all ask."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))
