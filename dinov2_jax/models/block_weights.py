"""A block's weights as its matmuls take them: scaled, cast, whole on every device."""

from collections.abc import Mapping
from typing import Any

import jax

from dinov2_jax import sharding
from dinov2_jax.models import layers

# Each LayerScale and the layer before it: of attention, of either kind of FFN.
_SCALED = (("ls1", "attn", "proj"), ("ls2", "mlp", "fc2"), ("ls2", "mlp", "w3"))


def prepare(params: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The weights of a block without LayerScale that equals this one.

    gamma * (x @ W + b) = x @ (W * gamma) + b * gamma: two passes over all tokens less.
    Done once for all crop groups, so that their gradients are summed before they go
    back to the devices that hold the weights.

    Args:
      params: Of one `layers.Block`, with or without LayerScale, float32.
      dtype: Of the matmuls.

    Returns:
      Parameters for the block with `layerscale=0`; norms stay float32, and SwiGLU's
      packed layer is two.
    """
    block = {name: dict(part) for name, part in params.items()}
    for scale, part, layer in _SCALED:
        if scale in params and layer in params[part]:
            gamma = params[scale]["gamma"]
            block[part][layer] = {
                name: weight * gamma for name, weight in params[part][layer].items()
            }
    for scale, _, _ in _SCALED:
        block.pop(scale, None)
    for part in ("attn", "mlp"):
        cast = jax.tree.map(lambda weight: weight.astype(dtype), block[part])
        block[part] = sharding.gather(cast)
    if "w12" in block["mlp"]:
        # Here, so that the gradients of each half are summed before they are joined.
        w12 = block["mlp"]["w12"]
        block["mlp"]["w12"] = {name: layers.halves(w12[name]) for name in w12}
    return block
