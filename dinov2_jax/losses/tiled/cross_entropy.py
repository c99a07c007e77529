"""Cross-entropy of teacher and student over the prototypes, a tile at a time.

Equals the definitions in `losses.dino`, without any array of [rows, K]. It takes two
passes: one for the student's sums, one for the loss and its gradients, each over tiles
of prototypes.

Shapes: G groups, I items a group (images or masked patches), T teacher rows and S
student rows an item, R rows in all, C channels of the bottleneck, K prototypes, k of
them in each of n tiles.
"""

import functools

import jax
import jax.numpy as jnp

from dinov2_jax import sharding
from dinov2_jax.losses import dino
from dinov2_jax.losses.tiled import targets as targets_lib
from dinov2_jax.losses.tiled import tiles as tiles_lib

Pairs = tuple[tuple[int, ...], ...]


def cross_entropy(
    features: jax.Array,
    prototypes: jax.Array,
    targets: targets_lib.Targets,
    weights: jax.Array,
    *,
    pairs: Pairs,
    factors: tuple[float, ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """Compute soft-target cross-entropy: sum over items of weight * sum over pairs.

    Only features and prototypes get gradients.

    Args:
      features: The student's features of unit length, [G, I, S, C].
      prototypes: The student's prototypes, [K, C]; their gradient is sharded like
        parameters.
      targets: The teacher's targets for the same items.
      weights: Weight of each item, float32 [G, I]; 0 leaves it out.
      pairs: Teacher rows that each of the S student rows is paired with.
      factors: Factor on the pairs of each of the S student rows; () is 1 for all.

    Returns:
      The total, and its parts by student row, [S], without gradient.
    """
    return _cross_entropy(features, prototypes, targets, weights, pairs, factors)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _cross_entropy(features, prototypes, targets, weights, pairs, factors):
    parts = _on_groups(features, prototypes, targets, weights, pairs, factors, False)
    return jnp.sum(parts), parts


def _forward(features, prototypes, targets, weights, pairs, factors):
    parts, *grads = _on_groups(
        features, prototypes, targets, weights, pairs, factors, True
    )
    return (jnp.sum(parts), parts), (*grads, targets, weights)


def _backward(pairs, factors, saved, grad):
    del pairs, factors
    d_features, d_prototypes, targets, weights = saved
    d_features = (d_features * grad[0]).astype(d_features.dtype)
    d_prototypes = (d_prototypes * grad[0]).astype(targets.prototypes.dtype)
    zeros = jax.tree.map(jnp.zeros_like, (targets, weights))
    return d_features, d_prototypes, *zeros


_cross_entropy.defvjp(_forward, _backward)


def _on_groups(features, prototypes, targets, weights, pairs, factors, with_grads):
    """Run `_local` on each device's groups; return parts [S] and, if set, gradients."""
    args = (
        *(features, targets.features, targets.lse, weights),
        *(prototypes, targets.prototypes, targets.temp, targets.bias),
    )
    out_specs = None
    if with_grads:
        out_specs = (None, sharding.BATCH, sharding.scattered(len(prototypes)))
    return sharding.on_groups(
        functools.partial(_local, pairs=pairs, factors=factors, with_grads=with_grads),
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
    factors,
    with_grads,
    axes,
):
    items = weights.size
    rows = max(features.size, teacher_features.size) // features.shape[-1]
    tiled = functools.partial(tiles_lib.make_tiles, rows=rows)
    tiles = tiled(features, prototypes, dino.STUDENT_TEMP)
    teacher_tiles = tiled(teacher_features, teacher_prototypes, temp)
    x = features.reshape(-1, features.shape[-1])
    lse = tiles_lib.log_sum_exp(tiles, len(x))
    mass = jnp.tile(jnp.asarray([len(row) for row in pairs], jnp.float32), items)
    factor = jnp.repeat(weights.reshape(-1), len(pairs)) / dino.STUDENT_TEMP
    if factors:
        factor *= jnp.tile(jnp.asarray(factors, jnp.float32), items)

    def one(carry, tile):
        tile, teacher_tile, bias, kernel = tile
        z = teacher_tiles.logits(teacher_tile) + bias - teacher_lse.reshape(-1, 1)
        q = jnp.exp(z).reshape(items, -1, z.shape[-1])  # [I, T, k]
        target = jnp.stack([sum(q[:, t] for t in row) for row in pairs], axis=1)
        target = target.reshape(len(x), -1)
        z = tiles.logits(tile)  # [R, k]
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
    xs = tiles.scanned, teacher_tiles.scanned, bias.reshape(n, -1), weight_tiles
    (expected, d_x), d_prototypes = jax.lax.scan(one, carry, xs)
    loss = (mass * lse - expected).reshape(items, -1)
    parts = jnp.einsum("is,i->s", loss, weights.reshape(-1), precision="highest")
    if factors:
        parts *= jnp.asarray(factors, jnp.float32)
    parts = jax.lax.psum(parts, axes)
    if not with_grads:
        return parts
    d_prototypes = d_prototypes.reshape(prototypes.shape)
    d_x = d_x.astype(x.dtype).reshape(features.shape)
    return parts, d_x, sharding.scatter_sum(d_prototypes, axes)
