"""A run of seconds on a CPU, for development and tests: too small to learn."""

from dinov2_jax.configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.data.source = "photos"
    c.data.workers = 1
    c.crops.update(global_crops_size=32, local_crops_size=16, local_crops_number=2)
    c.model.update(
        arch="custom", embed_dim=64, depth=2, num_heads=2, patch_size=8, layerscale=1.0
    )
    # With 0.3 and two blocks, some samples skip attention entirely. Their class tokens
    # are equal, and KoLeo becomes the log of a rounding error.
    c.model.drop_path_rate = 0.1
    for head in (c.dino, c.ibot):
        head.update(head_n_prototypes=64, head_bottleneck_dim=32, head_hidden_dim=64)
    c.train.update(batch_size=32, group_size=4, steps=20)
    c.train.centering = "sinkhorn_knopp"
    c.teacher.warmup_teacher_temp_steps = 5
    c.optim.update(base_lr=0.002, warmup_steps=4, freeze_last_layer_steps=2)
    c.checkpoint.every = 10
    c.log.every = 1
    c.evaluation.update(
        every=0, resize_size=32, image_size=32, picture_size=256, max_images=256
    )
    return c
