"""ViT-S/14 from scratch on one machine of 8 accelerators.

Not a recipe of the reference, whose S and B were distilled from ViT-g. This is the
short run (`vitl16_short.py`) with patch 14, half the batch and less stochastic depth.
"""

from dinov2_jax.configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.model.update(arch="vit_small", patch_size=14, drop_path_rate=0.1)
    c.crops.local_crops_size = 98
    c.train.update(batch_size=1024, group_size=128)
    return c
