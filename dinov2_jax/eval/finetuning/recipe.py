"""How a classifier is fine-tuned: every number of the training, as one value."""

import dataclasses

from dinov2_jax import schedules


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a backbone and its head are trained.

    Attributes:
      steps: Number of steps.
      batch_size: Images of a step, over all devices.
      group_size: Images of a group, inside which images are mixed and blocks skip
        images; it divides `batch_size`.
      lr: Learning rate after the warm-up, of the head and the last LayerNorm.
      min_lr: Learning rate at the end of the cosine.
      warmup_steps: Steps of the linear warm-up from 0.
      layerwise_decay: Factor of the learning rate from each block to the one below.
      weight_decay: AdamW's weight decay, of matrices and embeddings.
      clip_grad: Largest norm of the gradient of the backbone, and of that of the head;
        0 for none.
      drop_path: Share of the images of a group that each branch of a block skips.
      smoothing: Label smoothing, in [0, 1).
      mixup_alpha: Parameter of mixup's Beta(alpha, alpha); 0 for none.
      cutmix_alpha: The same for CutMix.
      ema: Decay of the average of the weights, which is then what is evaluated; 0 for
        none.
      seed: Seed of everything random.
    """

    steps: int
    batch_size: int
    group_size: int
    lr: float
    min_lr: float = 0.0
    warmup_steps: int = 0
    layerwise_decay: float = 1.0
    weight_decay: float = 0.0
    clip_grad: float = 0.0
    drop_path: float = 0.0
    smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    ema: float = 0.0
    seed: int = 0

    @property
    def num_groups(self) -> int:
        """Number of groups of a batch; the devices divide it."""
        return self.batch_size // self.group_size

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        cosine = schedules.Cosine(self.lr, self.min_lr, self.steps, self.warmup_steps)
        return cosine(step)

    def ema_at(self, step: int) -> float:
        """Return the decay of the average after a step, counted from 0.

        It begins at 0.1 and grows, so that the first weights are soon forgotten.
        """
        return min(self.ema, (1 + step) / (10 + step))
