"""Rows of features as blocks on the devices, kept there or read again at each pass.

A source is whatever has a length, `dim`, and `blocks(size)`, which yields (index of the
first row, float32 rows) in order: `features.Features`, and the classes of this file.

Shapes: N rows, B rows of a block, D width.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from dinov2_jax import errors, sharding

_BLOCK_BYTES = 2**26  # float32 rows of a block
_MEMORY_SHARE = 0.25  # of the machine's memory, or of the devices' own
_UNKNOWN_MEMORY = 2**32
_GROUPS = pathlib.Path("/sys/fs/cgroup")


class Source(Protocol):
    """Rows that can be read in order, as often as needed."""

    dim: int

    def __len__(self) -> int:
        """Return the number of rows N."""
        ...

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the index of the first row of each block, and its float32 rows."""
        ...


class Matrix:
    """Rows of an array in memory.

    Args:
      rows: The rows, [N, D].

    Raises:
      UserError: A value is not finite.
    """

    def __init__(self, rows: np.ndarray):
        self._rows = np.asarray(rows)
        wrong = np.flatnonzero(~np.isfinite(self._rows).all(axis=1))
        if len(wrong):
            raise errors.UserError(
                f"row {wrong[0]} of the features is not finite, nor are "
                f"{len(wrong) - 1} others: embed again or leave them out"
            )
        self.dim = self._rows.shape[1]

    def __len__(self) -> int:
        return len(self._rows)

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the index of the first row of each block, and its float32 rows."""
        for start in range(0, len(self), size):
            yield start, self._rows[start : start + size].astype(np.float32)


class Chosen:
    """Some rows of a source.

    Args:
      source: The source.
      members: Indices of the rows, ascending, int [N].
    """

    def __init__(self, source: Source, members: np.ndarray):
        self._source, self._members, self.dim = source, members, source.dim

    def __len__(self) -> int:
        return len(self._members)

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the index of the first row of each block, and its float32 rows."""
        block = np.empty((size, self.dim), np.float32)
        given = filled = 0
        for start, rows in self._source.blocks(size):
            low, high = np.searchsorted(self._members, [start, start + len(rows)])
            part = rows[self._members[low:high] - start]
            while len(part):
                taken = part[: size - filled]
                block[filled : filled + len(taken)] = taken
                filled, part = filled + len(taken), part[len(taken) :]
                if filled == size:
                    yield given, block
                    block = np.empty_like(block)
                    given, filled = given + size, 0
        if filled:
            yield given, block[:filled]


class Block(NamedTuple):
    """Rows on the devices.

    Attributes:
      rows: float16 or float32 [B, D], divided among the devices by rows; the last ones
        may be padding.
      count: Number of rows that are not padding.
    """

    rows: jax.Array
    count: int


class RowBlocks:
    """A source's rows as blocks on the devices; a source itself.

    All blocks have one size, a power of two on each device.

    Args:
      source: The rows.
      mesh: Devices that share each block.
      memory: Bytes that the rows may take as float32; if they need more, each pass
        reads them again.

    Attributes:
      mesh: The devices.
      dim: Width of the rows, D.
      memory: Bytes left for rows chosen of these.
    """

    def __init__(self, source: Source, *, mesh: Mesh, memory: int):
        self.mesh, self.dim, self._source = mesh, source.dim, source
        most = max(_BLOCK_BYTES // (4 * self.dim), mesh.size)
        each = -(-min(most, len(source)) // mesh.size)
        self._size = mesh.size * 2 ** max((each - 1).bit_length(), 3)
        needed = 4 * len(source) * self.dim
        self._kept = list(self._read()) if needed <= memory else None
        self.memory = memory - needed if self._kept is not None else memory

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._kept) if self._kept is not None else self._read()

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the index of the first row of each block, and its float32 rows."""
        if self._kept is None:
            yield from self._source.blocks(size)
            return
        start = 0
        for block in self._kept:
            rows = np.asarray(block.rows)[: block.count]
            for first in range(0, block.count, size):
                part = rows[first : first + size].astype(np.float32)
                yield start, part
                start += len(part)

    def choose(self, members: np.ndarray) -> "RowBlocks":
        """Return blocks of some of the rows.

        Args:
          members: Indices of the rows, ascending, int [n].
        """
        chosen = Chosen(self, members)
        return RowBlocks(chosen, mesh=self.mesh, memory=self.memory)

    def _read(self) -> Iterator[Block]:
        for _, rows in self._source.blocks(self._size):
            yield Block(put(rows, self._size, self.mesh), len(rows))


def put(rows: np.ndarray, size: int, mesh: Mesh) -> jax.Array:
    """Pad rows with zeros and divide them among the devices.

    Args:
      rows: float32 [n, D].
      size: Number of rows with padding, a multiple of the devices.
      mesh: The devices.

    Returns:
      [size, D]; float16 if that loses nothing, as of most files of `embed`.
    """
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    padded = np.zeros(
        (size, rows.shape[1]),
        np.float16 if np.array_equal(half, rows) else np.float32,
    )
    padded[: len(rows)] = rows
    return jax.device_put(padded, sharding.batch_sharding(mesh))


def default_memory(mesh: Mesh) -> int:
    """Return the bytes that rows may take on these devices.

    Args:
      mesh: The devices.
    """
    if mesh.devices.flat[0].platform == "cpu":  # they share one memory
        total = _machine_memory()
    else:
        stats: list[Any] = [d.memory_stats() or {} for d in mesh.devices.flat]
        total = sum(s.get("bytes_limit", _UNKNOWN_MEMORY) for s in stats)
    return int(total * _MEMORY_SHARE)


def _machine_memory(groups: pathlib.Path = _GROUPS) -> int:
    """Return the machine's memory in bytes, or what a container or job may use of it.

    Args:
      groups: Folder of the control groups (version 2).
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        group = pathlib.Path("/proc/self/cgroup").read_text().partition("0::/")[2]
    except OSError:  # not Linux
        return total
    folder = groups / group.split("\n")[0]
    for one in (folder, *folder.parents):
        try:
            total = min(total, int((one / "memory.max").read_text()))
        except (OSError, ValueError):  # none, or "max"
            continue
    return total
