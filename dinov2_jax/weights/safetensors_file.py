"""Reader and writer of `.safetensors` files, one tensor in memory at a time.

The library does the reading; the file is reopened for every tensor, because pages of a
file that stays mapped count as this process's memory. Writing is done here, because the
library needs all tensors in memory and writes its metadata in random order.
"""

import json
import os
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors

from dinov2_jax import errors, files
from dinov2_jax.weights import lazy_tensor

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}


def read(path: str | os.PathLike) -> dict[str, lazy_tensor.LazyTensor]:
    """Return the tensors of a file, in its order, still on disk.

    Raises:
      UserError: Not a complete `.safetensors` file, or a tensor of an unknown type.
    """
    path = pathlib.Path(path)
    tensors = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():
                tensor = file.get_slice(name)
                code, shape = tensor.get_dtype(), tuple(tensor.get_shape())
                if code not in _DTYPES:
                    raise errors.UserError(
                        f"{path}: {name} has type {code}: load the file with torch "
                        "and save it as float32, safetensors.torch.save_file("
                        "{k: v.float() for k, v in state_dict.items()}, path)"
                    )
                tensors[name] = lazy_tensor.LazyTensor(
                    shape, np.dtype(_DTYPES[code]), _reader(path, name)
                )
    except OSError as error:
        raise errors.UserError(
            f"cannot read {path} ({error.strerror or error})"
        ) from error
    except safetensors.SafetensorError as error:
        raise errors.UserError(
            f"{path} is not a complete .safetensors file ({error}): download it again"
        ) from error
    return tensors


def _reader(path: pathlib.Path, name: str):
    def read_tensor() -> np.ndarray:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    return read_tensor


def write(
    path: str | os.PathLike, tensors: Mapping[str, lazy_tensor.LazyTensor]
) -> None:
    """Write a file atomically; the same tensors give the same bytes.

    Args:
      path: Path of the file.
      tensors: Tensors by name, written in this order.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        stop = start + int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # aligns the data
    with files.open_new(path) as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8))
