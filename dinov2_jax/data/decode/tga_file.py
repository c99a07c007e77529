"""TGA files (Truevision), which have no signature, read with Pillow.

Source: Truevision TGA File Format Specification 2.0.
"""

import struct
from typing import BinaryIO

from PIL import ImageFile, TgaImagePlugin

from dinov2_jax.data.decode import pixel_formats

_HEADER = struct.Struct("<3B2HB4H2B")
# Type of image without its bit for run lengths -> bits of a pixel, which are taken.
_DEPTHS = {1: (8,), 2: (24, 32), 3: (8,)}
_KNOWN_DEPTHS = (8, 15, 16, 24, 32)


def is_tga(head: bytes) -> bool:
    """Return whether a file begins with a valid header of TGA, and with no other."""
    if len(head) < _HEADER.size:
        return False
    _, has_map, kind, _, entries, entry, _, _, width, height, depth, flags = (
        _HEADER.unpack_from(head)
    )
    mapped = kind & 7 == 1
    return (
        kind & ~8 in _DEPTHS
        and has_map == mapped
        and (entry in _KNOWN_DEPTHS and entries > 0 if mapped else not entry)
        and width > 0
        and height > 0
        and depth in _KNOWN_DEPTHS
        and flags & 0xF <= 8
        and not flags >> 6
    )


def open_tga(file: BinaryIO) -> ImageFile.ImageFile:
    """Open a TGA file with Pillow, undecoded.

    Raises:
      Unusable: It has 15 or 16 bits a pixel, 32 bits without saying that 8 are alpha,
        or a palette of other than 24 bits.
      Exception: Almost any kind, on damaged bytes.
    """
    file.seek(0)
    fields = _HEADER.unpack(file.read(_HEADER.size))
    kind, entry, depth, flags = fields[2], fields[5], fields[10], fields[11]
    problem = ""
    if depth not in _DEPTHS[kind & 7]:
        problem = f"{depth}-bit pixels"
    elif entry not in (0, 24):
        problem = f"a {entry}-bit palette"
    elif (flags & 0xF) != (8 if depth == 32 else 0):
        problem = f"{flags & 0xF} alpha bits in {depth}-bit pixels"
    if problem:
        raise pixel_formats.Unusable(
            f"TGA with {problem} is not supported: convert it to PNG"
        )
    file.seek(0)
    return TgaImagePlugin.TgaImageFile(file)
