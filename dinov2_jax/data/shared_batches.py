"""Transfer of batches from workers to the trainer through files in shared memory.

Each loader locks its own folder while it lives; the next loader removes folders left by
killed ones. Python's shared memory objects, which grain uses, are registered
with a process that warns at exit about each one that a race left behind.
"""

import contextlib
import dataclasses
import itertools
import mmap
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from dinov2_jax import errors, files

_MEMORY = pathlib.Path("/dev/shm")
_PREFIX = "dinov2_jax_loader_"
_LEAST = 2**20  # bytes; with less, shared memory is not used
_SMALL = 4096  # bytes; smaller arrays go through the pipe
_ALIGNED = 64  # bytes; alignment that jax prefers for host arrays


class Folder:
    """A folder deleted by `remove` or, after a crash, by the next loader."""

    def __init__(self):
        self.in_memory = os.access(_MEMORY, os.W_OK) and _free(_MEMORY) > _LEAST
        parent = _MEMORY if self.in_memory else pathlib.Path(tempfile.gettempdir())
        _remove_stale(parent)
        while True:
            self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
            with contextlib.suppress(FileNotFoundError):  # removed as stale
                self._lock = os.open(self.path, os.O_RDONLY)
                if files.try_lock(self._lock) and os.path.isdir(self.path):
                    return
                os.close(self._lock)

    def free(self) -> int:
        """Return the free bytes of shared memory; 0 if there is none."""
        return _free(self.path) if self.in_memory else 0

    def remove(self) -> None:
        """Remove it with all unopened batches. May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _free(path: str | os.PathLike) -> int:
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def semaphores() -> Iterator[None]:
    """Explain errors of the semaphores that worker processes need.

    They are files in shared memory, which the errors do not name.

    Raises:
      UserError: Shared memory is full, read-only or missing.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise errors.UserError(
            f"cannot start worker processes: {_MEMORY} is full or cannot be written "
            f"({error.strerror}): see `df {_MEMORY}`; remove files there, give the "
            "container more (docker run --shm-size=8g), or load without workers "
            "(--config.data.workers=0)",
            exit_code=errors.TRY_AGAIN,
        ) from error


def _remove_stale(parent: pathlib.Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or just removed
            lock = os.open(folder, os.O_RDONLY)
            try:
                if files.try_lock(lock):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


@dataclasses.dataclass(frozen=True)
class Parcel:
    """A batch whose large arrays are in a file.

    Attributes:
      path: Path of the file.
      arrays: Name, dtype, shape and offset in bytes of each array in the file.
      rest: The other entries of the batch.
    """

    path: str
    arrays: tuple[tuple[str, np.dtype, tuple[int, ...], int], ...]
    rest: dict[str, Any]


class Packer:
    """Writer of batches to files of a folder, in the process that built them."""

    def __init__(self, folder: str):
        self._folder = folder
        self._numbers = itertools.count()

    def __call__(self, batch: dict[str, np.ndarray]) -> Parcel | dict[str, np.ndarray]:
        """Return a parcel, or the batch if it is small or shared memory is full."""
        arrays, offset = [], 0
        for name, array in batch.items():
            if array.nbytes >= _SMALL and not array.dtype.hasobject:
                arrays.append((name, array.dtype, array.shape, offset))
                offset += -(-array.nbytes // _ALIGNED) * _ALIGNED
        if not arrays:
            return batch
        path = os.path.join(self._folder, f"batch{os.getpid()}-{next(self._numbers)}")
        try:
            with open(path, "xb") as file:
                for name, _, _, offset in arrays:
                    file.seek(offset)
                    file.write(np.ascontiguousarray(batch[name]).data)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            return batch
        packed = {name for name, *_ in arrays}
        rest = {name: value for name, value in batch.items() if name not in packed}
        return Parcel(path, tuple(arrays), rest)


def unpack(parcel: Parcel | dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the batch; the file is unlinked, the arrays keep its memory."""
    if not isinstance(parcel, Parcel):
        return parcel
    with open(parcel.path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    os.unlink(parcel.path)
    batch = dict(parcel.rest)
    for name, dtype, shape, offset in parcel.arrays:
        count = int(np.prod(shape))
        batch[name] = np.frombuffer(memory, dtype, count, offset).reshape(shape)
    return batch
