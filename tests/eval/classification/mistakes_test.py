"""The picture of the surest mistakes."""

import io
import types

import numpy as np
from PIL import Image

from dinov2_jax.eval.classification import mistakes

SCORES = np.array([[0, 1.0], [0, 3.0], [5.0, 0], [0, 2.0]])


def test_the_surest_come_first():
    labels = np.array([0, 0, 0, 0])
    assert mistakes.surest(SCORES, labels, 2).tolist() == [1, 3]
    assert mistakes.surest(SCORES, labels, 9).tolist() == [1, 3, 0]


def test_the_sheet_shows_the_images_of_the_rows():
    grays = [10, 60, 110, 160, 210]

    def opened(index):
        pixels = np.full((30, 40, 3), grays[index], np.uint8)
        return types.SimpleNamespace(pixels=lambda: pixels)

    source = types.SimpleNamespace(open=opened, label_names=["cat", "dog"])
    indices = np.array([0, 2, 3, 4])  # image 1 could not be read
    drawn = mistakes.sheet(source, indices, SCORES, np.array([1, 0, 0, 0]))
    shown = np.asarray(Image.open(io.BytesIO(drawn)).convert("L"))
    middle = shown[shown.shape[0] - 40]
    values, counts = np.unique(middle, return_counts=True)
    assert set(values[counts > 90]) == {110, 210}
    assert np.flatnonzero(middle == 110)[0] < np.flatnonzero(middle == 210)[0]
    assert mistakes.sheet(source, indices, SCORES, np.array([1, 1, 0, 1])) is None
