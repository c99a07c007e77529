"""Start of k-means: k-means++ on a sample of the rows, within one compiled loop.

k-means++ (Arthur and Vassilvitskii, 2007) draws centroids one after the other, each
with a probability in proportion to the squared distance of the nearest one before. Here
a round draws several rows at once by the distances before the round, and takes a row
with the probability by which its distance has shrunk since. That is the same
distribution up to draws without replacement, and the distances to all that a round
takes are one product of matrices.

Shapes: n rows of the sample, D width, K centroids, C candidates of a round.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from dinov2_jax import sharding
from dinov2_jax.curate import row_blocks

_ROWS_A_CLUSTER = 32  # of the sample
_SAMPLE_VALUES = 2**26  # of the sample, unless there are more clusters
_CANDIDATES = 64
_NOISE_ROWS = 256  # that share a key, whatever the number of devices
_ZERO = 1e-6  # squared distance that is rounding, in squared lengths


def prepare(x: jax.Array, *, unit: bool) -> jax.Array:
    """Return rows as the distance takes them, float32.

    Args:
      x: Rows, [n, D].
      unit: Whether to give them unit length; rows of zeros stay zeros.
    """
    x = x.astype(jnp.float32)
    if not unit:
        return x
    length = jnp.sqrt((x**2).sum(axis=1, keepdims=True))
    return x / jnp.maximum(length, 1e-12)


def plus_plus(
    rows: row_blocks.RowBlocks,
    num_clusters: int,
    *,
    unit: bool,
    seed: int | Sequence[int],
) -> tuple[jax.Array, jax.Array]:
    """Choose rows to start from, by k-means++ on 32 rows for each cluster.

    Args:
      rows: The rows.
      num_clusters: Number of centroids, K.
      unit: Whether rows are taken at unit length.
      seed: Seed of the choice, or several numbers.

    Returns:
      Centroids, float32 [K, D], and whether each was found, bool [K]: not if all rows
      of the sample are copies of the others.
    """
    entropy = np.random.SeedSequence(seed)
    most = max(_SAMPLE_VALUES // rows.dim, 2 * num_clusters)
    count = min(len(rows), _ROWS_A_CLUSTER * num_clusters, most)
    source: row_blocks.Source = rows
    if count < len(rows):
        chosen = np.random.default_rng(entropy).choice(len(rows), count, replace=False)
        source = row_blocks.Chosen(rows, np.sort(chosen))
    unit_rows = rows.mesh.size * _NOISE_ROWS
    sample = np.empty((count, rows.dim), np.float32)
    for start, block in source.blocks(2**14):
        sample[start : start + len(block)] = block
    return _plus_plus(
        row_blocks.put(sample, -(-count // unit_rows) * unit_rows, rows.mesh),
        count,
        jax.random.key(entropy.generate_state(1)[0]),
        num_clusters=num_clusters,
        unit=unit,
        mesh=rows.mesh,
    )


@functools.partial(jax.jit, static_argnames=("num_clusters", "unit", "mesh"))
def _plus_plus(rows, count, key, *, num_clusters: int, unit: bool, mesh: Mesh):
    each, dim = len(rows) // mesh.size, rows.shape[1]
    candidates = min(_CANDIDATES, num_clusters)

    def of_device(rows):
        device = jax.lax.axis_index(sharding.AXES)
        parts = rows.reshape(-1, _NOISE_ROWS, dim)
        real = (device * each + jnp.arange(each)) < count

        def draw(distances, key):
            """Return the C rows with the highest scores, and their distances."""
            groups = device * len(parts) + jnp.arange(len(parts))
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, groups)
            noise = jax.vmap(lambda k: jax.random.gumbel(k, (_NOISE_ROWS,)))(keys)
            weights = jnp.where(jnp.isinf(distances), 0, jnp.log(distances))
            scores = jnp.where(real, weights + noise.reshape(-1), -jnp.inf)
            scores, places = jax.lax.top_k(scores, candidates)
            found = scores, distances[places], rows[places].astype(jnp.float32)
            scores, distances, x = jax.lax.all_gather(found, sharding.AXES, tiled=True)
            scores, places = jax.lax.top_k(scores, candidates)
            return scores, distances[places], prepare(x[places], unit=unit)

        def shrink(distances, x, taken):
            """Return distances to the nearest centroid after some were added."""
            bias = jnp.where(taken, (x**2).sum(axis=1), jnp.inf)

            def of_part(part):
                part = prepare(part, unit=unit)
                square = (part**2).sum(axis=1)
                product = jnp.matmul(part, x.T, precision=jax.lax.Precision.HIGHEST)
                found = square + (bias - 2 * product).min(axis=1)
                return jnp.where(found <= _ZERO * square, 0, found)

            return jnp.minimum(distances, jax.lax.map(of_part, parts).reshape(-1))

        def body(state):
            centroids, total, distances, step, _ = state
            draw_key, take_key = jax.random.split(jax.random.fold_in(key, step))
            scores, before, x = draw(distances, draw_key)
            chance = jax.random.uniform(take_key, (candidates,), minval=1e-30)
            between = ((x[:, None] - x) ** 2).sum(axis=-1)
            between = jnp.where(between <= _ZERO * (x**2).sum(axis=1), 0, between)

            def take(i, state):
                now, taken = state
                fits = total + taken.sum() < num_clusters
                possible = (scores[i] > -jnp.inf) & (now[i] > 0)
                yes = fits & possible & (chance[i] * before[i] <= now[i])
                now = jnp.where(yes, jnp.minimum(now, between[i]), now)
                return now, taken.at[i].set(yes)

            none = jnp.zeros(candidates, bool)
            _, taken = jax.lax.fori_loop(0, candidates, take, (before, none))
            places = jnp.where(taken, total + taken.cumsum() - 1, num_clusters)
            centroids = centroids.at[places].set(x, mode="drop")
            distances = shrink(distances, x, taken)
            total = total + taken.sum()
            done = (total == num_clusters) | ~taken.any()
            return centroids, total, distances, step + 1, done

        centroids, total, *_ = jax.lax.while_loop(
            lambda state: ~state[-1],
            body,
            (
                jnp.zeros((num_clusters, dim)),
                jnp.int32(0),
                jnp.full(each, jnp.inf),
                jnp.int32(0),
                jnp.bool(False),
            ),
        )
        return centroids, jnp.arange(num_clusters) < total

    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=sharding.BATCH,
        out_specs=PartitionSpec(),
        check_vma=False,
    )(rows)
