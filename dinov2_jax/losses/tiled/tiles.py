"""The logits of all rows and some prototypes, a tile of columns at a time, and sums.

Logits are computed again for every pass over them (kept only where they are small), so
that no array of [rows, K] is in memory. Matmuls are in the dtype of features and
prototypes, everything else in float32.

R rows, C channels, K prototypes, k of them in each of n tiles.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dinov2_jax import sharding

_KEPT = 2**25  # logits up to so many are kept instead of computed again
_TILE = {True: 2**19, False: 2**24}  # logits of a tile, on the CPU or not
_NARROWEST = 128  # columns of a tile

Sums = tuple[jax.Array, jax.Array]  # [R]: a peak, and of exponentials below it


@dataclasses.dataclass(frozen=True)
class Tiles:
    """What a scan over prototypes takes, and what gives logits [R, k] of one of it.

    Attributes:
      scanned: [n, ...].
      logits: Of one of `scanned`: features @ prototypes.T / temp.
      again: The same, for a pass that needs them twice. On TPUs, unless they are kept,
        they are then computed twice, and go from the matmul into each sum without being
        stored, in half the cycles; elsewhere it is `logits`.
    """

    scanned: jax.Array
    logits: Callable[[jax.Array], jax.Array]
    again: Callable[[jax.Array], jax.Array]

    def __len__(self) -> int:
        return len(self.scanned)


def make_tiles(
    features: jax.Array,
    prototypes: jax.Array,
    temp: jax.Array | float,
    *,
    rows: int | None = None,
) -> Tiles:
    """Divides the prototypes.

    Args:
      features: [..., C], R rows.
      prototypes: [K, C].
      temp: Temperature that divides the logits.
      rows: Of the largest array that the scan makes of a tile; None: it makes sums.
    """
    x = features.reshape(-1, features.shape[-1])
    size = _TILE[sharding.device_kind() == "cpu"]
    if rows is None and computes_again():
        size *= 2  # no tile is stored: longer turns, 11 % fewer cycles on v6e
    columns = _columns(size // (rows or len(x)), len(prototypes))
    scanned = prototypes.reshape(-1, columns, prototypes.shape[-1])
    scale = 1.0 / temp

    def from_rows(x):
        return lambda tile: matmul(x, tile) * scale

    if len(x) * len(prototypes) <= _KEPT:
        scanned = jax.lax.map(from_rows(x), scanned)
        return Tiles(scanned, lambda tile: tile, lambda tile: tile)
    # Behind the barrier the compiler does not see that it is the same matmul.
    again = jax.lax.optimization_barrier(x) if computes_again() else x
    return Tiles(scanned, from_rows(x), from_rows(again))


def computes_again() -> bool:
    """Whether a tile's logits are rather computed than read a second time."""
    return sharding.device_kind().startswith("TPU")


def _columns(most: int, count: int) -> int:
    """Prototypes of a tile: a divisor of all, so that no tile is filled up.

    A prime number of prototypes is one tile, however large.

    Args:
      most: Of them, where that is possible.
      count: All of them.
    """
    divisors = [
        k
        for k in range(1, count + 1)
        if count % k == 0 and (k >= _NARROWEST or k == count)
    ]
    return max((k for k in divisors if k <= most), default=divisors[0])


def matmul(rows: jax.Array, prototypes: jax.Array) -> jax.Array:
    """[..., C] and [K, C] -> float32 [..., K]."""
    return jnp.einsum(
        "...c,kc->...k", rows, prototypes, preferred_element_type=jnp.float32
    )


def log_sum_exp(tiles: Tiles, num_rows: int, bias: jax.Array | None = None):
    """Of each row over all prototypes: float32 [R].

    Args:
      tiles: Of the logits.
      num_rows: R.
      bias: [n, k] that is added to every row.
    """
    bias = jnp.zeros((len(tiles), 1)) if bias is None else bias

    def one(sums, tile):
        tile, bias = tile
        z, again = tiles.logits(tile) + bias, tiles.again(tile) + bias
        return add_to_sums(sums, z, again), None

    sums, _ = jax.lax.scan(one, no_sums(num_rows), (tiles.scanned, bias))
    return log_of_sums(sums)


def no_sums(num_rows: int) -> Sums:
    """Of no prototype yet."""
    return jnp.full(num_rows, -jnp.inf), jnp.zeros(num_rows)


def add_to_sums(sums: Sums, z: jax.Array, again: jax.Array) -> Sums:
    """The sums with those of z [R, k], which comes twice: see `Tiles.again`."""
    peak, total = sums
    new = jnp.maximum(peak, jnp.max(z, axis=-1))
    total *= jnp.exp(peak - new)
    return new, total + jnp.sum(jnp.exp(again - new[:, None]), axis=-1)


def log_of_sums(sums: Sums) -> jax.Array:
    """Log-sum-exp [R]."""
    peak, total = sums
    return peak + jnp.log(total)
