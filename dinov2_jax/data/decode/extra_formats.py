"""Image formats that Pillow reads with a plugin, or only in some builds.

AVIF and JPEG 2000 come with Pillow; HEIC needs the extra `heif`, JPEG XL the extra
`jxl`. Nothing is imported before the first such file.
"""

import struct
from collections.abc import Callable
from typing import BinaryIO

from PIL import Image, ImageFile, features

from dinov2_jax.data.decode import (
    file_kinds,
    jpeg2000_file,
    pixel_formats,
    tga_file,
)

_MAX_BOXES = 1000


def open_image(
    kind: str, file: BinaryIO, *, check_size: Callable[[int, int], None]
) -> ImageFile.ImageFile:
    """Open a file of one of these kinds; JPEG XL is decoded at once.

    Args:
      kind: One of `OPENERS`.
      file: The file.
      check_size: Raises `Unusable` if a width and height are too large.

    Raises:
      Unusable: The library that reads it is not installed, or reads it wrongly.
      Exception: Almost any kind, on damaged bytes.
    """
    file.seek(0)
    return OPENERS[kind](file, check_size)


def _open_avif(file, check_size):
    del check_size  # opening does not decode
    if not features.check("avif"):
        raise pixel_formats.Unusable(
            "is an AVIF file, which this build of Pillow cannot read: pip install "
            "--upgrade --force-reinstall pillow"
        )
    from PIL import AvifImagePlugin

    return AvifImagePlugin.AvifImageFile(file)


def _open_heic(file, check_size):
    del check_size  # opening does not decode
    try:
        import pillow_heif
    except ImportError as error:
        raise _needs("a HEIC file", "heif") from error
    return pillow_heif.HeifImageFile(file)


def _open_jpeg_xl(file, check_size):
    try:
        from pillow_jxl import JpegXLImagePlugin
    except ImportError as error:
        raise _needs("a JPEG XL file", "jxl") from error
    check_size(*jpeg_xl_size(file))
    file.seek(0)
    return JpegXLImagePlugin.JXLImageFile(file)


def _needs(kind: str, extra: str) -> pixel_formats.Unusable:
    return pixel_formats.Unusable(f"is {kind}: pip install 'dinov2-jax[{extra}]'")


OPENERS = {
    file_kinds.AVIF: _open_avif,
    file_kinds.HEIC: _open_heic,
    file_kinds.JPEG_XL: _open_jpeg_xl,
    file_kinds.JPEG_2000: lambda file, _: jpeg2000_file.open_jpeg2000(file),
    file_kinds.TGA: lambda file, _: tga_file.open_tga(file),
}


def orientation_applied(image: Image.Image) -> bool:
    """Return whether the plugin has turned the pixels upright already.

    A JPEG XL file states its orientation in its header, which its decoder follows; EXIF
    is to be ignored, unless the file is a recompressed JPEG.
    """
    return image.format == "JXL" and not getattr(image, "jpeg", False)


def jpeg_xl_size(file: BinaryIO) -> tuple[int, int]:
    """Read the width and height in a JPEG XL header, before it is turned upright.

    Source: ISO/IEC 18181-1, SizeHeader; -2, boxes.

    Raises:
      ValueError: There is no codestream.
    """
    bits = _Bits(_jpeg_xl_codestream(file))
    small = bits.take(1)

    def side() -> int:
        if small:
            return 8 * (bits.take(5) + 1)
        return 1 + bits.take((9, 13, 18, 30)[bits.take(2)])

    height = side()
    ratio = bits.take(3)
    if not ratio:
        return side(), height
    over, under = (
        *((1, 1), (12, 10), (4, 3), (3, 2)),
        *((16, 9), (5, 4), (2, 1)),
    )[ratio - 1]
    return height * over // under, height


class _Bits:
    """Bits of a JPEG XL header, the lowest of each byte first."""

    def __init__(self, content: bytes):
        self._value = int.from_bytes(content, "little")

    def take(self, count: int) -> int:
        """Return the next bits as an integer."""
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        return taken


def _jpeg_xl_codestream(file: BinaryIO) -> bytes:
    """Return the first bytes of the codestream after its signature."""
    file.seek(0)
    start, at = file.read(2), 0
    if start == b"\xff\x0a":
        return file.read(16)
    for _ in range(_MAX_BOXES):
        file.seek(at)
        header = file.read(16)
        if len(header) < 8:
            break
        size, kind = struct.unpack_from(">I4s", header)
        begin = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", header, 8)
            begin += 8
        if kind in (b"jxlc", b"jxlp"):
            file.seek(begin + 4 * (kind == b"jxlp"))
            if file.read(2) == b"\xff\x0a":
                return file.read(16)
        if size < 8:  # to the end of the file, or damaged
            break
        at += size
    raise ValueError("no JPEG XL codestream")
