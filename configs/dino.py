"""DINO (arXiv 2104.14294), the vanilla ViT-S/16 run of its reference: 8 GPUs of 64.

Its README reports k-NN 69.3 and linear 73.8 on ImageNet-1k after these 100 epochs. This
file was never run at that size. What the fields cannot express:

- The learning rate grows linearly with the batch there, as the square root here. Both
  are 0.001 at the batch of 512.
- Gradients are clipped by parameter there, by submodule here.
- The lengths of the prototypes are fixed at 1 there, learned here.
- A block that stochastic depth drops is computed and zeroed there, with the rate of the
  block; here it is left out for the nearest smaller share of a group's crops.
- Matmuls are in float16 with a loss scale there, in bfloat16 here.
"""

import math

from dinov2_jax.configs import default

_EPOCH = 2502  # steps: 1,281,167 images of ImageNet-1k in batches of 512


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.model.update(arch="vit_small", patch_size=16, layerscale=0.0)
    c.model.update(drop_path_rate=0.1, drop_path_uniform=False)
    c.crops.update(global_crops_scale=(0.4, 1.0), local_crops_scale=(0.05, 0.4))
    c.crops.blur = "intended"
    # The DINO loss alone: no iBOT, so no masks, and no KoLeo.
    c.ibot.update(loss_weight=0.0, mask_sample_probability=0.0)
    c.dino.koleo_loss_weight = 0.0
    c.train.update(batch_size=512, group_size=64, steps=100 * _EPOCH)
    c.teacher.update(momentum_teacher=0.996, teacher_temp=0.04)
    c.teacher.warmup_teacher_temp_steps = 0
    c.optim.update(base_lr=0.001 * math.sqrt(1024 / 512), warmup_steps=10 * _EPOCH)
    c.optim.update(freeze_last_layer_steps=_EPOCH)
    c.optim.update(layerwise_decay=1.0, patch_embed_lr_mult=1.0)
    return c
