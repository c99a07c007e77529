"""Writer of `.pth` files that needs no torch, one tensor in memory at a time.

The format is described in `torch_file.py`. The same tree gives the same bytes on every
machine and under every file name: folder, times and versions are fixed, and no
serialization id is written. The zip is written by hand because the standard library's
output changes with its version. Every entry's data starts at a multiple of 64 bytes, as
in torch, and zip64 is used where sizes or offsets need it.
"""

import functools
import math
import os
import pathlib
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from dinov2_jax import errors, files
from dinov2_jax.weights import lazy_tensor, torch_pickle

_FOLDER = "archive"  # as torch names it when it saves to memory
_ALIGNMENT = 64  # bytes
_MAX_32 = 2**32 - 1  # as size or offset: the value is in the zip64 field
_MAX_16 = 2**16 - 1
_ZIP_VERSION = 45  # 4.5, the first with zip64
_ZIP_DATE = 1 << 5 | 1  # 1 January 1980, the earliest in zip
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")

_STORAGES = {dtype: name for name, dtype in torch_pickle.STORAGES.items()}
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"  # an empty one


def write(path: str | os.PathLike, tree: Any) -> None:
    """Write a file that `torch.load` reads, also with `weights_only` or `mmap`.

    Args:
      path: Path of the file, which is written atomically.
      tree: Nested dict, OrderedDict, list and tuple of str, int, float, bool, None and
        tensors. A tensor is an array (NumPy's, or what `np.asarray` takes), a
        LazyTensor, or a function without arguments that returns an array and has its
        `shape` and `dtype` as attributes. Lazy ones are read one at a time, in the
        tree's order, each once.

    Raises:
      UserError: The file cannot be written.
      TypeError: The format has no type for a leaf.
      ValueError: A lazy tensor returned another shape or dtype than it announced.
    """
    path = pathlib.Path(path)
    if path.is_dir() or not path.parent.is_dir():
        where = f"{path} is a folder" if path.is_dir() else f"no folder {path.parent}"
        raise errors.UserError(f"cannot write {path} ({where}): pass another path")
    tensors: list[lazy_tensor.LazyTensor] = []
    data = bytearray(b"\x80\x02")
    _pickle(tree, data, tensors, "")
    data += b"."
    with files.open_new(path) as file:
        archive = _ZipWriter(file)
        archive.add("data.pkl", lambda: data)
        archive.add("byteorder", lambda: b"little")
        for i, tensor in enumerate(tensors):
            archive.add(f"data/{i}", functools.partial(_bytes, tensor))
        archive.add("version", lambda: b"3\n")
        archive.finish()


def _pickle(value: Any, out: bytearray, tensors: list, where: str) -> None:
    """Append the opcodes that push `value` to `out`, and its tensors to `tensors`."""
    if value is None:
        out += b"N"
    elif isinstance(value, bool):
        out += b"\x88" if value else b"\x89"
    elif isinstance(value, int):
        encoded = pickle.encode_long(value)
        if len(encoded) > 255:
            raise TypeError(f"{where}: torch has no integers of {len(encoded)} bytes")
        small = -(2**31) <= value < 2**31
        out += struct.pack("<ci", b"J", value) if small else b"\x8a"
        out += b"" if small else bytes([len(encoded)]) + encoded
    elif isinstance(value, float):
        out += struct.pack(">cd", b"G", value)
    elif isinstance(value, str):
        encoded = value.encode("utf-8", "surrogatepass")
        out += struct.pack("<cI", b"X", len(encoded)) + encoded
    elif isinstance(value, Mapping):
        out += _ORDERED_DICT if isinstance(value, OrderedDict) else b"}"
        out += b"("
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"{where}: the key {key!r} is neither str nor int")
            _pickle(key, out, tensors, where)
            _pickle(item, out, tensors, f"{where}/{key}")
        out += b"u"
    elif isinstance(value, list | tuple):
        out += b"](" if isinstance(value, list) else b"("
        for i, item in enumerate(value):
            _pickle(item, out, tensors, f"{where}/{i}")
        out += b"e" if isinstance(value, list) else b"t"
    else:
        tensor = _tensor(value, where)
        out += _opcodes(tensor, len(tensors))
        tensors.append(tensor)


def _tensor(value: Any, where: str) -> lazy_tensor.LazyTensor:
    read: Callable[[], Any]
    if isinstance(value, lazy_tensor.LazyTensor):
        read = value.read
    elif hasattr(value, "__array__") and not isinstance(value, np.generic):
        read = lambda: np.asarray(value)  # noqa: E731
    elif callable(value) and hasattr(value, "shape") and hasattr(value, "dtype"):
        read = value
    else:
        raise TypeError(f"{where}: torch has no {type(value).__name__}; pass an array")
    dtype = np.dtype(value.dtype)
    if dtype not in _STORAGES:
        raise TypeError(f"{where}: torch has no storage of {dtype}")
    return lazy_tensor.LazyTensor(tuple(map(int, value.shape)), dtype, read)


def _opcodes(tensor: lazy_tensor.LazyTensor, key: int) -> bytes:
    """Encode `_rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())`."""
    stride = [1]
    for n in tensor.shape[:0:-1]:
        stride.insert(0, stride[0] * max(n, 1))
    out = bytearray(b"ctorch._utils\n_rebuild_tensor_v2\n((")
    _pickle("storage", out, [], "")
    out += f"ctorch\n{_STORAGES[tensor.dtype]}\n".encode()
    for value in (str(key), "cpu", math.prod(tensor.shape)):
        _pickle(value, out, [], "")
    out += b"tQ"
    for value in (0, tensor.shape, tuple(stride[: len(tensor.shape)]), False):
        _pickle(value, out, [], "")
    return bytes(out + _ORDERED_DICT + b"tR")


def _bytes(tensor: lazy_tensor.LazyTensor) -> np.ndarray:
    array = np.asarray(tensor.read())
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise ValueError(
            f"a tensor declared as {tensor.dtype}{list(tensor.shape)} is read as "
            f"{array.dtype}{list(array.shape)}"
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _needs_64(size: int) -> bool:
    return size >= _MAX_32


def _in_32(size: int) -> int:
    return _MAX_32 if _needs_64(size) else size


class _ZipWriter:
    """Writer of uncompressed zip entries and then the zip's directory."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._directory = bytearray()
        self._count = 0

    def add(self, name: str, read: Callable[[], Any]) -> None:
        data = memoryview(read())
        encoded = f"{_FOLDER}/{name}".encode()
        start, size, crc = self._file.tell(), data.nbytes, zlib.crc32(data)
        sizes = struct.pack("<2H2Q", 1, 16, size, size) if _needs_64(size) else b""
        before = start + _LOCAL_HEADER.size + len(encoded) + len(sizes) + 4
        padding = -before % _ALIGNMENT
        extra = sizes + struct.pack("<2sH", b"FB", padding) + bytes(padding)
        size_32, start_32 = _in_32(size), _in_32(start)
        common = _ZIP_VERSION, 0, 0, 0, _ZIP_DATE, crc, size_32, size_32, len(encoded)
        self._file.write(_LOCAL_HEADER.pack(b"PK\x03\x04", *common, len(extra)))
        self._file.write(encoded + extra)
        self._file.write(data)
        fields = [size, size] * _needs_64(size) + [start] * _needs_64(start)
        extra = struct.pack(f"<2H{len(fields)}Q", 1, 8 * len(fields), *fields)
        extra = extra if fields else b""
        self._directory += _CENTRAL_HEADER.pack(
            b"PK\x01\x02", _ZIP_VERSION, *common, len(extra), 0, 0, 0, 0, start_32
        )
        self._directory += encoded + extra
        self._count += 1

    def finish(self) -> None:
        start, size, count = self._file.tell(), len(self._directory), self._count
        self._file.write(self._directory)
        self._file.write(
            _END_64.pack(
                b"PK\x06\x06",
                _END_64.size - 12,
                *(_ZIP_VERSION, _ZIP_VERSION, 0, 0, count, count, size, start),
            )
        )
        self._file.write(_LOCATOR_64.pack(b"PK\x06\x07", 0, start + size, 1))
        count_16, start_32 = min(count, _MAX_16), _in_32(start)
        self._file.write(
            _END.pack(b"PK\x05\x06", 0, 0, count_16, count_16, size, start_32, 0)
        )
