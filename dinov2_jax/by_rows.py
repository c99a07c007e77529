"""Elementwise work on large arrays, a few rows at a time where that is faster.

XLA fuses an elementwise function of several results into one pass on accelerators. On
the CPU every result is a pass of its own that reads all inputs again, and arrays that
are updated in place are copied first: AdamW with a teacher moves 92 bytes a parameter
instead of 36. A loop over rows keeps those passes in the cache.
"""

from collections.abc import Callable

import jax

from dinov2_jax import sharding

_LARGE = 2**20  # elements; smaller arrays are done whole
_ELEMENTS = 2**17  # at a time

Arrays = tuple[jax.Array, ...]


def by_rows(
    function: Callable[[Arrays, Arrays], Arrays], read: Arrays, updated: Arrays
) -> Arrays:
    """function(read, updated), in place of `updated`.

    Args:
      function: Elementwise along the first axis: (rows of `read`, rows of `updated`)
        -> new rows of `updated`.
      read: Arrays of the same first axis, or scalars.
      updated: Arrays of one shape, what the function replaces.
    """
    like = updated[0]
    whole = like.size < _LARGE or sharding.device_kind() != "cpu"
    if whole or sharding.is_divided():
        return function(read, updated)
    size = like.size // len(like)
    rows = max(n for n in _divisors(len(like)) if n == 1 or n * size <= _ELEMENTS)

    def body(i, updated):
        def cut(x):
            return jax.lax.dynamic_slice_in_dim(x, i * rows, rows) if x.ndim else x

        new = function(*jax.tree.map(cut, (read, updated)))
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(x, y, i * rows, 0)
            for x, y in zip(updated, new)
        )

    return jax.lax.fori_loop(0, len(like) // rows, body, updated)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
