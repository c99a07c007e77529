"""A released ViT-S/14 goes on learning on images of another domain.

Heads are new, for none were released. Users of the reference lost most of the k-NN
accuracy within 20,000 images when they trained on with new heads at a pretraining's
rates (its issue 204), so at first only the heads learn, and then all in small steps,
smaller the nearer to the image, under a slow teacher. For ViT-B:
--config.init.source=dinov2_vitb14 --config.model.arch=vit_base. Where no comment names
a source, the value is a guess that no run at this size has tested: judge it by
`knn/top1` against its value at step 0, and try frozen features first.
"""

from dinov2_jax.configs import default


def get_config():
    """Returns the configuration."""
    c = default.get_config()
    c.init.source = "dinov2_vits14"
    c.init.heads_only_steps = 1000
    c.model.update(arch="vit_small", patch_size=14)
    # The paper's distillation, from which the released S, B and L come, has none.
    c.model.drop_path_rate = 0.0
    c.crops.local_crops_size = 98
    c.dino.head_n_prototypes = 16_384  # for some 100,000 images
    c.train.update(batch_size=256, group_size=32, centering="sinkhorn_knopp")
    c.train.steps = 10_000  # the length of the paper's phase at high resolution
    # The teacher averages some 2000 steps; in pretraining 125 to 170.
    c.teacher.update(momentum_teacher=0.9995, warmup_teacher_temp_steps=3000)
    # vitg14.yaml's; here 1e-4 at batch 256, and a fifteenth of that in the first block.
    c.optim.update(base_lr=2e-4, layerwise_decay=0.8, weight_decay_end=0.04)
    # The backbone joins half-way up.
    c.optim.update(warmup_steps=2000, freeze_last_layer_steps=0)
    c.checkpoint.every = 1000
    c.evaluation.every = 1000
    return c
