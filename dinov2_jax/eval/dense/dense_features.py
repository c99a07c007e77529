"""Dense features: patch maps and class tokens after chosen blocks.

Mirrors the reference's `get_intermediate_layers` behind `CenterPadding`: images are
padded with zeros (the mean colour) to whole patches, centred.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax import model_inputs
from dinov2_jax.models import vision_transformer

# Blocks that depth heads with four taps see, by the number of blocks. That of ViT-L is
# not evenly spaced; the released heads were trained with it.
_FOUR_BLOCKS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}

Taps = list[tuple[jax.Array, jax.Array]]


def last_blocks(depth: int, count: int) -> tuple[int, ...]:
    """Return the indices of the last `count` of `depth` blocks."""
    return tuple(range(depth - count, depth))


def four_blocks(depth: int) -> tuple[int, ...]:
    """Return the blocks whose features the depth heads `linear4` and `dpt` take."""
    spread = tuple((i + 1) * depth // 4 - 1 for i in range(4))
    return _FOUR_BLOCKS.get(depth, spread)


def dense_features(
    module: vision_transformer.VisionTransformer,
    params: Any,
    images: jax.Array,
    *,
    blocks: Sequence[int],
    norm: bool,
) -> Taps:
    """Compute the features of images of any size after some blocks.

    Args:
      module: The backbone.
      params: Parameters of the backbone.
      images: Normalised images, [B, H, W, C].
      blocks: Indices of the blocks, counted from 0.
      norm: Whether the features go through the last LayerNorm.

    Returns:
      Patch features [B, h, w, D] and class tokens [B, D], float32, for each block.
    """
    padded = model_inputs.fit_to_patches(images, module.config.patch_size, "pad")
    grid = [side // module.config.patch_size for side in padded.shape[1:3]]
    found = module.apply({"params": params}, padded, layers=tuple(blocks)).layers
    taps = []
    for block in blocks:
        features = found[block]
        patches, cls = features.patches, features.cls
        if not norm:
            tokens = features.prenorm
            patches = tokens[:, 1 + module.config.num_register_tokens :]
            patches = patches.reshape(len(tokens), *grid, -1)
            cls = tokens[:, 0]
        taps.append((patches.astype(jnp.float32), cls.astype(jnp.float32)))
    return taps
