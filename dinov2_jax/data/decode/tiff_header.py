"""Entries in the first directory of a TIFF, which is also the format of EXIF.

Pillow, tifffile and libtiff stop at different places of a damaged directory, so the
tile size that one reports does not bound the memory that another allocates. And Pillow
takes 0.2 ms to parse a camera's EXIF, of which only one number is needed.
"""

import struct
from collections.abc import Collection
from typing import BinaryIO

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 274, 322, 323
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
_BYTES = (1, 2, 7)  # BYTE, ASCII and UNDEFINED
_MAX_ENTRIES = 4096  # as in libtiff
_MAX_VALUES = 2**20  # of one entry; descriptions may be long


def integers(file: BinaryIO, tags: Collection[int]) -> dict[int, list[int]]:
    """Read the first value of every entry with a wanted tag in the first directory.

    Args:
      file: A TIFF file.
      tags: The wanted tags.

    Returns:
      By tag, the value of each of its entries; an intact file has at most one.

    Raises:
      ValueError: The file ends before its directory does, or is not a TIFF.
    """
    found: dict[int, list[int]] = {tag: [] for tag in tags}
    try:
        directory = _Directory(file)
        for tag, kind, _, field in directory.entries:
            if tag in found and kind in _INTEGERS:
                found[tag].append(directory.integers(kind, 1, field)[0])
    except (struct.error, OverflowError) as error:
        raise ValueError("truncated TIFF directory") from error
    return found


def read(
    file: BinaryIO, tags: Collection[int]
) -> tuple[dict[int, tuple[int, ...] | bytes], bool]:
    """Read all values of the entries with a wanted tag in the first directory.

    Args:
      file: A TIFF file.
      tags: The wanted tags.

    Returns:
      By tag, the integers, or the bytes of text; and whether a second page follows.

    Raises:
      ValueError: The file ends before its directory does, is not a TIFF, or has a
        wanted tag twice.
    """
    found: dict[int, tuple[int, ...] | bytes] = {}
    try:
        directory = _Directory(file)
        for tag, kind, count, field in directory.entries:
            if tag not in tags:
                continue
            if tag in found:
                raise ValueError(f"TIFF with two entries of tag {tag}")
            count = min(count, _MAX_VALUES)
            if kind in _BYTES and count > 1:
                found[tag] = directory.bytes(count, field)
            elif kind in _INTEGERS:
                found[tag] = directory.integers(kind, count, field)
    except (struct.error, OverflowError) as error:
        raise ValueError("truncated TIFF directory") from error
    return found, directory.has_next


class _Directory:
    """The entries of a TIFF's first directory.

    Attributes:
      entries: (tag, type, number of values, their bytes or where they are).
      has_next: Whether another directory follows.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        file.seek(0)
        start = file.read(16)
        self._order = "<" if start[:2] == b"II" else ">"
        big = 43 in start[2:4]
        self._number, count, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
        (at,) = struct.unpack_from(self._order + self._number, start, 8 if big else 4)
        (entries,) = self._unpack(count, at)
        at += struct.calcsize(self._order + count)
        size = struct.calcsize(self._order + entry)
        self.entries = []
        for i in range(min(entries, _MAX_ENTRIES)):
            self.entries.append(self._unpack(entry, at + i * size))
        self.has_next = False
        if entries <= _MAX_ENTRIES:
            file.seek(at + entries * size)
            self.has_next = any(file.read(struct.calcsize(self._number)))

    def _unpack(self, form: str, at: int) -> tuple:
        form = self._order + form
        self._file.seek(at)
        return struct.unpack(form, self._file.read(struct.calcsize(form)))

    def _at(self, field: bytes) -> int:
        return struct.unpack(self._order + self._number, field)[0]

    def integers(self, kind: int, count: int, field: bytes) -> tuple[int, ...]:
        """Return the first integers of an entry."""
        form = f"{count}{_INTEGERS[kind]}"
        if struct.calcsize(self._order + form) <= len(field):
            return struct.unpack_from(self._order + form, field)
        return self._unpack(form, self._at(field))

    def bytes(self, count: int, field: bytes) -> bytes:
        """Return the first bytes of an entry of bytes."""
        if count <= len(field):
            return field[:count]
        return self._unpack(f"{count}s", self._at(field))[0]


def largest_tile(file: BinaryIO) -> tuple[int, int]:
    """Read the largest width and length of a TIFF's tiles; (0, 0) if it has strips."""
    found = integers(file, (_TILE_WIDTH, _TILE_LENGTH))
    return max(found[_TILE_WIDTH], default=0), max(found[_TILE_LENGTH], default=0)
