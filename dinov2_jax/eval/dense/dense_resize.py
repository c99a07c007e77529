"""Bilinear resizing as dense prediction uses it: torch's and OpenCV's, not antialiased.

Both put pixel centres at half-integers and repeat the border. A resize is two small
matrices, one for each axis, so that its gradient is a product of matrices too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image


@functools.lru_cache(maxsize=256)
def bilinear_matrix(
    length: int, new_length: int, align_corners: bool = False
) -> np.ndarray:
    """Return the weights of a bilinear resize of one axis.

    Args:
      length: Length of the axis.
      new_length: Length after the resize.
      align_corners: Whether first and last samples keep their places, as in torch.

    Returns:
      float32 [new_length, length]; each row sums to 1. Read-only: it is cached.
    """
    low, high, share = _neighbours(length, new_length, align_corners)
    matrix = np.zeros((new_length, length))
    rows = np.arange(new_length)
    np.add.at(matrix, (rows, low), 1.0 - share)
    np.add.at(matrix, (rows, high), share)
    matrix = matrix.astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def _neighbours(length, new_length, align_corners=False):
    """Return the samples before and after each new one, and the share of the latter."""
    places = np.arange(new_length, dtype=np.float64)
    if align_corners:
        places *= (length - 1) / max(new_length - 1, 1)
    else:
        places = np.maximum((places + 0.5) * (length / new_length) - 0.5, 0.0)
    low = np.minimum(places.astype(np.int64), length - 1)
    return low, np.minimum(low + 1, length - 1), places - low


def bilinear(
    x: jax.Array, size: tuple[int, int], *, align_corners: bool = False
) -> jax.Array:
    """Resize as `torch.nn.functional.interpolate(mode="bilinear")` does.

    Args:
      x: Maps, [..., H, W, C].
      size: New height and width.
      align_corners: Whether the corners' centres keep their places.

    Returns:
      float32 maps, [..., height, width, C].
    """
    height, width = x.shape[-3:-1]
    if (height, width) == tuple(size):
        return x
    rows = bilinear_matrix(height, size[0], align_corners)
    columns = bilinear_matrix(width, size[1], align_corners)
    return apply_matrices(x, rows, columns)


def apply_matrices(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Multiply both axes of maps by matrices, in full float32.

    Args:
      x: Maps, [..., H, W, C].
      rows: Matrix of the first axis, [height, H].
      columns: Matrix of the second axis, [width, W].

    Returns:
      Maps, [..., height, width, C].
    """
    # Rows last: the large result of one image then comes out in the right layout.
    return apply_to_rows(apply_to_columns(x, columns), rows)


def apply_to_columns(x: jax.Array, columns: jax.Array) -> jax.Array:
    """Multiply the second axis of maps [..., H, W, C] by a matrix [width, W]."""
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("xw,...hwc->...hxc", columns, x, precision=precision)


def apply_to_rows(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Multiply the first axis of maps [..., H, W, C] by a matrix [height, H]."""
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("yh,...hxc->...yxc", rows, x, precision=precision)


def rescaled_size(
    size: tuple[int, int], *, short: int, long: int | None = None, ratio: float = 1.0
) -> tuple[int, int]:
    """Return the size that an image gets when its sides keep their proportion.

    Mirrors mmcv's `imrescale` with `keep_ratio`: the largest size within the bounds.

    Args:
      size: Height and width of the image.
      short: Bound of the short side, px.
      long: Bound of the long side, px; None for none.
      ratio: Factor of both bounds, rounded down to whole px.
    """
    factor = int(short * ratio) / min(size)
    if long is not None:
        factor = min(factor, int(long * ratio) / max(size))
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return height, width


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize pixels as OpenCV's INTER_LINEAR does, up to one grey level.

    Args:
      image: uint8 [H, W, C].
      size: New height and width.

    Returns:
      uint8 [height, width, C].
    """
    if image.shape[:2] == tuple(size):
        return image
    x = image.astype(np.float32)
    for axis, new_length in enumerate(size):
        low, high, share = _neighbours(image.shape[axis], new_length)
        share = share.astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return np.clip(np.floor(x + 0.5), 0, 255).astype(np.uint8)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize labels or depths [H, W] to a new height and width by nearest pixels."""
    if labels.shape == tuple(size):
        return labels
    # OpenCV's nearest: the pixel at floor(i * length / new_length), not of the centre.
    rows, columns = (
        np.minimum(np.arange(new) * old // new, old - 1)
        for old, new in zip(labels.shape, size)
    )
    return labels[rows[:, None], columns]


def rotate(
    image: np.ndarray, degrees: float, *, nearest: bool, fill: int = 0
) -> np.ndarray:
    """Rotate about the centre, keeping the size.

    Args:
      image: uint8 [H, W, C], or float32 [H, W].
      degrees: Angle, anticlockwise.
      nearest: Whether to take the nearest pixel; otherwise bilinear.
      fill: Value of what comes from outside.
    """
    resample = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    filled = (fill,) * image.shape[2] if image.ndim == 3 else fill
    turned = Image.fromarray(image).rotate(degrees, resample, fillcolor=filled)
    return np.asarray(turned)
