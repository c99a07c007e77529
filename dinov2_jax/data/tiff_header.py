"""The size of a TIFF's tiles, as every reader will find it.

Pillow, tifffile and libtiff stop at different places of a damaged directory, so that
what one of them says of the tiles does not bound what another one allocates.
"""

import struct
from typing import BinaryIO

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: BigTIFF
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}


def largest_tile(file: BinaryIO) -> tuple[int, int]:
    """Reads (width, length) of the tiles of the first page; (0, 0): in strips.

    Args:
      file: Of TIFF.

    Returns:
      The largest values that the directory holds.

    Raises:
      struct.error: The file ends before its directory does.
    """
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
    found = {_TILE_WIDTH: 0, _TILE_LENGTH: 0}
    for _ in range(min(entries, 4096)):  # libtiff's limit
        tag, kind, _, field = unpack(entry, at)
        at += struct.calcsize(order + entry)
        if tag not in found or kind not in _INTEGERS:
            continue
        size = struct.calcsize(order + _INTEGERS[kind])
        if size <= len(field):
            (value,) = struct.unpack_from(order + _INTEGERS[kind], field)
        else:
            (value,) = unpack(_INTEGERS[kind], *struct.unpack(order + number, field))
        found[tag] = max(found[tag], value)
    return found[_TILE_WIDTH], found[_TILE_LENGTH]
