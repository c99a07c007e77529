"""The crops of one image: sizes, places, determinism, and less decoding."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.augment import crop_boxes, policies
from dinov2_jax.data import multi_crop
from dinov2_jax.data.decode import image_decoder


def opened(height, width, channels=3, seed=0):
    pixels = np.random.default_rng(seed).integers(
        0, 256, (height, width, channels), np.uint8
    )
    return image_decoder.from_array(pixels)


@pytest.mark.parametrize("policy", [None, policies.POLICIES["rgb"]])
def test_shapes_determinism_and_thin_images(policy):
    crops_of = multi_crop.MultiCrop(
        global_crops_size=32, local_crops_number=3, local_crops_size=16, policy=policy
    )
    for height, width in ((40, 60), (1, 500), (500, 1), (3, 3)):
        image = opened(height, width)
        crops = crops_of(image, np.random.default_rng(0))
        again = crops_of(image, np.random.default_rng(0))
        other = crops_of(image, np.random.default_rng(1))
        assert [c.shape for c in crops] == [(2, 32, 32, 3), (3, 16, 16, 3)]
        assert all(c.dtype == np.uint8 for c in crops)
        for a, b, c in zip(crops, again, other):
            np.testing.assert_array_equal(a, b)
            if min(height, width) > 3:
                assert not np.array_equal(a, c)


def test_larger_crops_show_the_same_places():
    image = opened(90, 70)
    small = multi_crop.MultiCrop(
        global_crops_size=16, local_crops_number=1, local_crops_size=8
    )
    both = dataclasses.replace(small, gram_crops_size=32)
    large = dataclasses.replace(small, global_crops_size=32)
    crops, only_small, only_large = (
        made(image, np.random.default_rng(0)) for made in (both, small, large)
    )
    for found, expected in zip(crops, (*only_small, only_large[0]), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("policy, channels", [("gray", 1), ("multispectral", 13)])
def test_other_numbers_of_channels(policy, channels):
    for applied in (None, policies.POLICIES[policy]):
        crops_of = multi_crop.MultiCrop(
            global_crops_size=16,
            local_crops_number=0,
            local_crops_size=8,
            policy=applied,
        )
        crops = crops_of(opened(30, 40, channels), np.random.default_rng(0))
        assert crops[0].shape == (2, 16, 16, channels)
        assert crops[1].shape == (0, 8, 8, channels)


@pytest.mark.parametrize("policy", [None, policies.Policy(0, 0, 0, 0)])
def test_crop_is_cut_before_it_is_resized(policy):
    # White around the box must not leak into the crop.
    if policy:
        policy = policies.Policy(
            jitter_probability=0.0,
            solarize_probability=0.0,
            blur_probabilities=(0.0, 0.0, 0.0),
        )
    pixels = np.full((64, 64, 3), 255, np.uint8)
    rng = np.random.default_rng(3)
    box = crop_boxes.random_crop_box(rng, width=64, height=64, scale=(0.1, 0.3))
    pixels[box[1] : box[3], box[0] : box[2]] = 0
    crops_of = multi_crop.MultiCrop(
        global_crops_size=20,
        global_crops_scale=(0.1, 0.3),
        local_crops_number=0,
        policy=policy,
    )
    crops, _ = crops_of(image_decoder.from_array(pixels), np.random.default_rng(3))
    assert crops[0].max() == 0 and crops[1].max() > 0


@pytest.mark.parametrize("policy", [None, policies.Policy(jitter_probability=0.0)])
def test_every_view_shows_its_share_of_the_image(policy):
    """Pixels that hold their own place tell what a crop shows."""
    if policy:
        policy = dataclasses.replace(
            policy,
            grayscale_probability=0.0,
            solarize_probability=0.0,
            blur_probabilities=(0.0, 0.0, 0.0),
        )
    place = np.arange(250, dtype=np.uint8)
    rows, columns = np.meshgrid(place, place, indexing="ij")
    image = image_decoder.from_array(np.stack([rows, columns, rows * 0], axis=2))
    crops_of = multi_crop.MultiCrop(
        global_crops_size=32,
        global_crops_scale=(0.5, 0.8),
        local_crops_number=4,
        local_crops_size=16,
        local_crops_scale=(0.1, 0.3),
        policy=policy,
    )
    rng = np.random.default_rng(0)
    drawn = [crops_of(image, rng) for _ in range(25)]
    for crops, least, most in zip(zip(*drawn), (0.5, 0.1), (0.8, 0.3)):
        crops = np.concatenate(crops)[..., :2].astype(int)
        size = crops.shape[1]
        # From the first pixel's middle to the last one's is one pixel less.
        sides = np.ptp(crops, axis=(1, 2)) * size / (size - 1) / 250
        shares = sides.prod(axis=1)
        assert least - 0.03 < shares.min() < least + 0.05
        assert most - 0.05 < shares.max() < most + 0.03


def photograph(width, height):
    from skimage import data

    image = Image.fromarray(data.astronaut()).resize((width, height))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return image_decoder.Decoder().open(stream.getvalue(), name="photograph")


def test_large_photographs_are_decoded_small():
    """The same crops, from a copy that has just enough pixels."""
    asked = []
    image = photograph(1600, 1200)
    spied = image_decoder.OpenedImage(
        image.width,
        image.height,
        lambda reduce: asked.append(reduce) or image.pixels(reduce),
    )
    full = image_decoder.OpenedImage(
        image.width, image.height, lambda _: image.pixels()
    )
    crops_of = multi_crop.MultiCrop(
        global_crops_size=64, local_crops_number=2, local_crops_size=32
    )
    for seed in range(4):
        few = crops_of(spied, np.random.default_rng(seed))
        many = crops_of(full, np.random.default_rng(seed))
        for a, b in zip(few, many):
            assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.985
            assert abs(a.mean() - b.mean()) < 0.5
    assert all(reduce >= 4 for reduce in asked)
