"""A run of minutes on a two-core CPU: a small ViT on the embedded photographs.

LayerScale starts at 1 and all layers share one learning rate, because a short run has
no time to grow them. The rest is the usual recipe at small size.
"""

from dinov2_jax.configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.data.source = "photos"
    c.data.workers = 1
    c.crops.update(global_crops_size=48, local_crops_size=24, local_crops_number=4)
    c.model.update(
        arch="custom",
        embed_dim=128,
        depth=4,
        num_heads=4,
        patch_size=12,
        layerscale=1.0,
        drop_path_rate=0.0,
    )
    c.dino.update(head_n_prototypes=256, head_bottleneck_dim=64, head_hidden_dim=256)
    c.ibot.loss_weight = 0.3
    c.train.update(batch_size=64, group_size=64, steps=600)
    c.train.centering = "sinkhorn_knopp"
    c.teacher.update(momentum_teacher=0.98, warmup_teacher_temp_steps=200)
    c.optim.update(base_lr=0.008, warmup_steps=60, freeze_last_layer_steps=30)
    c.optim.update(layerwise_decay=1.0, patch_embed_lr_mult=1.0)
    c.checkpoint.every = 150
    c.log.every = 10
    c.evaluation.update(every=150, resize_size=84, image_size=84, picture_size=480)
    # The settings above were chosen on "val" alone.
    c.evaluation.photos_split = "test"
    return c
