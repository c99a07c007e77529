"""Boxes of crops: recorded distributions, all sizes, and smaller copies."""

import math

import numpy as np
import pytest

from dinov2_jax.augment import crop_boxes


def test_box_of_typical_images():
    rng = np.random.default_rng(0)
    area, ratio, left = [], [], []
    for _ in range(10_000):
        box = crop_boxes.random_crop_box(rng, width=500, height=480, scale=(0.05, 0.32))
        assert 0 <= box[0] < box[2] <= 500 and 0 <= box[1] < box[3] <= 480
        w, h = box[2] - box[0], box[3] - box[1]
        area.append(w * h / 240_000)
        ratio.append(math.log(w / h))
        left.append(box[0] / (500 - w))
    # Uniform: mean (a + b) / 2 and deviation (b - a) / sqrt(12).
    assert np.mean(area) == pytest.approx(0.185, abs=0.004)
    assert np.std(area) == pytest.approx(0.27 / 12**0.5, rel=0.03)
    assert 0.049 < min(area) < 0.053 and 0.317 < max(area) < 0.322
    assert np.mean(ratio) == pytest.approx(0, abs=0.012)
    assert np.std(ratio) == pytest.approx(2 * math.log(4 / 3) / 12**0.5, rel=0.03)
    assert np.mean(left) == pytest.approx(0.5, abs=0.02) and max(left) == 1


def test_box_of_all_sizes():
    rng = np.random.default_rng(0)
    sizes = [1, 2, 3, 7, 100, 5000]
    for width in sizes:
        for height in sizes:
            for scale in ((0.05, 0.32), (0.32, 1.0), (1.0, 1.0)):
                left, top, right, bottom = crop_boxes.random_crop_box(
                    rng, width=width, height=height, scale=scale
                )
                assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_fallback_is_central():
    rng = np.random.default_rng(0)
    box = crop_boxes.random_crop_box(rng, width=100, height=9, scale=(1, 1))
    assert box == (44, 0, 56, 9)
    box = crop_boxes.random_crop_box(rng, width=9, height=100, scale=(1, 1))
    assert box == (0, 44, 9, 56)


def test_reduction_keeps_the_pixels_that_crops_need():
    large, small = (0, 0, 900, 448), (10, 10, 210, 300)
    assert crop_boxes.reduction([large], [224]) == 2
    assert crop_boxes.reduction([large], [112]) == 4
    assert crop_boxes.reduction([large], [20]) == 8
    assert crop_boxes.reduction([large], [225]) == 1
    assert crop_boxes.reduction([large, small], [224, 100]) == 2
    assert crop_boxes.reduction([large, small], [224, 101]) == 1


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (500, 333)])
def test_reduced_boxes_lie_in_the_copy(factor, size):
    width, height = size
    copy = {"width": -(-width // factor), "height": -(-height // factor)}
    rng = np.random.default_rng(factor)
    for _ in range(50):
        box = crop_boxes.random_crop_box(
            rng, width=width, height=height, scale=(0.05, 1.0)
        )
        left, top, right, bottom = crop_boxes.reduced(box, **copy, of=size)
        assert 0 <= left < right <= copy["width"]
        assert 0 <= top < bottom <= copy["height"]
        if factor == 1:
            assert (left, top, right, bottom) == box
        if width == 500:  # the same place, to the pixel of the copy
            shares = np.array(box) / [*size, *size]
            sides = [*copy.values()] * 2
            ours = np.array([left, top, right, bottom]) / sides
            np.testing.assert_allclose(ours, shares, atol=0.51 * factor / 333)
