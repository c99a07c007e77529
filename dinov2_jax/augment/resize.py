"""Crops of arrays, resized by Pillow's bicubic filter with antialiasing."""

import numpy as np
from PIL import Image

# Number of channels -> mode; none with alpha, which Pillow would multiply in.
_MODES = {1: "L", 3: "RGB", 4: "RGBX"}


def crop_and_resize(
    pixels: np.ndarray, box: tuple[int, int, int, int], size: int
) -> np.ndarray:
    """Crop a box from an image and resize it to a square.

    Bit-identical to `Image.crop(box).resize((size, size), BICUBIC)` of each channel.
    The crop comes first: `resize(box=...)` would use pixels outside the box.

    Args:
      pixels: The image, uint8 [H, W, C].
      box: (left, top, right, bottom) inside the image, in pixels.
      size: Side of the result, in pixels.

    Returns:
      uint8 [size, size, C], possibly read-only.
    """
    left, top, right, bottom = box
    crop = pixels[top:bottom, left:right]
    channels = crop.shape[2]
    if channels in _MODES:
        return _resize(crop, size)
    result = np.empty((size, size, channels), np.uint8)
    start = 0
    while start < channels:
        # Four channels at a time cost little more than one.
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
