"""Whole numbers in the directory of a TIFF, which is also how EXIF is written.

Pillow, tifffile and libtiff stop at different places of a damaged directory, so that
what one of them says of the tiles does not bound what another one allocates. And
Pillow takes 0.2 ms for the EXIF of a camera, of which one number is wanted.
"""

import struct
from collections.abc import Collection
from typing import BinaryIO

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: BigTIFF
ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 274, 322, 323
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
_MAX_ENTRIES = 4096  # as of libtiff


def integers(file: BinaryIO, tags: Collection[int]) -> dict[int, list[int]]:
    """Reads the (first) value of each entry of the first directory that has a tag.

    Args:
      file: Of TIFF.
      tags: Those that are wanted.

    Returns:
      By tag, the value of each of its entries, of which a whole file has one at most.

    Raises:
      ValueError: The file ends before its directory does, or is no TIFF.
    """
    try:
        return _integers(file, tags)
    except struct.error as error:
        raise ValueError("truncated TIFF directory") from error


def _integers(file, tags):
    file.seek(0)
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = 43 in start[2:4]
    number, count, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    (at,) = struct.unpack_from(order + number, start, 8 if big else 4)

    def unpack(form: str, at: int):
        file.seek(at)
        return struct.unpack(order + form, file.read(struct.calcsize(order + form)))

    (entries,) = unpack(count, at)
    at += struct.calcsize(order + count)
    found = {tag: [] for tag in tags}
    for _ in range(min(entries, _MAX_ENTRIES)):
        tag, kind, _, field = unpack(entry, at)
        at += struct.calcsize(order + entry)
        if tag not in found or kind not in _INTEGERS:
            continue
        size = struct.calcsize(order + _INTEGERS[kind])
        if size <= len(field):
            (value,) = struct.unpack_from(order + _INTEGERS[kind], field)
        else:
            (value,) = unpack(_INTEGERS[kind], *struct.unpack(order + number, field))
        found[tag].append(value)
    return found


def largest_tile(file: BinaryIO) -> tuple[int, int]:
    """Reads the (width, length) of a TIFF's tiles; (0, 0): it is in strips."""
    found = integers(file, (_TILE_WIDTH, _TILE_LENGTH))
    return max(found[_TILE_WIDTH], default=0), max(found[_TILE_LENGTH], default=0)
