"""Integers in the directory of a TIFF, which is also the format of EXIF.

Pillow, tifffile and libtiff stop at different places of a damaged directory, so the
tile size that one reports does not bound what another one allocates. And Pillow takes
0.2 ms to parse a camera's EXIF, of which only one number is needed.
"""

import struct
from collections.abc import Collection
from typing import BinaryIO

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 274, 322, 323
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
_MAX_ENTRIES = 4096  # as in libtiff


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
    """Read the largest width and length of a TIFF's tiles; (0, 0) if it has strips."""
    found = integers(file, (_TILE_WIDTH, _TILE_LENGTH))
    return max(found[_TILE_WIDTH], default=0), max(found[_TILE_LENGTH], default=0)
