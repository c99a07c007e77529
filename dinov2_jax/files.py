"""Atomic writes, locks between processes, and the cache folder."""

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import pathlib
import re
import socket
import time
from collections.abc import Iterator
from typing import BinaryIO

from dinov2_jax import errors

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # `Path` drops the second /


def local_path(path: str | os.PathLike, *, name: str = "") -> pathlib.Path:
    """Return a path that a user named, with ~ replaced by the home folder.

    Args:
      path: The path, as it was given.
      name: Name of the flag or argument, for the error; "" if the caller adds it.

    Raises:
      UserError: The path is empty, or it is a URL.
    """
    text = os.path.expanduser(os.fspath(path))
    if not text:
        raise errors.UserError(f"{name or 'the path'} is empty: name a file or folder")
    if _URL.match(text):
        field = f"{name} = " if name else ""
        raise errors.UserError(
            f"{field}{path} is not on a local file system: name a local path and copy "
            "it there afterwards (gcloud storage cp -r, aws s3 sync), or mount the "
            "bucket (gcsfuse, mount-s3) and name a folder in it"
        )
    return pathlib.Path(text)


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
    except OSError as error:
        error.filename = error.filename or str(path)  # writes name no file
        raise
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
        # A path in the text need not be UTF-8.
        file.write(text.encode(errors="backslashreplace"))


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits.

    Raises:
      OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Give a complete file its name, after its content has reached the disk.

    Args:
      temporary: Path of the file, on the same file system as `path`.
      path: Path that it gets; a file there is replaced.

    Raises:
      OSError: The file cannot be written or renamed.
    """
    try:
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def lock(
    path: str | os.PathLike, *, what: str, fix: str, patience: float = 0.0
) -> io.FileIO:
    """Hold a lock file until the returned file is closed.

    The kernel releases the lock when the process ends, however it ends. The file stays
    and describes its last owner. On a file system without locks nothing is checked.

    Args:
      path: Path of the lock file, which is created if it is missing.
      what: Name of what the lock guards, for the error.
      fix: Advice for when another process holds the lock, for the error.
      patience: Seconds to wait for an owner on another host: network file systems keep
        the lock of a lost host for a while.

    Raises:
      UserError: Another process holds the lock; the message names it.
      OSError: The file cannot be opened.
    """
    file = open(path, "a+b", buffering=0)
    deadline = None
    while not _try_lock_if_supported(file.fileno()):
        file.seek(0)
        owner = file.read().decode(errors="replace").strip() or "another process"
        in_use = f"{what} is in use by {owner}"
        if deadline is None:
            elsewhere = f" on {socket.gethostname()} since " not in owner
            deadline = time.monotonic() + (patience if elsewhere else 0.0)
            if elsewhere and patience:
                logging.warning("%s: waiting up to %d s", in_use, patience)
        if time.monotonic() >= deadline:
            file.close()
            raise errors.UserError(f"{in_use}: {fix}")
        time.sleep(1)
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"pid {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
    return file


def _try_lock_if_supported(descriptor: int) -> bool:
    try:
        return try_lock(descriptor)
    except OSError:
        return True


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder; return False if another process holds it.

    The lock is released when the descriptor is closed or the process ends.

    Raises:
      OSError: The file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class NoHomeError(errors.UserError):
    """The user has no home folder."""


def cache_folder() -> pathlib.Path:
    """Return $DINOV2_JAX_CACHE, by default ~/.cache/dinov2_jax.

    Raises:
      NoHomeError: The variable is not set, and the user has no home folder.
      UserError: $DINOV2_JAX_CACHE is a URL.
    """
    chosen = os.environ.get("DINOV2_JAX_CACHE")
    if chosen:
        return local_path(chosen, name="DINOV2_JAX_CACHE")
    try:
        home = pathlib.Path.home()
    except RuntimeError as error:
        raise NoHomeError(
            "the cache has no place, as there is no home folder: set DINOV2_JAX_CACHE "
            "to a folder"
        ) from error
    return home / ".cache/dinov2_jax"
