"""Segmentation maps of images: windows, views and their batches.

Settings are those of the reference's released configs; see `docs/evaluation.md`.

Shapes: B images, H x W pixels, S side of a window, K classes.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import pretrained
from dinov2_jax.eval import batch_placement
from dinov2_jax.eval.dense import dense_resize, pairs
from dinov2_jax.eval.heads import head_files
from dinov2_jax.eval.segmentation import mean_iou, segmentation_head, sliding_window

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


class Segmenter:
    """Function from an image to its segmentation map.

    Windows are computed in batches over all devices, those of several images together
    where one has few.

    Args:
      model: The backbone.
      head: The head.
      settings: How maps are computed.
    """

    def __init__(
        self, model: pretrained.Model, head: head_files.Head, settings: Inference
    ):
        self._settings, self._normalize = settings, model.preprocessing.normalize
        head_files.check_backbone(
            head, model.module.config.embed_dim, model.module.config.depth
        )
        compute = segmentation_head.backbone_features(model.module, head.spec.layers)
        self._mesh = batch_placement.make_mesh(settings.batch_size)
        self._weights = batch_placement.replicate(
            (model.params, head.params), self._mesh
        )

        @jax.jit
        def window_logits(weights, windows):
            backbone, params = weights
            return segmentation_head.logits(params, compute(backbone, windows))

        self._window_logits = window_logits

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the classes of an image's pixels, uint8 [H, W, 3] -> int32 [H, W]."""
        return next(iter(self.maps([image])))

    def maps(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the maps of images, one after the other; see `__call__`.

        The views of the next images are cut while the device computes.
        """
        group: list[tuple[tuple[int, int], list[_View]]] = []
        count, pending = 0, []
        for image in images:
            views = self._views(image)
            group.append((image.shape[:2], views))
            count += sum(view.windows[..., 0, 0, 0].size for view in views)
            if count >= self._settings.batch_size:
                started = self._group_maps(group)
                yield from map(_fetched, pending)
                group, count, pending = [], 0, started
        yield from map(_fetched, pending + self._group_maps(group))

    def _views(self, image: np.ndarray) -> list["_View"]:
        """Return the windows of all views of an image."""
        s, found = self._settings, []
        for size in sliding_window.view_sizes(
            image.shape[:2], short=s.short, long=s.long, ratios=s.ratios
        ):
            pixels = self._normalize(dense_resize.resize_image(image, size))[None]
            for flipped in (False, True) if s.flip else (False,):
                x = pixels[:, :, ::-1] if flipped else pixels
                (windows,) = sliding_window.cut(x, s.window, s.stride)
                found.append(_View(size, flipped, windows))
        return found

    def _group_maps(self, group):
        """Start to compute the maps of images whose views are cut already.

        Returns:
          For each image its size and its map, which may be larger.
        """
        views = [view for _, own in group for view in own]
        # Windows are smaller than usual where an image is.
        shapes = {view.windows.shape[2:] for view in views}
        logits: dict[int, Any] = {}
        for shape in shapes:
            same = [view for view in views if view.windows.shape[2:] == shape]
            logits |= zip(map(id, same), self._logits([view.windows for view in same]))
        maps = []
        for size, own in group:
            if len(own) == 1:  # the largest logit is the largest probability
                found = self._merged(own[0], logits[id(own[0])], size, _largest_logits)
            else:
                found = _classes(
                    sum(
                        self._merged(view, logits[id(view)], size, _probabilities)
                        for view in own
                    )
                )
            maps.append((size, found))
        return maps

    def _merged(self, view, logits, size, merge):
        s = self._settings
        rows, columns = (
            sliding_window.merge_matrix(
                length, new, window=s.window, stride=s.stride, patches=patches
            )
            for length, new, patches in zip(view.size, size, logits.shape[2:])
        )
        # The flip is undone in the matrix of the columns.
        columns = columns[::-1] if view.flipped else columns
        return merge(logits, _padded(rows), _padded(columns))

    def _logits(self, windows):
        """Compute logits [a, b, h, w, K] for each array of windows [a, b, S, S, 3].

        Batches are full, then powers of two: few programs, and nothing is wasted.
        """
        flat = np.concatenate([x.reshape(-1, *x.shape[2:]) for x in windows])
        parts, start, size = [], 0, self._settings.batch_size
        while start < len(flat):
            left = len(flat) - start
            if size > left:
                size = 1 << (left.bit_length() - 1)
            batch = batch_placement.split(flat[start : start + size], self._mesh)
            parts.append(self._window_logits(self._weights, batch))
            start += size
        found = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
        ends = np.cumsum([x.shape[0] * x.shape[1] for x in windows])[:-1]
        return [
            part.reshape(*x.shape[:2], *part.shape[1:])
            for part, x in zip(jnp.split(found, ends), windows)
        ]


@dataclasses.dataclass(frozen=True)
class _View:
    """A resized, perhaps mirrored image, cut into windows.

    Attributes:
      size: Its height and width, px.
      flipped: Whether it is mirrored.
      windows: Normalised windows, [a, b, S, S, 3].
    """

    size: tuple[int, int]
    flipped: bool
    windows: np.ndarray


def _fetched(found: tuple[tuple[int, int], jax.Array]) -> np.ndarray:
    """Return the map of an image on the host."""
    (height, width), classes = found
    return np.asarray(classes)[:height, :width]


def _padded(matrix: np.ndarray) -> np.ndarray:
    return np.pad(matrix, ((0, -len(matrix) % _ROUND), (0, 0)))


def _side_by_side(logits):
    """Lay out the logits [a, b, h, w, K] of windows as [a * h, b * w, K]."""
    a, b, h, w, classes = logits.shape
    return logits.swapaxes(1, 2).reshape(a * h, b * w, classes)


@jax.jit
def _largest_logits(logits, rows, columns):
    """Return the class of the largest merged logit of each pixel, [H, W].

    Few rows at a time, as the logits of all pixels would be hundreds of MB.
    """
    wide = dense_resize.apply_to_columns(_side_by_side(logits), columns)

    def classes(some):
        return dense_resize.apply_to_rows(wide, some).argmax(axis=-1)

    found = jax.lax.map(classes, rows.reshape(-1, _ROUND, rows.shape[1]))
    return found.reshape(len(rows), len(columns))


@jax.jit
def _probabilities(logits, rows, columns):
    """Return the probabilities [H, W, K] of merged logits."""
    merged = dense_resize.apply_matrices(_side_by_side(logits), rows, columns)
    return jax.nn.softmax(merged)


@jax.jit
def _classes(probabilities):
    return probabilities.argmax(axis=-1)


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
    waiting: collections.deque[np.ndarray] = collections.deque()

    def images():
        for index in range(len(data)):
            image, labels = data.sample(index)
            name = str(data.targets[index])
            mean_iou.check_labels(labels, num_classes=num_classes, name=name)
            waiting.append(labels)
            yield image

    for predicted in segmenter.maps(images()):
        yield mean_iou.areas(predicted, waiting.popleft(), num_classes=num_classes)
