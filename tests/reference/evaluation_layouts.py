"""Names and layouts of recordings of dense predictions."""

import re
from typing import Any

import evaluation_checks as checks
import jax
import jax.numpy as jnp
import numpy as np


def relative(name: str, value: Any, recorded: Any, allowed: float) -> checks.Check:
    """Relative L2 distance."""
    value, recorded = np.asarray(value, np.float64), np.asarray(recorded, np.float64)
    if value.shape != recorded.shape:
        return checks.at_most(name, np.inf, allowed)
    norm = np.linalg.norm(recorded)
    error = np.linalg.norm(value - recorded) / (norm or 1.0)
    return checks.at_most(name, error, allowed)


def channels_last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(np.moveaxis(x, 1, -1))


def channels_first(x: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def under(arrays: checks.Arrays, prefix: str) -> dict[str, jax.Array]:
    return {
        key[len(prefix) :]: jnp.asarray(arrays[key])
        for key in arrays
        if key.startswith(prefix)
    }


def numbered(arrays: checks.Arrays, pattern: str) -> list[int]:
    """The numbers in the keys that match a pattern with one group."""
    found = {m.group(1) for key in arrays if (m := re.fullmatch(pattern, key))}
    return sorted(map(int, found))
