"""A file of tensors, by what it begins with, whatever its name says."""

import os
import pathlib
from typing import Any

from dinov2_jax import errors
from dinov2_jax.weights import safetensors_file, torch_file


def read(path: str | os.PathLike) -> Any:
    """What a `.safetensors` or a PyTorch file holds, its tensors still on disk.

    Returns:
      As `torch_file.read`; of `.safetensors` a flat dict.

    Raises:
      UserError: Neither of them, damaged or unreadable.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise errors.UserError(f"{path} is neither a file nor a folder")
    try:
        with open(path, "rb") as file:
            start = file.read(torch_file.START)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise errors.UserError(f"cannot read {path} ({reason})") from error
    if start[8:9] == b"{":
        return safetensors_file.read(path)
    told = start.startswith(torch_file.ZIP) or torch_file.looks(start)
    if path.suffix == ".safetensors" and not told:  # a damaged one
        return safetensors_file.read(path)
    return torch_file.read(path)
