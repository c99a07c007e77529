"""Reader of tensor files that detects their format by content, not by name."""

import os
import pathlib
from typing import Any

from dinov2_jax import errors
from dinov2_jax.weights import safetensors_file, torch_file


def read(path: str | os.PathLike) -> Any:
    """Read a `.safetensors` or PyTorch file, leaving its tensors on disk.

    Returns:
      The result of `torch_file.read`, or a flat dict for `.safetensors`.

    Raises:
      UserError: The file is neither, damaged or unreadable.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise errors.UserError(f"{path} is neither a file nor a folder")
    try:
        with open(path, "rb") as file:
            start = file.read(torch_file.START)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise errors.UserError(f"cannot read {path} ({reason})") from error
    if start[8:9] == b"{":
        return safetensors_file.read(path)
    identified = start.startswith(torch_file.ZIP) or torch_file.identify(start)
    if path.suffix == ".safetensors" and not identified:  # damaged
        return safetensors_file.read(path)
    return torch_file.read(path)
