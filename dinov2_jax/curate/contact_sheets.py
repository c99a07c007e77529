"""Small JPEGs of images, in sheets of captioned groups."""

import html
import io
import os
from collections.abc import Sequence

from PIL import Image

from dinov2_jax import html_page
from dinov2_jax.curate import features as features_lib
from dinov2_jax.data.decode import image_decoder

SIDE = 96  # longest side of a picture, px
_QUALITY = 80
STYLE = """
.sheet { display: flex; flex-wrap: wrap; gap: 10px; }
.sheet figure { margin: 0; padding: 4px; background: #f4f4f4; }
.sheet figcaption { font-size: 12px; color: #555; }
.sheet img { margin: 1px; vertical-align: middle; }
.sheet img.first { outline: 2px solid #2f855a; }
.sheet span { display: inline-block; width: 96px; padding: 3em 0; font-size: 11px;
  color: #a40; text-align: center; overflow-wrap: anywhere; }
"""


class Pictures:
    """Pictures of the images of features files.

    Args:
      features: Features, with the paths of their images if those are files.

    Attributes:
      available: Whether the files of the images are known.
    """

    def __init__(self, features: features_lib.Features):
        self._features = features
        self._decoder = image_decoder.Decoder()
        self.available = features.paths is not None

    def group(
        self, images: Sequence[int], caption: str, *, mark_first: bool = False
    ) -> str:
        """Return HTML of a few images side by side.

        Args:
          images: Indices of the images.
          caption: Text below them.
          mark_first: Whether to frame the first one.
        """
        parts = [self._image(int(index)) for index in images]
        if mark_first and parts:
            parts[0] = parts[0].replace("<img ", "<img class='first' ", 1)
        return html_page.figure("".join(parts), caption)

    def _image(self, index: int) -> str:
        name = str(self._features.names[index])
        try:
            data = self._jpeg(index, name)
        except image_decoder.BadImage as error:
            return f"<span>{html.escape(f'{name[-40:]}: {error.reason}')}</span>"
        return html_page.image(data, name, kind="jpeg")

    def _jpeg(self, index: int, name: str) -> bytes:
        """Return the content of a JPEG that fits `SIDE`; raises `BadImage`."""
        path = os.fsdecode(self._features.paths[index])
        opened = self._decoder.open(path, name=name)
        longest = max(opened.width, opened.height)
        reduce = next((r for r in (8, 4, 2) if longest >= 2 * r * SIDE), 1)
        picture = Image.fromarray(opened.pixels(reduce))
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=_QUALITY)
        return stream.getvalue()


def sheet(groups: Sequence[str]) -> str:
    """Return groups of images in lines that fit the page."""
    return f"<div class='sheet'>{''.join(groups)}</div>"
