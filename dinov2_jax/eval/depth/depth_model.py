"""Depth with a frozen backbone: training of heads, and depth maps of images.

Settings are those of the reference's released configs; see `docs/evaluation.md`.

Shapes: B images, H x W pixels, D width.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dinov2_jax import pretrained
from dinov2_jax.eval import batch_placement
from dinov2_jax.eval.dense import (
    dense_features,
    dense_resize,
    dense_schedules,
    dense_training,
    pairs,
)
from dinov2_jax.eval.depth import (
    depth_augment,
    depth_head,
    depth_losses,
    depth_metrics,
    dpt_head,
)
from dinov2_jax.eval.heads import head_files, head_names

HEADS = ("lin1", "lin4", "dpt")
SUN_RESIZES = ("portrait", "keep")
_PORTRAIT = (640, 480)  # height and width, px, as the reference's config resizes SUN


def features(module: Any, layers: int) -> Any:
    """Return the function from backbone and images to the head's features."""
    depth = module.config.depth
    blocks = dense_features.four_blocks(depth) if layers == 4 else (depth - 1,)

    def compute(params, images):
        return dense_features.dense_features(
            module, params, images, blocks=blocks, norm=False
        )

    return compute


def predict(spec: head_names.Spec, params: Any, taps: dense_features.Taps) -> jax.Array:
    """Predict depth from features, [B, h, w, 1], before it is resized and clamped.

    Args:
      spec: What the head is for.
      params: Parameters of the head.
      taps: Patch features and class tokens of each block.
    """
    head = dpt_head.depth if spec.kind == "dpt" else depth_head.depth
    return head(params, taps, depth_range=spec.depth_range)


class DepthEstimator:
    """Function from an image to its depth map.

    Args:
      model: The backbone.
      head: The head.
      flip: Whether to average with the depth of the mirrored image.
      sun_resize: "portrait" stretches images to 480x640 px as the reference's config
        for SUN RGB-D does; "keep" leaves them.
    """

    def __init__(
        self,
        model: pretrained.Model,
        head: head_files.Head,
        *,
        flip: bool = True,
        sun_resize: str = "keep",
    ):
        head_files.check_backbone(
            head, model.module.config.embed_dim, model.module.config.depth
        )
        self._normalize, self._flip = model.preprocessing.normalize, flip
        self._portrait = sun_resize == "portrait"
        self._mesh = batch_placement.make_mesh(2 if flip else 1)
        spec = head.spec
        self._weights = batch_placement.replicate(
            (model.params, head.params), self._mesh
        )
        compute = features(model.module, spec.layers)

        @functools.partial(jax.jit, static_argnames="size")
        def maps(weights, images, *, size):
            backbone, params = weights
            fine = predict(spec, params, compute(backbone, images))
            inside = depth_head.at_size(
                fine, images.shape[1:3], depth_range=spec.depth_range
            )
            return dense_resize.bilinear(inside, size)[..., 0]

        self._maps = maps

    def with_params(self, params: dict[str, Any]) -> "DepthEstimator":
        """Return the same function, compiled already, with other parameters.

        Args:
          params: Parameters of a head of the same kind.
        """
        other = copy.copy(self)
        backbone, _ = self._weights
        other._weights = backbone, batch_placement.replicate(params, self._mesh)
        return other

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the depth of an image in metres, uint8 [H, W, 3] -> float32 [H, W]."""
        size = image.shape[:2]
        if self._portrait:
            image = dense_resize.resize_image(image, _PORTRAIT)
        x = self._normalize(image)[None]
        if self._flip:
            x = np.concatenate([x, x[:, :, ::-1]])
        x = batch_placement.split(x, self._mesh)
        maps = np.asarray(self._maps(self._weights, x, size=size))
        return (maps[0] + maps[1, :, ::-1]) / 2 if self._flip else maps[0]


def train(
    model: pretrained.Model,
    data: pairs.Pairs,
    *,
    kind: str,
    depth_range: tuple[float, float],
    augmentation: depth_augment.Augmentation,
    steps: int = 38_400,
    batch_size: int = 16,
    lr: float = 1e-4,
    warmup_steps: int = 12_800,
    weight_decay: float = 0.01,
    clip: float = 35.0,
    gradient: str = "none",
    warm_up_loss: bool = True,
    seed: int = 0,
    after: Callable[[int, head_files.Head], None] | None = None,
    **run: Any,
) -> tuple[head_files.Head, list[float]]:
    """Train a depth head.

    Args:
      model: The backbone.
      data: Images and depth maps in metres, 0 where unknown.
      kind: One of `HEADS`.
      depth_range: Least and largest depth, metres.
      augmentation: The augmentation.
      steps: Number of steps.
      batch_size: Number of images of a step.
      lr: Learning rate before it decays.
      warmup_steps: Number of steps of the warm-up.
      weight_decay: Weight decay of all parameters.
      clip: Largest norm of the gradient; 0 for none.
      gradient: "none" or "spatial", see `depth_losses.depth_loss`.
      warm_up_loss: Whether the first 100 steps see only the mean of the loss.
      seed: Seed of weights, order and augmentation.
      after: Function of the number of steps done and the head then, as in
        `dense_training.fit`; None for none.
      run: Further arguments of `dense_training.fit`.

    Returns:
      The head, and the loss of every step.

    Raises:
      UserError: An image is smaller than the crop, or the loss is not finite.
    """
    width, layers = model.module.config.embed_dim, 1 if kind == "lin1" else 4
    if kind == "dpt":
        spec = head_names.Spec("dpt", width, layers, depth_range=depth_range)
        params = dpt_head.init(seed, width)
    else:
        spec = head_names.Spec("depth", width, layers, depth_range=depth_range)
        params = depth_head.init(seed, width, layers)

    def loss(trained, statistics, taps, truth, step):
        fine = predict(spec, trained, taps)
        prediction = dense_resize.bilinear(fine, truth.shape[1:])[..., 0]
        first = (step < depth_losses.WARM_UP_CALLS) & warm_up_loss
        value = depth_losses.depth_loss(
            prediction, truth, warm_up=first, gradient=gradient
        )
        return value, statistics

    def sample(index, rng):
        return augmentation(*data.sample(index), rng, model.preprocessing.normalize)

    rate = functools.partial(
        dense_schedules.depth_lr, base_lr=lr, steps=steps, warmup_steps=warmup_steps
    )
    recipe = dense_training.Recipe(
        steps=steps,
        batch_size=batch_size,
        lr=rate,
        beta1=functools.partial(dense_schedules.depth_beta1, steps=steps),
        weight_decay=weight_decay,
        clip=clip,
        seed=seed,
    )

    trained, losses = dense_training.fit(
        params,
        {},
        loss,
        features(model.module, layers),
        model.params,
        sample,
        len(data),
        recipe,
        after=after and (lambda done, p: after(done, head_files.Head(spec, p))),
        **run,
    )
    return head_files.Head(spec, trained, name="the trained head"), losses


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """The metrics of one image.

    Attributes:
      metrics: Metrics in the order of `depth_metrics.ORDER`.
      count: Number of pixels that count.
    """

    metrics: np.ndarray
    count: int


def evaluate(
    estimator: DepthEstimator, data: pairs.Pairs, protocol: depth_metrics.Protocol
) -> Iterator[ImageScores]:
    """Yield the metrics of each image's depth map.

    Args:
      estimator: The model.
      data: Images and depth maps in metres.
      protocol: Which pixels count.
    """
    for index in range(len(data)):
        image, truth = data.sample(index)
        count = int(depth_metrics.valid_pixels(truth, protocol).sum())
        metrics = depth_metrics.image_metrics(estimator(image), truth, protocol)
        yield ImageScores(metrics, count)
