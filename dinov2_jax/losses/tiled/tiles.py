"""Logits of all rows by tiles of prototypes, and sums over them.

Logits are recomputed for every pass over them (kept only if there are few), so that no
array of [rows, K] is in memory. Matmuls are in the dtype of features and prototypes,
everything else in float32.

Shapes: R rows, C channels, K prototypes, k of them in each of n tiles.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dinov2_jax import sharding

_MAX_KEPT_LOGITS = 2**25  # up to this many logits are kept instead of recomputed
_TILE = {True: 2**19, False: 2**24}  # logits in a tile; True on the CPU
_MIN_COLUMNS = 128  # columns in a tile

Sums = tuple[jax.Array, jax.Array]  # [R] each: the peak, and the sum of exp(z - peak)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles of prototypes to scan over, and functions that give the logits of one.

    Attributes:
      scanned: The array to scan over, [n, ...].
      logits: Function of an element of `scanned` that returns its logits [R, k],
        features @ prototypes.T / temp.
      recomputed: The same function, for a pass that needs the logits twice. On TPUs,
        unless they are kept, they are then computed twice and go from the matmul into
        each sum without being stored, in half the cycles; elsewhere it is `logits`.
    """

    scanned: jax.Array
    logits: Callable[[jax.Array], jax.Array]
    recomputed: Callable[[jax.Array], jax.Array]

    def __len__(self) -> int:
        return len(self.scanned)


def make_tiles(
    features: jax.Array,
    prototypes: jax.Array,
    temp: jax.Array | float,
    *,
    rows: int | None = None,
) -> Tiles:
    """Divide the prototypes into tiles.

    Args:
      features: Features, [..., C], R rows in all.
      prototypes: Prototypes, [K, C].
      temp: Temperature that divides the logits.
      rows: Rows of the largest array that the scan makes of a tile; None if it only
        makes sums.
    """
    x = features.reshape(-1, features.shape[-1])
    size = _TILE[sharding.device_kind() == "cpu"]
    if rows is None and recomputes_logits():
        size *= 2  # no tile is stored; larger ones take 11 % fewer cycles on v6e
    columns = _columns(size // (rows or len(x)), len(prototypes))
    scanned = prototypes.reshape(-1, columns, prototypes.shape[-1])
    scale = 1.0 / temp

    def from_rows(x):
        return lambda tile: matmul(x, tile) * scale

    if len(x) * len(prototypes) <= _MAX_KEPT_LOGITS:
        scanned = jax.lax.map(from_rows(x), scanned)
        return Tiles(scanned, lambda tile: tile, lambda tile: tile)
    # The barrier hides from the compiler that it is the same matmul.
    recomputed = jax.lax.optimization_barrier(x) if recomputes_logits() else x
    return Tiles(scanned, from_rows(x), from_rows(recomputed))


def recomputes_logits() -> bool:
    """Whether to recompute a tile's logits rather than to read them a second time."""
    return sharding.device_kind().startswith("TPU")


def _columns(max_columns: int, count: int) -> int:
    """Return the number of prototypes in a tile, a divisor of all to avoid padding.

    A prime number of prototypes makes one tile, however large.

    Args:
      max_columns: Maximum number in a tile, exceeded only if all divisors are larger.
      count: Number of all prototypes.
    """
    divisors = [
        k
        for k in range(1, count + 1)
        if count % k == 0 and (k >= _MIN_COLUMNS or k == count)
    ]
    return max((k for k in divisors if k <= max_columns), default=divisors[0])


def matmul(rows: jax.Array, prototypes: jax.Array) -> jax.Array:
    """Multiply rows [..., C] by prototypes [K, C], to float32 [..., K]."""
    return jnp.einsum(
        "...c,kc->...k", rows, prototypes, preferred_element_type=jnp.float32
    )


def log_sum_exp(tiles: Tiles, num_rows: int, bias: jax.Array | None = None):
    """Compute the log-sum-exp of each row over all prototypes, float32 [R].

    Args:
      tiles: Tiles of the prototypes.
      num_rows: Number of rows R.
      bias: Optional bias added to every row, [n, k].
    """
    bias = jnp.zeros((len(tiles), 1)) if bias is None else bias

    def one(sums, tile):
        tile, bias = tile
        z, recomputed = tiles.logits(tile) + bias, tiles.recomputed(tile) + bias
        return add_to_sums(sums, z, recomputed), None

    sums, _ = jax.lax.scan(one, empty_sums(num_rows), (tiles.scanned, bias))
    return log_of_sums(sums)


def empty_sums(num_rows: int) -> Sums:
    """Return initial sums, with no prototype added."""
    return jnp.full(num_rows, -jnp.inf), jnp.zeros(num_rows)


def add_to_sums(sums: Sums, z: jax.Array, recomputed: jax.Array) -> Sums:
    """Add the logits z [R, k] to sums; z is passed twice, see `Tiles.recomputed`."""
    peak, total = sums
    new = jnp.maximum(peak, jnp.max(z, axis=-1))
    total *= jnp.exp(peak - new)
    return new, total + jnp.sum(jnp.exp(recomputed - new[:, None]), axis=-1)


def log_of_sums(sums: Sums) -> jax.Array:
    """Return the log-sum-exp [R] of sums."""
    peak, total = sums
    return peak + jnp.log(total)
