"""The shapes of a batch, computed from the configuration without data or loader."""

from typing import Any

import numpy as np

from dinov2_jax.augment import crop_sizes
from dinov2_jax.data import masking


def patch_grid(config: Any, size: crop_sizes.Size) -> tuple[int, int]:
    """Return the rows and columns of patches of a global crop of this size."""
    side = size.global_size // config.model.patch_size
    return side, side


def gram_crops_size(config: Any, size: crop_sizes.Size) -> int:
    """Return the side in pixels of the Gram teacher's crops; 0 if it has none."""
    side = round(size.global_size * config.gram.scale)
    return side if config.gram.loss_weight else 0


def batch_spec(
    config: Any, size: crop_sizes.Size | None = None
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return (shape, dtype) of the arrays that go to the devices, over all processes.

    `data.batch_builder` describes them.

    Args:
      config: The configuration of the run.
      size: The sizes of the crops; None for the largest of the run.
    """
    b = config.train.group_size
    g = config.train.batch_size // b
    size = size or crop_sizes.make_crop_sizes(config).largest
    grid = patch_grid(config, size)
    crops = config.crops
    slots = masking.max_masked(
        num_crops=2 * b,
        num_patches=grid[0] * grid[1],
        probability=config.ibot.mask_sample_probability,
        ratio_min_max=tuple(config.ibot.mask_ratio_min_max),
    )
    large, small = size
    local, chans = crops.local_crops_number, config.model.in_chans
    shapes = {
        "global_crops": ((g, 2 * b, large, large, chans), np.uint8),
        "local_crops": ((g, local * b, small, small, chans), np.uint8),
        "masks": ((g, 2 * b, grid[0] * grid[1]), np.bool_),
        "masked_indices": ((g, slots), np.int32),
        "masked_weights": ((g, slots), np.float32),
    }
    side = gram_crops_size(config, size)
    if side not in (0, large):
        shapes["gram_crops"] = ((g, 2 * b, side, side, chans), np.uint8)
    if config.data.augmentation == "device":
        shapes["augmentation_keys"] = ((g, b, 2), np.uint32)
    return {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}
