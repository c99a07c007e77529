"""Attention within each crop of a flat stream of tokens.

Mirrors the block-diagonal attention of the reference's `layers/attention.py`
(`MemEffAttention` over a list of crops), with static lengths in place of a mask. This
file has the plain form, "xla", and chooses among the faster ones, which give the same
result and have a file each.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dinov2_jax import sharding
from dinov2_jax.kernels import linear

# Name -> the module of `kernels` whose `attention` takes one crop group; imported on
# first use, because importing Pallas is slow.
_MODULES = {
    "by_block": "attention_by_block",
    "by_image": "attention_by_image",
    "cudnn": "attention_cudnn",
    "pallas_tpu": "attention_tpu",
    "pallas_gpu": "attention_gpu",
}
_LONG = 600  # tokens from which blocks of queries are faster on the CPU
_ADD_BIAS = ("pallas_tpu",)
IMPLEMENTATIONS = ("auto", "xla", *_MODULES)


def attention(
    qkv: jax.Array,
    bias: jax.Array | None = None,
    *,
    sequences: Sequence[tuple[int, int]],
    num_heads: int,
    implementation: str = "auto",
) -> jax.Array:
    """Compute softmax attention within each sequence of a flat token stream.

    Args:
      qkv: Packed projections, [G, T, 3*D]; the last axis is [q | k | v], each H heads
        of D / H channels.
      bias: Bias of every token's projection, [3*D], or None. Kernels that can add it
        after reading `qkv` do so.
      sequences: (count, length) of each crop group in stream order; the sum of
        count * length is T.
      num_heads: Number of heads H.
      implementation: One of `IMPLEMENTATIONS`; "auto" is the fastest measured for the
        devices of the mesh in context (without one, of the default backend).

    Returns:
      [G, T, D] in the dtype of `qkv`; scores and softmax in float32.

    Raises:
      ValueError: The sequences do not fill the stream, or the implementation does not
        support these shapes.
    """
    outputs = []
    for part, (count, length) in zip(_split(qkv, sequences), sequences):
        function = _implementation(implementation, part, length, num_heads)
        shape = dict(count=count, length=length, num_heads=num_heads)
        outputs.append(function(part, bias, **shape))
    return jnp.concatenate(outputs, axis=1) if len(outputs) > 1 else outputs[0]


def attention_maps(
    qkv: jax.Array,
    *,
    sequences: Sequence[tuple[int, int]],
    num_heads: int,
    queries: Sequence[int] | None = None,
) -> list[jax.Array]:
    """Compute the softmax weights, which `attention` does not have to form.

    Args:
      qkv: Packed projections, as in `attention`.
      sequences: (count, length) of each crop group, as in `attention`.
      num_heads: Number of heads H.
      queries: Tokens of each sequence whose rows to compute; None computes all.

    Returns:
      float32 [G, count, H, queries, length] for each crop group.
    """
    return [
        _softmax_weights(_unpack(part, count, length, num_heads), queries)
        for part, (count, length) in zip(_split(qkv, sequences), sequences)
    ]


def xla(qkv: jax.Array, *, count: int, length: int, num_heads: int) -> jax.Array:
    """Compute the plain form, [G, count*length, 3*D] -> [G, count*length, D]."""
    packed = _unpack(qkv, count, length, num_heads)
    weights = _softmax_weights(packed).astype(qkv.dtype)
    out = jnp.einsum("gbhqk,gbkhc->gbqhc", weights, packed[..., 2, :, :])
    return out.reshape(qkv.shape[0], count * length, -1)


def first_query(qkv: jax.Array, *, num_heads: int) -> jax.Array:
    """Compute attention from the first token of each sequence only.

    Args:
      qkv: Packed projections, [B, N, 3*D].
      num_heads: Number of heads H.

    Returns:
      [B, 1, D] in the dtype of `qkv`.
    """
    packed = qkv.reshape(*qkv.shape[:2], 3, num_heads, -1)  # [B, N, 3, H, C]
    q, k, v = packed[:, 0, 0], packed[:, :, 1], packed[:, :, 2]
    scores = jnp.einsum(
        "bhc,bkhc->bhk",
        q * q.shape[-1] ** -0.5,
        k,
        preferred_element_type=jnp.float32,
    )
    weights = jax.nn.softmax(scores, axis=-1).astype(qkv.dtype)
    return jnp.einsum("bhk,bkhc->bhc", weights, v).reshape(len(qkv), 1, -1)


def _implementation(name: str, qkv: jax.Array, length: int, num_heads: int):
    """Return the function of an implementation for one crop group."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention = {name!r} is unknown: use one of {IMPLEMENTATIONS}"
        )
    if name == "auto":
        name = _fastest(qkv, length, num_heads)

    def biased(qkv, bias, **shape):
        qkv = linear.add_bias(checkpoint_name(qkv, "qkv"), bias)
        return xla(qkv, **shape) if name == "xla" else on_each_device(qkv, **shape)

    def on_each_device(*arrays, **shape):
        return sharding.on_groups(
            lambda *arrays, axes: _module(name).attention(*arrays, **shape),
            in_specs=(sharding.BATCH, None)[: len(arrays)],
            out_specs=sharding.BATCH,
            num_groups=len(arrays[0]),
        )(*arrays)

    return on_each_device if name in _ADD_BIAS else biased


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"dinov2_jax.kernels.{_MODULES[name]}")


def _fastest(qkv: jax.Array, length: int, num_heads: int) -> str:
    """Choose the implementation for "auto"."""
    kind = sharding.device_kind().lower()
    if "cpu" in kind and length >= _LONG:
        return "by_block"
    if not sharding.devices_divide(len(qkv)):
        return "xla"
    if "cpu" in kind:
        return "by_image"
    is_tpu = "tpu" in kind
    if is_tpu and kind.startswith(sharding.OLD_TPUS):
        return "xla"
    if not is_tpu and not _module("cudnn").is_for(jax.devices()[0]):
        return "xla"
    return on_accelerator(
        "tpu" if is_tpu else "cuda",
        dtype=qkv.dtype,
        length=length,
        num_heads=num_heads,
        head_dim=qkv.shape[-1] // (3 * num_heads),
    )


def problem(name: str, device: jax.Device, **shape: Any) -> str:
    """Return why an implementation does not work for a crop group; "" if it does.

    Args:
      name: One of `IMPLEMENTATIONS`.
      device: A device that is to compute it.
      **shape: dtype, length, num_heads and head_dim, as `on_accelerator` takes them.
    """
    kernels = _kernels(device)
    if name in kernels and not _module(name).supports(**shape):
        length, heads = shape["length"], shape["num_heads"]
        return (
            f"it does not take crops of {length} tokens in "
            f"{jnp.dtype(shape['dtype']).name} with {heads} heads of "
            f"{shape['head_dim']} channels"
        )
    if name in ("cudnn", "pallas_tpu", "pallas_gpu") and name not in kernels:
        return f"it does not run on {device.device_kind}"
    return ""


def _kernels(device: jax.Device) -> tuple[str, ...]:
    """Return the implementations that are for a device alone."""
    if device.platform == "cpu":
        return ()
    if device.platform == "tpu":
        old = device.device_kind.lower().startswith(sharding.OLD_TPUS)
        return () if old else ("pallas_tpu",)
    return ("cudnn", "pallas_gpu") if _module("cudnn").is_for(device) else ()


def on_accelerator(
    platform: str, *, dtype: Any, length: int, num_heads: int, head_dim: int
) -> str:
    """Return what "auto" chooses on TPUs or GPUs for one crop group.

    Args:
      platform: "tpu" or "cuda".
      dtype: Dtype of the projections.
      length: Number of tokens in a crop.
      num_heads: Number of heads H.
      head_dim: Channels of a head.
    """
    name = "pallas_tpu" if platform == "tpu" else "cudnn"
    supported = _module(name).supports(
        dtype=dtype, length=length, num_heads=num_heads, head_dim=head_dim
    )
    return name if supported else "xla"


def _split(qkv: jax.Array, sequences) -> list[jax.Array]:
    """Split [G, T, 3*D] into one [G, count*length, 3*D] a crop group."""
    tokens = qkv.shape[1]
    if tokens != sum(count * length for count, length in sequences):
        raise ValueError(f"sequences {sequences} do not fill {tokens} tokens")
    if len(sequences) == 1:
        return [qkv]
    parts, start = [], 0
    for count, length in sequences:
        parts.append(qkv[:, start : start + count * length])
        start += count * length
    return parts


def _unpack(qkv: jax.Array, count: int, length: int, num_heads: int) -> jax.Array:
    """Reshape [G, B*N, 3*D] to [G, B, N, 3, H, C]."""
    return qkv.reshape(qkv.shape[0], count, length, 3, num_heads, -1)


def _softmax_weights(qkv: jax.Array, queries: Sequence[int] | None = None) -> jax.Array:
    """Compute softmax weights, [G, B, N, 3, H, C] -> float32 [G, B, H, N, N].

    Args:
      qkv: Packed projections.
      queries: Tokens whose rows to compute, [G, B, H, queries, N]; None computes all.
    """
    q, k = qkv[..., 0, :, :], qkv[..., 1, :, :]
    if queries is not None:
        q = q[:, :, jnp.array(queries, int)]
    scores = jnp.einsum(
        "gbqhc,gbkhc->gbhqk",
        q * q.shape[-1] ** -0.5,
        k,
        preferred_element_type=jnp.float32,
    )
    return jax.nn.softmax(scores, axis=-1)
