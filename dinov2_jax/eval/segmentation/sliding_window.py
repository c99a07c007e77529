"""Sliding-window inference of segmentation heads, merged in two matrix products.

Mirrors mmseg's `slide_inference`: logits of each window are resized to the window,
summed, divided by the number of windows over each pixel and resized to the original
image. Every step is linear and acts on rows and columns separately, and windows form a
grid. So all of it is one matrix for rows and one for columns, applied to the windows'
coarse logits laid side by side: nothing is ever formed at the window's resolution.

Shapes: B images, H x W pixels, a x b windows, h x w patches a window, K classes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.eval.dense import dense_resize


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows start along one axis; the last one ends at the border.

    Args:
      length: Length of the axis, px.
      window: Length of a window, px; a shorter axis has one window of its length.
      stride: Distance of windows, px.
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride + window, length) - window, 0) for i in range(count)]


def cut(images: Any, window: int, stride: int) -> Any:
    """Cut all windows out of images.

    Args:
      images: Images, [B, H, W, C], of NumPy or jax.
      window: Side of a window, px.
      stride: Distance of windows, px.

    Returns:
      [B, a, b, height, width, C]; a side is `window`, or the image's if that is less.
    """
    tops, lefts = (window_starts(n, window, stride) for n in images.shape[1:3])
    height, width = (min(window, n) for n in images.shape[1:3])
    xp = np if isinstance(images, np.ndarray) else jnp
    rows = [
        xp.stack([images[:, y : y + height, x : x + width] for x in lefts], axis=1)
        for y in tops
    ]
    return xp.stack(rows, axis=1)


@functools.lru_cache(maxsize=256)
def merge_matrix(
    length: int, new_length: int, *, window: int, stride: int, patches: int
) -> np.ndarray:
    """Return the matrix from windows' patches to the pixels of the result, on one axis.

    Args:
      length: Length of the axis that windows were cut from, px.
      new_length: Length of the result, px.
      window: Length of a window, px.
      stride: Distance of windows, px.
      patches: Number of patches of a window, on its padded grid.

    Returns:
      float32 [new_length, windows * patches].
    """
    starts = window_starts(length, window, stride)
    span = min(window, length)
    upsample = dense_resize.bilinear_matrix(patches, span).astype(np.float64)
    placed = np.zeros((length, len(starts), patches))
    counts = np.zeros(length)
    for i, start in enumerate(starts):
        placed[start : start + span, i] += upsample
        counts[start : start + span] += 1
    merged = placed.reshape(length, -1) / counts[:, None]
    matrix = (
        dense_resize.bilinear_matrix(length, new_length).astype(np.float64) @ merged
    )
    return matrix.astype(np.float32)


def merge(
    logits: jax.Array,
    *,
    size: tuple[int, int],
    new_size: tuple[int, int],
    window: int,
    stride: int,
) -> jax.Array:
    """Merge the logits of windows into those of the original image.

    Args:
      logits: Logits of windows as `cut` makes them, [B, a, b, h, w, K].
      size: Height and width of the images that windows were cut from, px.
      new_size: Height and width of the result, px.
      window: Side of a window, px.
      stride: Distance of windows, px.

    Returns:
      Logits [B, height, width, K].
    """
    batch, a, b, h, w, classes = logits.shape
    rows, columns = (
        merge_matrix(length, new_length, window=window, stride=stride, patches=patches)
        for length, new_length, patches in zip(size, new_size, (h, w))
    )
    flat = logits.swapaxes(2, 3).reshape(batch, a * h, b * w, classes)
    return dense_resize.apply_matrices(flat, rows, columns)


def view_sizes(
    size: tuple[int, int],
    *,
    short: int,
    long: int | None = None,
    ratios: tuple[float, ...] = (1.0,),
) -> list[tuple[int, int]]:
    """Return the sizes of the views whose probabilities are averaged.

    Args:
      size: Height and width of the original image.
      short: Short side of the view of ratio 1, px.
      long: Bound of its long side, px; None for none.
      ratios: Scales of the views; both bounds are multiplied.
    """
    return [
        dense_resize.rescaled_size(size, short=short, long=long, ratio=r)
        for r in ratios
    ]
