"""Tensors that are read on demand, so that memory never holds a whole file."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in its file.

    Attributes:
      shape: Shape of the array that `read` returns.
      dtype: Dtype of the array that `read` returns; bfloat16 is that of ml_dtypes.
      read: Function that returns the array, C-contiguous and owned by the caller. Each
        call reads the file again; nothing is cached. Raises errors.UserError if the
        file is gone or damaged.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False)
