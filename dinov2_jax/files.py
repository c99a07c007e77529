"""Atomic writing of files."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from dinov2_jax import errors


@contextlib.contextmanager
def open_new(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only if the block succeeds.

    Raises:
      UserError: It cannot be written; an earlier file of that name is untouched.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise errors.UserError(
            f"cannot write {path} ({error.strerror or error})"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
