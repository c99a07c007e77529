"""What Pillow, libtiff and glibc are told before the first image is opened."""

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
    TiffImagePlugin,
    WebPImagePlugin,
)

# Of EXIF blocks, TIFF tags and palettes: thousands of lines that help nobody.
warnings.filterwarnings("ignore", module=r"(PIL|tifffile)\..*")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
logging.getLogger("PIL").setLevel(logging.CRITICAL)
# Nor do libtiff's own messages, one per damaged line of pixels.
with contextlib.suppress(OSError, AttributeError):  # where Pillow is linked otherwise
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)

# Fresh memory takes longer than decoding into it. Pillow copies an image to NumPy in
# pieces of this many bytes (64 KiB by default), and joins them where there are several;
# and glibc keeps freed memory only up to the size of blocks that were freed before, of
# 32 MiB at most. A JPEG of 2000 x 1500 px: 30 ms without both lines, 13 with them.
ImageFile.MAXBLOCK = 2**24
bytearray(2**25 - 2**16)  # never touched, and freed at once

# Not all that Pillow knows: it would hand EPS, for one, to Ghostscript.
FORMATS = (
    JpegImagePlugin.JpegImageFile.format,
    PngImagePlugin.PngImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
    TiffImagePlugin.TiffImageFile.format,
    BmpImagePlugin.BmpImageFile.format,
    GifImagePlugin.GifImageFile.format,
)
