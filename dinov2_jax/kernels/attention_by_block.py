"""Attention in long crops on the CPU, a block of queries at a time.

Equals the plain form in `kernels.attention` up to rounding, in memory that is linear in
the length: neither pass holds more scores than those of one block of queries with all
keys. A block has whole rows, so no softmax has to be merged with another; blocks of
keys as well, as in FlashAttention (Dao et al., 2022), were slower. The backward pass
recomputes the scores from the saved log-sum-exp.

Shapes: I images, N tokens, H heads, C channels, M queries in a block.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

_SCORES = 2**20  # of a block of 128 to 256 queries


@functools.partial(jax.jit, static_argnames=("count", "length", "num_heads"))
def attention(qkv: jax.Array, *, count: int, length: int, num_heads: int) -> jax.Array:
    """Compute softmax attention within each crop of one crop group.

    Args:
      qkv: Packed projections, [G, count*length, 3*D], the last axis [q | k | v].
      count: Number of crops in each group.
      length: Number of tokens N in a crop.
      num_heads: Number of heads H.

    Returns:
      [G, count*length, D] in the dtype of `qkv`; scores and softmax in float32.
    """
    groups = qkv.shape[0]
    packed = qkv.reshape(groups * count, length, 3, num_heads, -1)
    return _attention(packed).reshape(groups, count * length, -1)


@jax.custom_vjp
def _attention(qkv):
    """Compute attention, [I, N, 3, H, C] -> [I, N, H, C]."""
    return _forward(qkv)[0]


def _forward(qkv):
    def head(qkv):
        q, k, v = qkv
        transposed = k.T

        def block(q):
            scores = _matmul(q, transposed)
            peak = scores.max(axis=-1, keepdims=True)
            weights = jnp.exp(scores - peak)
            total = weights.sum(axis=-1, keepdims=True)
            out = _matmul(weights.astype(v.dtype), v) / total
            return out.astype(v.dtype), peak + jnp.log(total)

        blocks = jax.lax.map(block, _blocks(_scaled(q)))
        return jax.tree.map(lambda x: _rows(x, len(q)), blocks)

    def image(qkv):
        return _by_token(jax.lax.map(head, _by_head(_unpacked(qkv))))

    out, lse = checkpoint_name(jax.lax.map(image, qkv), "attention")
    return out, (qkv, out, lse)


def _backward(saved, grad):
    def head(arrays):
        (q, k, v), out, lse, grad = arrays
        delta = jnp.sum(
            out.astype(jnp.float32) * grad.astype(jnp.float32), -1, keepdims=True
        )

        def block(sums, rows):  # rows of padding have gradients of 0
            q, lse, grad, delta = rows
            weights = jnp.exp(_matmul(_scaled(q), k.T) - lse)
            d_scores = weights * (_matmul(grad, v.T) - delta)
            d_scores = _scaled(d_scores, q.shape[-1]).astype(v.dtype)
            weights = weights.astype(v.dtype)
            d_k, d_v = sums
            sums = d_k + _matmul(d_scores.T, q), d_v + _matmul(weights.T, grad)
            return sums, _matmul(d_scores, k)

        sums = jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
        rows = jax.tree.map(_blocks, (q, lse, grad, delta))
        (d_k, d_v), d_q = jax.lax.scan(block, sums, rows)
        return _rows(d_q, len(q)), d_k, d_v

    def image(arrays):
        qkv, *rest = arrays
        grads = _by_token(jax.lax.map(head, _by_head((_unpacked(qkv), *rest))))
        return jnp.stack(grads, axis=1).astype(qkv.dtype)

    return (jax.lax.map(image, (*saved, grad)),)


_attention.defvjp(_forward, _backward)


def _unpacked(qkv):
    """Unpack [N, 3, H, C] to q, k and v, [N, H, C] each."""
    return qkv[:, 0], qkv[:, 1], qkv[:, 2]


def _by_head(tree):
    """Transpose [N, H, C] to [H, N, C]."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)


_by_token = _by_head  # its own inverse


def _blocks(x):
    """Divide [N, C] into blocks of queries, padded with zeros, [N / M, M, C]."""
    length = len(x)
    count = -(-length // min(max(_SCORES // length, 128), 256))
    size = -(-length // count)
    x = jnp.pad(x, ((0, count * size - length), (0, 0)))
    return x.reshape(count, size, -1)


def _rows(blocks, length):
    """Undo `_blocks`."""
    return blocks.reshape(-1, blocks.shape[-1])[:length]


def _scaled(x, channels=None):
    """Divide by the square root of a head's channels, by default those of x."""
    return x * (channels or x.shape[-1]) ** -0.5


def _matmul(x, y):
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)
