"""Teacher targets over the prototypes, in a form that gives any tile of them.

Equals the definitions in `losses.teacher_targets`, without any array of [rows, K]. Both
kinds of targets are softmax(logits / temp + bias) with one bias a prototype. For EMA
centring it is -center / temp. For Sinkhorn-Knopp it is the log of a column's scale:
dividing rows by their sums is the softmax itself, and dividing columns by their sums
subtracts log(sum) from the bias.

Shapes: G groups, I items a group (images or masked patches), T teacher rows an item,
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
    """The teacher's side of a loss, from which probabilities are computed by tiles.

    Attributes:
      features: The teacher's features of unit length, [G, I, T, C].
      prototypes: The teacher's prototypes, [K, C].
      temp: Teacher temperature.
      bias: Bias of each prototype, float32 [K].
      lse: Log-sum-exp over K of logits / temp + bias, float32 [G, I, T].
    """

    features: jax.Array
    prototypes: jax.Array
    temp: jax.Array
    bias: jax.Array
    lse: jax.Array

    def probabilities(self) -> jax.Array:
        """Compute all probabilities at once, float32 [G, I, T, K], for inspection."""
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
    """Compute balanced targets, equal to `teacher_targets.sinkhorn_knopp`.

    Args:
      features: The teacher's features, [G, I, T, C].
      prototypes: The teacher's prototypes, [K, C].
      temp: Teacher temperature.
      valid: Optional bool [G, I]; False items are ignored.
      num_iterations: Iterations of the alternating normalisation, at least 1.
    """
    if valid is None:
        valid = jnp.ones(features.shape[:2], bool)
    valid = jnp.broadcast_to(valid[..., None], features.shape[:-1])
    temp = jnp.asarray(temp, jnp.float32)

    def balance(features, valid, prototypes, temp, *, axes):
        tiles = tiles_lib.make_tiles(features, prototypes, temp)
        args = tiles, valid.reshape(-1, 1), num_iterations
        if axes or tiles_lib.recomputes_logits():
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
    """Return bias [n, k] and lse [R]; sum columns over devices first, then rows."""

    def first(_, tile):
        return None, _sums_of_exps(tiles.logits(tile), tiles.recomputed(tile), valid)

    def columns(lse, tile):
        return lse, _sums_of_probabilities(_probabilities(tiles, tile, lse), valid)

    def rows(carry, tile):
        lse, sums = carry
        return (lse, sums + jnp.sum(_probabilities(tiles, tile, lse), axis=1)), None

    _, (peak, sums) = jax.lax.scan(first, None, tiles.scanned)
    # The peaks of a device without valid rows are meaningless.
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
    """Do the same on one device, where one tile is enough to update its bias."""

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

    none = tiles_lib.empty_sums(len(valid))
    sums, bias = jax.lax.scan(first, none, tiles.scanned)
    lse = tiles_lib.log_of_sums(sums)
    for _ in range(num_iterations - 1):
        carry = lse, jnp.zeros_like(lse)
        (_, sums), bias = jax.lax.scan(later, carry, (tiles.scanned, bias))
        lse += _log_of_rows(sums)
    return bias, lse


def _sums_of_exps(z, recomputed, valid):
    """Return by columns the peaks of z, [k], and the sums of exp(z - peak), [k].

    Later sums need no peaks: column sums are of probabilities, and row sums are of
    columns that were divided by such sums.
    """
    peak = jnp.max(jnp.where(valid, z, -jnp.inf), axis=0)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)  # no row is valid
    return peak, jnp.sum(jnp.exp(jnp.where(valid, recomputed, -jnp.inf) - peak), axis=0)


def _probabilities(tiles, tile, lse):
    """Compute the probabilities [R, k] of a tile, given with its bias."""
    tile, bias = tile
    return jnp.exp(tiles.logits(tile) + bias - lse[:, None])


def _sums_of_probabilities(q, valid):
    return jnp.sum(jnp.where(valid, q, 0.0), axis=0)


def _log_scale(sums):
    """Return the log of the column sums; 0 if no row is valid, to change nothing."""
    return jnp.where(sums >= _TINY, jnp.log(sums), 0.0)


def _log_of_rows(sums):
    """Return log(sums), clipped as a precaution: sums are above 0 and at most R * K."""
    return jnp.log(jnp.clip(sums, _TINY, _HUGE))


def centered(
    features: jax.Array,
    prototypes: jax.Array,
    temp: jax.Array | float,
    center: jax.Array,
) -> Targets:
    """Compute centred targets, equal to `teacher_targets.centered_softmax`.

    Args:
      features: The teacher's features, [G, I, T, C].
      prototypes: The teacher's prototypes, [K, C].
      temp: Teacher temperature.
      center: The centre of the logits, [K].
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
    """Return the centre for the next step, as `teacher_targets.update_center` does.

    Logits are linear in the features, so the mean feature is enough.

    Args:
      center: The old centre, [K].
      targets: Targets of this batch.
      valid: Optional bool [G, I]; False items are ignored.

    Returns:
      The new centre, [K].
    """
    features = targets.features.astype(jnp.float32)
    if valid is None:
        mean = jnp.mean(features, axis=(1, 2))  # [G, C]
    else:
        weights = valid.astype(jnp.float32)
        totals = jnp.einsum("gitc,gi->gc", features, weights, precision="highest")
        counts = jnp.sum(valid, axis=1, keepdims=True) * features.shape[2]
        mean = totals / jnp.maximum(counts, 1)
    prototypes = targets.prototypes.astype(jnp.float32)
    logits = jnp.matmul(prototypes, jnp.mean(mean, axis=0), precision="highest")
    return teacher_targets.move_center(center, logits)
