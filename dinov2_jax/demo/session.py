"""What the page shows: files of images in, pictures and texts out.

Features of the last images are kept, so a click on a patch computes cosines only.
"""

import collections
import dataclasses
import hashlib
import os
import pathlib
import threading
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dinov2_jax import pretrained
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.visualize import attention_maps, pca, similarity, views

MAX_PIXELS = 2**26  # of an image: 200 MB decoded
SIDE = 560  # approximate longer side of a picture that is clicked, px
_KEPT = 16  # views


@dataclasses.dataclass(frozen=True)
class Similarities:
    """Maps of how similar the patches of images are to one of them.

    Attributes:
      pictures: A picture for each image; None where there is no image.
      text: The result in words.
    """

    pictures: list[Image.Image | None]
    text: str


class Session:
    """A model, and the views of the images that it saw last.

    Args:
      model: Model from `dinov2_jax.load`, for RGB images.
      size: Longer side at which it sees images, px.
    """

    def __init__(self, model: pretrained.Model, *, size: int):
        self.model, self.size = model, size
        self._views: collections.OrderedDict = collections.OrderedDict()
        self._lock = threading.Lock()  # one image at a time

    def pixels(self, path: str | os.PathLike) -> np.ndarray:
        """Return an image, uint8 [H, W, 3].

        Args:
          path: Path of its file.

        Raises:
          BadImage: It is not a readable image, or larger than `MAX_PIXELS`.
        """
        path = pathlib.Path(path)
        return image_decoder.Decoder(max_pixels=MAX_PIXELS).decode(path, name=path.name)

    def view(
        self, path: str | os.PathLike, *, block: int = -1, attention: bool = False
    ) -> views.View:
        """Return what the model sees of an image.

        Args:
          path: Path of its file.
          block: Number of the block whose output to take; -1 is the last.
          attention: Whether to compute the block's attention too.

        Raises:
          BadImage: It is not a readable image, or larger than `MAX_PIXELS`.
        """
        path = pathlib.Path(path)
        digest = hashlib.sha256(path.read_bytes()).digest()
        key = (digest, path.name, block, attention)
        with self._lock:
            if key not in self._views:
                self._views[key] = views.make_view(
                    self.model,
                    self.pixels(path),
                    path.name,
                    size=self.size,
                    block=block,
                    attention=attention,
                )
            self._views.move_to_end(key)
            while len(self._views) > _KEPT:
                self._views.popitem(last=False)
            return self._views[key]

    def patch_at(self, path: str | os.PathLike, x: float, y: float) -> tuple[int, int]:
        """Return row and column of the patch at a place of an image's picture, px.

        Args:
          path: Path of the image's file.
          x: Distance from the picture's left edge, px.
          y: Distance from its upper edge, px.
        """
        view = self.view(path)
        pixels = similarity.photograph(view, SIDE).width // view.grid[1]
        return self.inside(path, int(y) // pixels, int(x) // pixels)

    def inside(self, path: str | os.PathLike, row: int, column: int) -> tuple[int, int]:
        """Return row and column, or those of the nearest patch that the image has."""
        rows, columns = self.view(path).grid
        return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)

    def similarities(
        self, paths: Sequence[str | None], chosen: int, row: int, column: int
    ) -> Similarities:
        """Compare all patches of images with one.

        Args:
          paths: Paths of the images' files; None where there is no image.
          chosen: Index of the image with the chosen patch.
          row: Row of the patch, from 0.
          column: Column of the patch, from 0.
        """
        seen = {i: self.view(path) for i, path in enumerate(paths) if path}
        query = seen[chosen].patches[row, column]
        maps = {i: similarity.cosines(view.patches, query) for i, view in seen.items()}
        low = similarity.lowest_shown([*maps.values()])
        parts = [f"Patch in row {row + 1}, column {column + 1} of {seen[chosen].name}."]
        pictures: list[Image.Image | None] = [None] * len(paths)
        for index, found in maps.items():
            place = (row, column)
            if index != chosen:
                place = similarity.most_similar(found)
                parts.append(
                    f"The most similar patch of {seen[index].name}: row "
                    f"{place[0] + 1}, column {place[1] + 1}, cosine {found[place]:.3f}."
                )
            pictures[index] = similarity.draw(
                seen[index], found, low=low, place=place, side=SIDE
            )
        parts.append(f"Colours run from a cosine of {low:.2f} (dark) to 1 (bright).")
        return Similarities(pictures, " ".join(parts))

    def photographs(self, paths: Sequence[str | None]) -> list[Image.Image | None]:
        """Return images as the model sees them, and compute their features."""
        return [
            similarity.photograph(self.view(path), SIDE) if path else None
            for path in paths
        ]

    def principal_components(
        self, paths: Sequence[str | os.PathLike], *, foreground: bool
    ) -> Image.Image:
        """Draw the principal components of images in colours that all share.

        Args:
          paths: Paths of the images.
          foreground: Whether to add a picture without the background.
        """
        seen = [self.view(path) for path in paths]
        masks = pca.foreground([view.patches for view in seen]) if foreground else None
        return pca.draw(seen, masks=masks)

    def attention(self, path: str | os.PathLike, *, block: int) -> Image.Image:
        """Draw what the heads of a block attend to in an image.

        Args:
          path: Path of the image.
          block: Number of the block, from 0.
        """
        view = self.view(path, block=block, attention=True)
        return attention_maps.draw_attention(view, block=block)
