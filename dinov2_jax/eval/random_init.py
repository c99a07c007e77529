"""An untrained ViT as a fair baseline, with features that depend on the image.

With the reference's initialisation LayerScale is 1e-5 and the class token of a random
ViT is constant. Here LayerScale is 1 and the linear layers have variance 1 / fan_in,
which separated photographs better than the reference's standard deviation of 0.02.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.models import vision_transformer


def fair_random_params(
    backbone: vision_transformer.VisionTransformer, key: jax.Array
) -> Any:
    """Draw random parameters for `backbone`.

    Args:
      backbone: Any ViT.
      key: PRNG key.

    Returns:
      A tree like the backbone's parameters.
    """
    size = backbone.config.image_size
    image = jnp.zeros((1, size, size, backbone.config.in_chans))
    params = backbone.init(key, image)["params"]

    def revive(path, leaf):
        names = [k.key for k in path]
        if names[0] == "blocks" and names[-1] == "gamma":
            return jnp.ones_like(leaf)
        if names[0] == "blocks" and names[-1] == "kernel":
            return leaf * (leaf.shape[-2] ** -0.5 / jnp.std(leaf))
        return leaf

    return jax.tree_util.tree_map_with_path(revive, params)
