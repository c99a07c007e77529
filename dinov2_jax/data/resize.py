"""Cutting a crop out of an image and resizing it."""

import numpy as np
from PIL import Image


def crop_and_resize(
    pixels: np.ndarray, box: tuple[int, int, int, int], size: int
) -> np.ndarray:
    """uint8 [H, W, C] -> uint8 [size, size, C]."""
    image = Image.fromarray(pixels).crop(box)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
