"""Small squares of images for pictures in reports."""

from typing import Any

import numpy as np
from PIL import Image

from dinov2_jax.data.decode import image_decoder


def square(source: Any, index: int, side: int) -> Image.Image:
    """Return the central square of an image; gray if it cannot be read.

    Args:
      source: Source of the image.
      index: Index of the image in it.
      side: Side of the square, px.
    """
    try:
        image = Image.fromarray(np.ascontiguousarray(source.open(index).pixels()))
    except image_decoder.BadImage:
        return Image.new("RGB", (side, side), "gray")
    shorter = min(image.size)
    left, top = (image.width - shorter) // 2, (image.height - shorter) // 2
    cut = image.crop((left, top, left + shorter, top + shorter))
    return cut.resize((side, side), Image.Resampling.BICUBIC)
