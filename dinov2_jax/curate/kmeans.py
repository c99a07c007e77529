"""k-means on all devices: k-means++ start and Lloyd's steps over blocks of rows.

Rows are divided among the devices and centroids are on each. The result depends on the
seed alone: neither on the time nor, up to rounding, on the number of devices or on
whether rows fit the memory.

Shapes: N rows, D width, K clusters.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from dinov2_jax import errors, sharding
from dinov2_jax.curate import kmeans_start, metrics, row_blocks

STEPS = 50
# Similarities that a device holds at a time: 256 MiB, or on CPUs what caches hold.
_SIMILARITIES, _CACHED_SIMILARITIES = 2**26, 2**21
_MIN_CHUNK = 256  # rows, so that centroids are not read for a few of them
_TOLERANCE = 1e-4  # share of the inertia that the last step must gain
_SPLIT = 0.1  # distance of the halves of a cluster, in its standard deviations
_ZERO = 1e-10  # mean squared distance that is rounding, in squared lengths


@dataclasses.dataclass(frozen=True)
class Clusters:
    """A division of rows into clusters, none of which is empty.

    Attributes:
      centroids: float32 [K, D].
      assignment: The nearest centroid of each row, the first among equals, int32 [N].
      distances: Squared distances of the rows to those, float32 [N].
      steps: Number of Lloyd's steps.
      splits: How many times an empty cluster was given half of another.
    """

    centroids: np.ndarray
    assignment: np.ndarray
    distances: np.ndarray
    steps: int
    splits: int

    @property
    def inertia(self) -> float:
        """Sum of the squared distances."""
        return float(self.distances.sum(dtype=np.float64))


def fit(
    rows: row_blocks.RowBlocks,
    num_clusters: int,
    *,
    metric: metrics.Metric,
    seed: int | Sequence[int],
    steps: int = STEPS,
) -> Clusters:
    """Divide rows into clusters.

    It stops when a step gains less than 1e-4 of the inertia. A cluster that gets no row
    takes half of the one with the largest sum of squared distances. Fewer clusters than
    asked for are found only if there are fewer distinct rows.

    Args:
      rows: The rows.
      num_clusters: Number of clusters, at most N.
      metric: The distance.
      seed: Seed of the start, or several numbers.
      steps: Most steps.

    Raises:
      UserError: There are fewer rows than clusters.
    """
    if not 1 <= num_clusters <= len(rows):
        raise errors.UserError(
            f"{num_clusters:,} clusters of {len(rows):,} rows: ask for at most as many "
            "clusters as rows"
        )
    centroids, alive = kmeans_start.plus_plus(
        rows, num_clusters, unit=metric.unit, seed=seed
    )
    inertias, splits = [np.inf], 0
    while len(inertias) <= steps:
        totals, _ = _pass(rows, centroids, alive, metric=metric)
        inertias.append(float(np.asarray(totals.spread).sum(dtype=np.float64)))
        centroids, alive, filled = _update(totals, spherical=metric.spherical)
        filled = int(filled)
        splits += filled
        if not filled and inertias[-2] - inertias[-1] <= _TOLERANCE * inertias[-1]:
            break
    centroids, alive = np.asarray(centroids), np.asarray(alive)
    found = assign(rows, centroids[alive], metric=metric, size=num_clusters)
    return dataclasses.replace(found, steps=len(inertias) - 1, splits=splits)


def assign(
    rows: row_blocks.RowBlocks,
    centroids: np.ndarray,
    *,
    metric: metrics.Metric,
    size: int | None = None,
) -> Clusters:
    """Assign rows to the nearest centroids, in full float32, and drop empty clusters.

    Args:
      rows: The rows.
      centroids: [K, D].
      metric: The distance.
      size: Number to pad the centroids to, so that one program serves several K.
    """
    nearest, distances = _nearest(rows, centroids, metric=metric, size=size)
    used, assignment = np.unique(nearest, return_inverse=True)
    return Clusters(
        centroids=np.asarray(centroids, np.float32)[used],
        assignment=assignment.astype(np.int32),
        distances=distances,
        steps=0,
        splits=0,
    )


def nearest(
    rows: row_blocks.RowBlocks, centroids: np.ndarray, *, metric: metrics.Metric
) -> np.ndarray:
    """Return the nearest centroid of each row, the first among equals, int32 [N].

    Args:
      rows: The rows.
      centroids: [K, D].
      metric: The distance.
    """
    return _nearest(rows, centroids, metric=metric)[0]


def _nearest(rows, centroids, *, metric, size=None):
    count = len(centroids)
    padded = np.zeros((max(size or count, count), rows.dim), np.float32)
    padded[:count] = centroids
    alive = jnp.arange(len(padded)) < count
    _, found = _pass(rows, jnp.asarray(padded), alive, metric=metric, exact=True)
    indices, distances = (np.concatenate(parts) for parts in zip(*found))
    return indices, distances


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Totals:
    """Sums over the rows of each cluster.

    Attributes:
      sums: Sum of the rows, [K, D].
      counts: Number of rows, int32 [K].
      spread: Sum of squared distances to the centroid, [K].
    """

    sums: jax.Array
    counts: jax.Array
    spread: jax.Array


def _pass(rows, centroids, alive, *, metric, exact=False):
    """Go over all rows; return totals and, if `exact`, [(nearest, distances)]."""
    size, dim = centroids.shape
    totals = _Totals(
        sums=jnp.zeros((size, dim)),
        counts=jnp.zeros(size, jnp.int32),
        spread=jnp.zeros(size),
    )
    everywhere = sharding.replicated(rows.mesh)
    totals, centroids, alive = jax.device_put((totals, centroids, alive), everywhere)
    found, pending = [], None
    for block in rows:
        # The next block is read while one is computed, but not all that are to come.
        jax.block_until_ready(pending)
        totals, nearest, distances = _add_block(
            totals,
            block.rows,
            block.count,
            centroids,
            alive,
            unit=metric.unit,
            exact=exact,
            mesh=rows.mesh,
        )
        pending = nearest
        if exact:
            found.append(
                (
                    np.asarray(nearest)[: block.count],
                    np.asarray(distances)[: block.count],
                )
            )
    return totals, found


@functools.partial(
    jax.jit, static_argnames=("unit", "exact", "mesh"), donate_argnames="totals"
)
def _add_block(
    totals, rows, count, centroids, alive, *, unit: bool, exact: bool, mesh: Mesh
):
    """Add a block to the totals; return them, the nearest centroids and distances."""
    of_cpu = mesh.devices.flat[0].platform == "cpu"
    size, each = len(centroids), len(rows) // mesh.size
    most = (_CACHED_SIMILARITIES if of_cpu else _SIMILARITIES) // size
    chunk = min(max(2 ** most.bit_length() // 2, _MIN_CHUNK), each)
    precision = jax.lax.Precision.HIGHEST if exact else None

    def of_device(rows, centroids, alive):
        first = jax.lax.axis_index(sharding.AXES) * each
        bias = jnp.where(alive, -0.5 * (centroids**2).sum(axis=1), -jnp.inf)

        def of_chunk(totals, start):
            x = kmeans_start.prepare(
                jax.lax.dynamic_slice_in_dim(rows, start, chunk), unit=unit
            )
            real = first + start + jnp.arange(chunk) < count
            similar = jnp.matmul(x, centroids.T, precision=precision) + bias
            nearest = jnp.argmax(similar, axis=1).astype(jnp.int32)  # first of equals
            # Not from the similarities: of near rows nothing of the digits is left.
            distances = ((x - centroids[nearest]) ** 2).sum(axis=1)
            distances = jnp.where(real, distances, 0)
            into = jnp.where(real, nearest, size)  # padding is dropped
            add = _segment_sum if of_cpu else _matmul_sum
            totals = _Totals(
                sums=totals.sums + add(x, into, size),
                counts=totals.counts
                + jax.ops.segment_sum(jnp.ones_like(into), into, size),
                spread=totals.spread + add(distances[:, None], into, size)[:, 0],
            )
            return totals, (nearest, distances)

        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), totals)
        found, (nearest, distances) = jax.lax.scan(
            of_chunk, none, jnp.arange(0, each, chunk)
        )
        found = jax.lax.psum(found, sharding.AXES)
        return found, nearest.reshape(-1), distances.reshape(-1)

    everywhere = PartitionSpec()
    found, nearest, distances = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(sharding.BATCH, everywhere, everywhere),
        out_specs=(everywhere, sharding.BATCH, sharding.BATCH),
        check_vma=False,
    )(rows, centroids, alive)
    return jax.tree.map(jnp.add, totals, found), nearest, distances


def _segment_sum(x, into, size):
    return jax.ops.segment_sum(x, into, size)


def _matmul_sum(x, into, size):
    """Sum rows as a product: on GPUs, scattered sums may differ between runs."""
    chosen = jax.nn.one_hot(into, size, dtype=x.dtype)
    return jnp.matmul(chosen.T, x, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames="spherical")
def _update(totals: _Totals, *, spherical: bool):
    """Return the new centroids, which of them are in use, and the number of splits."""
    counts = totals.counts.astype(jnp.float32)
    means = totals.sums / jnp.maximum(counts, 1)[:, None]
    least = _ZERO * counts * (means**2).sum(axis=1)

    def can_split(state):
        _, alive, spread, _ = state
        return ~alive.all() & (jnp.where(spread > least, spread, 0).max() > 0)

    def split(state):
        """Give half of the cluster with the largest spread to the first empty one."""
        means, alive, spread, splits = state
        empty = jnp.argmin(alive)
        largest = jnp.argmax(jnp.where(spread > least, spread, 0))
        deviation = jnp.sqrt(spread[largest] / jnp.maximum(counts[largest], 1))
        direction = jax.random.rademacher(
            jax.random.fold_in(jax.random.key(0), empty), means.shape[1:], means.dtype
        )
        shift = _SPLIT * deviation * direction / np.sqrt(means.shape[1])
        means = means.at[empty].set(means[largest] + shift)
        means = means.at[largest].add(-shift)
        # The new half has no count of its own and is not split again in this step.
        spread = spread.at[largest].multiply(0.5)
        return means, alive.at[empty].set(True), spread, splits + 1

    means, alive, _, splits = jax.lax.while_loop(
        can_split, split, (means, counts > 0, totals.spread, 0)
    )
    if spherical:
        means = kmeans_start.prepare(means, unit=True)
    return means, alive, splits
