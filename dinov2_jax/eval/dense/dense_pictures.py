"""Pictures of segmentation and depth maps."""

import colorsys
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dinov2_jax.visualize import panels

_IGNORED = (255, 255, 255)
_HEIGHT = 240  # of an image in a row, px
_GAP = 6  # px


def class_colors(count: int) -> np.ndarray:
    """Return a colour for each class, uint8 [count, 3]; neighbours differ.

    The first one is black: it is the background of most data sets.
    """
    colors = [(0.0, 0.0, 0.0)]
    for i in range(1, count):
        hue = i * 0.6180339887 % 1.0  # steps of the golden ratio
        value = (1.0, 0.75, 0.5)[i % 3]
        colors.append(colorsys.hsv_to_rgb(hue, (0.9, 0.6)[i % 2], value))
    return np.round(255 * np.array(colors[:count])).astype(np.uint8)


def colored_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Draw labels in the colours of their classes, 255 in white.

    Args:
      labels: Labels, int [H, W].
      num_classes: Number of classes.

    Returns:
      uint8 [H, W, 3].
    """
    colors = np.full((256, 3), _IGNORED, np.uint8)
    colors[:num_classes] = class_colors(num_classes)
    return colors[labels]


def colored_depth(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """Draw depth, near places bright and unknown ones white.

    Args:
      depth: Depth in metres, [H, W]; 0 where unknown.
      low: Depth of the brightest colour, metres.
      high: Depth of the darkest colour, metres.

    Returns:
      uint8 [H, W, 3].
    """
    near = np.where(depth > 0, high + low - depth, high)
    drawn = panels.heat(near, low, high)
    drawn[depth <= 0] = _IGNORED
    return drawn


def row(images: Sequence[np.ndarray]) -> bytes:
    """Return a PNG of images side by side, uint8 [H, W, 3] each."""
    shown = []
    for image in images:
        width = max(round(image.shape[1] * _HEIGHT / image.shape[0]), 1)
        shown.append(panels.photograph(np.ascontiguousarray(image), (width, _HEIGHT)))
    total = sum(image.width + _GAP for image in shown) - _GAP
    canvas = Image.new("RGB", (total, _HEIGHT), "white")
    left = 0
    for image in shown:
        canvas.paste(image, (left, 0))
        left += image.width + _GAP
    return png(canvas)


def png(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def palette_image(labels: np.ndarray, num_classes: int) -> Image.Image:
    """Return labels as an image with a palette: its values are the classes."""
    image = Image.fromarray(labels.astype(np.uint8), "P")
    image.putpalette(class_colors(min(num_classes, 256)).tobytes())
    return image
