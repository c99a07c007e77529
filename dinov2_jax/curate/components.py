"""Groups of images that show the same, from pairs, and the image that each keeps."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph


def connected(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the connected component of each image, int32 [count].

    Two images of a component need not be a pair: A and C are joined by A-B and B-C.

    Args:
      count: Number of images.
      left: First images of the pairs, [pairs].
      right: Second images, [pairs].
    """
    ones = np.ones(len(left), bool)
    graph = sparse.coo_array((ones, (left, right)), shape=(count, count))
    return csgraph.connected_components(graph, directed=False)[1]


def greedy(
    count: int, left: np.ndarray, right: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """Return the group of each image, int32 [count]: the image that the group keeps.

    The first image in the order is kept, and all that are a pair with it leave; then
    the first of the rest, and so on. So each image that leaves is a pair with a kept
    one, and no two kept ones are a pair.

    Args:
      count: Number of images.
      left: First images of the pairs, [pairs].
      right: Second images, [pairs].
      order: All images, the best first, [count].
    """
    ones = np.ones(len(left), bool)
    graph = sparse.coo_array((ones, (left, right)), shape=(count, count)).tocsr()
    graph = (graph + graph.T).tocsr()
    group = np.full(count, -1, np.int32)
    degree = np.diff(graph.indptr)
    alone = degree == 0
    group[alone] = np.flatnonzero(alone)
    for image in order[~alone[order]]:
        if group[image] < 0:
            group[image] = image
            near = graph.indices[graph.indptr[image] : graph.indptr[image + 1]]
            group[near[group[near] < 0]] = image
    return group


def number(group: np.ndarray) -> np.ndarray:
    """Return groups of several images as 0, 1, ..., others as -1; int32 [count].

    They are numbered in the order of their first images.

    Args:
      group: Any label of the group of each image, [count].
    """
    _, first, inverse, sizes = np.unique(
        group, return_index=True, return_inverse=True, return_counts=True
    )
    several = np.flatnonzero(sizes > 1)
    numbers = np.full(len(sizes), -1, np.int32)
    numbers[several[np.argsort(first[several])]] = np.arange(len(several))
    return numbers[inverse]


def first_of_each(component: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return which images are kept: of each component the first, and all others.

    Args:
      component: Component of each image, -1 for none, [count].
      order: All images, the best first, [count].
    """
    kept = component < 0
    ordered = component[order]
    _, places = np.unique(ordered, return_index=True)
    kept[order[places]] = True
    return kept


def nearest(
    names: Sequence[str] | np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    similarity: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the most similar partner of each image, and its similarity.

    Args:
      names: Names of the images, [count]; of equal partners the first name is taken.
      left: First images of the pairs, [pairs].
      right: Second images, [pairs].
      similarity: Similarities of the pairs, [pairs].

    Returns:
      int64 [count], -1 for an image in no pair, and float32 [count], NaN likewise.
    """
    image = np.concatenate([left, right])
    partner = np.concatenate([right, left])
    value = np.concatenate([similarity, similarity])
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(names, kind="stable")] = np.arange(len(names))
    order = np.lexsort((rank[partner], -value, image))
    images, places = np.unique(image[order], return_index=True)
    best = np.full(len(names), -1, np.int64)
    best[images] = partner[order][places]
    values = np.full(len(names), np.nan, np.float32)
    values[images] = value[order][places]
    return best, values
