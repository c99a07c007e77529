"""The formats that are read with Pillow, and settings for processes that decode."""

import contextlib
import ctypes
import logging
import warnings

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# Not all that Pillow reads: it would pass EPS, for example, to Ghostscript.
FORMATS = (
    JpegImagePlugin.JpegImageFile.format,
    PngImagePlugin.PngImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
    TiffImagePlugin.TiffImageFile.format,
    BmpImagePlugin.BmpImageFile.format,
    GifImagePlugin.GifImageFile.format,
    PpmImagePlugin.PpmImageFile.format,
)


def configure() -> None:
    """Make decoding in this process quiet and faster, for all of its code.

    Programs and their worker processes call this when they start. It is not done at
    import, so that importing the package does not change the settings of the process.
    """
    # About EXIF blocks, TIFF tags and palettes: thousands of useless lines.
    warnings.filterwarnings("ignore", module=r"(PIL|tifffile)\..*")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    for name in ("PIL", "tifffile"):  # they also log the errors that they raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # libtiff prints a message for every damaged line of pixels.
    with contextlib.suppress(OSError, AttributeError):  # if Pillow is linked otherwise
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)

    # Getting fresh memory takes longer than decoding into it. Pillow copies an image
    # to NumPy in pieces of this many bytes (64 KiB by default) and joins them; glibc
    # keeps freed memory only up to the size of blocks that were freed before, 32 MiB
    # at most. A JPEG of 2000 x 1500 px takes 30 ms without these two lines and 13 ms
    # with them.
    ImageFile.MAXBLOCK = 2**24
    bytearray(2**25 - 2**16)  # never touched, and freed at once
