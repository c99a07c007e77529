"""JPEG 2000 files that Pillow decodes exactly; others are refused by their header.

Pillow shifts samples that have neither 8 nor 16 bits, keeps the high byte of 16-bit
colour, and approximates other colours than gray and sRGB.

Source: ISO/IEC 15444-1, annexes A (codestream) and I (boxes).
"""

import dataclasses
import struct
from typing import BinaryIO

from PIL import ImageFile, features

from dinov2_jax.data.decode import pixel_formats

_SIZES = b"\xff\x4f\xff\x51"  # start of a codestream and of its first segment
_MAX_BOXES = 1000
_COLOURS = {16: "sRGB", 17: "gray"}
_SUPERBOX = b"jp2h"


@dataclasses.dataclass
class _Header:
    """What the header says of the samples.

    Attributes:
      samples: (bits, signed, horizontal step, vertical step) of each channel.
      colour: Number of the enumerated colour space; None if it is not enumerated.
      palette: Whether samples are entries of a palette.
    """

    samples: list[tuple[int, bool, int, int]] = dataclasses.field(default_factory=list)
    colour: int | None = None
    palette: bool = False


def open_jpeg2000(file: BinaryIO) -> ImageFile.ImageFile:
    """Open a JPEG 2000 file with Pillow, undecoded.

    Raises:
      Unusable: Pillow would not decode it exactly, or cannot in this build.
      ValueError: The header is damaged.
    """
    if not features.check("jpg_2000"):
        raise pixel_formats.Unusable(
            "is a JPEG 2000 file, which this build of Pillow cannot read: pip install "
            "--upgrade --force-reinstall pillow"
        )
    from PIL import Jpeg2KImagePlugin

    problem = _problem(_read(file))
    if problem:
        raise pixel_formats.Unusable(
            f"JPEG 2000 with {problem} is not supported: convert it to PNG or TIFF"
        )
    file.seek(0)
    return Jpeg2KImagePlugin.Jpeg2KImageFile(file)


def _problem(header: _Header) -> str:
    """Return what Pillow does not decode exactly, or ""."""
    count = len(header.samples)
    bits = {bits for bits, *_ in header.samples}
    if header.palette:
        return "a palette"
    if any(signed for _, signed, *_ in header.samples):
        return "signed samples"
    if any(steps != [1, 1] for _, _, *steps in header.samples):
        return "subsampled channels"
    if bits != {8} and (bits != {16} or count > 1):
        kind = "samples" if count == 1 else "colour samples"
        return f"{'- and '.join(map(str, sorted(bits)))}-bit {kind}"
    if count not in (1, 2, 3, 4):
        return f"{count} channels"
    if header.colour not in (None, *_COLOURS):
        return f"the colour space {header.colour}"
    if count in (2, 4) and header.colour is None:
        return f"{count} channels of unknown meaning"
    return ""


def _read(file: BinaryIO) -> _Header:
    header = _Header()
    file.seek(0)
    if file.read(4) == _SIZES:
        header.samples = _codestream(file, 0)
        return header
    file.seek(0, 2)
    _read_boxes(file, 0, file.tell(), header)
    if not header.samples:
        raise ValueError("no JPEG 2000 codestream")
    return header


def _read_boxes(
    file: BinaryIO, at: int, end: int, header: _Header, *, nested: bool = False
) -> None:
    """Read the boxes between two offsets, up to the codestream."""
    for _ in range(_MAX_BOXES):
        file.seek(at)
        start = file.read(16)
        if at >= end or len(start) < 8:
            return
        size, kind = struct.unpack_from(">I4s", start)
        begin = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", start, 8)
            begin += 8
        elif not size:
            size = end - at
        if size < begin - at:
            return
        if kind == b"jp2c":
            header.samples = _codestream(file, begin)
            return
        # A superbox inside another is not valid. Following such boxes would read
        # damaged files again and again.
        if kind == _SUPERBOX and not nested:
            _read_boxes(file, begin, min(at + size, end), header, nested=True)
        elif kind == b"pclr":
            header.palette = True
        elif kind == b"colr" and header.colour is None:
            file.seek(begin)
            content = file.read(7)
            if content[:1] == b"\1":  # enumerated
                (header.colour,) = struct.unpack_from(">I", content, 3)
        at += size


def _codestream(file: BinaryIO, at: int) -> list[tuple[int, bool, int, int]]:
    """Return the samples that a codestream's first segment describes."""
    file.seek(at)
    segment = file.read(42)
    if segment[:4] != _SIZES or len(segment) < 42:
        raise ValueError("no JPEG 2000 codestream")
    (count,) = struct.unpack_from(">H", segment, 40)
    samples = file.read(3 * count)
    if len(samples) < 3 * count:
        raise ValueError("the JPEG 2000 header is cut off")
    return [
        ((depth & 0x7F) + 1, bool(depth & 0x80), across, down)
        for depth, across, down in struct.iter_unpack("3B", samples)
    ]
