"""Attention by cuDNN, through `jax.nn.dot_product_attention`, on NVIDIA GPUs."""

from typing import Any

import jax
import jax.numpy as jnp


def supports(*, dtype: Any, length: int, num_heads: int, head_dim: int) -> bool:
    """Whether cuDNN's fused attention supports such a crop group."""
    del length, num_heads
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return half and head_dim % 8 == 0 and head_dim <= 128


def is_for(device: jax.Device) -> bool:
    """Whether cuDNN has fused attention for a device: NVIDIA's from Ampere on.

    True for what is no GPU, as in ahead-of-time compilation.
    """
    if device.platform != "gpu":
        return True
    major, _, _ = str(getattr(device, "compute_capability", "")).partition(".")
    return major.isdigit() and int(major) >= 8


def attention(qkv: jax.Array, *, count: int, length: int, num_heads: int) -> jax.Array:
    """Compute softmax attention within each crop of one crop group.

    Args:
      qkv: Packed projections, bfloat16 or float16 [G, count*length, 3*D], the last axis
        [q | k | v].
      count: Number of crops in each group.
      length: Number of tokens in a crop.
      num_heads: Number of heads H.

    Returns:
      [G, count*length, D] in the dtype of `qkv`; accumulated in float32.
    """
    groups = qkv.shape[0]
    packed = qkv.reshape(groups * count, length, 3, num_heads, -1)
    lengths = None
    if length % 2:  # jax 0.10 and 0.11 refuse its gradient: add a masked token
        packed = jnp.pad(packed, [(0, 0), (0, 1)] + [(0, 0)] * 3)
        lengths = jnp.full(len(packed), length, jnp.int32)
    q, k, v = (packed[:, :, i] for i in range(3))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :length].reshape(groups, count * length, -1)
