"""Attention on the CPU, a few images at a time so that their scores stay in cache.

Equals the plain form in `kernels.attention` up to rounding. The backward pass keeps no
scores: it recomputes them from the saved log-sum-exp, as in FlashAttention (Dao et al.,
2022).
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

_SCORES = 2**17  # of one head at a time: one image of 257 tokens, or 52 of 50


@functools.partial(jax.jit, static_argnames=("count", "length", "num_heads"))
def attention(qkv: jax.Array, *, count: int, length: int, num_heads: int) -> jax.Array:
    """Compute softmax attention within each crop of one crop group.

    Args:
      qkv: Packed projections, [G, count*length, 3*D], the last axis [q | k | v].
      count: Number of crops B in each group.
      length: Number of tokens N in a crop.
      num_heads: Number of heads H.

    Returns:
      [G, count*length, D] in the dtype of `qkv`; scores and softmax in float32.
    """
    groups = qkv.shape[0]
    images = groups * count
    few = max(n for n in range(1, images + 1) if _fits(n, images, length))
    packed = qkv.reshape(images // few, few, length, 3, num_heads, -1)
    out = _attention(packed)
    return out.reshape(groups, count * length, -1)


def _fits(few: int, images: int, length: int) -> bool:
    return few == 1 or (images % few == 0 and few * length**2 <= _SCORES)


@jax.custom_vjp
def _attention(qkv):
    """Compute attention, [I, few, N, 3, H, C] -> [I, few, N, H, C]."""
    return _forward(qkv)[0]


def _forward(qkv):
    def one(part):
        q, k, v = _heads(part)
        scores = _scores(q, k)
        peak = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - peak)
        total = weights.sum(axis=-1, keepdims=True)
        out = _matmul(weights.astype(v.dtype), v) / total
        return _tokens(out).astype(v.dtype), (peak + jnp.log(total))[..., 0]

    out, lse = checkpoint_name(jax.lax.map(one, qkv), "attention")
    return out, (qkv, out, lse)


def _backward(saved, grad):
    def one(part):
        qkv, out, lse, grad = part
        q, k, v = _heads(qkv)
        out, grad = (jnp.moveaxis(x, 1, 2) for x in (out, grad))  # [few, H, N, C]
        weights = jnp.exp(_scores(q, k) - lse[..., None])
        delta = jnp.sum(
            out.astype(jnp.float32) * grad.astype(jnp.float32), -1, keepdims=True
        )
        d_scores = weights * (_matmul(grad, v.swapaxes(-1, -2)) - delta)
        d_scores = (d_scores * q.shape[-1] ** -0.5).astype(v.dtype)
        weights = weights.astype(v.dtype)
        grads = (
            _matmul(d_scores, k),
            _matmul(d_scores.swapaxes(-1, -2), q),
            _matmul(weights.swapaxes(-1, -2), grad),
        )
        return jnp.stack([_tokens(g) for g in grads], axis=2).astype(v.dtype)

    return (jax.lax.map(one, (*saved, grad)),)


_attention.defvjp(_forward, _backward)


def _heads(qkv):
    """Unpack [few, N, 3, H, C] to q, k and v, [few, H, N, C] each."""
    return jnp.moveaxis(qkv, (2, 3), (0, 2))


def _tokens(x):
    """Transpose [few, H, N, C] to [few, N, H, C]."""
    return jnp.moveaxis(x, 1, 2)


def _scores(q, k):
    return _matmul(q * q.shape[-1] ** -0.5, k.swapaxes(-1, -2))


def _matmul(x, y):
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)
