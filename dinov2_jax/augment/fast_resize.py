"""Crops resized by Pillow's bicubic filter as two sparse matrix products.

The weights are Pillow's, but the arithmetic is float32 instead of 8-bit integers and
nothing is rounded between the two directions: this takes half the time and differs by a
level or two. The width is always resized first; Pillow starts with the height where
that shrinks more, and then clips other overshoots, so single pixels at hard edges can
differ by about ten levels.
"""

import functools

import numpy as np
import scipy.sparse

_A = -0.5  # parameter of the bicubic kernel, as in Pillow
_SUPPORT = 2.0  # radius of the kernel, in pixels of the coarser of the two images


def crop_and_resize(
    pixels: np.ndarray, box: tuple[int, int, int, int], size: int
) -> np.ndarray:
    """Crop a box from an image and resize it to a square, with antialiasing.

    Args:
      pixels: The image, uint8 [H, W, C].
      box: (left, top, right, bottom) inside the image, in pixels.
      size: Side of the result, in pixels.

    Returns:
      uint8 [size, size, C].
    """
    left, top, right, bottom = box
    crop = _transposed(pixels[top:bottom, left:right]).astype(np.float32)
    width, height, channels = crop.shape
    x = _weights(width, size) @ crop.reshape(width, height * channels)
    np.clip(x, 0, 255, out=x)  # as Pillow's bytes are clipped after the first direction
    x = _transposed(x.reshape(size, height, channels))
    x = _weights(height, size) @ x.reshape(height, size * channels)
    x += 0.5
    np.clip(x, 0, 255, out=x)
    return x.astype(np.uint8).reshape(size, size, channels)


def _transposed(x: np.ndarray) -> np.ndarray:
    """Transpose to [B, A, C], by channel as NumPy is slow on short inner axes."""
    turned = np.empty((x.shape[1], x.shape[0], x.shape[2]), x.dtype)
    for channel in range(x.shape[2]):
        turned[..., channel] = x[..., channel].T
    return turned


@functools.lru_cache(1024)  # 15 kB each
def _weights(before: int, after: int) -> scipy.sparse.csr_array:
    """Return the resize matrix, float32 [after, before] with rows that sum to 1."""
    scale = before / after
    stretch = max(scale, 1.0)
    reach = _SUPPORT * stretch
    centers = (np.arange(after) + 0.5) * scale
    first = np.maximum((centers - reach + 0.5).astype(int), 0)
    last = np.minimum((centers + reach + 0.5).astype(int), before)
    counts = last - first
    starts = np.concatenate([[0], np.cumsum(counts)])
    columns = np.arange(starts[-1]) + np.repeat(first - starts[:-1], counts)
    distance = columns + 0.5 - np.repeat(centers, counts)
    values = _bicubic(np.abs(distance) / stretch)
    values /= np.repeat(np.add.reduceat(values, starts[:-1]), counts)
    return scipy.sparse.csr_array(
        (values.astype(np.float32), columns, starts), shape=(after, before)
    )


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Evaluate the bicubic kernel at distances of 0 or more."""
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
