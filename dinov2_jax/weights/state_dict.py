"""Conversion between the reference's `state_dict` and this project's parameter trees.

Mirrors the modules of the reference's `models/vision_transformer.py` and
`layers/dino_head.py`. Trees hold NumPy arrays; blocks are stacked on a leading axis.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dinov2_jax.weights import lazy_tensor

# blocks.{i}.rest, or blocks.{chunk}.{i}.rest with block_chunks > 0.
_BLOCK = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.(\D.*)")


def unchunked(key: str) -> str:
    """Return the key without block chunks: blocks.0.5.norm1 -> blocks.5.norm1."""
    match = _BLOCK.fullmatch(key)
    return f"blocks.{match[1]}.{match[2]}" if match else key


def params_from_state_dict(
    state_dict: Mapping[str, Any], *, place: Callable[[np.ndarray], Any] = np.asarray
) -> dict[str, Any]:
    """Return a backbone's or head's parameter tree from its `state_dict`.

    Args:
      state_dict: Arrays or `LazyTensor`s by the module's own names, without prefix;
        blocks may be chunked. Lazy ones are read one parameter at a time, the largest
        first, so that memory holds at most one parameter twice.
      place: Function that makes the leaf of an array, for example `jnp.asarray`.

    Returns:
      Nested dict of arrays in this project's layout.
    """
    parts: dict[str, dict[int | None, Any]] = {}
    for key, value in state_dict.items():
        match = _BLOCK.fullmatch(key)
        name, index = (match[2], int(match[1])) if match else (key, None)
        parts.setdefault(name, {})[index] = value
    params: dict[str, Any] = {}
    by_size = lambda item: -sum(math.prod(v.shape) for v in item[1].values())  # noqa: E731
    for name, values in sorted(parts.items(), key=by_size):
        path, first = _from_torch(name, _array(next(iter(values.values()))))
        if None in values:
            leaf = first
        else:
            path = ["blocks", *path]
            same = len({np.dtype(v.dtype) for v in values.values()}) == 1
            dtype = first.dtype if same else np.dtype(np.float32)
            leaf = _aligned((len(values), *first.shape), dtype)
            for i in range(len(values)):
                _copy_into(leaf[i], _from_torch(name, _array(values[i]))[1])
        del first
        _insert(params, path, place(leaf))
    return params


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an empty array aligned so that `jax.device_put` need not copy it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def contiguous(value: np.ndarray) -> np.ndarray:
    """Return the array itself if it is C-contiguous, else a C-contiguous copy."""
    if value.flags.c_contiguous:
        return value
    copied = np.empty(value.shape, value.dtype)
    _copy_into(copied, value)
    return copied


def _copy_into(out: np.ndarray, value: np.ndarray) -> None:
    """Set out[...] = value, several times faster than NumPy for a transposed value."""
    if value.ndim == 2 and value.T.flags.c_contiguous:
        step = 16  # columns: a cache line of float32
        for start in range(0, value.shape[1], step):
            out[:, start : start + step] = value[:, start : start + step]
    else:
        out[...] = value


def _array(value: Any) -> np.ndarray:
    return (
        value.read() if isinstance(value, lazy_tensor.LazyTensor) else np.asarray(value)
    )


def state_dict_from_params(
    params: Mapping[str, Any], *, patch_size: int | None = None
) -> dict[str, np.ndarray]:
    """Invert `params_from_state_dict`; blocks are not chunked.

    Args:
      params: A backbone's or head's parameter tree.
      patch_size: Patch size in pixels; needed for a backbone.

    Returns:
      Flat dict by the reference's names, in torch's layouts.
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
