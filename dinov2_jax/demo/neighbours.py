"""The images of a folder that look like a given one."""

import dataclasses

import numpy as np
from PIL import Image

from dinov2_jax.data import preprocessing
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base
from dinov2_jax.embed import images
from dinov2_jax.eval import feature_cache, features
from dinov2_jax.eval.classification import nearest

_KIND = "cls"
_THUMBNAIL = 256  # longer side, px


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """An image that was found.

    Attributes:
      name: Its path below the folder.
      similarity: Cosine of the class tokens.
      picture: The image, reduced.
    """

    name: str
    similarity: float
    picture: Image.Image


class Neighbours:
    """The images of a folder, and their features for searching.

    The features are computed at once, with a progress bar, or taken from the cache.

    Args:
      backbone: The model and the folder of the cache.
      path: The folder, or whatever else `embed` takes.

    Raises:
      UserError: There are no images, or none can be read.
    """

    def __init__(self, backbone: features.Backbone, path: str):
        self._source: base.Source = images.open_source(path)
        self._prepare = backbone.model.preprocessing
        self._features = feature_cache.extract(
            backbone, self._source, kind=_KIND, prepare=self._prepare
        )
        self._bank = nearest.Bank(self._features.rows)
        self._extractor = backbone.extractor(_KIND, self._prepare, 1)

    def __len__(self) -> int:
        return len(self._features)

    def find(self, pixels: np.ndarray, count: int) -> list[Neighbour]:
        """Return the most similar images, the most similar one first.

        Args:
          pixels: The image to compare with, uint8 [H, W, 3].
          count: Number of images wanted.
        """
        batch = np.zeros(
            (self._extractor.batch_size, *[self._prepare.crop_size] * 2, 3), np.uint8
        )
        batch[0] = preprocessing.resize_and_crop(
            pixels, self._prepare.resize_size, self._prepare.crop_size
        )
        query = self._extractor.fetch(self._extractor(batch))[:1]
        ((_, values, places),) = self._bank.search(query, min(count, len(self)))
        return [
            Neighbour(self._source.name(int(i)), float(value), self._thumbnail(int(i)))
            for value, i in zip(values[0], self._features.indices[places[0]])
        ]

    def _thumbnail(self, index: int) -> Image.Image:
        """Return an image of the folder, reduced; grey if it cannot be read now."""
        try:
            picture = Image.fromarray(self._source.open(index).pixels())
        except image_decoder.BadImage:
            return Image.new("RGB", (_THUMBNAIL, _THUMBNAIL), "gray")
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        return picture
