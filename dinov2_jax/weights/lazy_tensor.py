"""Tensors that are still in their files, so that no model is held whole."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in its file.

    Attributes:
      shape: Of the array that `read` returns.
      dtype: Of the array that `read` returns; bfloat16 is that of ml_dtypes.
      read: Returns the array, C-contiguous and owned by the caller; each call reads
        the file again, nothing is cached. Raises errors.UserError if the file has
        gone or is damaged.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False)
