"""Augmentation of images with masks, as the reference trains segmentation heads.

Mirrors mmseg's pipeline of the released configs: resize by a random ratio, a crop that
is not all one class, flip, colours, padding to the crop.

Shapes: H x W pixels, S side of the crop.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image

from dinov2_jax.eval.dense import dense_resize

IGNORE = 255
_TRIES = 10  # crops that are drawn to find one of several classes
_HUE = 18 / 180  # largest shift, of a turn


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation.

    Attributes:
      crop: Side S of the crop, px.
      short: Short side of the image at ratio 1, px.
      long: Bound of its long side, px; None for none.
      ratios: Range of the ratio.
      max_share: Share of a crop's labelled pixels that one class may have.
      colors: Whether colours change.
    """

    crop: int = 512
    short: int = 512
    long: int | None = 2048
    ratios: tuple[float, float] = (0.5, 2.0)
    max_share: float = 0.75
    colors: bool = True

    def __call__(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        rng: np.random.Generator,
        normalize: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment an image and its labels.

        Args:
          image: uint8 [H, W, 3].
          labels: Labels, uint8 [H, W].
          rng: Generator of all that is random.
          normalize: Function that normalises pixels.

        Returns:
          float32 [S, S, 3], normalised and 0 where padded, and uint8 [S, S], 255 where
          padded.
        """
        size = dense_resize.rescaled_size(
            labels.shape,
            short=self.short,
            long=self.long,
            ratio=rng.uniform(*self.ratios),
        )
        image = dense_resize.resize_image(image, size)
        labels = dense_resize.resize_labels(labels, size)
        box = crop_box(labels, self.crop, rng, max_share=self.max_share)
        image, labels = image[box], labels[box]
        if rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if self.colors:
            image = distort_colors(image, rng)
        rest = [(0, self.crop - n) for n in labels.shape]
        labels = np.pad(labels, rest, constant_values=IGNORE)
        return np.pad(normalize(image), [*rest, (0, 0)]), labels


def crop_box(
    labels: np.ndarray, crop: int, rng: np.random.Generator, *, max_share: float
) -> tuple[slice, slice]:
    """Draw a crop, up to ten times until no class has more than its share.

    Args:
      labels: Labels, uint8 [H, W].
      crop: Side of the crop, px; less where the image is smaller.
      rng: Generator of the place.
      max_share: Share of the labelled pixels that one class may have.
    """
    box = (slice(0, crop), slice(0, crop))
    for _ in range(_TRIES):
        starts = [int(rng.integers(max(n - crop, 0) + 1)) for n in labels.shape]
        box = (
            slice(starts[0], starts[0] + crop),
            slice(starts[1], starts[1] + crop),
        )
        counts = np.bincount(labels[box].ravel(), minlength=256)
        counts[IGNORE] = 0
        if (counts > 0).sum() > 1 and counts.max() < max_share * counts.sum():
            break
    return box


def distort_colors(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each with probability 1/2.

    Args:
      image: uint8 [H, W, 3].
      rng: Generator of the changes.

    Returns:
      uint8 [H, W, 3]; values are cut to whole numbers after every change.
    """
    if rng.random() < 0.5:
        image = _linear(image, 1.0, rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    if contrast_first and rng.random() < 0.5:
        image = _linear(image, rng.uniform(0.5, 1.5), 0.0)
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-_HUE, _HUE) if rng.random() < 0.5 else 0.0
    if saturation != 1.0 or hue:
        hsv = np.array(Image.fromarray(np.ascontiguousarray(image)).convert("HSV"))
        hsv[..., 1] = _linear(hsv[..., 1], saturation, 0.0)
        hsv[..., 0] += np.uint8(round(hue * 256) % 256)  # wraps around
        image = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    if not contrast_first and rng.random() < 0.5:
        image = _linear(image, rng.uniform(0.5, 1.5), 0.0)
    return image


def _linear(values: np.ndarray, factor: float, shift: float) -> np.ndarray:
    changed = values.astype(np.float32) * np.float32(factor) + np.float32(shift)
    return np.clip(changed, 0, 255).astype(np.uint8)
