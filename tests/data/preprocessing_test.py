"""Tests of preprocessing.py."""

import numpy as np
import pytest

from dinov2_jax.data import preprocessing


@pytest.mark.parametrize("shape", [(3, 700), (700, 3), (5, 1201), (300, 30_100)])
@pytest.mark.parametrize(("resize_size", "crop_size"), [(64, 50), (50, 64)])
def test_the_middle_of_a_long_image_is_that_of_the_whole(
    shape, resize_size, crop_size, monkeypatch
):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    found = preprocessing.resize_and_crop(image, resize_size, crop_size)
    monkeypatch.setattr(preprocessing, "_LONGEST", 10**9)  # resizes all of it
    whole = preprocessing.resize_and_crop(image, resize_size, crop_size)
    assert found.shape == whole.shape == (crop_size, crop_size, 3)
    apart = np.abs(found.astype(int) - whole)
    assert apart.max() <= 2  # of 255, by the rounding of the box
    assert np.mean(apart > 0) < 0.01


def test_a_thread_of_pixels_takes_no_memory():
    # Resized whole it would have 15,360,000 x 256 px.
    image = np.full((1, 60_000, 3), 7, np.uint8)
    found = preprocessing.resize_and_crop(image, 256, 224)
    assert found.shape == (224, 224, 3) and np.all(found == 7)
    bands = preprocessing.resize_and_crop(
        np.full((60_000, 1, 2), 7, np.uint8), 256, 224
    )
    assert bands.shape == (224, 224, 2) and np.all(bands == 7)
