"""Training of linear segmentation heads on a frozen backbone.

Settings are those of the reference's released configs; see `docs/evaluation.md`.

Shapes: K classes.
"""

import functools
from typing import Any

from dinov2_jax import pretrained
from dinov2_jax.eval.dense import dense_schedules, dense_training, pairs
from dinov2_jax.eval.heads import head_files, head_names
from dinov2_jax.eval.segmentation import (
    mean_iou,
    segmentation_augment,
    segmentation_head,
)


def train(
    model: pretrained.Model,
    data: pairs.Pairs,
    *,
    num_classes: int,
    layers: int,
    augmentation: segmentation_augment.Augmentation,
    steps: int = 40_000,
    batch_size: int = 16,
    lr: float = 1e-3,
    warmup_steps: int = 1500,
    weight_decay: float = 1e-4,
    denominator: str = "all",
    seed: int = 0,
    **run: Any,
) -> tuple[head_files.Head, list[float]]:
    """Train a linear head on the features of the last blocks.

    Args:
      model: The backbone.
      data: Images and masks, labels in [0, K) or 255.
      num_classes: Number of classes K.
      layers: Number of last blocks: 1 for "linear", 4 for "+ms".
      augmentation: The augmentation.
      steps: Number of steps.
      batch_size: Number of images of a step.
      lr: Learning rate before it decays.
      warmup_steps: Number of steps of the warm-up.
      weight_decay: Weight decay of all parameters.
      denominator: What the loss is divided by, see `segmentation_head.cross_entropy`.
      seed: Seed of weights, order and augmentation.
      run: Further arguments of `dense_training.fit`.

    Returns:
      The head, and the loss of every step.

    Raises:
      UserError: A label is outside the classes, or the loss is not finite.
    """
    width = model.module.config.embed_dim
    params = segmentation_head.init(seed, width * layers, num_classes)
    trainable = segmentation_head.trainable(params)
    statistics = {name: params[name] for name in segmentation_head.STATISTICS}

    def loss(trained, statistics, joined, labels, step):
        logits, changed = segmentation_head.train_logits(trained | statistics, joined)
        value = segmentation_head.cross_entropy(logits, labels, denominator=denominator)
        return value, changed

    def sample(index, rng):
        image, labels = data.sample(index)
        name = str(data.targets[index])
        mean_iou.check_labels(labels, num_classes=num_classes, name=name)
        return augmentation(image, labels, rng, model.preprocessing.normalize)

    rate = functools.partial(
        dense_schedules.segmentation_lr,
        base_lr=lr,
        steps=steps,
        warmup_steps=warmup_steps,
    )
    recipe = dense_training.Recipe(
        steps=steps,
        batch_size=batch_size,
        lr=rate,
        weight_decay=weight_decay,
        seed=seed,
    )
    trained, losses = dense_training.fit(
        trainable,
        statistics,
        loss,
        segmentation_head.backbone_features(model.module, layers),
        model.params,
        sample,
        len(data),
        recipe,
        **run,
    )
    spec = head_names.Spec("segmentation", width, layers, num_classes)
    return head_files.Head(spec, trained, name="the trained head"), losses
