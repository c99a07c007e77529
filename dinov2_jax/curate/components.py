"""Groups of images that show the same, from pairs, and the image that each keeps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph


@dataclasses.dataclass(frozen=True)
class Twins:
    """Images with equal hashes, and pairs of hashes, each of which stands for many.

    Attributes:
      twin: An image that stands for those with the same hash, [count].
      left: First images of pairs, [pairs]: all with its hash are pairs of all with
        that of the second.
      right: Second images, [pairs].
    """

    twin: np.ndarray
    left: np.ndarray
    right: np.ndarray


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
    count: int,
    left: np.ndarray,
    right: np.ndarray,
    order: np.ndarray,
    twins: Twins | None = None,
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
      twins: Further pairs, of images with the same or near hashes, or None.
    """
    graph = _graph(count, left, right)
    group = np.full(count, -1, np.int32)
    alone = np.diff(graph.indptr) == 0
    if twins is not None:
        with_twins = _WithTwins(count, twins)
        alone &= ~with_twins.any
    group[alone] = np.flatnonzero(alone)
    for image in order[~alone[order]]:
        if group[image] < 0:
            group[image] = image
            near = _row(graph, image)
            group[near[group[near] < 0]] = image
            if twins is not None:
                near = with_twins.leave(image)
                group[near[group[near] < 0]] = image
    return group


class _WithTwins:
    """Images that are pairs by their hashes, each given out once.

    Attributes:
      any: Whether an image has such a pair, bool [count].
    """

    def __init__(self, count: int, twins: Twins):
        self._twin = twins.twin
        self._near = _graph(count, twins.twin[twins.left], twins.twin[twins.right])
        own = np.arange(count)
        self._members = sparse.coo_array(
            (np.ones(count, bool), (twins.twin, own)), shape=(count, count)
        ).tocsr()
        several = (np.diff(self._near.indptr) > 0) | (np.diff(self._members.indptr) > 1)
        self.any = several[twins.twin]
        self._given = np.zeros(count, bool)

    def leave(self, image: int) -> np.ndarray:
        """Return the pairs of an image that were not returned before."""
        twin = self._twin[image]
        near = np.append(_row(self._near, twin), twin)
        near = near[~self._given[near]]
        self._given[near] = True
        return np.concatenate([_row(self._members, one) for one in near] or [near])


def _graph(count: int, left: np.ndarray, right: np.ndarray) -> Any:
    """Return the pairs in both directions, as a sparse matrix."""
    ones = np.ones(len(left), bool)
    graph = sparse.coo_array((ones, (left, right)), shape=(count, count)).tocsr()
    return (graph + graph.T).tocsr()


def _row(matrix: Any, row: int) -> np.ndarray:
    """Return the columns of a row of a sparse matrix that are not 0."""
    return matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]


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
