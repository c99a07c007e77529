"""Reading of a file without the risk of hanging or filling the memory."""

import os
import stat
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from dinov2_jax.data.decode import pixel_formats

_Result = TypeVar("_Result")
_LARGE = 2**22  # bytes; the header of larger files is checked first


def read(
    path: str | os.PathLike, *, max_bytes: int, check: Callable[[BinaryIO], Any]
) -> bytes:
    """Read a file without the risk of hanging or filling the memory.

    Args:
      path: Path of the file.
      max_bytes: Larger files are refused.
      check: Function called with a large opened file; raises if the file cannot be
        used.

    Raises:
      Unusable: It is a FIFO, a folder or the like, or too large.
      OSError: From the file system.
    """
    size = _checked_size(path, max_bytes)
    with open(path, "rb", opener=_open_without_waiting) as file:
        if size > _LARGE:
            check(file)
            file.seek(0)
        return file.read(size)


def read_header(
    path: str | os.PathLike, *, max_bytes: int, read: Callable[[BinaryIO], _Result]
) -> _Result:
    """Return what a function reads from an opened file, such as its header.

    Args:
      path: Path of the file.
      max_bytes: Larger files are refused.
      read: Function called with the opened file.

    Raises:
      Unusable: It is a FIFO, a folder or the like, or too large.
      OSError: From the file system.
    """
    _checked_size(path, max_bytes)
    with open(path, "rb", opener=_open_without_waiting) as file:
        return read(file)


def _checked_size(path: str | os.PathLike, max_bytes: int) -> int:
    """Return the size of a file in bytes; raises Unusable if it is not to be read."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise pixel_formats.Unusable(f"is {_file_kind(status.st_mode)}, not a file")
    if status.st_size > max_bytes:
        raise pixel_formats.Unusable(
            f"a file of {status.st_size} bytes is too large for images of max_pixels"
        )
    return status.st_size


def _open_without_waiting(path: str, flags: int) -> int:
    # If a FIFO has replaced the file since, open() would wait for its writer.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _file_kind(mode: int) -> str:
    kinds = {
        "a folder": stat.S_ISDIR,
        "a FIFO": stat.S_ISFIFO,
        "a socket": stat.S_ISSOCK,
    }
    return next((kind for kind, is_it in kinds.items() if is_it(mode)), "a device")
