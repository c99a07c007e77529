"""Pixel layout of a TIFF from its tags, and the library that reads it correctly.

Pillow accepts some combinations of tags but reads them wrongly: it treats signed bytes
as unsigned ones, does not invert 16-bit min-is-white, mixes up the bytes of planar
16-bit colour and of compressed big-endian numbers. So only the combinations that
`tests/data/decode/tiff_matrix_test.py` verifies go to Pillow; the others go to
tifffile, or are refused by name.
"""

import dataclasses
import re
from typing import BinaryIO

from dinov2_jax.data.decode import pixel_formats, tiff_header

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE = 0, 1, 2, 3
_PHOTOMETRICS = {
    WHITE_IS_ZERO: "min-is-white",
    BLACK_IS_ZERO: "gray",
    RGB: "RGB",
    PALETTE: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "colour filter array (camera raw)",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw (camera raw)",
}
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _DESCRIPTION = 254, 258, 259, 262, 270
_SAMPLES, _PLANAR, _EXTRA, _FORMAT, _DNG_VERSION = 277, 284, 338, 339, 50706
_TAGS = (
    *(_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _DESCRIPTION),
    *(_SAMPLES, _PLANAR, _EXTRA, _FORMAT, _DNG_VERSION),
)
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_NO_COMPRESSION, _WEBP = 1, 50001
_JPEG_2000 = (33003, 33004, 33005, 34712)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The tags of a TIFF's first page that describe how its pixels are stored.

    Attributes:
      bits: Bits of each sample.
      samples: Samples of a pixel.
      kind: SampleFormat; 1: unsigned, 2: signed, 3: floating-point.
      photometric: PhotometricInterpretation; None if it is missing.
      planar: Whether the samples are in separate planes.
      compression: Compression; 1: none.
      extra: ExtraSamples; 1: premultiplied alpha, 2: alpha, 0: unspecified.
      big_endian: Whether its numbers have their highest byte first.
      channels: Channels over all pages by OME-XML or ImageJ; None if neither is there.
      has_pages: Whether a second page follows.
    """

    bits: int
    samples: int
    kind: int
    photometric: int | None
    planar: bool
    compression: int
    extra: tuple[int, ...]
    big_endian: bool
    channels: int | None
    has_pages: bool

    @property
    def colours(self) -> int:
        """Samples of a pixel without alpha and other extra samples."""
        return self.samples - len(self.extra)

    @property
    def deep_jpeg_2000(self) -> bool:
        """Whether it is JPEG 2000 that tifffile decodes wrongly."""
        deep = self.bits > 16 or (self.bits > 8 and self.big_endian)
        return deep and self.compression in _JPEG_2000

    def describe(self) -> str:
        """Return the kind of pixels in words."""
        sign = {_SIGNED: "signed ", _FLOAT: "float "}.get(self.kind, "")
        photometric = "without a photometric interpretation"
        if self.photometric is not None:
            number = f"photometric {self.photometric}"
            photometric = _PHOTOMETRICS.get(self.photometric, number)
        return f"{self.bits}-bit {sign}{photometric} TIFF"

    def suits_pillow(self, *, as_stored: bool, value_range: bool) -> bool:
        """Return whether Pillow reads such pixels exactly, if it opens them.

        Args:
          as_stored: Whether the file's own channels are wanted, not gray or RGB.
          value_range: Whether the values are to be scaled by a given range.
        """
        if self.compression == _WEBP or self.photometric is None:
            return False
        uncompressed = self.compression == _NO_COMPRESSION
        if self.photometric == BLACK_IS_ZERO and self.samples == 1:
            if self.kind == _UNSIGNED:
                return self.bits <= 8 or self.bits == 16
            return self.bits in (16, 32) and (uncompressed or not self.big_endian)
        if self.kind != _UNSIGNED:
            return False
        if self.bits <= 8:
            return True
        colour = self.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE)
        deep = self.bits == 16 and not self.planar and colour
        return deep and not value_range and not as_stored


def read(file: BinaryIO) -> Layout:
    """Read the layout of a TIFF.

    Raises:
      Unusable: The samples differ from each other, or it is a camera's raw file.
      ValueError: The file is damaged.
    """
    tags, has_pages = tiff_header.read(file, _TAGS)
    file.seek(0)
    start = file.read(16)

    def one(tag: int, default: int | None) -> int | None:
        values = tags.get(tag) or (default,)
        return values[0]

    if _DNG_VERSION in tags or start[8:10] == b"CR" or one(_SUBFILE, 0) & 1:
        raise pixel_formats.Unusable(
            "the first page is a preview, as in a camera's raw file (DNG, CR2, NEF, "
            "ARW): convert it to TIFF or JPEG"
        )
    bits, kinds = tags.get(_BITS, (1,)), tags.get(_FORMAT, (_UNSIGNED,))
    if len(set(bits)) != 1 or len(set(kinds)) != 1:
        raise pixel_formats.Unusable(
            f"TIFF whose samples differ: bits {list(bits[:8])}, sample formats "
            f"{list(kinds[:8])}"
        )
    description = tags.get(_DESCRIPTION, b"")
    return Layout(
        bits=bits[0],
        samples=one(_SAMPLES, 1),
        kind=kinds[0],
        photometric=one(_PHOTOMETRIC, None),
        planar=one(_PLANAR, 1) == 2,
        compression=one(_COMPRESSION, _NO_COMPRESSION),
        extra=tuple(tags.get(_EXTRA, ())),
        big_endian=start[:2] == b"MM",
        channels=_channels(description) if isinstance(description, bytes) else None,
        has_pages=has_pages,
    )


def _channels(description: bytes) -> int | None:
    """Return the number of channels that OME-XML or ImageJ's header names."""
    if b"<OME" in description[:4096]:
        found = re.search(rb'\bSizeC="(\d{1,6})"', description)
    elif description.startswith(b"ImageJ="):
        found = re.search(rb"^channels=(\d{1,6})", description, re.MULTILINE)
        if not found:
            return 1
    else:
        return None
    return int(found[1]) if found else None
