"""A config and batches so small that a step compiles in seconds."""

import numpy as np

from configs import default
from dinov2_jax.data import masking


def config(**sections):
    """The default config at tiny sizes; `sections` override fields, by section."""
    c = default.get_config()
    c.crops.update(global_crops_size=16, local_crops_size=8, local_crops_number=2)
    c.model.update(
        arch="custom",
        embed_dim=32,
        depth=2,
        num_heads=2,
        patch_size=4,
        layerscale=1.0,
        drop_path_rate=0.0,
        dtype="float32",
    )
    for head in (c.dino, c.ibot):
        head.update(head_n_prototypes=64, head_bottleneck_dim=16, head_hidden_dim=32)
    c.train.update(batch_size=8, group_size=4, steps=100, centering="sinkhorn_knopp")
    c.optim.update(base_lr=0.004, warmup_steps=5, freeze_last_layer_steps=0)
    c.teacher.warmup_teacher_temp_steps = 10
    c.data.augmentation = "host"
    for section, fields in sections.items():
        c[section].update(fields)
    return c


def batch(c, seed=0):
    """A batch in the format of `data/batch_builder.py`, crops normalised."""
    rng = np.random.default_rng(seed)
    size, local = c.crops.global_crops_size, c.crops.local_crops_size
    per_group = c.train.group_size
    groups = c.train.batch_size // per_group
    num_local = c.crops.local_crops_number * per_group
    crops, patches = 2 * per_group, (size // c.model.patch_size) ** 2
    # Every second crop is masked, in 2 to 8 patches.
    masks = np.zeros((groups, crops, patches), bool)
    if c.ibot.mask_sample_probability:
        for g in range(groups):
            for crop in range(g % 2, crops, 2):
                count = rng.integers(2, 9)
                masks[g, crop, rng.permutation(patches)[:count]] = True
    bound = 8 * per_group if c.ibot.mask_sample_probability else 0
    indexed = [masking.mask_indices(m, bound) for m in masks]
    return {
        "global_crops": rng.standard_normal((groups, crops, size, size, 3), np.float32),
        "local_crops": rng.standard_normal(
            (groups, num_local, local, local, 3), np.float32
        ),
        "masks": masks,
        "masked_indices": np.stack([indices for indices, _ in indexed]),
        "masked_weights": np.stack([weights for _, weights in indexed]),
    }
