"""Crops and resizes against Pillow's own two steps, channel by channel."""

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.augment import resize

BOXES = [
    (0, 0, 90, 70),
    (3, 5, 80, 61),
    (10, 20, 11, 21),
    (40, 0, 90, 9),
    (1, 2, 33, 34),
]


def pixels(channels):
    return np.random.default_rng(0).integers(0, 256, (70, 90, channels), np.uint8)


def expected(plane, box, size):
    image = Image.fromarray(plane).crop(box)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [1, 16, 32, 98])
def test_rgb_equals_pillow(box, size):
    rgb = pixels(3)
    want = expected(rgb, box, size)
    np.testing.assert_array_equal(resize.crop_and_resize(rgb, box, size), want)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7, 13])
@pytest.mark.parametrize("box", BOXES)
def test_channels_do_not_mix(channels, box):
    many = pixels(channels)
    want = [expected(many[..., c], box, 24) for c in range(channels)]
    got = resize.crop_and_resize(many, box, 24)
    assert got.shape == (24, 24, channels) and got.dtype == np.uint8
    np.testing.assert_array_equal(got, np.stack(want, -1))


def test_pixels_beside_the_box_have_no_influence():
    one, other = pixels(3), ~pixels(3)
    other[10:40, 20:60] = one[10:40, 20:60]
    box = (20, 10, 60, 40)
    np.testing.assert_array_equal(
        resize.crop_and_resize(one, box, 16), resize.crop_and_resize(other, box, 16)
    )


def test_read_only_and_non_contiguous_pixels():
    rgb = pixels(3)
    want = expected(np.ascontiguousarray(rgb[::-1, ::2]), (3, 5, 30, 40), 16)
    rgb.flags.writeable = False
    got = resize.crop_and_resize(rgb[::-1, ::2], (3, 5, 30, 40), 16)
    np.testing.assert_array_equal(got, want)
