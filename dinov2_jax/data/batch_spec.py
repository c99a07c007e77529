"""The shapes of a batch, computed from the configuration without data or loader."""

from typing import Any

import numpy as np

from dinov2_jax.data import masking


def patch_grid(config: Any) -> tuple[int, int]:
    """Return the rows and columns of patches of a global crop."""
    side = config.crops.global_crops_size // config.model.patch_size
    return side, side


def gram_crops_size(config: Any) -> int:
    """Return the side in pixels of the Gram teacher's crops; 0 if it has none."""
    size = config.crops.global_crops_size * config.gram.scale
    return round(size) if config.gram.loss_weight else 0


def batch_spec(config: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return (shape, dtype) of the arrays that go to the devices, over all processes.

    `data.batch_builder` describes them.
    """
    b = config.train.group_size
    g = config.train.batch_size // b
    grid = patch_grid(config)
    crops = config.crops
    size = masking.max_masked(
        num_crops=2 * b,
        num_patches=grid[0] * grid[1],
        probability=config.ibot.mask_sample_probability,
        ratio_min_max=tuple(config.ibot.mask_ratio_min_max),
    )
    large, small = crops.global_crops_size, crops.local_crops_size
    local, chans = crops.local_crops_number, config.model.in_chans
    shapes = {
        "global_crops": ((g, 2 * b, large, large, chans), np.uint8),
        "local_crops": ((g, local * b, small, small, chans), np.uint8),
        "masks": ((g, 2 * b, grid[0] * grid[1]), np.bool_),
        "masked_indices": ((g, size), np.int32),
        "masked_weights": ((g, size), np.float32),
    }
    if gram_crops_size(config) not in (0, large):
        side = gram_crops_size(config)
        shapes["gram_crops"] = ((g, 2 * b, side, side, chans), np.uint8)
    if config.data.augmentation == "device":
        shapes["augmentation_keys"] = ((g, b, 2), np.uint32)
    return {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}
