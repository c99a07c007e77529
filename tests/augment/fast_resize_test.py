"""The fast resize against Pillow's, which it approximates to a level or two."""

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.augment import fast_resize, resize


def picture(height, width, channels, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 9 + 1, width // 9 + 1, channels))
    fine = np.repeat(np.repeat(coarse, 9, axis=0), 9, axis=1)[:height, :width]
    return np.clip(fine + rng.normal(0, 8, fine.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
@pytest.mark.parametrize(
    "box, size",
    [
        ((30, 10, 216, 196), 98),  # a local crop
        ((3, 5, 400, 365), 224),
        ((0, 0, 420, 370), 32),
        ((100, 50, 140, 99), 98),  # enlarged
        ((7, 9, 8, 11), 16),
        ((10, 0, 330, 1), 24),
    ],
)
def test_equals_pillow_to_a_few_levels(box, size, channels):
    pixels = picture(370, 420, channels)
    before = pixels.copy()
    ours = fast_resize.crop_and_resize(pixels, box, size)
    want = resize.crop_and_resize(pixels, box, size)
    assert ours.shape == want.shape and ours.dtype == np.uint8
    difference = np.abs(ours.astype(int) - want)
    assert difference.max() <= 4 and difference.mean() < 0.35
    np.testing.assert_array_equal(pixels, before)


def test_all_sizes_of_small_boxes():
    pixels = picture(40, 40, 3)
    for width in range(1, 30, 3):
        for height in range(1, 30, 4):
            box = (5, 6, 5 + width, 6 + height)
            for size in (1, 2, 7, 24):
                ours = fast_resize.crop_and_resize(pixels, box, size)
                crop = Image.fromarray(pixels).crop(box)
                want = crop.resize((size, size), Image.Resampling.BICUBIC)
                difference = np.abs(ours.astype(int) - np.asarray(want))
                # Where the height shrinks more Pillow takes it first, and cuts off
                # other overshoots.
                assert difference.max() <= 10 and difference.mean() <= 1


def test_a_flat_image_stays_flat():
    for value in (0, 1, 127, 255):
        pixels = np.full((300, 200, 3), value, np.uint8)
        out = fast_resize.crop_and_resize(pixels, (3, 5, 190, 290), 98)
        assert np.all(out == value)
