"""Images with any number of channels, from NumPy files and TIFF.

For what Pillow cannot hold: 13 satellite bands, slices of a volume, 16-bit colour.
"""

from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from dinov2_jax.data.decode import pixel_formats, tiff_header

NPY_MAGIC = b"\x93NUMPY"
# Width, height, and a function that reads uint8 [H, W, C].
Opened = tuple[int, int, Callable[[], np.ndarray]]


def open_npy(
    file: BinaryIO,
    *,
    channels: int,
    value_range: tuple[float, float] | None,
    check_size: Callable[[int, int], None],
) -> Opened:
    """Read the header of a .npy file; its data are never unpickled.

    Args:
      file: The file, at its start.
      channels: C; the array is [H, W, C] or [C, H, W], or [H, W] for one channel.
      value_range: See `pixel_formats.to_uint8`.
      check_size: Raises `Unusable` if a width and height are too large.

    Raises:
      Unusable: The shape or type is not supported.
    """
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise pixel_formats.Unusable(".npy of an unknown version")
    shape, fortran, kind = readers[version](file)
    if kind.kind not in "buif":
        raise pixel_formats.Unusable(f"{kind} pixels are not numbers")
    channels_first = _channels_come_first(shape, channels)
    height, width = shape[1:] if channels_first else shape[:2]
    check_size(width, height)
    start = file.tell()

    def read() -> np.ndarray:
        count = width * height * channels
        file.seek(start)
        content = file.read(count * kind.itemsize)
        if len(content) < count * kind.itemsize:
            raise pixel_formats.Unusable("truncated .npy")
        values = np.frombuffer(content, kind)
        values = values.reshape(shape, order="F" if fortran else "C")
        pixels = pixel_formats.to_uint8(values, value_range)
        if channels_first:
            pixels = np.moveaxis(pixels, 0, -1)
        return np.ascontiguousarray(pixels).reshape(height, width, channels)

    return width, height, read


def _channels_come_first(shape: tuple[int, ...], channels: int) -> bool:
    if len(shape) == 2 and channels == 1:
        return False
    first = len(shape) == 3 and shape[0] == channels
    last = len(shape) == 3 and shape[2] == channels
    if first == last:
        expected = f"[H, W, {channels}] or [{channels}, H, W]"
        which = "could be either of" if first else "is not"
        raise pixel_formats.Unusable(f"shape {list(shape)[:8]} {which} {expected}")
    return first


def open_tiff(
    file: BinaryIO,
    *,
    channels: int,
    value_range: tuple[float, float] | None,
    check_size: Callable[[int, int], None],
) -> Opened:
    """Read the header of a TIFF whose samples or pages are the channels.

    Args:
      file: The file, at its start.
      channels: Number of channels, C.
      value_range: See `pixel_formats.to_uint8`.
      check_size: Raises `Unusable` if a width and height are too large.

    Raises:
      Unusable: The number of channels is not C, or the pages differ.
      Exception: Almost any kind, on damaged bytes.
    """
    import tifffile  # rarely needed

    tiff = tifffile.TiffFile(file)
    page = tiff.pages[0]
    pages = [page]
    if page.samplesperpixel != channels:
        pages += _further_pages(tiff, page, channels)
    axes = page.axes
    if page.dtype is None or axes not in ("YX", "YXS", "SYX"):
        raise pixel_formats.Unusable(f"TIFF of {page.dtype} pixels in axes {axes!r}")
    tag = page.tags.get(tiff_header.ORIENTATION)
    orientation = tag.value if tag else 1
    width, height = page.imagewidth, page.imagelength
    check_size(width, height)
    for each in pages:  # whole tiles are allocated, however small the image
        check_size(each.tilewidth, each.tilelength * each.tiledepth)
    if pixel_formats.swaps_sides(orientation):
        width, height = height, width

    def read() -> np.ndarray:
        arrays = []
        for page in pages:
            try:
                values = page.asarray(maxworkers=1)
            except ValueError as error:
                if "imagecodecs" in str(error):
                    name = tifffile.COMPRESSION(page.compression).name
                    raise pixel_formats.Unusable(
                        f"{name} compression in TIFF needs: pip install imagecodecs"
                    ) from error
                raise
            pixels = pixel_formats.to_uint8(values, value_range)
            if axes == "SYX":
                pixels = np.moveaxis(pixels, 0, -1)
            arrays.append(np.atleast_3d(pixels))
        pixels = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=2)
        return pixel_formats.turn(np.ascontiguousarray(pixels), orientation)

    return width, height, read


def _further_pages(tiff, first, channels: int) -> list:
    """Return pages 1 to C - 1 of a TIFF with exactly C pages of one shape and type."""
    found = []
    for index in range(1, channels + 1):
        try:
            found.append(tiff.pages[index])
        except IndexError:
            break
    if first.samplesperpixel != 1 or len(found) != channels - 1:
        many = "more" if len(found) == channels else len(found) + 1
        raise pixel_formats.Unusable(
            f"TIFF of {first.samplesperpixel} samples in {many} pages, expected "
            f"{channels} of either"
        )
    for page in found:
        if page.shape != first.shape or page.dtype != first.dtype:
            raise pixel_formats.Unusable("the pages of the TIFF differ")
    return found
