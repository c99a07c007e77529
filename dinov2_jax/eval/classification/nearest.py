"""Exact search for the nearest features by cosine similarity, on all devices.

The bank is divided among the devices. Each finds the nearest of its own part, and the
candidates are merged, so the number of devices changes nothing.

Shapes: N features in the bank, M queries, D width, K neighbours.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dinov2_jax import sharding

# The block of queries follows from how many similarities a device holds at a time: 256
# MiB, or on CPUs what their caches hold in part, if a product still has enough rows.
_MAX_SIMILARITIES, _CACHED_SIMILARITIES = 2**26, 2**24
_MIN_QUERIES, _MAX_QUERIES = 128, 1024
_BLOCK = 32  # columns of which only the maximum is looked at first


def normalised(features: np.ndarray) -> np.ndarray:
    """Return float32 features of unit length; zeros stay zeros."""
    features = np.asarray(features, np.float32)
    norm = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.maximum(norm, 1e-12)


class Bank:
    """Features that can be searched, divided among devices.

    Args:
      features: Features of any length, [N, D].
      mesh: Devices that share the features; None takes those of this process.
    """

    def __init__(self, features: np.ndarray, mesh: Mesh | None = None):
        mesh = mesh or sharding.make_mesh(devices=jax.local_devices())
        self._mesh, self._size = mesh, len(features)
        rows = -(-len(features) // mesh.size)  # of each device
        self._rows = -(-rows // _BLOCK) * _BLOCK
        padded = np.zeros((self._rows * mesh.size, features.shape[1]), np.float32)
        padded[: len(features)] = normalised(features)
        self._bank = jax.make_array_from_callback(
            padded.shape, sharding.batch_sharding(mesh), lambda i: padded[i]
        )

    def __len__(self) -> int:
        return self._size

    def search(
        self, queries: np.ndarray, k: int
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Find the nearest features of blocks of queries.

        Args:
          queries: Features of any length, [M, D].
          k: Number of neighbours K, at most N.

        Yields:
          The place of a block in `queries`, similarities float32 [block, K], the
          highest first, and indices into the bank, int32 [block, K].

        Raises:
          ValueError: `k` is not in 1..N.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k={k} neighbours of {len(self)} features")
        most = max(_MAX_SIMILARITIES // self._rows, 1)
        if self._mesh.devices.flat[0].platform == "cpu":
            most = min(most, max(_CACHED_SIMILARITIES // self._rows, _MIN_QUERIES))
        block = min(most, _MAX_QUERIES, len(queries))
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        pending = None  # fetched after the next block is dispatched
        for start in range(0, len(queries), block):
            part = queries[start : start + block]
            padded = np.zeros((block, queries.shape[1]), np.float32)
            padded[: len(part)] = normalised(part)
            found = _search(
                self._bank,
                jax.make_array_from_callback(
                    padded.shape, everywhere, lambda i, padded=padded: padded[i]
                ),
                k=k,
                size=self._size,
                mesh=self._mesh,
            )
            if pending:
                yield _fetched(*pending)
            pending = slice(start, start + len(part)), found
        if pending:
            yield _fetched(*pending)


def _fetched(place, found):
    count = place.stop - place.start
    return place, *(np.asarray(x)[:count] for x in found)


@functools.partial(jax.jit, static_argnames=("k", "size", "mesh"))
def _search(bank, queries, *, k, size, mesh):
    """Return the K highest similarities and their indices, [block, K] each."""
    rows = len(bank) // mesh.size
    axes = mesh.axis_names

    def of_device(bank, queries):
        # Full float32: lower precision would reorder nearly equal neighbours.
        similar = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
        first = jax.lax.axis_index(axes) * rows
        real = first + jnp.arange(rows) < size
        similar = jnp.where(real, similar, -jnp.inf)
        values, places = _top_k(similar, min(k, rows))
        return values, first + places

    values, indices = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(sharding.BATCH, PartitionSpec()),
        out_specs=PartitionSpec(None, axes),
        check_vma=False,
    )(bank, queries)
    everywhere = NamedSharding(mesh, PartitionSpec())
    values, indices = (
        jax.lax.with_sharding_constraint(x, everywhere) for x in (values, indices)
    )
    if mesh.size == 1:
        return values, indices
    values, places = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(indices, places, axis=1)


def _top_k(x, k):
    """Return `jax.lax.top_k` of x [M, N], N a multiple of `_BLOCK`.

    The k highest lie in the k blocks of columns with the highest maxima, so where k is
    small only a part of x is sorted.
    """
    queries, columns = x.shape
    blocks = columns // _BLOCK
    if k * 4 > blocks:
        return jax.lax.top_k(x, k)
    x = x.reshape(queries, blocks, _BLOCK)
    _, chosen = jax.lax.top_k(x.max(axis=-1), k)
    chosen = jnp.sort(chosen, axis=-1)  # equal values keep their order
    candidates = jnp.take_along_axis(x, chosen[:, :, None], axis=1)
    values, places = jax.lax.top_k(candidates.reshape(queries, k * _BLOCK), k)
    block = jnp.take_along_axis(chosen, places // _BLOCK, axis=1)
    return values, block * _BLOCK + places % _BLOCK
