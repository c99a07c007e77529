"""Attention over a flat stream of tokens: the one place that knows where a crop ends.

Mirrors the block-diagonal attention of the reference's `layers/attention.py`
(`MemEffAttention` over a list of crops), with static lengths in place of a mask.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def attention(
    qkv: jax.Array, *, sequences: Sequence[tuple[int, int]], num_heads: int
) -> jax.Array:
    """Softmax attention inside each sequence of a flat token stream.

    Args:
      qkv: [G, T, 3*D] packed projections; the last axis is [q | k | v], each H heads
        of D / H channels.
      sequences: (count, length) of each crop group in stream order; the sum of
        count * length is T.
      num_heads: H.

    Returns:
      [G, T, D] in the dtype of `qkv`; scores and softmax in float32.
    """
    groups, tokens, width = qkv.shape
    if tokens != sum(count * length for count, length in sequences):
        raise ValueError(f"sequences {sequences} do not fill {tokens} tokens")
    outputs, start = [], 0
    for count, length in sequences:
        stop = start + count * length
        out = _dense(
            qkv[:, start:stop].reshape(groups, count, length, 3, num_heads, -1)
        )
        outputs.append(out.reshape(groups, count * length, width // 3))
        start = stop
    return jnp.concatenate(outputs, axis=1)


def _dense(qkv: jax.Array) -> jax.Array:
    """Plain XLA attention of [G, B, N, 3, H, C] -> [G, B, N, H, C]."""
    q, k, v = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
    scores = jnp.einsum(
        "gbqhc,gbkhc->gbhqk",
        q * q.shape[-1] ** -0.5,
        k,
        preferred_element_type=jnp.float32,
    )
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("gbhqk,gbkhc->gbqhc", weights, v)
