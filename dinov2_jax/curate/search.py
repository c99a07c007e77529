"""Exact search for all pairs of features above a similarity, on all devices.

Similarities are computed in blocks, of which each device only reports the tiles that
may hold a pair; those are computed again in float32. So nothing is missed (as with a
fixed number of neighbours in large groups), little leaves the devices, and neither
blocks nor devices nor the precision of the first pass change the result.

Shapes: N rows, D width, J blocks of columns on a device, T tiles.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors, progress_bar
from dinov2_jax.curate import features

MOST_PAIRS = 2**28  # 3 GiB
_TILE = 32  # rows and columns of a tile
_AT_ONCE = 256  # tiles computed again at once
# Rows and columns of a block: at most 2^26 similarities, fewer where caches hold them.
_CPU_BLOCK, _BLOCK = (512, 2048), (4096, 16384)
_CPU_SLAB_BYTES, _SLAB_BYTES = 2**29, 2**33  # of columns on a device at a time
# Bounds on the errors of the first pass for features of unit length: float32 on CPUs,
# at least bfloat16 (two roundings of 2^-8) elsewhere.
_CPU_MARGIN, _MARGIN = 1e-4, 2**-7 + 2**-10


class Rows(Protocol):
    """Features that can be read in part, such as `features.Features`."""

    def __len__(self) -> int:
        """Return the number of rows, N."""
        ...

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return consecutive rows, float32 [stop - start, D]."""
        ...


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of rows, sorted by `left`, then `right`; each pair is there once.

    Attributes:
      left: First rows, int32 [pairs].
      right: Second rows, int32 [pairs]; within one set always above `left`.
      similarity: Their cosine similarities, float32 [pairs].
    """

    left: np.ndarray
    right: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.left)


def find_pairs(
    rows: Rows,
    *,
    threshold: float,
    others: Rows | None = None,
    most: int = MOST_PAIRS,
    what: str = "comparing",
) -> Pairs:
    """Find all pairs of rows whose cosine similarity is above a threshold.

    Args:
      rows: Features of any length.
      threshold: Similarity that pairs exceed, above 0.
      others: Features that `rows` are compared with; None compares them with each
        other.
      most: Number of pairs above which the search stops.
      what: What is done, for the progress bar.

    Raises:
      UserError: There are more than `most` pairs, or `threshold` is not in (0, 1).
    """
    check_threshold(threshold)
    found, count = [], 0
    for part in _parts(rows, rows if others is None else others, threshold, what):
        left, right, similarity = part
        if others is None:
            upper = left < right
            left, right, similarity = left[upper], right[upper], similarity[upper]
        count += len(left)
        if count > most:
            raise errors.UserError(
                f"more than {most:,} pairs are more similar than {threshold:g}: use a "
                "higher threshold, or first remove identical files, which dinov2-jax "
                "data scan lists"
            )
        found.append((left.astype(np.int32), right.astype(np.int32), similarity))
    left, right, similarity = (
        np.concatenate([part[i] for part in found] or [np.empty(0, kind)])
        for i, kind in enumerate((np.int32, np.int32, np.float32))
    )
    order = np.lexsort((right, left))
    return Pairs(left[order], right[order], similarity[order])


def check_threshold(threshold: float, *, flag: str = "--threshold") -> None:
    """Check that a similarity is in (0, 1).

    Args:
      threshold: The value.
      flag: Name of the flag, for the error.

    Raises:
      UserError: It is not.
    """
    if not 0 < threshold < 1:  # or it is NaN
        raise errors.UserError(
            f"{flag}={threshold:g}: cosine similarities of duplicates are between 0 "
            "and 1; --calibrate proposes a value"
        )


def similarities(rows: Any, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the cosine similarities of pairs of rows, float32 [pairs].

    Args:
      rows: The features, `features.Features`.
      left: First rows, [pairs].
      right: Second rows, [pairs].
    """
    used, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    values = features.unit(rows.take(used))
    first, second = places[: len(left)], places[len(left) :]
    found = np.empty(len(left), np.float32)
    for start in range(0, len(left), 2**16):
        part = slice(start, start + 2**16)
        found[part] = np.einsum("nd,nd->n", values[first[part]], values[second[part]])
    return found


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Every n-th block of columns of a slab, on one of n devices.

    Attributes:
      device: The device.
      blocks: float32 [J, columns, D], padded with zeros.
      starts: Index of the first column of each block, int64 [J].
    """

    device: jax.Device
    blocks: jax.Array
    starts: np.ndarray


def _parts(
    rows: Rows, others: Rows, threshold: float, what: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (row, column, similarity) of pairs; within one set also lower ones."""
    devices = jax.local_devices()
    on_cpu = devices[0].platform == "cpu"
    height, width = _CPU_BLOCK if on_cpu else _BLOCK
    height, width = _fitting(height, len(rows)), _fitting(width, len(others))
    dim = _width(rows)
    cut = threshold - (_CPU_MARGIN if on_cpu else _MARGIN)
    slab = _slab_rows(others, width, len(devices), on_cpu)
    work = [
        min(len(rows), first + slab) if rows is others else len(rows)
        for first in range(0, len(others), slab)
    ]
    with progress_bar.Bar(sum(work), what=what, scaled=True, delay=2.0) as bar:
        for stop, first in zip(work, range(0, len(others), slab)):
            columns = _load(others, first, slab, width, devices)
            pending = None  # fetched after the next block is dispatched
            for start in range(0, stop, height):
                block = np.zeros((height, dim), np.float32)
                part = rows.rows(start, min(start + height, len(rows)))
                block[: len(part)] = features.unit(part)
                next_pending = []
                for on_device in columns:
                    skip = 0
                    if rows is others:  # blocks wholly below the diagonal
                        skip = int(np.sum(on_device.starts + width <= start))
                    query = jax.device_put(block, on_device.device)
                    tiles = _full_tiles(on_device.blocks, query, skip, cut)
                    next_pending.append((start, on_device, query, tiles))
                for one in pending or ():
                    yield from _exact(*one, threshold, len(rows), len(others))
                pending = next_pending
                bar.update(len(part))
            for one in pending or ():
                yield from _exact(*one, threshold, len(rows), len(others))


def _fitting(size: int, count: int) -> int:
    """Return a size of blocks in whole tiles, no larger than needed."""
    return min(size, -(-count // _TILE) * _TILE)


def _width(rows: Rows) -> int:
    return rows.rows(0, 1).shape[1]


def _slab_rows(others: Rows, width: int, num_devices: int, on_cpu: bool) -> int:
    """Return how many columns all devices hold at a time, in whole blocks."""
    block_bytes = 4 * width * _width(others)
    most = max((_CPU_SLAB_BYTES if on_cpu else _SLAB_BYTES) // block_bytes, 1)
    needed = -(-len(others) // (width * num_devices))
    return min(most, needed) * width * num_devices


def _load(
    others: Rows, first: int, slab: int, width: int, devices: list[jax.Device]
) -> list[_Columns]:
    """Put a slab of columns on the devices, block by block in turn."""
    starts = np.arange(first, first + slab, width)
    loaded = []
    for place, device in enumerate(devices):
        mine = starts[place :: len(devices)]
        blocks = np.zeros((len(mine), width, _width(others)), np.float32)
        for block, start in zip(blocks, mine):
            stop = min(start + width, len(others))
            if start < stop:
                block[: stop - start] = features.unit(others.rows(start, stop))
        loaded.append(_Columns(device, jax.device_put(blocks, device), mine))
    return loaded


@jax.jit
def _full_tiles(blocks, query, skip, cut):
    """Return which tiles have a similarity above `cut`, [J, rows / T, columns / T]."""
    count, width, _ = blocks.shape
    shape = len(query) // _TILE, _TILE, width // _TILE, _TILE

    def one_block(index, found):
        similar = query @ blocks[index].T  # [rows, columns]
        tiles = similar.reshape(shape).max(axis=(1, 3)) > cut
        return found.at[index].set(tiles)

    found = jnp.zeros((count, shape[0], shape[2]), bool)
    return jax.lax.fori_loop(skip, count, one_block, found)


@functools.partial(jax.jit, static_argnames="tile")
def _tile_values(blocks, query, which, *, tile):
    """Return the similarities of tiles, [tiles, tile, tile].

    Args:
      blocks: Columns, [J, columns, D].
      query: Rows, [rows, D].
      which: Block, row and column of each tile, int32 [3, tiles].
      tile: Number of rows and columns of a tile.
    """
    block, row, column = which
    query = query.reshape(-1, tile, query.shape[-1])[row]
    blocks = blocks.reshape(len(blocks), -1, tile, blocks.shape[-1])[block, column]
    return jnp.einsum(
        "pid,pjd->pij", query, blocks, precision=jax.lax.Precision.HIGHEST
    )


def _exact(start, columns, query, tiles, threshold, num_rows, num_others):
    """Yield (row, column, similarity) of the pairs in the tiles that were reported."""
    which = np.stack(np.nonzero(np.asarray(tiles))).astype(np.int32)
    for first in range(0, which.shape[1], _AT_ONCE):
        part = which[:, first : first + _AT_ONCE]
        padded = np.zeros((3, _AT_ONCE), np.int32)
        padded[:, : part.shape[1]] = part
        values = _tile_values(columns.blocks, query, padded, tile=_TILE)
        values = np.asarray(values)[: part.shape[1]]
        tile, row, column = np.nonzero(values > threshold)
        similarity = values[tile, row, column]
        row = row + start + part[1, tile] * _TILE
        column = column + columns.starts[part[0, tile]] + part[2, tile] * _TILE
        real = (row < num_rows) & (column < num_others)
        yield row[real], column[real], similarity[real]
