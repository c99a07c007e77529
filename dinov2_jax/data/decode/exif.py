"""The EXIF orientation of an image, wherever its format keeps it."""

import io
import re
import struct
from typing import BinaryIO

from PIL import Image

from dinov2_jax.data.decode import extra_formats, tiff_header

_PNG_SIGNATURE = 8  # bytes
_MAX_CHUNKS = 2**17
# Other formats that hold XMP state their orientation elsewhere.
_XMP_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")  # of PNG in older versions of Pillow
# As an attribute or an element.
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])\b")


def orientation(image: Image.Image, file: BinaryIO | None = None) -> int:
    """Return the EXIF orientation of an opened image; 1 if there is none.

    Without one in EXIF, `tiff:Orientation` of XMP holds. Reads headers only. Pillow
    itself turns TIFFs upright, where it is a tag.

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
    return _in_exif(exif.removeprefix(b"Exif\0\0")) or _in_xmp(image) or 1


def _in_exif(exif: bytes) -> int | None:
    """Return the orientation in an EXIF block, or None."""
    if not exif.startswith(tiff_header.MAGIC):
        return None
    try:
        tag = tiff_header.ORIENTATION
        found = tiff_header.integers(io.BytesIO(exif), (tag,))[tag]
    except ValueError:  # damaged EXIF; the pixels may be fine
        return None
    return found[0] if found else None


def _in_xmp(image: Image.Image) -> int | None:
    """Return the orientation in XMP, or None."""
    if image.format not in _XMP_FORMATS:
        return None
    for key in _XMP_KEYS:
        packet = image.info.get(key) or b""
        if isinstance(packet, str):
            packet = packet.encode("utf-8", "replace")
        match = _XMP_ORIENTATION.search(packet)
        if match:
            return int(match[1])
    return None


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
