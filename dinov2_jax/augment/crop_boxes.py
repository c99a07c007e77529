"""Boxes of crops in an image, and how small it may be decoded for them."""

import math

import numpy as np

from dinov2_jax.augment import policies

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
REDUCTIONS = (8, 4, 2)  # those that JPEG decoders offer


def random_crop_box(
    rng: np.random.Generator, *, width: int, height: int, scale: tuple[float, float]
) -> Box:
    """Draw a box as torchvision's RandomResizedCrop does.

    The area is uniform in `scale`, the ratio log-uniform in `policies.RATIO`; after 10
    boxes that do not fit, it is the largest central box of an allowed ratio.

    Args:
      rng: The only source of randomness.
      width: Width of the image, in pixels.
      height: Height of the image, in pixels.
      scale: Smallest and largest share of the image's area.

    Returns:
      (left, top, right, bottom), inside the image and not empty.
    """
    low, high = policies.RATIO
    log_low, log_high = math.log(low), math.log(high)
    for _ in range(10):
        u, v = rng.random(2)
        area = width * height * (scale[0] + (scale[1] - scale[0]) * u)
        ratio = math.exp(log_low + (log_high - log_low) * v)
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < low:
        h = round(width / low)
    elif width / height > high:
        w = round(height * high)
    top, left = (height - h) // 2, (width - w) // 2
    return left, top, left + w, top + h


def reduction(boxes: list[Box], sizes: list[int]) -> int:
    """Return the largest factor by which an image may be decoded smaller.

    Args:
      boxes: Boxes of the crops.
      sizes: Sides of the crops after resizing, in pixels.

    Returns:
      The largest of 8, 4 and 2 that leaves each side of every crop at least as many
      pixels as the crop's size, else 1.
    """
    for factor in REDUCTIONS:
        if all(
            min(right - left, bottom - top) >= factor * size
            for (left, top, right, bottom), size in zip(boxes, sizes)
        ):
            return factor
    return 1


def reduced(box: Box, *, width: int, height: int, of: tuple[int, int]) -> Box:
    """Scale a box of an image to a smaller copy of the image.

    Args:
      box: The box in the image.
      width: Width of the copy, in pixels.
      height: Height of the copy, in pixels.
      of: Width and height of the image, in pixels.
    """
    x, y = width / of[0], height / of[1]
    left, top = min(round(box[0] * x), width - 1), min(round(box[1] * y), height - 1)
    right = max(min(round(box[2] * x), width), left + 1)
    bottom = max(min(round(box[3] * y), height), top + 1)
    return left, top, right, bottom
