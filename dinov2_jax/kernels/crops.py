"""Extraction of kept crops from a token stream, and addition of a branch's output.

Each is the backward pass of the other, so two functions suffice, each with a plain form
and one for TPUs.

Shapes: G groups, B crops of N tokens, of which k are kept, D width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax import sharding
from dinov2_jax.kernels import layer_norm, linear

# By default, gathers also select between the values and a fill value.
_IN_BOUNDS = "promise_in_bounds"

Statistics = tuple[jax.Array, jax.Array] | None


@jax.custom_vjp
def leave(x: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array, Statistics]:
    """Return the stream unchanged, and the tokens of the kept crops.

    Args:
      x: The stream, [G, B, N, D].
      kept: Indices of the kept crops, int32 [G, k], without duplicates.

    Returns:
      x, the tokens [G, k * N, D], and, if the kernel computes them, the tokens'
      `statistics` for `kernels.layer_norm.project`, whose gradients are dropped.
    """
    module = _kernels(x)
    if module is None:
        return x, _taken(x, kept), None
    # Computed in one pass, which is not accurate enough for float32.
    epsilon = layer_norm.EPSILON if x.dtype == jnp.bfloat16 else None
    take = functools.partial(module.take, epsilon=epsilon)
    tokens, *statistics = _on_each_device(take, x, kept)
    return x, tokens, tuple(statistics) or None


def _leave_backward(kept, grads):
    grad, d_tokens, _ = grads
    return _added(grad, kept, d_tokens, 1.0), None


leave.defvjp(lambda x, kept: (leave(x, kept), kept), _leave_backward)


@jax.custom_vjp
def rejoin(
    x: jax.Array, kept: jax.Array, residual: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """Compute x + (residual + bias) * B / k on the kept crops.

    Args:
      x: The stream, [G, B, N, D].
      kept: Indices of the kept crops, int32 [G, k], without duplicates.
      residual: The branch's output, [G, k * N, D], in the dtype of `x`.
      bias: Bias of the residual, [D], or None; its gradient is summed in the same pass
        as the residual's.

    Returns:
      The new stream, [G, B, N, D].
    """
    residual = linear.add_bias(residual, bias)
    return _added(x, kept, residual, x.shape[1] / kept.shape[1])


def _rejoin_backward(saved, grad):
    kept, bias = saved
    scale = grad.shape[1] / kept.shape[1]
    module = _kernels(grad)
    if module is None:
        d_residual = _taken(grad, kept) * scale
        sums = [] if bias is None else [linear.sum_rows(d_residual)[None]]
    else:
        take = functools.partial(module.take, scale=scale, sums=bias is not None)
        d_residual, *sums = _on_each_device(take, grad, kept)
    d_bias = None if bias is None else jnp.sum(sums[0], axis=0).astype(bias.dtype)
    return grad, None, d_residual, d_bias


rejoin.defvjp(
    lambda x, kept, residual, bias: (rejoin(x, kept, residual, bias), (kept, bias)),
    _rejoin_backward,
)


def _taken(x, kept):
    taken = jnp.take_along_axis(x, kept[:, :, None, None], axis=1, mode=_IN_BOUNDS)
    return taken.reshape(len(x), -1, x.shape[-1])


def _added(x, kept, rows, scale):
    module = _kernels(x)
    if module is not None:
        return _on_each_device(
            functools.partial(module.add, scale=scale), x, kept, rows
        )
    rows = (rows * scale).astype(x.dtype).reshape(*kept.shape, *x.shape[2:])
    add = jax.vmap(lambda x, i, r: x.at[i].add(r, unique_indices=True, mode=_IN_BOUNDS))
    return add(x, kept, rows)


def _kernels(x: jax.Array) -> Any:
    """Return the module with `take` and `add` for these devices, or None."""
    kind = sharding.device_kind().lower()
    if "tpu" not in kind or kind.startswith(sharding.OLD_TPUS):
        return None
    from dinov2_jax.kernels import crops_tpu  # importing Pallas is slow

    supported = crops_tpu.supports(dtype=x.dtype, length=x.shape[2], width=x.shape[3])
    return crops_tpu if supported and sharding.devices_divide(len(x)) else None


def _on_each_device(function, *arrays):
    return sharding.on_groups(
        lambda *arrays, axes: function(*arrays),
        in_specs=(sharding.BATCH,) * len(arrays),
        out_specs=sharding.BATCH,
        num_groups=len(arrays[0]),
    )(*arrays)
