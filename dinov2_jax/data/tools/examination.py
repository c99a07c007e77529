"""What one image is, found by reading all of it; runs in a process of its own."""

import dataclasses
import hashlib
import io
from typing import Any

from PIL import Image

from dinov2_jax.data.decode import image_decoder, multichannel


@dataclasses.dataclass(frozen=True)
class Examined:
    """An image that was read.

    Attributes:
      reason: why it cannot be used; "" if it can.
      format: such as JPEG; "" if it has none that is known.
      mode: of its colours, as Pillow calls them, or "13 channels"; likewise.
      width: px, 0 where unknown.
      height: px, 0 where unknown.
      size: bytes.
      digest: of the bytes; b"" where they could not be read.
    """

    reason: str
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    size: int = 0
    digest: bytes = b""


@dataclasses.dataclass(frozen=True)
class Examine:
    """Examines the images of a source, by index.

    Attributes:
      source: `registry.Source`.
      decoder: with which images have to be decoded without an error.
    """

    source: Any
    decoder: image_decoder.Decoder

    def __call__(self, index: int) -> Examined:
        """Reads and decodes an image; never raises for a bad one."""
        try:
            content = file_bytes(self.source, index)
        except image_decoder.BadImage as error:
            return Examined(error.reason)
        found: dict[str, Any] = dict(
            size=len(content), digest=hashlib.sha256(content).digest()[:16]
        )
        try:
            with Image.open(io.BytesIO(content)) as image:
                found |= dict(format=image.format or "", mode=image.mode)
                found |= dict(width=image.width, height=image.height)
        except Exception:  # Pillow raises almost anything; the decoder words it below
            pass
        try:
            pixels = self.decoder.decode(content, name="")
        except image_decoder.BadImage as error:
            return Examined(error.reason, **found)
        if "format" not in found:  # what only the decoder knows
            height, width, channels = pixels.shape
            npy = content.startswith(multichannel.NPY_MAGIC)
            found |= dict(format="NPY" if npy else "TIFF", width=width, height=height)
            found |= dict(mode=f"{channels} channels")
        return Examined("", **found)


def file_bytes(source: Any, index: int) -> bytes:
    """The bytes of an image's file; a PNG of those that have none.

    Raises:
      BadImage: It cannot be read.
    """
    if hasattr(source, "content"):
        return source.content(index)
    stream = io.BytesIO()
    Image.fromarray(source.open(index).pixels()).save(stream, "PNG")
    return stream.getvalue()
