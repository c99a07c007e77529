"""Reader of PyTorch's `.pth` files that needs no torch and executes nothing in them.

The format is that of `torch.save` since PyTorch 1.6: an uncompressed zip archive of
`<top>/data.pkl` and one entry `<top>/data/<key>` per storage. Mirrors torch's
`serialization.py` and caffe2's `inline_container.cc`.
"""

import dataclasses
import functools
import io
import os
import pathlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from dinov2_jax import errors
from dinov2_jax.weights import lazy_tensor, torch_pickle

_MAX_PICKLE = 64 * 2**20  # bytes
_MAX_DIRECTORY = 16 * 2**20  # bytes of zip directory, 200,000 entries
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of name and of extra
START = 32  # leading bytes of a file that identify its format
ZIP = b"PK\x03\x04"
_DOWNLOAD_AGAIN = "copy or download it again"
_SAVE_AGAIN = "save the weights again with torch.save"
_OTHER_FORMATS = (  # first bytes, what the file is, the fix
    (
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        "is in PyTorch's format from before 1.6",
        f"load it with a recent torch and {_SAVE_AGAIN}",
    ),
    (b"\x80", "is a bare pickle", f"load it where it was made and {_SAVE_AGAIN}"),
    (b"\x89PNG", "is a PNG image", "pass a file of weights"),
    (b"\xff\xd8\xff", "is a JPEG image", "pass a file of weights"),
    (b"\x89HDF", "is an HDF5 file", "pass a PyTorch file"),
    (b"\x93NUMPY", "is a NumPy file", "pass a PyTorch file"),
    (b"\x1f\x8b", "is compressed with gzip", "unpack it"),
    (b"version https://git-lfs", "is a git-lfs pointer", "run git lfs pull"),
    (b"<", "is an HTML or XML page, not weights", "download it again"),
    (b"{", "is a JSON file, not weights", "pass the weights file itself"),
)


@dataclasses.dataclass(frozen=True)
class _Entry:
    start: int  # offset of its local header, bytes
    stop: int  # offset of the next entry or the directory, bytes
    size: int
    crc: int  # 0 if torch did not compute it


def read(path: str | os.PathLike) -> Any:
    """Return what `torch.load` would, with every tensor still in the file.

    Safe on files of unknown origin: nothing in them is executed or decompressed, and
    memory is bounded. A tensor that covers its storage is checked against the file's
    checksum when it is read.

    Args:
      path: A file that `torch.save` wrote.

    Returns:
      Nested dict, list and tuple of str, int, float, bool, None, bytes, np.dtype (for
      torch.dtype) and LazyTensor. OrderedDict becomes dict, a Parameter its tensor,
      torch.Size a tuple, torch.device its name.

    Raises:
      UserError: The file is not from `torch.save`, damaged, or has other objects.
    """
    path = pathlib.Path(path)
    _check_format(path)
    try:
        with _DirectoryFile(path) as file, zipfile.ZipFile(file) as archive:
            top = _checked_top(path, archive.namelist())
            entries = _entries(path, archive)
    except (errors.UserError, MemoryError):
        raise
    except Exception as error:  # a damaged archive makes zipfile raise almost anything
        reason = " ".join(str(error)[:200].split())
        raise errors.UserError(
            f"{path} is cut short or damaged ({reason}): {_DOWNLOAD_AGAIN}"
        ) from error
    byteorder = entries.get(f"{top}/byteorder")
    if byteorder and (found := _read_small(path, byteorder)) != b"little":
        raise errors.UserError(
            f"{path} has byte order {ascii(found[:20])[1:]}: load it with torch on a "
            "little-endian machine and save it again"
        )
    data = _read_small(path, entries[f"{top}/data.pkl"])
    try:
        return torch_pickle.load(
            data, functools.partial(_lazy_tensor, path, f"{top}/data/", entries)
        )
    except torch_pickle.Refused as error:
        raise errors.UserError(f"{path}: {error}") from error


def _check_format(path: pathlib.Path) -> None:
    """Raise UserError for a file that is obviously not a zip archive."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise errors.UserError(f"{path} is {kind}: pass a .pth file")
        with open(path, "rb") as file:
            start = file.read(START)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise errors.UserError(f"cannot read {path!s} ({reason})") from error
    if start.startswith(ZIP):
        return
    what, fix = f"starts with the bytes {start[:8].hex(' ')}", "pass a PyTorch file"
    if start[8:9] == b"{":
        what, fix = "is a safetensors file", "name it .safetensors"
    what, fix = identify(start) or (what, fix)
    raise errors.UserError(f"{path} {what}, not a torch.save file: {fix}")


def identify(start: bytes) -> tuple[str, str] | None:
    """Describe a file of another type by its first `START` bytes, with the fix."""
    if not start:
        return "is empty", _DOWNLOAD_AGAIN
    for magic, what, fix in _OTHER_FORMATS:
        if start.startswith(magic):
            return what, fix
    return None


class _DirectoryFile(io.FileIO):
    """A file for zipfile, which otherwise reads as much as a forged size claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise ValueError(f"its zip directory claims {size} bytes")
        return super().read(size)


def _entries(path: pathlib.Path, archive: zipfile.ZipFile) -> dict[str, _Entry]:
    """Return entries by name; none may be compressed, overlap or leave the file."""
    found: dict[str, _Entry] = {}
    infos = archive.infolist()
    order = sorted(range(len(infos)), key=lambda i: infos[i].header_offset)
    stops = [archive.start_dir] * len(infos)
    for i, following in zip(order, order[1:]):
        stops[i] = infos[following].header_offset
    for info, stop in zip(infos, stops):
        name = ascii(info.filename[:100])
        start, size = info.header_offset, info.file_size
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise errors.UserError(
                f"{path}: its entry {name} is compressed or encrypted, which "
                f"torch.save never does: {_SAVE_AGAIN}"
            )
        if size != info.compress_size or start < 0 or start + 30 + size > stop:
            raise errors.UserError(
                f"{path}: its entry {name} of {size} bytes overlaps the next entry: "
                f"{_DOWNLOAD_AGAIN}"
            )
        parts = info.filename.split("/")
        if info.filename in found or ".." in parts or not parts[0]:
            raise errors.UserError(
                f"{path}: its entry {name} is duplicated or points outside: "
                f"{_SAVE_AGAIN}"
            )
        found[info.filename] = _Entry(start, stop, size, info.CRC)
    return found


def _checked_top(path: pathlib.Path, names: list[str]) -> str:
    """Return the archive's folder, if its entries are those of a `torch.save`."""
    top = names[0].partition("/")[0] if names else ""
    code = f"{top}/constants.pkl", f"{top}/code/"
    if any(name.startswith(code) for name in names):
        raise errors.UserError(
            f"{path} is a TorchScript program: load it with torch.jit.load and save "
            "its state_dict() with torch.save"
        )
    if f"{top}/data.pkl" not in names:
        raise errors.UserError(
            f"{path} is a zip archive, but not from torch.save (no data.pkl in its "
            "first folder): pass a PyTorch file"
        )
    return top


def _read_small(path: pathlib.Path, entry: _Entry) -> bytes:
    if entry.size > _MAX_PICKLE:
        raise errors.UserError(
            f"{path}: its data.pkl has {entry.size} bytes, more than {_MAX_PICKLE}: "
            "save only the weights"
        )
    return _read_bytes(path, entry, 0, entry.size).tobytes()


def _read_bytes(
    path: pathlib.Path, entry: _Entry, offset: int, size: int
) -> np.ndarray:
    """Read bytes of an entry, checking its checksum if they are all of it."""
    buffer = np.empty(size, np.uint8)
    try:
        with open(path, "rb") as file:
            file.seek(_data_start(path, file, entry) + offset)
            found = file.readinto(buffer)
    except OSError as error:
        raise errors.UserError(f"cannot read {path} ({error.strerror})") from error
    if found != size:
        raise errors.UserError(f"{path} is cut short: {_DOWNLOAD_AGAIN}")
    if size == entry.size and entry.crc not in (0, zlib.crc32(buffer)):
        raise errors.UserError(
            f"{path} is damaged, or changed since it was opened (a checksum is wrong): "
            f"{_DOWNLOAD_AGAIN}"
        )
    return buffer


def _data_start(path: pathlib.Path, file: BinaryIO, entry: _Entry) -> int:
    file.seek(entry.start)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) == _LOCAL_HEADER.size:
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = entry.start + len(header) + name_length + extra_length
        if signature == b"PK\x03\x04" and start + entry.size <= entry.stop:
            return start
    raise errors.UserError(
        f"{path} is damaged (an entry's header is wrong): {_DOWNLOAD_AGAIN}"
    )


def _lazy_tensor(
    path: pathlib.Path,
    folder: str,
    entries: Mapping[str, _Entry],
    tensor: torch_pickle.Tensor,
) -> lazy_tensor.LazyTensor:
    entry = entries.get(folder + tensor.key)
    if entry is None or tensor.storage_size * tensor.dtype.itemsize > entry.size:
        raise torch_pickle.Refused(
            f"the storage {ascii(tensor.key)} of {tensor.storage_size} elements of "
            f"{tensor.dtype.name} is missing or too small"
        )
    return lazy_tensor.LazyTensor(
        tensor.shape, tensor.dtype, functools.partial(_read_tensor, path, entry, tensor)
    )


def _read_tensor(
    path: pathlib.Path, entry: _Entry, tensor: torch_pickle.Tensor
) -> np.ndarray:
    if 0 in tensor.shape:
        return np.empty(tensor.shape, tensor.dtype)
    itemsize = tensor.dtype.itemsize
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride))
    buffer = _read_bytes(path, entry, tensor.offset * itemsize, (last + 1) * itemsize)
    if tensor.dtype == np.bool_:
        np.not_equal(buffer, 0, out=buffer)  # NumPy's bools must be 0 or 1
    view = np.lib.stride_tricks.as_strided(
        buffer.view(tensor.dtype),
        tensor.shape,
        [step * itemsize for step in tensor.stride],
    )
    return view if view.flags.c_contiguous else view.copy()
