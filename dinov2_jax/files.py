"""Files that appear whole or not at all, and the folder for what can be made again."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from dinov2_jax import errors


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a new file for writing that takes its name when the block ends well.

    What was there before is untouched until then; afterwards the new content is on the
    disk, also if the machine loses power.

    Raises:
      OSError: The file cannot be written.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def open_new(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file as `whole` does, for an output that the user named.

    Raises:
      UserError: The file cannot be written.
    """
    try:
        with whole(path) as file:
            yield file
    except OSError as error:
        raise errors.UserError(
            f"cannot write {path} ({error.strerror or error})"
        ) from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
      OSError: The file cannot be written.
    """
    with whole(path) as file:
        file.write(text.encode())


def cache_folder() -> pathlib.Path:
    """Return $DINOV2_JAX_CACHE, by default ~/.cache/dinov2_jax.

    Raises:
      RuntimeError: The user has no home folder.
    """
    chosen = os.environ.get("DINOV2_JAX_CACHE")
    return pathlib.Path(chosen) if chosen else pathlib.Path.home() / ".cache/dinov2_jax"
