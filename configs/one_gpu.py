"""ViT-S/14 from scratch on 100,000 images, one 24 GB device.

Written by

    dinov2-jax recipe --images 100000 --device-memory 24 --hours 8

Every value has its reason in a comment. Values called a guess are rules that no study
has confirmed (docs/small.md).

By estimate a step needs 17.0 GB, and 90% of 24 GB can be used; --verify compiles it.
The run takes 7.9 hours if the images come fast enough, 517 a second: `dinov2-jax data
bench` measures that.
"""

from dinov2_jax.configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    # Size by --arch, patches as in the released models.
    c.model.arch = "vit_small"
    c.model.patch_size = 14
    # A multiple of the patch size.
    c.crops.local_crops_size = 98
    # 0.6 of the memory of keeping all activations, and hardly slower.
    c.model.remat = "selective"
    # Prototypes: the power of two nearest to an eighth of 100,000 images, from 1,024 to
    # 65,536. A guess.
    c.dino.head_n_prototypes = 16_384
    # Images per step: the largest that fits and, above 64, leaves 10,000 steps. It
    # needs about 17.0 GB of 24.
    c.train.batch_size = 192
    # Images among which KoLeo looks for neighbours; 32 in the reference's ViT-L/14.
    c.train.group_size = 32
    # Stochastic depth: 0.1 for S and B, 0.3 for L, so that small models learn. A guess.
    c.model.drop_path_rate = 0.1
    # 16,384 prototypes are more than 8 times the 384 class tokens of a batch, so
    # Sinkhorn-Knopp balances those of the last batches too: the best targets at 8
    # images in a small study (docs/learning.md). Masked patches are numerous enough
    # without a queue.
    c.train.centering = "sinkhorn_knopp"
    c.dino.sinkhorn_queue = 5
    # 7.9 hours at 517 images/s, which is 45% of 165 TFLOP/s: an assumption. 14.8 M
    # images, 148 passes over yours.
    c.train.steps = 77_000
    # Ten evaluations, if evaluation.train_path and val_path name labelled images.
    c.evaluation.every = 7700
    # Besides one every ten minutes.
    c.checkpoint.every = 7700
    # The teacher averages over 256,000 images, 1 - batch / images: 256,000 as in the
    # reference's short run, or 10 % of the images of a run if that is less. A guess.
    c.teacher.momentum_teacher = 0.99925
    # teacher.warmup_teacher_temp = 0.04, teacher.teacher_temp = 0.07, the default: The
    # reference's: 50,000 images or more.
    # 30 % of the steps, as in the reference.
    c.teacher.warmup_teacher_temp_steps = 23_100
    # At batch 1024, scaled by sqrt(batch / 1024): half the reference's, for batches a
    # tenth of its. A guess.
    c.optim.base_lr = 0.002
    # 10 % of the steps, as in the reference.
    c.optim.warmup_steps = 7700
    # 1 % of the steps, as in the reference.
    c.optim.freeze_last_layer_steps = 770
    # Weight decay. Rises from 0.04, as in the reference's ViT-L/14.
    c.optim.weight_decay_end = 0.2
    return c
