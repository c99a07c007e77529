"""Decoding of one image file to RGB, or a `BadImage` that says why not.

The reference opens files with PIL and calls `convert("RGB")`. So does this file, with
these differences: 16-bit gray is scaled (PIL clips it to white), alpha is laid over
white (PIL drops it), and what cannot be decoded faithfully is refused. The EXIF
orientation is ignored, as in the reference; of animations the first frame is taken.
"""

import contextlib
import dataclasses
import io
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

# Of EXIF blocks, TIFF tags and palettes: thousands of lines that help nobody.
warnings.filterwarnings("ignore", module=r"PIL\..*")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

PILLOWS_LIMIT = 178_956_970  # pixels


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
    """An image whose header was read.

    Attributes:
      width: In pixels, as shown.
      height: In pixels, as shown.
      read: reduce -> uint8 [H, W, C]; see `pixels`.
    """

    width: int
    height: int
    read: Callable[[int], np.ndarray]

    def pixels(self, reduce: int = 1) -> np.ndarray:
        """Decodes it.

        Args:
          reduce: 1, 2, 4 or 8: a copy smaller by this factor (rounded up) will do;
            formats that are not faster at that give the full size.

        Returns:
          uint8 [H, W, C] or [ceil(H / reduce), ceil(W / reduce), C].

        Raises:
          BadImage: Truncated, damaged, or of a kind that cannot be used.
        """
        return self.read(reduce)


def from_array(pixels: np.ndarray) -> OpenedImage:
    """uint8 [H, W, C] in memory -> the same as an opened image."""
    return OpenedImage(pixels.shape[1], pixels.shape[0], lambda reduce: pixels)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """How files become arrays.

    Attributes:
      max_pixels: Images with more pixels are refused by their header, undecoded.
    """

    max_pixels: int = PILLOWS_LIMIT

    def open(
        self, path_or_bytes: str | os.PathLike | bytes, *, name: str
    ) -> OpenedImage:
        """Reads a file and its header.

        Args:
          path_or_bytes: A file's path, or its content.
          name: What to call the image in errors.

        Raises:
          BadImage: Missing, empty, not an image, or too large.
        """
        content = path_or_bytes
        if not isinstance(content, bytes):
            try:
                with open(content, "rb") as file:
                    content = file.read()
            except OSError as error:
                raise BadImage(name, error.strerror or "cannot be read") from error
        if not content:
            raise BadImage(name, "empty file")
        with _reasons(name):
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size
            if width * height > self.max_pixels:
                raise BadImage(
                    name,
                    f"{width}x{height} px is more than max_pixels = {self.max_pixels}",
                )

        def read(reduce: int) -> np.ndarray:
            with _reasons(name), Image.open(io.BytesIO(content)) as image:
                return to_rgb(image, name)

        return OpenedImage(width, height, read)

    def decode(
        self, path_or_bytes: str | os.PathLike | bytes, *, name: str
    ) -> np.ndarray:
        """`open` and `pixels` in one: uint8 [H, W, 3]; raises `BadImage`."""
        return self.open(path_or_bytes, name=name).pixels()


def make_decoder(config: Any) -> Decoder:
    """The decoder of training images that a configuration describes."""
    return Decoder(max_pixels=config.data.max_pixels)


@contextlib.contextmanager
def _reasons(name: str):
    """Turns what Pillow raises into a `BadImage` with a short reason."""
    try:
        yield
    except BadImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadImage(name, "not an image") from error
    except Image.DecompressionBombError as error:
        raise BadImage(name, "more pixels than Pillow's limit") from error
    except MemoryError as error:
        raise BadImage(name, "out of memory while decoding") from error
    except Exception as error:  # Pillow's plugins raise almost anything on bad bytes
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise BadImage(name, f"cannot be decoded ({reason})") from error


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Returns uint8 [H, W, 3] of an opened image of any mode.

    Raises:
      BadImage: Floating-point pixels, or integers without a defined range.
    """
    if image.mode == "F":
        raise BadImage(name, "floating-point pixels have no defined range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise BadImage(name, "32-bit integer pixels have no defined range")
        gray = ((gray + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255
        return np.repeat(gray[:, :, None], 3, axis=2)
    has_alpha = image.mode in ("RGBA", "RGBa", "LA", "La", "PA")
    if has_alpha or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image)
