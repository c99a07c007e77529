"""Interpolation of learned position embeddings by two small constant matrices.

Mirrors `interpolate_pos_encoding` of the reference's `models/vision_transformer.py`,
which calls torch's bicubic resize with or without antialiasing. Both are separable and
linear, so each axis has a matrix [n_out, n_in] built in NumPy: static, differentiable,
exportable. `jax.image.resize` equals only the antialiased one.
"""

import functools

import jax.numpy as jnp
import numpy as np


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Evaluate Keys' cubic convolution kernel with parameter `a`."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=256)
def resize_matrix(
    n_in: int, n_out: int, *, offset: float = 0.0, antialias: bool = False
) -> np.ndarray:
    """Return the weights of torch's bicubic resize of one axis, align_corners=False.

    Args:
      n_in: Input length, in patches.
      n_out: Output length, in patches.
      offset: The reference's `interpolate_offset`: samples are taken at the scale
        (n_out + offset) / n_in.
      antialias: Whether to widen the kernel when shrinking (a = -0.5, window
        renormalised); otherwise a = -0.75 with the border repeated.

    Returns:
      [n_out, n_in] float64, rows sum to 1.
    """
    step = n_in / (n_out + offset)  # input samples per output sample
    weights = np.zeros((n_out, n_in))
    if antialias and n_in == n_out:
        np.fill_diagonal(weights, 1.0)  # torch skips an axis that keeps its size
        weights.setflags(write=False)
        return weights
    for i in range(n_out):
        center = (i + 0.5) * step
        if antialias:
            widen = max(step, 1.0)
            low = max(int(center - 2 * widen + 0.5), 0)
            high = min(int(center + 2 * widen + 0.5), n_in)
            window = np.arange(low, high)
            taps = _cubic((window + 0.5 - center) / widen, a=-0.5)
            weights[i, window] = taps / taps.sum()
        else:
            source = center - 0.5
            base = int(np.floor(source))
            for j in range(base - 1, base + 3):
                weights[i, min(max(j, 0), n_in - 1)] += _cubic(
                    np.asarray(source - j), a=-0.75
                )
    weights.setflags(write=False)
    return weights


def interpolate_pos_embed(
    pos_embed: jnp.ndarray,
    height: int,
    width: int,
    *,
    offset: float,
    antialias: bool,
) -> jnp.ndarray:
    """Interpolate position embeddings for a grid of `height` x `width` patches.

    Args:
      pos_embed: Position embeddings, [1, 1 + M*M, D]: class token, then a square grid,
        row-major.
      height: Rows of the new grid.
      width: Columns of the new grid.
      offset: The reference's `interpolate_offset`, see `resize_matrix`.
      antialias: Whether to antialias, see `resize_matrix`.

    Returns:
      [1, 1 + height*width, D] in the dtype of `pos_embed`; `pos_embed` itself if the
      new grid is M x M, as in the reference.
    """
    num_patches, dim = pos_embed.shape[1] - 1, pos_embed.shape[2]
    if height == width and height * width == num_patches:
        return pos_embed
    side = int(num_patches**0.5)
    rows = resize_matrix(side, height, offset=offset, antialias=antialias)
    cols = resize_matrix(side, width, offset=offset, antialias=antialias)
    grid = pos_embed[0, 1:].reshape(side, side, dim).astype(jnp.float32)
    grid = jnp.einsum(
        "hi,wj,ijd->hwd",
        rows.astype(np.float32),
        cols.astype(np.float32),
        grid,
        precision="highest",
    )
    grid = grid.reshape(1, height * width, dim).astype(pos_embed.dtype)
    return jnp.concatenate([pos_embed[:, :1], grid], axis=1)
