"""Memory-mapped files of named arrays, which store lists of images on disk.

A source is pickled to its workers as the path of such a file, so neither the pickle
nor the workers' memory grows with the number of images. Arrow's files would need
pyarrow in every worker (27 MB), and have no checksums.

Layout: `_MAGIC` (with the version), uint64 length of the JSON that follows, CRC-32 of
that JSON as uint32, the JSON, and from the next multiple of 64 bytes the arrays, each
at a multiple of 64. The JSON has "header" (whatever the writer gave) and "arrays":
{name: [dtype, length, offset, CRC-32]}. Everything is little-endian.

A file's name is `<key>-<fingerprint>-<CRC-32 of the JSON>.index`, so a file in use is
never replaced by a different one.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinov2_jax import files

_MAGIC = b"dinov2ix\x01\x00\x00\x00"
_PREFIX = struct.Struct("<QI")
_ALIGNMENT = 64
_UNUSED_SECONDS = 30 * 24 * 3600  # unused indexes of the same key are then deleted


def cache_folder() -> pathlib.Path:
    """Return the folder of indexes: in $DINOV2_JAX_CACHE or ~/.cache/dinov2_jax.

    If it cannot be written to, a folder that is removed when this process ends.
    """
    try:
        folder = files.cache_folder() / "indexes"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        return folder
    except (OSError, files.NoHomeError):
        return _temporary_folder()


@functools.cache
def _temporary_folder() -> pathlib.Path:
    owner = os.getpid()
    folder = tempfile.mkdtemp(prefix="dinov2_jax-")

    def remove():
        if os.getpid() == owner:  # not a forked child
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return pathlib.Path(folder)


def key(*parts: str) -> str:
    """Return a name for the content of an index, such as ("folder", "/data")."""
    text = json.dumps(parts)  # escapes what is not UTF-8
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a hex string that changes with every value of the arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {len(array)} ".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:32]


class Index:
    """The arrays of a file, memory-mapped; pickled as the file's path.

    Attributes:
      path: Path of the file.
      header: The header that was given to `write`.
    """

    def __init__(self, path: str | os.PathLike):
        """Open a file; raises ValueError or OSError if it is not an index."""
        self.path = os.fspath(path)
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(len(_MAGIC) + _PREFIX.size)
            if len(head) < len(_MAGIC) + _PREFIX.size or head[: len(_MAGIC)] != _MAGIC:
                raise ValueError(f"{self.path} is not an index of this version")
            length, checksum = _PREFIX.unpack(head[len(_MAGIC) :])
            if length > size:
                raise ValueError(f"{self.path} is cut off")
            text = file.read(length)
        if zlib.crc32(text) != checksum:
            raise ValueError(f"{self.path} is damaged")
        content = json.loads(text)
        self.header: dict[str, Any] = content["header"]
        self._table = content["arrays"]
        self._arrays: dict[str, np.ndarray] = {}
        whole = np.memmap(self.path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        for name, (dtype, count, offset, _) in self._table.items():
            stop = offset + count * np.dtype(dtype).itemsize
            if stop > size:
                raise ValueError(f"{self.path} is cut off")
            self._arrays[name] = whole[offset:stop].view(dtype)

    def __reduce__(self):
        return Index, (self.path,)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return dict(self._arrays)

    def verify(self) -> None:
        """Read everything; raises ValueError if a checksum is wrong."""
        for name, (_, _, _, checksum) in self._table.items():
            if zlib.crc32(self._arrays[name]) != checksum:
                raise ValueError(f"{self.path} is damaged")


def newest(key: str) -> Index | None:
    """Return the newest intact index of a key, or None."""
    found = []
    for path in cache_folder().glob(f"{key}-*.index"):
        with contextlib.suppress(OSError):
            found.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(found, reverse=True):
        try:
            index = Index(path)
            index.verify()
        except (OSError, ValueError, KeyError, TypeError):
            with contextlib.suppress(OSError):
                path.unlink()
            continue
        with contextlib.suppress(OSError):
            os.utime(path)  # it is in use
        return index
    return None


def write(
    key: str, fingerprint: str, header: Any, arrays: Mapping[str, np.ndarray]
) -> Index:
    """Write an index atomically and open it.

    Args:
      key: A name from `key`.
      fingerprint: From `fingerprint`, over the arrays that identify the images.
      header: Anything that JSON can hold.
      arrays: One-dimensional arrays of any simple type.
    """
    folder = cache_folder()
    try:
        path = _write(folder, key, fingerprint, header, arrays)
    except OSError:  # a full disk, or a quota
        if folder == _temporary_folder():
            raise
        path = _write(_temporary_folder(), key, fingerprint, header, arrays)
    now = time.time()
    for other in folder.glob(f"{key}-*.index*"):
        with contextlib.suppress(OSError):
            if other != path and now - other.stat().st_mtime > _UNUSED_SECONDS:
                other.unlink()
    return Index(path)


def _write(folder, key, fingerprint, header, arrays) -> pathlib.Path:
    table, offset = {}, 0
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        table[name] = [array.dtype.str, len(array), offset, zlib.crc32(array)]
        offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    # The JSON holds the arrays' offsets, which depend on its own length.
    start = 0
    while True:
        moved = {n: [d, c, start + o, crc] for n, (d, c, o, crc) in table.items()}
        text = json.dumps({"header": header, "arrays": moved}).encode()
        used = len(_MAGIC) + _PREFIX.size + len(text)
        if used <= start:
            break
        start = (-(-used // _ALIGNMENT) + 1) * _ALIGNMENT
    checksum = zlib.crc32(text)
    path = folder / f"{key}-{fingerprint[:16]}-{checksum:08x}.index"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        Index(path).verify()
        return path  # another process was faster
    with files.whole(path) as file:
        file.write(_MAGIC + _PREFIX.pack(len(text), checksum) + text)
        for name, array in arrays.items():
            file.seek(moved[name][2])
            file.write(memoryview(array).cast("B") if array.nbytes else b"")
        file.truncate(max(file.tell(), start))
    return path


class Texts:
    """Byte strings in two arrays of an index, `<name>` and `<name>_ends`."""

    def __init__(self, index: Index, name: str):
        self._bytes, self._ends = index[name], index[f"{name}_ends"]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> bytes:
        # `_ends[-1]` would be the last end, not 0.
        start = self._ends[number - 1] if number else 0
        return self._bytes[start : self._ends[number]].tobytes()

    def all(self) -> list[bytes]:
        """Return all strings as objects, for a rebuild."""
        whole, ends = self._bytes.tobytes(), self._ends.tolist()
        return [whole[a:b] for a, b in zip([0, *ends], ends)]


def text_arrays(name: str, texts: list[bytes]) -> dict[str, np.ndarray]:
    """Return the two arrays of `Texts`."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    return {
        name: np.frombuffer(b"".join(texts), np.uint8),
        f"{name}_ends": np.cumsum(lengths),
    }
