"""Cosines with a patch against a slow twin, and where pictures show them."""

import numpy as np
from PIL import Image

from dinov2_jax.visualize import panels, similarity, views


def make_view(rows, columns, pixels=8):
    shape = (rows * pixels, columns * pixels, 3)
    return views.View(
        name="grey",
        pixels=np.full(shape, 100, np.uint8),
        patches=np.zeros((rows, columns, 2), np.float32),
        norms=np.zeros(1 + rows * columns),
        attention=None,
    )


def test_cosines_equal_a_slow_twin():
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((3, 5, 7)).astype(np.float32)
    patches[2, 4] = 0
    query = rng.standard_normal(7)
    found = similarity.cosines(patches, query)
    assert found.shape == (3, 5) and found.dtype == np.float32
    for row in range(3):
        for column in range(5):
            a = patches[row, column].astype(np.float64)
            length = np.sqrt((a * a).sum()) * np.sqrt((query * query).sum())
            expected = (a * query).sum() / length if length else 0.0
            assert abs(found[row, column] - expected) < 1e-6


def test_a_patch_is_most_similar_to_itself():
    patches = np.random.default_rng(1).standard_normal((4, 6, 9))
    found = similarity.cosines(patches, 3 * patches[1, 5])
    assert similarity.most_similar(found) == (1, 5)
    assert abs(found[1, 5] - 1) < 1e-6


def test_the_darkest_colour_is_of_a_percentile_of_all_maps():
    maps = [np.arange(50.0).reshape(5, 10), np.arange(50.0, 101.0)[None]]
    assert similarity.lowest_shown(maps) == 2.0


def test_a_picture_has_each_patch_in_its_colour_and_a_frame():
    view = make_view(3, 4)
    values = np.linspace(-0.5, 1.0, 12).reshape(3, 4)
    picture = similarity.draw(view, values, low=0.0, place=(1, 2), side=80)
    assert picture.size == (80, 60)  # of 20 px a patch
    assert picture.size == similarity.photograph(view, 80).size
    centres = np.asarray(picture)[10::20, 10::20].astype(float)
    expected = 0.65 * panels.heat(values, 0.0, 1.0) + 0.35 * 100
    np.testing.assert_allclose(centres, expected, atol=1.5)
    plain = Image.blend(
        panels.patches(panels.heat(values, 0.0, 1.0), picture.size),
        similarity.photograph(view, 80),
        0.35,
    )
    rows, columns = np.nonzero((np.asarray(picture) != np.asarray(plain)).any(axis=-1))
    assert (rows.min(), rows.max()) == (20 - 3, 40 + 2)
    assert (columns.min(), columns.max()) == (40 - 3, 60 + 2)
