"""A picture of the test images that a classifier gets wrong."""

from typing import Any

import numpy as np
import scipy.special

from dinov2_jax.eval import thumbnails
from dinov2_jax.eval.dense import dense_pictures
from dinov2_jax.visualize import panels

CAPTION = "The surest mistakes, as predicted class (true class)"
_SIDE = 96  # px of an image
_MOST, _COLUMNS = 16, 8


def surest(scores: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """Return the rows that are classified wrongly, the surest first.

    Args:
      scores: Scores of the classes, [N, K].
      labels: Labels, int [N].
      most: Most rows to return.
    """
    probability = scipy.special.softmax(scores, axis=1).max(axis=1)
    wrong = np.flatnonzero(scores.argmax(axis=1) != labels)
    return wrong[np.argsort(-probability[wrong], kind="stable")][:most]


def sheet(
    source: Any, indices: np.ndarray, scores: np.ndarray, labels: np.ndarray
) -> bytes | None:
    """Draw the surest mistakes with their classes.

    Args:
      source: Labelled test images.
      indices: Index in `source` of the image of each row, int [N].
      scores: Scores of the classes, [N, K].
      labels: Labels, int [N].

    Returns:
      A PNG file; None if there are no mistakes.
    """
    names = source.label_names
    shown = [
        panels.Panel(
            thumbnails.square(source, int(indices[row]), _SIDE),
            f"{names[scores[row].argmax()]} ({names[labels[row]]})",
        )
        for row in surest(scores, labels, _MOST)
    ]
    if not shown:
        return None
    return dense_pictures.png(panels.sheet(panels.wrapped(shown, _COLUMNS)))
