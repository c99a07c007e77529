"""Pictures of how similar patches are to one that was chosen.

Shapes: n images, h x w patches, D feature width.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dinov2_jax.visualize import panels, views

_PERCENTILE = 2  # of all similarities, shown darkest: outliers would lighten the rest
_PHOTOGRAPH_OPACITY = 0.35  # share of the grey photograph in a map's picture


def cosines(patches: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the cosine of each patch's features with others.

    Args:
      patches: Patch features [h, w, D].
      query: Features [D].

    Returns:
      float32 [h, w], from -1 to 1; 0 for features of length 0.
    """
    lengths = np.linalg.norm(patches, axis=-1) * np.linalg.norm(query)
    products = np.asarray(patches, np.float32) @ np.asarray(query, np.float32)
    return products / np.where(lengths > 0, lengths, 1.0).astype(np.float32)


def most_similar(similarity: np.ndarray) -> tuple[int, int]:
    """Return row and column of the largest value of a map [h, w]."""
    row, column = np.unravel_index(similarity.argmax(), similarity.shape)
    return int(row), int(column)


def lowest_shown(maps: Sequence[np.ndarray]) -> float:
    """Return the similarity with the darkest colour in pictures of these maps."""
    return float(np.percentile(np.concatenate([m.ravel() for m in maps]), _PERCENTILE))


def photograph(view: views.View, side: int) -> Image.Image:
    """Draw a view's photograph, `side` px long or a little more or less.

    Args:
      view: The view.
      side: Wanted longer side, px; see `panels.shown_size`.
    """
    return panels.photograph(view.pixels, panels.shown_size(view.grid, side))


def draw(
    view: views.View,
    similarity: np.ndarray,
    *,
    low: float,
    place: tuple[int, int],
    side: int,
) -> Image.Image:
    """Draw a map in colours over the photograph in grey, with a frame around a patch.

    Args:
      view: The view.
      similarity: Cosines [h, w].
      low: Cosine with the darkest colour; that of 1 is the brightest.
      place: Row and column of the patch to frame.
      side: Wanted longer side, px, as of `photograph`.
    """
    grey = photograph(view, side).convert("L").convert("RGB")
    colors = panels.patches(panels.heat(similarity, low, 1.0), grey.size)
    picture = Image.blend(colors, grey, _PHOTOGRAPH_OPACITY)
    pen = ImageDraw.Draw(picture)
    pixels = grey.width // view.grid[1]
    top, left = (pixels * index for index in place)
    box = (left - 1, top - 1, left + pixels, top + pixels)
    pen.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), None, "black", 5)
    pen.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), None, "white", 2)
    return picture
