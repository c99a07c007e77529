"""The blocks' weights as their matmuls take them: norms and LayerScale folded in, cast.

Instead of every token the weights are scaled and shifted. With r = 1 / deviation,

  (r (x - mean) scale + shift) @ W + b = r x @ C(scale W) + (shift @ W + b),
  gamma * (x @ W + b) = x @ (W gamma) + b gamma,

where C takes from each column its mean, so that none need be taken from x. What is left
of a norm is `kernels.layer_norm.project`; the gradients of scale and shift are sums
over weights instead of tokens.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax import sharding
from dinov2_jax.models import layers

# Each norm and the layer behind it; each LayerScale and the layer before it.
_NORMED = (("norm1", "attn", "qkv"), ("norm2", "mlp", "fc1"), ("norm2", "mlp", "w12"))
_SCALED = (("ls1", "attn", "proj"), ("ls2", "mlp", "fc2"), ("ls2", "mlp", "w3"))


def fold(params: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The weights of blocks with `folded=True` that equal these.

    Args:
      params: Of a `layers.Block`, with or without LayerScale, float32; each leaf may
        have leading axes, of several blocks.
      dtype: Of the matmuls.

    Returns:
      Parameters without norms and LayerScale, sharded as they were.
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
    """Kernel and bias of the layer, given tokens that are only normalised."""
    kernel = layer["kernel"]
    # Not as a matmul, for which the compiler may gather float32 weights.
    bias = jnp.sum(norm["bias"][..., None] * kernel, axis=-2)
    if "bias" in layer:
        bias += layer["bias"]
    kernel = kernel * norm["scale"][..., None]
    return {"kernel": kernel - jnp.mean(kernel, -2, keepdims=True), "bias": bias}


def gather(block: Mapping[str, Any]) -> dict[str, Any]:
    """One folded block's weights whole on every device, SwiGLU's packed layer as two.

    Done once for all crop groups, so that their gradients are summed before they go
    back to the devices that hold the weights.
    """
    block = sharding.gather(block)
    if "w12" in block["mlp"]:
        # Here, so that the gradients of each half are summed before they are joined.
        w12 = {name: layers.halves(w) for name, w in block["mlp"]["w12"].items()}
        block["mlp"] = block["mlp"] | {"w12": w12}
    return block
