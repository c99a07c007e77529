"""The nearest other image of a random sample of images.

It shows what a threshold does on a pool, without a search among all pairs.

Shapes: N images, Q images of the sample, D width.
"""

import dataclasses

import numpy as np

from dinov2_jax.curate import features as features_lib

_BLOCK_VALUES = 2**24  # similarities in memory


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The nearest other image of each image of a sample.

    Attributes:
      images: Indices of the sample, int64 [Q], ascending.
      nearest: Index of the nearest other image of each, int64 [Q].
      similarity: Their cosines, float32 [Q].
    """

    images: np.ndarray
    nearest: np.ndarray
    similarity: np.ndarray


def find(features: features_lib.Features, *, count: int, seed: int) -> Neighbours:
    """Compare a sample with all images; features are streamed.

    Args:
      features: Features of at least two images.
      count: Size of the sample, Q, if there are as many images.
      seed: Seed of the sample.
    """
    rng = np.random.default_rng(seed)
    size = min(count, len(features))
    images = np.sort(rng.choice(len(features), size, replace=False))
    queries = features_lib.unit(features.take(images))
    best = np.full(size, -np.inf, np.float32)
    nearest = np.zeros(size, np.int64)
    for start, rows in features.blocks(max(_BLOCK_VALUES // size, 1)):
        found = queries @ features_lib.unit(rows).T
        own = np.flatnonzero((images >= start) & (images < start + len(rows)))
        found[own, images[own] - start] = -np.inf
        columns = found.argmax(axis=1)
        values = found[np.arange(size), columns]
        better = values > best
        best[better] = values[better]
        nearest[better] = start + columns[better]
    return Neighbours(images, nearest, best)


def distinct_pairs(found: Neighbours) -> tuple[np.ndarray, np.ndarray]:
    """Return each pair once, and the cosines.

    Args:
      found: Images and their nearest, where two can be each other's nearest.

    Returns:
      Pairs, int64 [P, 2], the smaller index first; cosines, float32 [P].
    """
    pairs = np.sort(np.stack([found.images, found.nearest], axis=1), axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    return pairs, found.similarity[first]
