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
    outputs = []
    for part in _split(qkv, sequences, num_heads):
        groups, count, length, _, _, head_dim = part.shape
        weights = _softmax_weights(part).astype(part.dtype)
        out = jnp.einsum("gbhqk,gbkhc->gbqhc", weights, part[..., 2, :, :])
        outputs.append(out.reshape(groups, count * length, num_heads * head_dim))
    return jnp.concatenate(outputs, axis=1)


def attention_maps(
    qkv: jax.Array, *, sequences: Sequence[tuple[int, int]], num_heads: int
) -> list[jax.Array]:
    """The softmax weights themselves, which `attention` need not form.

    Args:
      qkv: As in `attention`.
      sequences: As in `attention`.
      num_heads: H.

    Returns:
      One float32 [G, count, H, length, length] a crop group; rows are queries.
    """
    return [_softmax_weights(x) for x in _split(qkv, sequences, num_heads)]


def _split(qkv, sequences, num_heads) -> list[jax.Array]:
    """[G, T, 3*D] -> one [G, count, length, 3, H, C] a crop group."""
    groups, tokens, _ = qkv.shape
    if tokens != sum(count * length for count, length in sequences):
        raise ValueError(f"sequences {sequences} do not fill {tokens} tokens")
    parts, start = [], 0
    for count, length in sequences:
        stop = start + count * length
        parts.append(
            qkv[:, start:stop].reshape(groups, count, length, 3, num_heads, -1)
        )
        start = stop
    return parts


def _softmax_weights(qkv: jax.Array) -> jax.Array:
    """[G, B, N, 3, H, C] -> float32 [G, B, H, N, N]."""
    q, k = qkv[..., 0, :, :], qkv[..., 1, :, :]
    scores = jnp.einsum(
        "gbqhc,gbkhc->gbhqk",
        q * q.shape[-1] ** -0.5,
        k,
        preferred_element_type=jnp.float32,
    )
    return jax.nn.softmax(scores, axis=-1)
