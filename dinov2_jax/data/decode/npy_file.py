"""Images with any number of channels from NumPy files."""

from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from dinov2_jax.data.decode import pixel_formats

MAGIC = b"\x93NUMPY"
# Width, height, a function that reads uint8 [H, W, C], and whether it scales values.
Opened = tuple[int, int, Callable[[], np.ndarray], bool]


def open_npy(
    file: BinaryIO,
    *,
    channels: int,
    value_range: tuple[float, float] | None,
    check_size: Callable[[int, int], None],
) -> Opened:
    """Read the header of a .npy file without unpickling anything.

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

    return width, height, read, kind.itemsize > 1


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
