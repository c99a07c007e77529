"""How evenly images are divided among clusters."""

import numpy as np


def gini(sizes: np.ndarray) -> float:
    """Return the Gini coefficient: 0 if all sizes are equal, near 1 if one has all.

    Args:
      sizes: Sizes of the clusters, [K], empty ones included; not all 0.
    """
    sizes = np.sort(np.asarray(sizes, np.float64))
    ranks = np.arange(1, len(sizes) + 1)
    return float((2 * ranks - len(sizes) - 1) @ sizes / (len(sizes) * sizes.sum()))


def entropy(sizes: np.ndarray) -> float:
    """Return the entropy of a random image's cluster over that of equal sizes.

    1 if all sizes are equal, 0 if one cluster has all images.

    Args:
      sizes: Sizes of the clusters, [K], empty ones included; not all 0.
    """
    sizes = np.asarray(sizes, np.float64)
    if len(sizes) < 2:
        return 1.0
    shares = sizes[sizes > 0] / sizes.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(len(sizes)) + 0.0)
