"""Attention by cuDNN, through `jax.nn.dot_product_attention`, on NVIDIA GPUs."""

from typing import Any

import jax
import jax.numpy as jnp


def supports(*, dtype: Any, length: int, num_heads: int, head_dim: int) -> bool:
    """Whether cuDNN's fused attention takes such a crop group."""
    del length, num_heads
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return half and head_dim % 8 == 0 and head_dim <= 128


def attention(qkv: jax.Array, *, count: int, length: int, num_heads: int) -> jax.Array:
    """Softmax attention inside each crop of one crop group.

    Args:
      qkv: bfloat16 or float16 [G, count*length, 3*D], the last axis [q | k | v].
      count: Crops of each group.
      length: Tokens of a crop.
      num_heads: H.

    Returns:
      [G, count*length, D] in the dtype of `qkv`; accumulated in float32.
    """
    groups = qkv.shape[0]
    packed = qkv.reshape(groups * count, length, 3, num_heads, -1)
    q, k, v = (packed[:, :, i] for i in range(3))
    out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return out.reshape(groups, count * length, -1)
