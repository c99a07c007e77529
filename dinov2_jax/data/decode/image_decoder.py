"""Decoding of one image file to uint8 [H, W, C], or a `BadImage` with the reason.

The reference opens files with PIL and calls `convert("RGB")`. This file does the same,
except that 16-bit gray is scaled (PIL clips it to white), alpha is composited over
white (PIL drops it), images are turned upright by their EXIF orientation, some TIFFs,
DICOM, HEIC and JPEG XL are read by other libraries, and images that cannot be decoded
faithfully are refused. The first frame of an animation is used. docs/images.md has a
table of all kinds.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from dinov2_jax.data.decode import (
    dicom_file,
    exif,
    extra_formats,
    file_kinds,
    npy_file,
    pillow_setup,
    pixel_formats,
    regular_file,
    tiff_file,
    tiff_header,
    tiff_layout,
)

PILLOWS_LIMIT = 178_956_970  # pixels
_SCALABLE = ("JPEG", "MPO")  # MPO: phones' JPEGs with further images inside
_METADATA = 2**26  # bytes in addition to the pixels: previews, profiles, further frames


class BadImage(Exception):
    """An image that cannot be used; carries its `name` and a short `reason`."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both in args, so that it can be pickled
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class OpenedImage:
    """An image with its header parsed.

    Attributes:
      width: Width of the decoded image in pixels.
      height: Height of the decoded image in pixels.
      read: Function reduce -> uint8 [H, W, C]; see `pixels`.
      scaled: Whether the stored values are scaled to 8 bits, as 16-bit ones are.
      loses_bits: Whether they are and the decoder cannot read more than 8 bits, so
        that it would refuse the image with a `value_range`.
    """

    width: int
    height: int
    read: Callable[[int], np.ndarray]
    scaled: bool = False
    loses_bits: bool = False

    def pixels(self, reduce: int = 1) -> np.ndarray:
        """Decode the image.

        Args:
          reduce: 1, 2, 4 or 8: an image smaller by this factor (rounded up) will do.
            JPEG is decoded to it, which is much faster; other formats to full size.

        Returns:
          uint8 [H, W, C] or [ceil(H / reduce), ceil(W / reduce), C]; do not write to
          it.

        Raises:
          BadImage: It is truncated, damaged, or of an unsupported kind.
        """
        return self.read(reduce)


def from_array(pixels: np.ndarray) -> OpenedImage:
    """Wrap uint8 [H, W, C] in memory as an opened image."""
    return OpenedImage(pixels.shape[1], pixels.shape[0], lambda reduce: pixels)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Settings for decoding image files, and the functions that do it.

    Attributes:
      max_pixels: Images with more pixels are refused by their header, undecoded.
      channels: C. 1: the luma; 3: RGB; others: the file's own channels, from .npy, TIFF
        (its samples or pages) and, for 4, RGBA as stored.
      exif_orientation: Whether to turn images upright by their EXIF orientation.
      value_range: (low, high) of pixel types other than uint8, mapped to 0 and 255;
        None: the range of the type, if it is unsigned.
    """

    max_pixels: int = PILLOWS_LIMIT
    channels: int = 3
    exif_orientation: bool = True
    value_range: tuple[float, float] | None = None

    def open(
        self, path_or_bytes: str | os.PathLike | bytes, *, name: str
    ) -> OpenedImage:
        """Read a file and its header.

        Args:
          path_or_bytes: A file's path, or its content.
          name: Name of the image in errors.

        Raises:
          BadImage: It is missing, empty, not an image, too large, or has a wrong
            number of channels.
        """
        with _reasons(name):
            content = path_or_bytes
            if not isinstance(content, bytes):
                content = self._read_file(content)
            if not content:
                raise pixel_formats.Unusable("empty file")
            parsed = self._parse(io.BytesIO(content))
        unread = [parsed.read]  # the first `read` uses the header parsed here

        def read(reduce: int) -> np.ndarray:
            with _reasons(name):
                if unread:
                    return unread.pop()(reduce)
                return self._parse(io.BytesIO(content)).read(reduce)

        opened = dataclasses.replace(parsed, read=read)
        del parsed  # otherwise its pixels would live as long as this image
        return opened

    def decode(
        self, path_or_bytes: str | os.PathLike | bytes, *, name: str
    ) -> np.ndarray:
        """Decode a file to uint8 [H, W, C]; raises `BadImage`."""
        return self.open(path_or_bytes, name=name).pixels()

    def from_pillow(self, image: Image.Image, *, name: str) -> np.ndarray:
        """Convert an image opened by Pillow to uint8 [H, W, C]; raises `BadImage`."""
        with _reasons(name):
            return self._from_pillow(image).read(1)

    def content(self, path: str | os.PathLike, *, name: str) -> bytes:
        """Read a file of at most the size that `open` reads, whatever it holds.

        Args:
          path: Path of the file.
          name: Name of the image in errors.

        Raises:
          BadImage: It cannot be read, is not a regular file, or is too large.
        """
        with _reasons(name):
            return regular_file.read(
                path, max_bytes=self._max_bytes(), check=lambda file: None
            )

    def size(self, path: str | os.PathLike, *, name: str) -> tuple[int, int]:
        """Read only the header of a file.

        Args:
          path: Path of the file.
          name: Name of the image in errors.

        Returns:
          Width and height of the decoded image in pixels.

        Raises:
          BadImage: As of `open`.
        """
        with _reasons(name):
            return regular_file.read_header(
                path, max_bytes=self._max_bytes(), read=self._header_size
            )

    def _max_bytes(self) -> int:
        # The size of max_pixels uncompressed: up to four channels of 16-bit integers,
        # or all channels as float32.
        bytes_per_pixel = max(8, 4 * self.channels)
        return _METADATA + self.max_pixels * bytes_per_pixel

    def _read_file(self, path: str | os.PathLike) -> bytes:
        # Check the header of a large file first: if it is no image or has too many
        # pixels, the rest is not worth reading.
        return regular_file.read(
            path, max_bytes=self._max_bytes(), check=self._header_size
        )

    def _header_size(self, file: BinaryIO) -> tuple[int, int]:
        """Return the width and height in a file's header, once they are checked."""
        head = file.read(file_kinds.HEAD)
        if not head:
            raise pixel_formats.Unusable("empty file")
        kind = file_kinds.name_kind(head)
        if kind and kind[0] == file_kinds.JPEG_XL:  # opening would decode it
            width, height = extra_formats.jpeg_xl_size(file)
            self._check_size(width, height)
            return width, height
        opened = self._parse(file)
        return opened.width, opened.height

    def _parse(self, file: BinaryIO) -> OpenedImage:
        """Read the header of a file."""
        file.seek(0)
        head = file.read(file_kinds.HEAD)
        file.seek(0)
        if head.startswith(npy_file.MAGIC):
            opened = self._from_arrays(npy_file.open_npy, file)
        elif head.startswith(tiff_header.MAGIC):
            opened = self._from_tiff(file)
        else:
            opened = self._from_kind(file_kinds.name_kind(head), file)
        if opened.width < 1 or opened.height < 1:
            raise pixel_formats.Unusable(f"{opened.width}x{opened.height} px is empty")
        self._check_size(opened.width, opened.height)
        return opened

    def _from_tiff(self, file: BinaryIO) -> OpenedImage:
        # Whole tiles are allocated, however small the image.
        self._check_size(*tiff_header.largest_tile(file))
        layout = tiff_layout.read(file)
        in_pages = tiff_file.pages_are_channels(layout, self.channels)
        ambiguous = self.channels == 3 and layout.samples == 1 and layout.has_pages
        ambiguous &= layout.channels is None
        suits = layout.suits_pillow(
            as_stored=self.channels not in (1, 3),
            value_range=self.value_range is not None,
        )
        if ambiguous and not in_pages:
            file.seek(0)
            tiff_file.check_pages(file)
        if suits and not in_pages:
            file.seek(0)
            # Pillow may not support it: 13 bands, floating-point colour.
            with contextlib.suppress(Image.UnidentifiedImageError):
                image = Image.open(file, formats=("TIFF",))
                if self.channels in (1, 3) or len(image.getbands()) == self.channels:
                    return self._from_pillow(image, file)
        file.seek(0)
        return self._from_arrays(tiff_file.open_tiff, file, layout=layout)

    def _from_kind(self, kind: tuple[str, str] | None, file: BinaryIO) -> OpenedImage:
        name, advice = kind or ("", "")
        if name == file_kinds.DICOM:
            return self._from_arrays(dicom_file.open_dicom, file)
        if name in extra_formats.OPENERS:
            image = extra_formats.open_image(name, file, check_size=self._check_size)
            return self._from_pillow(image, file)
        try:
            image = Image.open(file, formats=pillow_setup.FORMATS)
        except Image.UnidentifiedImageError as error:
            known = ", ".join(pillow_setup.FORMATS)
            reason = f"is {name}{advice}"
            if not name:
                reason = f"not an image ({known}, AVIF, JPEG 2000, TGA or .npy)"
            raise pixel_formats.Unusable(reason) from error
        return self._from_pillow(image, file)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise pixel_formats.Unusable(
                f"{width}x{height} px is more than max_pixels = {self.max_pixels}"
            )

    def _from_arrays(self, open_file, file, **more) -> OpenedImage:
        width, height, read, scaled = open_file(
            file,
            channels=self.channels,
            value_range=self.value_range,
            check_size=self._check_size,
            **more,
        )
        return OpenedImage(width, height, lambda reduce: read(), scaled)

    def _from_pillow(
        self, image: Image.Image, file: BinaryIO | None = None
    ) -> OpenedImage:
        if self.value_range is not None and pixel_formats.loses_bits(image):
            raise pixel_formats.Unusable(
                f"data.value_range needs 16-bit colour, of which Pillow reads 8 bits "
                f"from {image.format}: use TIFF or .npy"
            )
        orientation = exif.orientation(image, file) if self.exif_orientation else 1
        width, height = image.size
        if pixel_formats.swaps_sides(orientation):
            width, height = height, width

        def read(reduce: int) -> np.ndarray:
            if image.format in _SCALABLE and (reduce > 1 or self.channels == 1):
                # Not rounded: draft() rounds down the ratio of the sides.
                size = image.width / reduce, image.height / reduce
                image.draft("L" if self.channels == 1 else None, size)
            pixels = pixel_formats.to_array(
                image, channels=self.channels, value_range=self.value_range
            )
            return pixel_formats.turn(pixels, orientation)

        loses_bits = pixel_formats.loses_bits(image)
        scaled = pixel_formats.is_deep(image) or loses_bits
        # With a range, TIFF is read by tifffile.
        loses_bits &= image.format != "TIFF"
        return OpenedImage(width, height, read, scaled, loses_bits)


def make_decoder(config: Any) -> Decoder:
    """Return the decoder of training images that a configuration describes."""
    data = config.data
    return Decoder(
        max_pixels=data.max_pixels,
        channels=config.model.in_chans,
        exif_orientation=data.exif_orientation,
        value_range=tuple(data.value_range) or None,
    )


@contextlib.contextmanager
def _reasons(name: str):
    """Turn exceptions of Pillow and others into a `BadImage` with a short reason."""
    try:
        yield
    except pixel_formats.Unusable as error:
        raise BadImage(name, str(error)) from error
    except Image.DecompressionBombError as error:
        raise BadImage(name, "more pixels than Pillow's limit") from error
    except MemoryError as error:
        raise BadImage(name, "out of memory while decoding") from error
    except OSError as error:
        # From the file system, or Pillow's own, which have no strerror.
        raise BadImage(name, error.strerror or _damage(error)) from error
    except Exception as error:  # plugins raise almost anything on bad bytes
        raise BadImage(name, _damage(error)) from error


def _damage(error: Exception) -> str:
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    return f"cannot be decoded ({reason})"
