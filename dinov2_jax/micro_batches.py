"""The groups of a batch in parts, so that a step needs the memory of one part.

Losses and stochastic depth stay inside groups, so parts of whole groups add up to the
whole. What couples groups, the teacher's assignment to prototypes, is computed for all
of them between the passes of teacher and student; accumulating losses whose targets
were balanced within each part would be another algorithm. Shapes: G groups on D
devices, n micro-batches.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax import sharding
from dinov2_jax.losses.tiled import targets as targets_lib
from dinov2_jax.models import stochastic_depth
from dinov2_jax.objectives import gram_teacher


def targets(
    meta_arch: Any,
    teacher_params: Any,
    centers: dict[str, jax.Array],
    batch: dict[str, jax.Array],
    temp: jax.Array,
    key: jax.Array,
    count: int,
    step: jax.Array,
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Compute the teacher's targets for the whole batch, its outputs part by part.

    Args:
      meta_arch: Student, teacher and losses, such as `ssl_meta_arch.SSLMetaArch`.
      teacher_params: The teacher's parameters.
      centers: The centres before this step.
      batch: The batch, see `data/batch_builder.py`.
      temp: The teacher's temperature.
      key: PRNG key of the step.
      count: Number of micro-batches, n.
      step: Number of steps done.

    Returns:
      What `meta_arch.teacher.targets` returns, with the Gram teacher's target, if any.
    """

    def outputs(part):
        part_of_batch, groups = part
        prepared = meta_arch.prepare(part_of_batch, key, _describe(groups, count))
        anchors = {}
        if meta_arch.gram:
            anchors[gram_teacher.KEY] = meta_arch.gram.target(centers, prepared, step)
        return meta_arch.teacher.outputs(teacher_params, prepared), anchors

    found, anchors = merge(jax.lax.map(outputs, _parts(batch, count)))
    found, centers = meta_arch.teacher.assign(teacher_params, centers, found, temp)
    return found | anchors, centers


def value_and_grad(
    meta_arch: Any,
    params: Any,
    targets: dict[str, Any],
    batch: dict[str, jax.Array],
    key: jax.Array,
    count: int,
) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """Compute loss, its terms and gradients of the whole batch, part by part.

    Args:
      meta_arch: Student, teacher and losses.
      params: The student's parameters.
      targets: The targets of the whole batch.
      batch: The batch, see `data/batch_builder.py`.
      key: PRNG key of the step.
      count: Number of micro-batches, n.
    """

    def compute(part):
        (part_of_batch, groups), arrays = part
        micro_batch = _describe(groups, count)
        prepared = meta_arch.prepare(part_of_batch, key, micro_batch)
        of_part = {k: _with_groups(targets[k], arrays[k]) for k in targets}
        result, grads = jax.value_and_grad(meta_arch.loss, has_aux=True)(
            params, of_part, prepared, key, micro_batch
        )
        return result, sharding.constrain_state(grads)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, compute(part)), None

    arrays = {term: _of_groups(target) for term, target in targets.items()}
    parts = _parts(batch, count), split(arrays, count)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute, first)
    )
    ((loss, terms), grads), _ = jax.lax.scan(add, zeros, parts)
    return loss, terms, grads


def _parts(batch: dict[str, jax.Array], count: int) -> tuple[Any, jax.Array]:
    """Return the batch in micro-batches, and the numbers of their groups [n, G / n]."""
    groups = jnp.arange(len(batch["global_crops"]))
    return split(batch, count), split(groups, count)


def _describe(groups: jax.Array, count: int) -> stochastic_depth.MicroBatch:
    return stochastic_depth.MicroBatch(groups, len(groups) * count)


def _of_groups(target: Any) -> Any:
    """Return the arrays of a target that have a group axis."""
    if isinstance(target, targets_lib.Targets):
        return target.features, target.lse
    return target


def _with_groups(target: Any, arrays: Any) -> Any:
    """Return a target whose arrays with a group axis are those given."""
    if isinstance(target, targets_lib.Targets):
        return target.replace(features=arrays[0], lse=arrays[1])
    return arrays


def split(tree: Any, count: int) -> Any:
    """Split arrays [G, ...] into [n, G / n, ...], the same share of every device.

    Devices hold consecutive groups, and no group moves: micro-batch i has the groups
    i G / (n D) to (i + 1) G / (n D) - 1 of each device.

    Args:
      tree: Tree of arrays.
      count: Number of micro-batches, n; n D must divide G.
    """
    devices = sharding.num_devices()

    def leaf(x):
        rest, size = x.shape[1:], len(x) // (devices * count)
        parts = x.reshape(devices, count, size, *rest).swapaxes(0, 1)
        return _constrain(parts.reshape(count, devices * size, *rest))

    return jax.tree.map(leaf, tree)


def merge(tree: Any) -> Any:
    """Undo `split`."""
    devices = sharding.num_devices()

    def leaf(x):
        (count, size), rest = x.shape[:2], x.shape[2:]
        parts = x.reshape(count, devices, size // devices, *rest).swapaxes(0, 1)
        return sharding.constrain_batch(parts.reshape(count * size, *rest))

    return jax.tree.map(leaf, tree)


def _constrain(x: jax.Array) -> jax.Array:
    """Keep the second axis of x [n, G / n, ...] sharded over the devices."""
    if not sharding.is_divided():
        return x
    spec = jax.sharding.PartitionSpec(None, *sharding.BATCH)
    return jax.lax.with_sharding_constraint(x, spec)
