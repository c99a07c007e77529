"""Arithmetic of the TPU attention kernels for one crop and one pair of heads.

Shapes as in `attention_tpu`: N keys of a crop rounded up to 16, M query rows of one
head.
"""

import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

HEAD_DIM = 64
LANES = 128
SCALE = HEAD_DIM**-0.5
LOG2_E = math.log2(math.e)

NN = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))
TN = (((0,), (0,)), ((), ()))


def round_up(x: int, multiple: int) -> int:
    """Round `x` up to a multiple of `multiple`."""
    return -(-x // multiple) * multiple


def dot(a, b, contraction, dtype):
    """Multiply matrices in `dtype` by one of the contractions above, to float32."""
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        contraction,
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _first_head():
    """Return the mask of the first of two heads' lanes, [1, 128]."""
    return lax.broadcasted_iota(jnp.int32, (1, LANES), 1) < HEAD_DIM


def load(ref, start, rows, valid):
    """Load float32 [rows, 128] from row `start`, with zeros from row `valid` on."""
    x = ref[pl.ds(start, rows), :]
    if isinstance(valid, int) and valid >= rows:
        return x
    return jnp.where(lax.broadcasted_iota(jnp.int32, (rows, 1), 0) < valid, x, 0)


def stack(x):
    """Stack the heads, [M, 128] -> [2 * M, 128], with the other head's lanes zero."""
    first = _first_head()
    return jnp.concatenate([jnp.where(first, x, 0), jnp.where(first, 0, x)])


def unstack(x):
    """Undo `stack`, [2 * M, 128] -> [M, 128]: take each head's lanes from its rows."""
    half = x.shape[0] // 2
    return jnp.where(_first_head(), x[:half], x[half:])


def by_query(at, weights, norm, dtype):
    """Multiply [128, N] by [N, 2 * M] and [1, 2 * M], head by head, to [M, 128]."""
    rows = weights.shape[1] // 2
    if rows % LANES:
        return unstack((dot(at, weights, NN, dtype) * norm).T)
    parts = []
    for h in range(2):
        channels = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
        queries = slice(h * rows, (h + 1) * rows)
        product = dot(at[channels], weights[:, queries], NN, dtype)
        parts.append(product * norm[:, queries])
    return jnp.concatenate(parts).T


def scores(k, stacked, length, dtype):
    """Compute base-2 scores [N, 2 * M] of stacked queries; -inf beyond `length`."""
    products = dot(k, stacked, NT, dtype)
    if k.shape[0] == length:
        return products
    keys = lax.broadcasted_iota(jnp.int32, (k.shape[0], 1), 0)
    return jnp.where(keys < length, products, -jnp.inf)


def edge_scores(stacked, k, length, dtype):
    """Compute the scores of a few stacked queries as rows, [16, N]."""
    keys = lax.broadcasted_iota(jnp.int32, (1, k.shape[0]), 1)
    return jnp.where(keys < length, dot(stacked, k, NT, dtype), -jnp.inf)


def softmax(scores, axis):
    """Return the unnormalised softmax weights and the factors that normalise them."""
    weights = jnp.exp2(scores - jnp.max(scores, axis, keepdims=True))
    return weights, 1 / jnp.sum(weights, axis, keepdims=True)


def gradients(scores, dweights, axis, dtype):
    """Return the weights and the gradient of the scores, in units of base-e scores."""
    weights, norm = softmax(scores, axis)
    weights = weights * norm
    delta = jnp.sum(weights * dweights, axis, keepdims=True)
    return weights.astype(dtype), (weights * (dweights - delta)).astype(dtype)


def tiles(length):
    """Divide a crop's queries into (first query, rows a head, valid rows), and an edge.

    The edge is the number of last queries outside the tiles. The rows of both heads
    together fill whole tiles of 128 lanes.
    """
    whole = length // LANES * LANES
    rest = length - whole
    if rest > LANES // 2:
        return [(0, whole + LANES, length)], 0
    found = [(0, whole, whole)] if whole else []
    if whole and rest <= 8:
        return found, rest
    return found + [(whole, LANES // 2, rest)], 0


def widen(refs, biases, targets):
    """Widen blocks to float32 rows; scale the first, q, to give base-2 scores."""
    for n, (ref, bias, target) in enumerate(zip(refs, biases, targets)):
        x = ref[0].astype(jnp.float32)
        if bias is not None:
            x += bias[...].astype(jnp.float32)
        target[: ref.shape[1], :] = x * (SCALE * LOG2_E) if n == 0 else x
