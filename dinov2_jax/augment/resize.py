"""Crops of arrays, resized by Pillow's bicubic filter with antialias."""

import numpy as np
from PIL import Image

# Of as many channels each; none of them has alpha, by which Pillow would multiply.
_MODES = {1: "L", 3: "RGB", 4: "RGBX"}


def crop_and_resize(
    pixels: np.ndarray, box: tuple[int, int, int, int], size: int
) -> np.ndarray:
    """Cuts a box out of an image and resizes it to a square.

    The same to the bit as `Image.crop(box).resize((size, size), BICUBIC)`, channel by
    channel. The crop comes first: `resize(box=...)` would let in pixels beside it.

    Args:
      pixels: uint8 [H, W, C].
      box: (left, top, right, bottom) inside the image, in pixels.
      size: Of the result, in pixels.

    Returns:
      uint8 [size, size, C], perhaps not writable.
    """
    left, top, right, bottom = box
    crop = pixels[top:bottom, left:right]
    channels = crop.shape[2]
    if channels in _MODES:
        return _resize(crop, size)
    result = np.empty((size, size, channels), np.uint8)
    start = 0
    while start < channels:
        # Four at a time cost little more than one.
        count = next(n for n in (4, 3, 1) if start + n <= channels)
        result[..., start : start + count] = _resize(
            crop[..., start : start + count], size
        )
        start += count
    return result


def _resize(crop: np.ndarray, size: int) -> np.ndarray:
    height, width, channels = crop.shape
    mode = _MODES[channels]
    data = np.ascontiguousarray(crop)
    image = Image.frombuffer(mode, (width, height), data, "raw", mode, 0, 1)
    resized = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(size, size, channels)
