"""Continued training of a released ViT-S/14 on images of another domain.

Heads are new, since none were released. Users of the reference lost most of the k-NN
accuracy within 20,000 images when they continued with new heads at pretraining's
learning rates (its issue 204). So only the heads learn at first, then all layers at low
rates, lower towards the input, with a slow teacher; and the best weights are kept, the
start included, so that the run cannot end below it: docs/adapt.md. For ViT-B:
--config.init.source=dinov2_vitb14 --config.model.arch=vit_base. A value without a
source in its comment is a guess that no run at this size has tested: try frozen
features first.
"""

from dinov2_jax.configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.init.source = "dinov2_vits14"
    c.init.heads_only_steps = 1000
    c.model.update(arch="vit_small", patch_size=14)
    # 0 in the paper's distillation, from which the released S, B and L come.
    c.model.drop_path_rate = 0.0
    c.crops.local_crops_size = 98
    c.dino.head_n_prototypes = 16_384  # for some 100,000 images
    c.train.update(batch_size=256, group_size=32, centering="sinkhorn_knopp")
    c.train.steps = 10_000  # as in the paper's high-resolution phase
    # The teacher averages about 2000 steps; in pretraining 125 to 170.
    c.teacher.update(momentum_teacher=0.9995, warmup_teacher_temp_steps=3000)
    # vitg14.yaml's; here 1e-4 at batch 256, and a fifteenth of that in the first block.
    c.optim.update(base_lr=2e-4, layerwise_decay=0.8, weight_decay_end=0.04)
    # The backbone starts to learn half-way through the warm-up.
    c.optim.update(warmup_steps=2000, freeze_last_layer_steps=0)
    c.checkpoint.every = 1000
    # k-NN only if evaluation.train_path and val_path name labelled images.
    c.evaluation.update(every=1000, tasks=("knn", "matching"))
    c.checkpoint.keep_best = "all"
    return c
