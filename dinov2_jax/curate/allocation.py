"""How many images each cluster gives: as even as the clusters' sizes allow.

Among the children of a cluster, a target t is divided so that each gives min(m, its
size), with the largest m for which the sum is at most t; what is left over goes one
each to children that have more, in the order of a keyed hash. So goes it from the
largest clusters down to the smallest ones, which give images by the same hash
(arXiv 2405.15613, section 3.3).

Shapes: J children, P parents, N images, T levels.
"""

from collections.abc import Sequence

import numpy as np

from dinov2_jax import errors
from dinov2_jax.curate import keyed_hash


def balance(
    sizes: np.ndarray, parents: np.ndarray, targets: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """Divide the targets of parents evenly among their children.

    Args:
      sizes: Number of images of each child, int [J].
      parents: Parent of each child, int [J] in [0, P).
      targets: Number of images that each parent gives, int [P], at most the sum of its
        children's sizes.
      order: Keys by which children get what is left over, the smallest first, [J].

    Returns:
      Number of images that each child gives, int64 [J].

    Raises:
      ValueError: A target is more than its parent has.
    """
    sizes, targets = np.asarray(sizes, np.int64), np.asarray(targets, np.int64)
    if (np.bincount(parents, sizes, len(targets)) < targets).any():
        raise ValueError("a target is more than its parent has")
    most = _most(sizes, parents, targets)[parents]
    given = np.minimum(sizes, most)
    left = targets - np.bincount(parents, given, len(targets)).astype(np.int64)
    larger = np.flatnonzero(sizes > most)
    larger = larger[np.lexsort((order[larger], parents[larger]))]
    owner = parents[larger]
    place = np.arange(len(larger)) - np.searchsorted(owner, owner)
    given[larger[place < left[owner]]] += 1
    return given


def _most(sizes, parents, targets) -> np.ndarray:
    """Return for each parent the largest m with sum(min(m, sizes)) <= target, [P].

    With the sizes c of J children in ascending order, sum(min(m, c)) is the least of
    c_1 + .. + c_i + (J - i) m over i. So m is the largest of
    (t - c_1 - .. - c_i) // (J - i) over i < J.
    """
    order = np.lexsort((sizes, parents))
    owner, ascending = parents[order], sizes[order]
    starts = np.searchsorted(owner, owner)
    before = np.cumsum(ascending) - ascending
    before -= before[starts]
    children = np.bincount(parents, minlength=len(targets))
    remaining = children[owner] - (np.arange(len(owner)) - starts)
    most = np.zeros(len(targets), np.int64)
    np.maximum.at(most, owner, (targets[owner] - before) // remaining)
    return most


def quotas(
    levels: Sequence[np.ndarray], count: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide a number of images among the clusters of the lowest level.

    Args:
      levels: Cluster of each image by level, the lowest first, T x int [N].
      count: Number of images to choose, at most N.
      seed: Seed of the hash that gives what is left over.

    Returns:
      The lowest cluster of each image, int [N] in [0, J), and the number of images that
      each gives, int64 [J].

    Raises:
      UserError: A cluster lies in two clusters of the level above.
    """
    ids, clusters = zip(*(np.unique(level, return_inverse=True) for level in levels))
    given = np.array([count], np.int64)
    for number in range(len(levels), 0, -1):
        here = clusters[number - 1]
        if number == len(levels):
            parents = np.zeros(len(ids[-1]), np.int64)
        else:
            parents = _parents(here, clusters[number], ids[number - 1], number)
        names = (f"c{number}:{cluster}" for cluster in ids[number - 1])
        given = balance(
            np.bincount(here), parents, given, keyed_hash.hash64(seed, names)
        )
    return clusters[0], given


def _parents(here, above, ids, number) -> np.ndarray:
    """Return the cluster of the level above of each cluster."""
    parents = np.zeros(here.max() + 1, np.int64)
    parents[here] = above
    wrong = np.flatnonzero(parents[here] != above)
    if len(wrong):
        raise errors.UserError(
            f"cluster {ids[here[wrong[0]]]} of column c{number} lies in two clusters "
            f"of column c{number + 1}: the columns must be levels of one hierarchy, "
            "the smallest clusters first"
        )
    return parents


def choose(
    names: np.ndarray, levels: Sequence[np.ndarray], count: int, *, seed: int
) -> np.ndarray:
    """Choose images evenly from the clusters.

    A count beyond N takes all images as often as it has them whole, and chooses the
    rest.

    Args:
      names: Names of the images, [N].
      levels: Cluster of each image by level, the lowest first; without any, all images
        are one cluster.
      count: Number of images to choose.
      seed: Seed of the choice.

    Returns:
      How often each image is chosen, int64 [N].
    """
    whole, rest = divmod(count, len(names))
    levels = levels or [np.zeros(len(names), np.int64)]
    leaf, given = quotas(levels, rest, seed=seed)
    order = np.lexsort((keyed_hash.hash64(seed, names), leaf))
    grouped = leaf[order]
    place = np.arange(len(order)) - np.searchsorted(grouped, grouped)
    times = np.full(len(names), whole, np.int64)
    times[order[place < given[grouped]]] += 1
    return times
