"""A digest that identifies parameters."""

import hashlib
from typing import Any

import jax
import numpy as np


def digest(params: Any) -> str:
    """Return the hash of all names, shapes and values, 16 hexadecimal digits.

    Args:
      params: Tree of NumPy arrays.
    """
    found = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        found.update(f"{jax.tree_util.keystr(path)} {leaf.shape} ".encode())
        found.update(np.ascontiguousarray(leaf))
    return found.hexdigest()
