"""The EXIF orientation of an image, wherever its format keeps it."""

import io
import struct
from typing import BinaryIO

from PIL import Image

from dinov2_jax.data.decode import extra_formats, tiff_header

_PNG_SIGNATURE = 8  # bytes
_MAX_CHUNKS = 2**17


def orientation(image: Image.Image, file: BinaryIO | None = None) -> int:
    """Return the EXIF orientation of an opened image; 1 if there is none.

    Reads headers only. Pillow itself turns TIFFs upright, whose orientation is a tag.

    Args:
      image: The image. Pillow reports the turns in an AVIF as EXIF orientation.
      file: The file it was opened from; a PNG may have its EXIF after the pixels.
    """
    if extra_formats.orientation_applied(image):
        return 1
    exif = image.info.get("exif") or b""
    if not exif and image.format == "PNG":
        exif = _raw_profile(image.info.get("Raw profile type exif", ""))
        if not exif and file is not None:
            exif = _png_exif(file)
    exif = exif.removeprefix(b"Exif\0\0")
    if not exif.startswith(tiff_header.MAGIC):
        return 1
    try:
        tag = tiff_header.ORIENTATION
        found = tiff_header.integers(io.BytesIO(exif), (tag,))[tag]
    except ValueError:  # damaged EXIF; the pixels may be fine
        return 1
    return found[0] if found else 1


def _raw_profile(text: str) -> bytes:
    """Decode ImageMagick's EXIF, hexadecimal text after a name and a length."""
    try:
        return bytes.fromhex("".join(str(text).split()[2:]))
    except ValueError:
        return b""


def _png_exif(file: BinaryIO) -> bytes:
    """Return the content of a PNG's eXIf chunk, leaving the file where it is."""
    before, at = file.tell(), _PNG_SIGNATURE
    try:
        for _ in range(_MAX_CHUNKS):
            file.seek(at)
            header = file.read(8)
            if len(header) < 8:
                break
            size, kind = struct.unpack(">I4s", header)
            if kind == b"eXIf":
                return file.read(size)
            at += size + 12  # with the length, the type and the checksum
    finally:
        file.seek(before)
    return b""
