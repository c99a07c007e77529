"""Weights of the blocks with norms and LayerScale folded in, cast for the matmuls.

The weights are scaled and shifted in place of every token. With r = 1 / deviation,

  (r (x - mean) scale + shift) @ W + b = r x @ C(scale W) + (shift @ W + b),
  gamma * (x @ W + b) = x @ (W gamma) + b gamma,

where C subtracts its mean from each column, so that x need not be centred. What is left
of a norm is `kernels.layer_norm.project`; the gradients of scale and shift are sums
over weights instead of tokens.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax import sharding
from dinov2_jax.models import layers

# Each norm and the layer after it; each LayerScale and the layer before it.
_NORMED = (("norm1", "attn", "qkv"), ("norm2", "mlp", "fc1"), ("norm2", "mlp", "w12"))
_SCALED = (("ls1", "attn", "proj"), ("ls2", "mlp", "fc2"), ("ls2", "mlp", "w3"))


def fold(params: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Convert the weights of blocks to equivalent ones for `folded=True`.

    Args:
      params: Parameters of a `layers.Block`, with or without LayerScale, float32;
        several blocks may be stacked on leading axes.
      dtype: Dtype of the matmuls.

    Returns:
      Parameters without norms and LayerScale, with the sharding of `params`.
    """
    block = {part: dict(params[part]) for part in ("attn", "mlp")}
    for norm, part, layer in _NORMED:
        if layer in block[part]:
            block[part][layer] = _with_norm(params[norm], block[part][layer])
    for scale, part, layer in _SCALED:
        if scale in params and layer in block[part]:
            gamma = params[scale]["gamma"]
            factors = {"kernel": gamma[..., None, :], "bias": gamma}
            block[part][layer] = {
                name: weight * factors[name]
                for name, weight in block[part][layer].items()
            }
    return jax.tree.map(lambda weight: weight.astype(dtype), block)


def _with_norm(norm, layer):
    """Fold a norm's scale and shift into the kernel and bias of the next layer."""
    kernel = layer["kernel"]
    # Not a matmul, for which the compiler may gather float32 weights.
    bias = jnp.sum(norm["bias"][..., None] * kernel, axis=-2)
    if "bias" in layer:
        bias += layer["bias"]
    kernel = kernel * norm["scale"][..., None]
    return {"kernel": kernel - jnp.mean(kernel, -2, keepdims=True), "bias": bias}


def gather(block: Mapping[str, Any]) -> dict[str, Any]:
    """Gather one folded block's weights; split SwiGLU's packed layer in two.

    Done once for all crop groups, so that their gradients are summed before they are
    scattered to the devices that hold the weights.
    """
    block = sharding.gather(block)
    if "w12" in block["mlp"]:
        # Split here, so that each half's gradients are summed before they are joined.
        w12 = {name: layers.halves(w) for name, w in block["mlp"]["w12"].items()}
        block["mlp"] = block["mlp"] | {"w12": w12}
    return block
