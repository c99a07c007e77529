"""Teacher targets and cross-entropy over the prototypes, a tile of rows at a time.

Equals `losses.teacher_targets` and `losses.dino`, which say what is computed, without
an array of [rows, K] in memory: the teacher's logits are computed again for every pass
(kept only where they are small), a tile of rows by all K, and the pass that gives the
loss gives its gradients too.

Both kinds of targets are softmax(logits / temp + bias) with one bias a prototype. For
EMA centring it is -center / temp. For Sinkhorn-Knopp it is the log of the factor that
scales a column: dividing rows by their sums is the softmax itself, and dividing columns
by theirs takes log(sum) from the bias, so each iteration is one pass and no balanced
matrix is ever stored.

Shapes: G groups, I items a group (an image, or a masked patch), T teacher rows and S
student rows an item, C channels of the bottleneck, K prototypes. Matmuls are in the
dtype of features and prototypes, everything else in float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from dinov2_jax import sharding
from dinov2_jax.losses import dino, teacher_targets

_KEPT = 2**25  # teacher logits up to so many are kept instead of computed again
_TILE = {True: 3 * 2**21, False: 2**26}  # logits of a tile, on the CPU or not
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
    """

    features: jax.Array
    prototypes: jax.Array
    temp: jax.Array
    bias: jax.Array

    def probabilities(self) -> jax.Array:
        """float32 [G, I, T, K], whole: for looking at."""
        logits = _matmul(self.features, self.prototypes) / self.temp + self.bias
        return jax.nn.softmax(logits, axis=-1)


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
    temp = jnp.asarray(temp, jnp.float32)

    def bias(features, valid, prototypes, temp, *, axes):
        valid = jnp.repeat(valid.reshape(-1), features.shape[2])
        rows = features.reshape(-1, features.shape[-1])
        tiles = _tile(rows, valid.astype(jnp.float32), columns=len(prototypes))
        logits = _teacher_logits(prototypes, temp, tiles[0])
        sums = functools.partial(_column_sums, logits, tiles, axes=axes)
        bias = -_log(sums(jnp.zeros(len(prototypes)), first=True))
        for _ in range(num_iterations - 1):
            bias -= _log(sums(bias, first=False))
        return bias

    bias = sharding.on_groups(
        bias,
        in_specs=(sharding.BATCH, sharding.BATCH, None, None),
        out_specs=None,
        num_groups=len(features),
    )(features, valid, prototypes, temp)
    return Targets(features, prototypes, temp, bias)


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
    return Targets(features, prototypes, temp, -center / temp)


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
        *(features, targets.features, weights),
        *(prototypes, targets.prototypes, targets.temp, targets.bias),
    )
    out_specs = None
    if with_grads:
        out_specs = (None, sharding.BATCH, sharding.scattered(len(prototypes)))
    return sharding.on_groups(
        functools.partial(_local, pairs=pairs, with_grads=with_grads),
        in_specs=(sharding.BATCH,) * 3 + (None,) * 4,
        out_specs=out_specs,
        num_groups=len(features),
    )(*args)


def _local(
    features,
    teacher_features,
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
    shape = features.shape
    features, teacher_features = (
        x.reshape(-1, *x.shape[2:]) for x in (features, teacher_features)
    )
    tiles = _tile(
        features, teacher_features, weights.reshape(-1), columns=len(prototypes)
    )
    teacher = _teacher_logits(teacher_prototypes, temp, tiles[1])
    tiles = (*tiles, jnp.arange(len(tiles[0])))

    def one(carry, tile):
        x, y, weight, index = tile  # [i, S, C], [i, T, C], [i]
        q = jax.nn.softmax(teacher(y, index) + bias, axis=-1)  # [i, T, K]
        target = jnp.stack(
            [sum(q[:, t] for t in row) for row in pairs], axis=1
        )  # [i, S, K]
        mass = jnp.asarray([len(row) for row in pairs], jnp.float32)
        logits = _matmul(x, prototypes) / dino.STUDENT_TEMP
        peak = jnp.max(logits, axis=-1, keepdims=True)
        exp = jnp.exp(logits - peak)
        total = jnp.sum(exp, axis=-1, keepdims=True)
        lse = (peak + jnp.log(total))[..., 0]
        loss = mass * lse - jnp.sum(target * logits, axis=-1)  # [i, S]
        parts, d_prototypes = carry
        parts += jnp.einsum("is,i->s", loss, weight, precision="highest")
        if not with_grads:
            return (parts, d_prototypes), None
        factor = (weight / dino.STUDENT_TEMP)[:, None, None]
        d_logits = factor * (exp * (mass[:, None] / total) - target)
        d_logits = d_logits.astype(x.dtype)
        d_x = jnp.einsum("isk,kc->isc", d_logits, prototypes)
        d_prototypes += jnp.einsum(
            "isk,isc->kc", d_logits, x, preferred_element_type=jnp.float32
        )
        return (parts, d_prototypes), d_x

    carry = jnp.zeros(len(pairs)), None
    if with_grads:
        carry = carry[0], jnp.zeros(prototypes.shape, jnp.float32)
    (parts, d_prototypes), d_features = jax.lax.scan(one, carry, tiles)
    parts = jax.lax.psum(parts, axes)
    if not with_grads:
        return parts
    d_features = d_features.reshape(-1, *shape[2:])[: math.prod(shape[:2])]
    return parts, d_features.reshape(shape), sharding.scatter_sum(d_prototypes, axes)


def _tile(*arrays: jax.Array, columns: int) -> list[jax.Array]:
    """[n, ...] each -> [tiles, rows, ...], the last tile filled up with zeros."""
    n = len(arrays[0])
    rows = max(math.prod(x.shape[1:-1]) for x in arrays)  # of logits, an item
    most = max(_TILE[sharding.device_kind() == "cpu"] // (columns * rows), 1)
    tiles = -(-n // most)
    size = -(-n // tiles)
    return [
        jnp.pad(x, [(0, tiles * size - n)] + [(0, 0)] * (x.ndim - 1)).reshape(
            tiles, size, *x.shape[1:]
        )
        for x in arrays
    ]


def _teacher_logits(
    prototypes: jax.Array, temp: jax.Array, tiles: jax.Array
) -> Callable[[jax.Array, Any], jax.Array]:
    """(rows of a tile, its index) -> logits / temp; kept from the start where few."""

    def compute(rows):
        return _matmul(rows, prototypes) / temp

    if math.prod(tiles.shape[:-1]) * len(prototypes) > _KEPT:
        return lambda rows, index: compute(rows)
    kept = jax.lax.map(compute, tiles)
    return lambda rows, index: kept[index]


def _column_sums(logits, tiles, bias, *, first, axes):
    """Sums over all valid rows of softmax(logits + bias), or at `first` of exp."""

    def one(carry, tile):
        peak, sums = carry
        rows, valid, index = tile
        z = logits(rows, index) + bias
        top = jnp.max(z, axis=-1)
        exp = jnp.exp(z - top[:, None])
        if first:  # exp(z) of all rows by one factor, which the next softmax cancels
            new = jnp.maximum(peak, jnp.max(jnp.where(valid > 0, top, -jnp.inf)))
            sums *= _exp_difference(peak, new)
            weight = jnp.where(valid > 0, _exp_difference(top, new), 0.0)
            peak = new
        else:
            weight = valid / jnp.sum(exp, axis=-1)
        sums += jnp.einsum("rk,r->k", exp, weight, precision="highest")
        return (peak, sums), None

    carry = jnp.float32(-jnp.inf), jnp.zeros(bias.shape)
    xs = (*tiles, jnp.arange(len(tiles[0])))
    (peak, sums), _ = jax.lax.scan(one, carry, xs)
    if first and axes:
        sums *= _exp_difference(peak, jax.lax.pmax(peak, axes))
    return jax.lax.psum(sums, axes)


def _exp_difference(x, y):
    """exp(x - y); 1 where no row has been valid yet."""
    return jnp.exp(jnp.where(jnp.isfinite(y), x - y, 0.0))


def _log(sums):
    return jnp.log(jnp.maximum(sums, _TINY))


def _matmul(rows, prototypes):
    return jnp.einsum(
        "...c,kc->...k", rows, prototypes, preferred_element_type=jnp.float32
    )
