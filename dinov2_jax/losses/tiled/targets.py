"""Teacher targets over the prototypes: what makes any tile of them.

Equals `losses.teacher_targets`, which says what is computed, without an array of
[rows, K]. Both kinds of targets are softmax(logits / temp + bias) with one bias a
prototype. For EMA centring it is -center / temp. For Sinkhorn-Knopp it is the log of
the factor that scales a column: dividing rows by their sums is the softmax itself, and
dividing columns by theirs takes log(sum) from the bias.

Shapes: G groups, I items a group (an image, or a masked patch), T teacher rows an item,
R rows in all, C channels of the bottleneck, K prototypes, k of them in each of n tiles.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from dinov2_jax import sharding
from dinov2_jax.losses import teacher_targets
from dinov2_jax.losses.tiled import tiles as tiles_lib

_TINY, _HUGE = jnp.finfo(jnp.float32).tiny, jnp.finfo(jnp.float32).max


@flax.struct.dataclass
class Targets:
    """The teacher's side of a loss; probabilities are made from it tile by tile.

    Attributes:
      features: [G, I, T, C], unit length.
      prototypes: [K, C].
      temp: Teacher temperature.
      bias: float32 [K].
      lse: float32 [G, I, T], log-sum-exp over K of logits / temp + bias.
    """

    features: jax.Array
    prototypes: jax.Array
    temp: jax.Array
    bias: jax.Array
    lse: jax.Array

    def probabilities(self) -> jax.Array:
        """float32 [G, I, T, K], whole: for looking at."""
        logits = (
            tiles_lib.matmul(self.features, self.prototypes) / self.temp + self.bias
        )
        return jnp.exp(logits - self.lse[..., None])


def sinkhorn_knopp(
    features: jax.Array,
    prototypes: jax.Array,
    temp: jax.Array | float,
    *,
    valid: jax.Array | None = None,
    num_iterations: int = 3,
) -> Targets:
    """Balanced targets; see `teacher_targets.sinkhorn_knopp`, which this equals.

    Args:
      features: [G, I, T, C].
      prototypes: [K, C].
      temp: Teacher temperature.
      valid: Optional bool [G, I]; False items take no part.
      num_iterations: Of the alternating normalisation, at least 1.
    """
    if valid is None:
        valid = jnp.ones(features.shape[:2], bool)
    valid = jnp.broadcast_to(valid[..., None], features.shape[:-1])
    temp = jnp.asarray(temp, jnp.float32)

    def balance(features, valid, prototypes, temp, *, axes):
        tiles = tiles_lib.make_tiles(features, prototypes, temp)
        args = tiles, valid.reshape(-1, 1), num_iterations
        if axes or tiles_lib.computes_again():
            bias, lse = _balance_in_two_passes(*args, axes)
        else:
            bias, lse = _balance_in_one_pass(*args)
        return bias.reshape(-1), lse.reshape(features.shape[:-1])

    bias, lse = sharding.on_groups(
        balance,
        in_specs=(sharding.BATCH, sharding.BATCH, None, None),
        out_specs=(None, sharding.BATCH),
        num_groups=len(features),
    )(features, valid, prototypes, temp)
    return Targets(features, prototypes, temp, bias, lse)


def _balance_in_two_passes(tiles, valid, num_iterations, axes):
    """bias [n, k] and lse [R]: columns first, their sums over devices, then rows."""

    def first(_, tile):
        return None, _sums_of_exps(tiles.logits(tile), tiles.again(tile), valid)

    def columns(lse, tile):
        return lse, _sums_of_probabilities(_probabilities(tiles, tile, lse), valid)

    def rows(carry, tile):
        lse, sums = carry
        return (lse, sums + jnp.sum(_probabilities(tiles, tile, lse), axis=1)), None

    _, (peak, sums) = jax.lax.scan(first, None, tiles.scanned)
    # Of a device without any valid row the peaks say nothing.
    highest = jax.lax.pmax(jnp.where(sums > 0, peak, -jnp.inf), axes)
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)
    sums = jax.lax.psum(sums * jnp.exp(jnp.minimum(peak - highest, 0.0)), axes)
    bias = -highest - _log_scale(sums)
    lse = tiles_lib.log_sum_exp(tiles, len(valid), bias)
    for _ in range(num_iterations - 1):
        _, sums = jax.lax.scan(columns, lse, (tiles.scanned, bias))
        bias -= _log_scale(jax.lax.psum(sums, axes))
        carry = lse, jnp.zeros_like(lse)
        (_, sums), _ = jax.lax.scan(rows, carry, (tiles.scanned, bias))
        lse += _log_of_rows(sums)
    return bias, lse


def _balance_in_one_pass(tiles, valid, num_iterations):
    """The same on one device, where a tile of columns has all that its bias needs."""

    def first(sums, tile):
        z = tiles.logits(tile)
        peak, columns = _sums_of_exps(z, z, valid)
        bias = -peak - _log_scale(columns)
        return tiles_lib.add_to_sums(sums, z + bias, z + bias), bias

    def later(carry, tile):
        lse, sums = carry
        q = _probabilities(tiles, tile, lse)
        scale = _log_scale(_sums_of_probabilities(q, valid))
        sums += jnp.sum(q * jnp.exp(-scale), axis=1)
        return (lse, sums), tile[1] - scale

    none = tiles_lib.no_sums(len(valid))
    sums, bias = jax.lax.scan(first, none, tiles.scanned)
    lse = tiles_lib.log_of_sums(sums)
    for _ in range(num_iterations - 1):
        carry = lse, jnp.zeros_like(lse)
        (_, sums), bias = jax.lax.scan(later, carry, (tiles.scanned, bias))
        lse += _log_of_rows(sums)
    return bias, lse


def _sums_of_exps(z, again, valid):
    """Of exp(z) by columns: their peaks [k], and sums [k] of what is left without it.

    Later sums need no peak: those of columns are of probabilities, and rows of columns
    that were divided by them.
    """
    peak = jnp.max(jnp.where(valid, z, -jnp.inf), axis=0)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)  # no row is valid
    return peak, jnp.sum(jnp.exp(jnp.where(valid, again, -jnp.inf) - peak), axis=0)


def _probabilities(tiles, tile, lse):
    """[R, k] of a tile and its bias."""
    tile, bias = tile
    return jnp.exp(tiles.logits(tile) + bias - lse[:, None])


def _sums_of_probabilities(q, valid):
    return jnp.sum(jnp.where(valid, q, 0.0), axis=0)


def _log_scale(sums):
    """Of what divides columns; where no row is valid they stay as they are."""
    return jnp.where(sums >= _TINY, jnp.log(sums), 0.0)


def _log_of_rows(sums):
    """A precaution: of all rows there is something left, and no more than R * K."""
    return jnp.log(jnp.clip(sums, _TINY, _HUGE))


def centered(
    features: jax.Array,
    prototypes: jax.Array,
    temp: jax.Array | float,
    center: jax.Array,
) -> Targets:
    """Centred targets; see `teacher_targets.centered_softmax`, which this equals.

    Args:
      features: [G, I, T, C].
      prototypes: [K, C].
      temp: Teacher temperature.
      center: [K].
    """
    temp = jnp.asarray(temp, jnp.float32)
    bias = -center / temp

    def row_sums(features, prototypes, temp, bias, *, axes):
        del axes
        tiles = tiles_lib.make_tiles(features, prototypes, temp)
        shape = features.shape[:-1]
        bias = bias.reshape(len(tiles), -1)
        return tiles_lib.log_sum_exp(tiles, math.prod(shape), bias).reshape(shape)

    lse = sharding.on_groups(
        row_sums,
        in_specs=(sharding.BATCH, None, None, None),
        out_specs=sharding.BATCH,
        num_groups=len(features),
    )(features, prototypes, temp, bias)
    return Targets(features, prototypes, temp, bias, lse)


def update_center(
    center: jax.Array, targets: Targets, valid: jax.Array | None = None
) -> jax.Array:
    """`teacher_targets.update_center` from the mean feature: the logits are linear.

    Args:
      center: [K].
      targets: Of this batch.
      valid: Optional bool [G, I].

    Returns:
      [K].
    """
    features = targets.features.astype(jnp.float32)
    if valid is None:
        mean = jnp.mean(features, axis=(1, 2))  # [G, C]
    else:
        totals = jnp.einsum("gitc,gi->gc", features, valid.astype(jnp.float32))
        counts = jnp.sum(valid, axis=1, keepdims=True) * features.shape[2]
        mean = totals / jnp.maximum(counts, 1)
    logits = jnp.mean(mean, axis=0) @ targets.prototypes.astype(jnp.float32).T
    return teacher_targets.move_center(center, logits)
