"""Rules of thumb for runs on one device: numbers of a config from the size of a run.

None of them has been confirmed by a study at full size. docs/small.md says where each
comes from.
"""

import math

# Images that the teacher averages over, 1/(1 - m) batches: that of the reference's
# short recipe (2048 images, m = 0.992), and its largest share of a run's images.
LONGEST_HORIZON = 256_000
HORIZON_SHARE = 0.1
FEW_IMAGES = 10_000  # below, training is unlikely to beat frozen features
SMALL_SET = 50_000  # images below which targets are sharper
MEDIUM_SET = 100_000  # images below which weight decay does not rise
MOST_PROTOTYPES_PER_ROW = 8  # of Sinkhorn-Knopp, by class tokens that it balances
MOST_QUEUED = 8  # batches whose rows Sinkhorn-Knopp may balance again
BATCH_SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
GROUP_SIZE = 32  # images; as in the reference's ViT-L/14
_PROTOTYPES = (1024, 65_536)  # fewest and most
_DROP_PATH = {"vit_small": 0.1, "vit_base": 0.1, "vit_large": 0.3, "vit_giant2": 0.3}


def ema_horizon(images_seen: float) -> float:
    """Return the images that the teacher's average is to span at the first step.

    Args:
      images_seen: Images that the run sees, repetitions included.
    """
    return min(LONGEST_HORIZON, HORIZON_SHARE * images_seen)


def ema_momentum(batch_size: int, images_seen: float) -> float:
    """Return the teacher's momentum per step, m = 1 - B/H for the horizon H.

    Args:
      batch_size: Images of a step, B.
      images_seen: Images that the run sees, repetitions included.

    Returns:
      A momentum in [0, 1): 0, a teacher equal to the student, if the horizon is less
      than a batch.
    """
    return max(0.0, 1 - batch_size / ema_horizon(images_seen))


def num_prototypes(num_images: int) -> int:
    """Return the number of prototypes K: the power of two nearest to an eighth."""
    fewest, most = _PROTOTYPES
    exponent = round(math.log2(max(num_images, 8) / 8))
    return min(max(2**exponent, fewest), most)


def balancing(prototypes: int, batch_size: int) -> tuple[str, int]:
    """Return `train.centering` and `dino.sinkhorn_queue`.

    Sinkhorn-Knopp gives every prototype the same share of a batch. With far more
    prototypes than class tokens (two an image) such targets follow noise, unless a
    queue adds those of the last batches. Masked patches need none: with the default
    masks there are about 29 for each class token, or 38 with patch 14.

    Args:
      prototypes: Number of prototypes K.
      batch_size: Images of a step.

    Returns:
      The mode, and the fewest batches in the queue that are enough; the EMA centre and
      0 if that is more than `MOST_QUEUED`.
    """
    batches = math.ceil(prototypes / (MOST_PROTOTYPES_PER_ROW * 2 * batch_size))
    if batches > 1 + MOST_QUEUED:
        return "centering", 0
    return "sinkhorn_knopp", batches - 1


def teacher_temperatures(num_images: int) -> tuple[float, float]:
    """Return the teacher's temperature at the first step and after the warm-up."""
    return (0.02, 0.04) if num_images < SMALL_SET else (0.04, 0.07)


def last_weight_decay(num_images: int, *, trained: bool) -> float:
    """Return the weight decay of the last step; the first one's is 0.04.

    Args:
      num_images: Images of the data set.
      trained: Whether the run starts from trained weights.
    """
    return 0.04 if trained or num_images < MEDIUM_SET else 0.2


def group_size(batch_size: int) -> int:
    """Return the largest number of images up to `GROUP_SIZE` that divides a batch."""
    return max(n for n in range(1, GROUP_SIZE + 1) if batch_size % n == 0)


def drop_path(arch: str, group: int, *, trained: bool) -> float:
    """Return the rate of stochastic depth.

    Args:
      arch: Name of the model's size.
      group: Images of a group; at least one of its 2 * `group` global crops must be
        there to drop, or a whole crop would be dropped at a smaller rate.
      trained: Whether the run starts from trained weights.
    """
    rate = _DROP_PATH[arch]
    return 0.0 if trained or 2 * group * rate < 1 else rate
