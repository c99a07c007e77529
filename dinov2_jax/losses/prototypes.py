"""Teacher targets and cross-entropy over the prototypes, a tile of columns at a time.

Equals `losses.teacher_targets` and `losses.dino`, which say what is computed, without
an array of [rows, K] in memory: the logits of all rows and some prototypes are computed
again for every pass (kept only where they are small), and never leave fast memory.

Both kinds of targets are softmax(logits / temp + bias) with one bias a prototype. For
EMA centring it is -center / temp. For Sinkhorn-Knopp it is the log of the factor that
scales a column: dividing rows by their sums is the softmax itself, and dividing columns
by theirs takes log(sum) from the bias. On one device a tile of columns has all that its
own new bias needs, and the sums of rows with that bias run along: an iteration is one
pass. Several devices sum columns first and rows in a second pass. The cross-entropy
takes two: the student's sums, then the loss and its gradients, those of a tile of
prototypes at once.

Shapes: G groups, I items a group (an image, or a masked patch), T teacher rows and S
student rows an item, R rows in all, C channels of the bottleneck, K prototypes, k of
them in each of n tiles. Matmuls are in the dtype of features and prototypes, everything
else in float32.
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from dinov2_jax import sharding
from dinov2_jax.losses import dino, teacher_targets

_KEPT = 2**25  # logits up to so many are kept instead of computed again
_TILE = {True: 2**19, False: 2**24}  # logits of a tile, on the CPU or not
_NARROWEST = 128  # columns of a tile
_TINY = jnp.finfo(jnp.float32).tiny

Pairs = tuple[tuple[int, ...], ...]


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
        logits = _matmul(self.features, self.prototypes) / self.temp + self.bias
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
      num_iterations: Of the alternating normalisation.
    """
    if valid is None:
        valid = jnp.ones(features.shape[:2], bool)
    valid = jnp.broadcast_to(valid[..., None], features.shape[:-1])
    temp = jnp.asarray(temp, jnp.float32)

    def balance(features, valid, prototypes, temp, *, axes):
        tiles, logits = _tiled_logits(features, prototypes, temp)
        valid = valid.reshape(-1, 1)

        bias = lse = None
        for _ in range(num_iterations):

            def one(sums, tile, lse=lse):
                tile, bias = tile
                z = logits(tile)
                columns = _column_sums(z, valid, bias, lse)
                if axes:
                    return sums, columns
                bias = _next_bias(bias, *columns)
                return _add_to_sums(sums, z + bias), bias

            sums, new = jax.lax.scan(one, _no_sums(len(valid)), (tiles, bias))
            if axes:
                # One sum over devices for all tiles, and so another pass for the rows.
                bias = _next_bias(bias, *_over_devices(*new, axes))
                lse = _row_sums(logits, tiles, bias)
            else:
                bias, lse = new, _log_sum_exp(sums)
        return bias.reshape(-1), lse.reshape(features.shape[:-1])

    bias, lse = sharding.on_groups(
        balance,
        in_specs=(sharding.BATCH, sharding.BATCH, None, None),
        out_specs=(None, sharding.BATCH),
        num_groups=len(features),
    )(features, valid, prototypes, temp)
    return Targets(features, prototypes, temp, bias, lse)


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
        tiles, logits = _tiled_logits(features, prototypes, temp)
        lse = _row_sums(logits, tiles, bias.reshape(len(tiles), -1))
        return lse.reshape(features.shape[:-1])

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


def cross_entropy(
    features: jax.Array,
    prototypes: jax.Array,
    targets: Targets,
    weights: jax.Array,
    *,
    pairs: Pairs,
) -> tuple[jax.Array, jax.Array]:
    """Soft-target cross-entropy, sum over items of weight * sum over pairs.

    Args:
      features: [G, I, S, C] of the student, unit length; gets a gradient.
      prototypes: [K, C] of the student; gets a gradient, sharded as parameters are.
      targets: Of the teacher, the same items; gets none.
      weights: float32 [G, I]; 0 leaves an item out. Gets no gradient.
      pairs: For each of the S student rows, the teacher rows that it meets.

    Returns:
      The total, and without gradient its parts by student row, [S].
    """
    return _cross_entropy(features, prototypes, targets, weights, pairs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(features, prototypes, targets, weights, pairs):
    parts = _on_groups(features, prototypes, targets, weights, pairs, False)
    return jnp.sum(parts), parts


def _forward(features, prototypes, targets, weights, pairs):
    parts, *grads = _on_groups(features, prototypes, targets, weights, pairs, True)
    return (jnp.sum(parts), parts), (*grads, targets, weights)


def _backward(pairs, saved, grad):
    del pairs
    d_features, d_prototypes, targets, weights = saved
    d_features = (d_features * grad[0]).astype(d_features.dtype)
    d_prototypes = (d_prototypes * grad[0]).astype(targets.prototypes.dtype)
    zeros = jax.tree.map(jnp.zeros_like, (targets, weights))
    return d_features, d_prototypes, *zeros


_cross_entropy.defvjp(_forward, _backward)


def _on_groups(features, prototypes, targets, weights, pairs, with_grads):
    """`_local` on each device's groups: parts [S][, gradients]."""
    args = (
        *(features, targets.features, targets.lse, weights),
        *(prototypes, targets.prototypes, targets.temp, targets.bias),
    )
    out_specs = None
    if with_grads:
        out_specs = (None, sharding.BATCH, sharding.scattered(len(prototypes)))
    return sharding.on_groups(
        functools.partial(_local, pairs=pairs, with_grads=with_grads),
        in_specs=(sharding.BATCH,) * 4 + (None,) * 4,
        out_specs=out_specs,
        num_groups=len(features),
    )(*args)


def _local(
    features,
    teacher_features,
    teacher_lse,
    weights,
    prototypes,
    teacher_prototypes,
    temp,
    bias,
    *,
    pairs,
    with_grads,
    axes,
):
    items = weights.size
    rows = max(features.size, teacher_features.size) // features.shape[-1]
    tiled = functools.partial(_tiled_logits, rows=rows)
    tiles, logits = tiled(features, prototypes, dino.STUDENT_TEMP)
    teacher_tiles, teacher_logits = tiled(teacher_features, teacher_prototypes, temp)
    lse = _row_sums(logits, tiles)
    x = features.reshape(-1, features.shape[-1])
    mass = jnp.tile(jnp.asarray([len(row) for row in pairs], jnp.float32), items)
    factor = jnp.repeat(weights.reshape(-1), len(pairs)) / dino.STUDENT_TEMP

    def one(carry, tile):
        tile, teacher_tile, bias, kernel = tile
        z = teacher_logits(teacher_tile) + bias - teacher_lse.reshape(-1, 1)
        q = jnp.exp(z).reshape(items, -1, z.shape[-1])  # [I, T, k]
        target = jnp.stack([sum(q[:, t] for t in row) for row in pairs], axis=1)
        target = target.reshape(len(x), -1)
        z = logits(tile)  # [R, k]
        expected, d_x = carry
        expected += jnp.sum(target * z, axis=-1)
        if not with_grads:
            return (expected, d_x), None
        d_z = mass[:, None] * jnp.exp(z - lse[:, None]) - target
        d_z = (factor[:, None] * d_z).astype(x.dtype)
        d_x += jnp.einsum("rk,kc->rc", d_z, kernel, preferred_element_type=jnp.float32)
        return (expected, d_x), jnp.einsum(
            "rk,rc->kc", d_z, x, preferred_element_type=jnp.float32
        )

    carry = jnp.zeros(len(x)), None
    if with_grads:
        carry = carry[0], jnp.zeros(x.shape)
    n = len(tiles)
    weight_tiles = prototypes.reshape(n, -1, x.shape[-1])
    xs = tiles, teacher_tiles, bias.reshape(n, -1), weight_tiles
    (expected, d_x), d_prototypes = jax.lax.scan(one, carry, xs)
    loss = (mass * lse - expected).reshape(items, -1)
    parts = jnp.einsum("is,i->s", loss, weights.reshape(-1), precision="highest")
    parts = jax.lax.psum(parts, axes)
    if not with_grads:
        return parts
    d_prototypes = d_prototypes.reshape(prototypes.shape)
    d_x = d_x.astype(x.dtype).reshape(features.shape)
    return parts, d_x, sharding.scatter_sum(d_prototypes, axes)


def _columns(rows: int, count: int) -> int:
    """Prototypes of a tile: a divisor of all, so that no tile is filled up.

    A prime number of prototypes is one tile, however large.
    """
    most = _TILE[sharding.device_kind() == "cpu"] // rows
    divisors = [
        k
        for k in range(1, count + 1)
        if count % k == 0 and (k >= _NARROWEST or k == count)
    ]
    return max((k for k in divisors if k <= most), default=divisors[0])


def _tiled_logits(
    features: jax.Array,
    prototypes: jax.Array,
    temp: jax.Array | float,
    rows: int | None = None,
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """[n, ...] to scan, and what gives logits / temp [R, k] from one of it.

    Args:
      features: [..., C], R rows.
      prototypes: [K, C].
      temp: What divides.
      rows: Of the largest array that a tile is to make; default R.
    """
    x = features.reshape(-1, features.shape[-1])
    columns = _columns(rows or len(x), len(prototypes))
    tiles = prototypes.reshape(-1, columns, prototypes.shape[-1])

    def compute(tile):
        return _matmul(x, tile) / temp

    if len(x) * len(prototypes) > _KEPT:
        return tiles, compute
    return jax.lax.map(compute, tiles), lambda tile: tile


def _column_sums(z, valid, bias, lse):
    """What columns are divided by, as peak [k] and sum [k] of exp(... - peak).

    Of exp(z) at first, then of the softmax of the iteration before; of valid rows.
    """
    if bias is None:
        masked = jnp.where(valid, z, -jnp.inf)
        peak = jnp.max(masked, axis=0)
        peak = jnp.where(jnp.isfinite(peak), peak, 0.0)  # no row is valid
        return peak, jnp.sum(jnp.exp(masked - peak), axis=0)
    weights = jnp.where(valid, jnp.exp(z + bias - lse[:, None]), 0.0)
    return jnp.zeros(z.shape[1]), jnp.sum(weights, axis=0)


def _over_devices(peak, sums, axes):
    """The same of all devices' rows."""
    highest = jax.lax.pmax(peak, axes)
    return highest, jax.lax.psum(sums * jnp.exp(peak - highest), axes)


def _next_bias(bias, peak, sums):
    bias = 0.0 if bias is None else bias
    return bias - peak - jnp.log(jnp.maximum(sums, _TINY))


def _row_sums(logits, tiles, bias=None):
    """Log-sum-exp [R] over all tiles of logits + bias."""

    def one(sums, tile):
        tile, bias = tile
        z = logits(tile)
        return _add_to_sums(sums, z if bias is None else z + bias), None

    rows = jax.eval_shape(logits, tiles[0]).shape[0]
    sums, _ = jax.lax.scan(one, _no_sums(rows), (tiles, bias))
    return _log_sum_exp(sums)


def _no_sums(rows):
    return jnp.full(rows, -jnp.inf), jnp.zeros(rows)


def _add_to_sums(sums, z):
    """Running maximum and sum of exponentials below it, of each row."""
    peak, total = sums
    new = jnp.maximum(peak, jnp.max(z, axis=-1))
    total *= jnp.exp(peak - new)
    return new, total + jnp.sum(jnp.exp(z - new[:, None]), axis=-1)


def _log_sum_exp(sums):
    peak, total = sums
    return peak + jnp.log(total)


def _matmul(rows, prototypes):
    return jnp.einsum(
        "...c,kc->...k", rows, prototypes, preferred_element_type=jnp.float32
    )
