"""Distillation of a smaller model from a frozen larger one (paper, section 5).

The values are those of the paper's table 16 for the distilled S/14, B/14 and L/14; what
the paper leaves open (KoLeo, the teacher's temperature, local crops) is as in
pretraining. The teacher needs its projection heads, as runs of this project have them.
From a released backbone, which has none: --config.distill.objective=features
--config.crops.local_crops_number=0. The product is the EMA of the student. Several
students at once: --config.distill.students, see docs/distillation.md.
"""

from dinov2_jax.configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.distill.source = "teacher"  # the folder or file of the teacher: always set it
    c.model.update(arch="vit_small", patch_size=14, drop_path_rate=0.0)
    c.crops.local_crops_size = 98
    # Sizes of the new heads; their number of prototypes is the teacher's.
    c.dino.update(head_bottleneck_dim=256)
    c.ibot.update(mask_sample_probability=0.0, separate_head=True)
    c.ibot.update(head_bottleneck_dim=256)
    c.train.update(batch_size=2048, steps=625_000, centering="sinkhorn_knopp")
    c.teacher.momentum_teacher = 0.994
    # A warm-up serves a teacher that is untrained.
    c.teacher.update(warmup_teacher_temp=0.07, warmup_teacher_temp_steps=0)
    c.optim.update(base_lr=1e-3, warmup_steps=100_000, weight_decay_end=0.2)
    c.optim.update(freeze_last_layer_steps=0, layerwise_decay=1.0)
    return c
