"""Objects without labels: k-means over the patch features of one or many images.

Shapes: h x w patches, H x W pixels, D width, K clusters.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from sklearn import cluster

from dinov2_jax import errors
from dinov2_jax.eval.dense import dense_resize


def cluster_centres(
    grids: Sequence[np.ndarray], num_clusters: int, *, seed: int = 0
) -> np.ndarray:
    """Find the centres of the patches of all images, by their directions.

    Args:
      grids: Patch features of each image, [h, w, D].
      num_clusters: Number of clusters K.
      seed: Seed of the start.

    Returns:
      float32 [K, D] of unit length, the most common cluster first.

    Raises:
      UserError: There are fewer patches than clusters.
    """
    x = np.concatenate([grid.reshape(-1, grid.shape[-1]) for grid in grids])
    if len(x) < num_clusters:
        raise errors.UserError(
            f"there are {len(x)} patches, fewer than --clusters={num_clusters}: use "
            "fewer clusters, or larger images"
        )
    found = cluster.KMeans(num_clusters, n_init=4, random_state=seed).fit(_unit(x))
    order = np.argsort(-np.bincount(found.labels_, minlength=num_clusters))
    return _unit(found.cluster_centers_[order])


def cluster_map(
    grid: np.ndarray, centres: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Return the cluster of each pixel: similarities are resized, then compared.

    Args:
      grid: Patch features, [h, w, D].
      centres: Centres of the clusters, [K, D].
      size: Height and width of the image, px.

    Returns:
      int [H, W] in [0, K).
    """
    similarity = jnp.asarray(_unit(grid) @ centres.T)
    return np.asarray(dense_resize.bilinear(similarity, size).argmax(axis=-1))


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
