"""Segmentation with a frozen backbone: training of the head, and maps of images.

Settings are those of the reference's released configs; see `docs/evaluation.md`.

Shapes: B images, H x W pixels, S side of a window, K classes.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import pretrained
from dinov2_jax.eval import (
    dense_features,
    dense_schedules,
    dense_training,
    head_files,
    head_names,
    mean_iou,
    pairs,
    resize,
    segmentation_augment,
    segmentation_head,
    sliding_window,
)

MULTI_SCALE = (1.0, 1.32, 1.73, 2.28, 3.0)
_ROUND = 64  # px; results are computed at multiples of it, so that few programs compile


@dataclasses.dataclass(frozen=True)
class Inference:
    """How maps are computed.

    Attributes:
      short: Short side of the view of ratio 1, px.
      long: Bound of its long side, px; None for none.
      window: Side S of the windows, px.
      stride: Distance of the windows, px.
      ratios: Scales of the views whose probabilities are averaged.
      flip: Whether each view is taken mirrored too.
      batch_size: Windows at a time.
    """

    short: int = 512
    long: int | None = 2048
    window: int = 512
    stride: int = 341
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch_size: int = 8


def features(module: Any, layers: int) -> Any:
    """Return the function from backbone and images to the head's features."""
    blocks = dense_features.last_blocks(module.depth, layers)

    def compute(params, images):
        taps = dense_features.dense_features(
            module, params, images, blocks=blocks, norm=True
        )
        return segmentation_head.joined([patches for patches, _ in taps])

    return compute


class Segmenter:
    """Function from an image to its segmentation map.

    Args:
      model: The backbone.
      head: The head.
      settings: How maps are computed.
    """

    def __init__(
        self, model: pretrained.Model, head: head_files.Head, settings: Inference
    ):
        self._settings, self._normalize = settings, model.preprocessing.normalize
        head_files.check_backbone(head, model.module.embed_dim, model.module.depth)
        compute = features(model.module, head.spec.layers)
        self._weights = model.params, head.params

        @jax.jit
        def window_logits(weights, windows):
            backbone, params = weights
            return segmentation_head.logits(params, compute(backbone, windows))

        self._window_logits = window_logits

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the classes of an image's pixels, uint8 [H, W, 3] -> int32 [H, W]."""
        return next(iter(self.maps([image])))

    def maps(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the maps of images, one after the other; see `__call__`."""
        for image in images:
            yield self._map(image)

    def _map(self, image):
        s = self._settings
        total, (height, width) = 0.0, image.shape[:2]
        for size in sliding_window.view_sizes(
            (height, width), short=s.short, long=s.long, ratios=s.ratios
        ):
            view = self._normalize(resize.resize_image(image, size))[None]
            views = [view, view[:, :, ::-1]] if s.flip else [view]
            windows = np.concatenate(
                [sliding_window.cut(x, s.window, s.stride) for x in views]
            )
            logits = self._logits(windows)
            rows, columns = (
                sliding_window.merge_matrix(
                    length, new, window=s.window, stride=s.stride, patches=patches
                )
                for length, new, patches in zip(size, (height, width), logits.shape[3:])
            )
            # The flip is undone in the matrix of the columns.
            for one, flipped in zip(logits, (False, True)):
                turned = columns[::-1] if flipped else columns
                total += _probabilities(one, _padded(rows), _padded(turned))
        return np.asarray(_classes(total))[:height, :width]

    def _logits(self, windows):
        """Compute logits of windows [n, a, b, S, S, 3] in batches of one size."""
        flat = windows.reshape(-1, *windows.shape[3:])
        batch = self._settings.batch_size
        rest = -len(flat) % batch
        padded = np.pad(flat, [(0, rest), (0, 0), (0, 0), (0, 0)])
        parts = [
            self._window_logits(self._weights, padded[i : i + batch])
            for i in range(0, len(padded), batch)
        ]
        found = jnp.concatenate(parts)[: len(flat)]
        return found.reshape(*windows.shape[:3], *found.shape[1:])


def _padded(matrix: np.ndarray) -> np.ndarray:
    return np.pad(matrix, ((0, -len(matrix) % _ROUND), (0, 0)))


@jax.jit
def _probabilities(logits, rows, columns):
    """Merge logits [a, b, h, w, K] and return probabilities [H, W, K]."""
    a, b, h, w, classes = logits.shape
    flat = logits.swapaxes(1, 2).reshape(a * h, b * w, classes)
    return jax.nn.softmax(resize.apply_matrices(flat, rows, columns))


@jax.jit
def _classes(probabilities):
    return probabilities.argmax(axis=-1)


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
    width = model.module.embed_dim
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
        features(model.module, layers),
        model.params,
        sample,
        len(data),
        recipe,
        **run,
    )
    spec = head_names.Spec("segmentation", width, layers, num_classes)
    return head_files.Head(spec, trained, name="the trained head"), losses


def evaluate(
    segmenter: Segmenter, data: pairs.Pairs, *, num_classes: int
) -> Iterator[mean_iou.Areas]:
    """Yield the areas of each image's map against its labels.

    Args:
      segmenter: The model.
      data: Images and masks.
      num_classes: Number of classes.

    Raises:
      UserError: A label is outside the classes.
    """
    for index in range(len(data)):
        image, labels = data.sample(index)
        name = str(data.targets[index])
        mean_iou.check_labels(labels, num_classes=num_classes, name=name)
        yield mean_iou.areas(segmenter(image), labels, num_classes=num_classes)
