"""The reference's `state_dict` names and layouts <-> this project's parameter trees.

Mirrors the modules of the reference's `models/vision_transformer.py` and
`layers/dino_head.py`. Trees hold NumPy arrays; blocks are stacked on a leading axis.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

# blocks.{i}.rest, or blocks.{chunk}.{i}.rest with block_chunks > 0.
_BLOCK = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.(\D.*)")


def unchunked(key: str) -> str:
    """The key as it reads without block chunks: blocks.0.5.norm1 -> blocks.5.norm1."""
    match = _BLOCK.fullmatch(key)
    return f"blocks.{match[1]}.{match[2]}" if match else key


def params_from_state_dict(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A backbone's or head's parameter tree from its `state_dict`.

    Args:
      state_dict: Keys as the module names them, without prefix; blocks may be chunked.

    Returns:
      Nested dict of arrays in this project's layout.
    """
    params: dict[str, Any] = {}
    blocks: dict[str, dict[int, np.ndarray]] = {}
    for key, value in state_dict.items():
        match = _BLOCK.fullmatch(key)
        if match:
            blocks.setdefault(match[2], {})[int(match[1])] = np.asarray(value)
        else:
            _insert(params, *_from_torch(key, np.asarray(value)))
    for rest, layers in blocks.items():
        path, _ = _from_torch(rest, layers[0])
        stacked = [_from_torch(rest, layers[i])[1] for i in range(len(layers))]
        _insert(params, ["blocks", *path], np.stack(stacked))
    return params


def state_dict_from_params(
    params: Mapping[str, Any], *, patch_size: int | None = None
) -> dict[str, np.ndarray]:
    """Inverse of `params_from_state_dict`, blocks unchunked.

    Args:
      params: A backbone's or head's parameter tree.
      patch_size: In pixels; needed for a backbone.

    Returns:
      Flat dict under the reference's names, torch layouts.
    """
    state_dict = {}
    for path, value in _leaves(params):
        value = np.asarray(value)
        if path[0] == "blocks":
            for i, layer in enumerate(value):
                key, array = _to_torch(path[1:], layer, patch_size)
                state_dict[f"blocks.{i}.{key}"] = array
        else:
            key, array = _to_torch(path, value, patch_size)
            state_dict[key] = array
    return state_dict


def _from_torch(key: str, value: np.ndarray) -> tuple[list[str], np.ndarray]:
    path = key.split(".")
    if key == "patch_embed.proj.weight":  # [D, C, p, p] -> [p*p*C, D]
        value = value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
        path[-1] = "kernel"
    elif path[-1] == "weight" and "norm" in path[-2]:
        path[-1] = "scale"
    elif path[-1] == "weight":
        value = value.T
        path[-1] = "kernel"
    return path, value


def _to_torch(path, value, patch_size) -> tuple[str, np.ndarray]:
    path = list(path)
    if path[0] == "patch_embed" and path[-1] == "kernel":
        value = value.reshape(patch_size, patch_size, -1, value.shape[-1])
        value = value.transpose(3, 2, 0, 1)
        path[-1] = "weight"
    elif path[-1] == "scale":
        path[-1] = "weight"
    elif path[-1] == "kernel":
        value = value.T
        path[-1] = "weight"
    return ".".join(path), value


def _insert(tree: dict[str, Any], path: list[str], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _leaves(tree, path=()):
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value
