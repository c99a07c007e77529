"""Arithmetic of the TPU attention kernels for one crop and one pair of heads.

Letters as in `attention_tpu`: N keys of a crop rounded up to 16, M query rows of one
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
    """The next multiple of `multiple` from `x` on."""
    return -(-x // multiple) * multiple


def dot(a, b, contraction, dtype):
    """Of matrices in `dtype`, one of the contractions above; float32."""
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        contraction,
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _first_head():
    """[1, 128]: the lanes of the first of two heads."""
    return lax.broadcasted_iota(jnp.int32, (1, LANES), 1) < HEAD_DIM


def load(ref, start, rows, valid):
    """[rows, 128] float32 from row `start`; zero from row `valid` on."""
    x = ref[pl.ds(start, rows), :]
    if isinstance(valid, int) and valid >= rows:
        return x
    return jnp.where(lax.broadcasted_iota(jnp.int32, (rows, 1), 0) < valid, x, 0)


def stack(x):
    """[M, 128] -> [2 * M, 128]: one head after the other, the other's lanes zero."""
    first = _first_head()
    return jnp.concatenate([jnp.where(first, x, 0), jnp.where(first, 0, x)])


def unstack(x):
    """[2 * M, 128] -> [M, 128]: the lanes of each head from its own rows."""
    half = x.shape[0] // 2
    return jnp.where(_first_head(), x[:half], x[half:])


def by_query(at, weights, norm, dtype):
    """[128, N] by [N, 2 * M] by [1, 2 * M], each head its own queries -> [M, 128]."""
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
    """[N, 2 * M] base-2 scores of stacked queries, -inf for keys beyond the crop."""
    products = dot(k, stacked, NT, dtype)
    if k.shape[0] == length:
        return products
    keys = lax.broadcasted_iota(jnp.int32, (k.shape[0], 1), 0)
    return jnp.where(keys < length, products, -jnp.inf)


def edge_scores(stacked, k, length, dtype):
    """[16, N]: the same of a few queries, as rows."""
    keys = lax.broadcasted_iota(jnp.int32, (1, k.shape[0]), 1)
    return jnp.where(keys < length, dot(stacked, k, NT, dtype), -jnp.inf)


def softmax(scores, axis):
    """Weights before division, and what to multiply them by."""
    weights = jnp.exp2(scores - jnp.max(scores, axis, keepdims=True))
    return weights, 1 / jnp.sum(weights, axis, keepdims=True)


def gradients(scores, dweights, axis, dtype):
    """The weights, and the gradient of the scores (in units of natural scores)."""
    weights, norm = softmax(scores, axis)
    weights = weights * norm
    delta = jnp.sum(weights * dweights, axis, keepdims=True)
    return weights.astype(dtype), (weights * (dweights - delta)).astype(dtype)


def tiles(length):
    """Tiles of a crop as (first query, rows a head, valid rows); queries at its edge.

    The rows of both heads together fill whole tiles of 128 lanes.
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
    """Blocks to float32 rows; the first, q, to the units of base-2 scores."""
    for n, (ref, bias, target) in enumerate(zip(refs, biases, targets)):
        x = ref[0].astype(jnp.float32)
        if bias is not None:
            x += bias[...].astype(jnp.float32)
        target[: ref.shape[1], :] = x * (SCALE * LOG2_E) if n == 0 else x
