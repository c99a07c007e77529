"""Sizes of projection heads, from the shapes of their tensors."""

from collections.abc import Mapping
from typing import Any

import jax

Shapes = dict[str, list[int]]


def shapes(tree: Any) -> Shapes:
    """Return the shapes of a tree of arrays, by the path of each, such as "mlp/0"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def settings(shapes: Mapping[str, list[int]]) -> dict[str, int]:
    """Return the config fields, less `head_`, that give a head of these shapes."""
    kernels = [shapes[k] for k in shapes if k.startswith("mlp") and "kernel" in k]
    found = {"nlayers": len(kernels)}
    if "last_layer/weight_v" in shapes:
        prototypes, bottleneck = shapes["last_layer/weight_v"]
        found |= {"n_prototypes": prototypes, "bottleneck_dim": bottleneck}
    if "mlp/0/kernel" in shapes:
        found["hidden_dim"] = shapes["mlp/0/kernel"][1]
    return found
