"""A file that appears whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from dinov2_jax import errors


@contextlib.contextmanager
def open_new(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a new file for writing that takes its name when the block ends well.

    Raises:
      UserError: It cannot be written; what was there before is untouched.
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
