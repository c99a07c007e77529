"""LayerScale folded into the linear layer before it."""

from collections.abc import Mapping
from typing import Any

# Each LayerScale and the layer before it: of attention, of either kind of FFN.
_SCALED = (("ls1", "attn", "proj"), ("ls2", "mlp", "fc2"), ("ls2", "mlp", "w3"))


def fold(params: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a block without LayerScale that equals this one.

    gamma * (x @ W + b) = x @ (W * gamma) + b * gamma: two passes over all tokens less.

    Args:
      params: Of one `layers.Block`, with or without LayerScale.

    Returns:
      Parameters for the block with `layerscale=0`.
    """
    folded = {name: dict(part) for name, part in params.items()}
    for scale, part, layer in _SCALED:
        if scale in params and layer in params[part]:
            gamma = params[scale]["gamma"]
            folded[part][layer] = {
                name: weight * gamma for name, weight in params[part][layer].items()
            }
    for scale, _, _ in _SCALED:
        folded.pop(scale, None)
    return folded
