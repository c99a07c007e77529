"""ViT-L/14, the reference's `vitl14.yaml`: 96 GPUs of 32 images, ImageNet-22k."""

from dinov2_jax.configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.model.update(
        arch="vit_large", patch_size=14, ffn_layer="swiglufused", drop_path_rate=0.4
    )
    c.crops.local_crops_size = 98
    c.dino.update(head_n_prototypes=131_072, head_bottleneck_dim=384)
    c.ibot.update(separate_head=True, head_n_prototypes=131_072)
    c.train.update(batch_size=3072, group_size=32, centering="sinkhorn_knopp")
    c.train.steps = 625_000  # reference: 500 epochs x 1250
    c.teacher.momentum_teacher = 0.994
    c.optim.update(base_lr=2e-4, weight_decay_end=0.2, layerwise_decay=1.0)
    c.optim.warmup_steps = 100_000  # reference: 80 epochs x 1250
    return c
