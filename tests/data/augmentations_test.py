"""Augmentations: against Pillow's enhancers, torch, colorsys and recorded rates."""

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from dinov2_jax.data import augmentations

FACTORS = (0.0, 0.61, 0.8, 1.0, 1.19, 1.4)


def picture(height=37, width=53, seed=0):
    """Smooth colours with some noise, all values reached."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 5, 3), np.uint8)
    large = np.asarray(Image.fromarray(small).resize((width, height)), np.int64)
    noisy = large * 1.6 - 70 + rng.integers(-9, 10, large.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (augmentations.adjust_brightness, ImageEnhance.Brightness),
        (augmentations.adjust_contrast, ImageEnhance.Contrast),
        (augmentations.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_enhancers_of_pillow(factor, ours, theirs):
    for seed in range(6):
        image = Image.fromarray(picture(seed=seed))
        want = np.asarray(theirs(image).enhance(factor))
        np.testing.assert_array_equal(np.asarray(ours(image, factor)), want)


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.0, 0.07, 0.1, 0.5])
def test_hue_turns(shift):
    pixels = picture()
    turned = augmentations.adjust_hue(Image.fromarray(pixels), shift)
    turned = np.asarray(turned).reshape(-1, 3)
    errors = []
    for before, after in zip(pixels.reshape(-1, 3) / 255, turned):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        want = colorsys.hsv_to_rgb(
            (hue + int(shift * 255) / 256) % 1, saturation, value
        )
        errors.append(np.abs(np.array(want) * 255 - after).max())
    assert np.mean(errors) < 2.2 and np.max(errors) < 10  # hue has 256 steps


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [(37, 53), (24, 24), (8, 8)])
def test_blur_against_torch(sigma, size):
    pixels = picture(*size)
    x = torch.linspace(-4, 4, 9)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    kernel = (kernel[:, None] @ kernel[None]).expand(3, 1, 9, 9)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    padded = torch.nn.functional.pad(image, [4] * 4, mode="reflect")
    want = torch.nn.functional.conv2d(padded, kernel, groups=3)
    want = want.round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    ours = augmentations.gaussian_blur(pixels, sigma)
    assert ours.dtype == np.uint8
    difference = np.abs(ours.astype(int) - want)
    assert difference.max() <= 1 and np.mean(difference > 0) < 1e-3


def test_solarize():
    pixels = picture()
    want = np.asarray(ImageOps.solarize(Image.fromarray(pixels), 128))
    np.testing.assert_array_equal(augmentations.solarize(pixels), want)


def test_box_of_typical_images():
    rng = np.random.default_rng(0)
    area, ratio, left = [], [], []
    for _ in range(4000):
        box = augmentations.random_crop_box(
            rng, width=500, height=480, scale=(0.05, 0.32)
        )
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
                left, top, right, bottom = augmentations.random_crop_box(
                    rng, width=width, height=height, scale=scale
                )
                assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_fallback_is_central():
    rng = np.random.default_rng(0)
    box = augmentations.random_crop_box(rng, width=100, height=9, scale=(1, 1))
    assert box == (44, 0, 56, 9)
    box = augmentations.random_crop_box(rng, width=9, height=100, scale=(1, 1))
    assert box == (0, 44, 9, 56)


def spy(monkeypatch):
    """Counts calls by (crop size): blurred and solarized."""
    counts = {"blur": {}, "solarize": {}}
    blur, solarize = augmentations.gaussian_blur, augmentations.solarize

    def count(name, function):
        def counted(pixels, *args):
            size = pixels.shape[0]
            counts[name][size] = counts[name].get(size, 0) + 1
            return function(pixels, *args)

        return counted

    monkeypatch.setattr(augmentations, "gaussian_blur", count("blur", blur))
    monkeypatch.setattr(augmentations, "solarize", count("solarize", solarize))
    return counts


@pytest.mark.parametrize(
    "blur, rates", [("reference", (0.0, 0.9, 0.5)), ("intended", (1.0, 0.1, 0.5))]
)
def test_rates_of_blur_and_solarize(monkeypatch, blur, rates):
    assert augmentations.BLUR_PROBABILITIES[blur] == rates
    seen = []  # one tuple of (size, blur, solarize) per view
    view = augmentations.random_view

    def recorded(rng, image, **options):
        counts = spy(monkeypatch)
        out = view(rng, image, **options)
        seen.append((options["size"], bool(counts["blur"]), bool(counts["solarize"])))
        monkeypatch.undo()
        monkeypatch.setattr(augmentations, "random_view", recorded)
        return out

    monkeypatch.setattr(augmentations, "random_view", recorded)
    augmentation = augmentations.MultiCropAugmentation(
        global_crops_size=10, local_crops_number=1, local_crops_size=9, blur=blur
    )
    image = picture(20, 20)
    for i in range(800):
        augmentation(image, np.random.default_rng(i))
    blurred = np.array([s[1] for s in seen]).reshape(800, 3).mean(0)
    solarized = np.array([s[2] for s in seen]).reshape(800, 3).mean(0)
    assert [s[0] for s in seen[:3]] == [10, 10, 9]
    np.testing.assert_allclose(blurred, rates, atol=0.07)
    assert blurred[0] == rates[0]  # never, or always
    np.testing.assert_allclose(solarized, [0, 0.2, 0], atol=0.06)
    assert solarized[0] == solarized[2] == 0


def test_rates_of_flip_jitter_and_gray():
    ramp = np.zeros((30, 30, 3), np.uint8)
    ramp[..., 0] = np.arange(30) * 8 + 20  # red grows to the right
    flipped = gray = kept = 0
    for i in range(1000):
        out = augmentations.random_view(
            np.random.default_rng(i),
            Image.fromarray(ramp),
            size=12,
            scale=(0.3, 1.0),
            blur_probability=0.0,
            solarize_probability=0.0,
        ).astype(int)
        flipped += out[:, 0].sum() > out[:, -1].sum()
        gray += np.all(out == out[..., :1])
        kept += np.all(out[..., 1:] == 0)
    assert abs(flipped / 1000 - 0.5) < 0.065
    assert abs(gray / 1000 - 0.2) < 0.055
    # No jitter and no gray: 0.2 * 0.8, and a few jitters that leave the hue of red.
    assert 0.12 < kept / 1000 < 0.36


def test_jitter_orders_and_ranges(monkeypatch):
    calls = []

    def record(kind):
        def adjust(image, amount):
            calls.append((kind, amount))
            return image

        return adjust

    monkeypatch.setattr(
        augmentations, "_ADJUSTMENTS", tuple(record(kind) for kind in range(4))
    )
    rng = np.random.default_rng(0)
    orders = set()
    for _ in range(600):
        augmentations.color_jitter(rng, None)
        orders.add(tuple(kind for kind, _ in calls[-4:]))
    assert len(orders) == 24
    for kind, (low, high) in enumerate(
        [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]
    ):
        amounts = [amount for k, amount in calls if k == kind]
        width = high - low
        assert low <= min(amounts) < low + 0.02 * width
        assert high - 0.02 * width < max(amounts) <= high


def test_crop_is_cut_before_it_is_resized():
    # White around the box must not leak into the crop.
    pixels = np.full((64, 64, 3), 255, np.uint8)
    rng = np.random.default_rng(3)
    box = augmentations.random_crop_box(rng, width=64, height=64, scale=(0.1, 0.3))
    pixels[box[1] : box[3], box[0] : box[2]] = 0
    out = augmentations.random_view(
        np.random.default_rng(3),
        Image.fromarray(pixels),
        size=20,
        scale=(0.1, 0.3),
        blur_probability=0.0,
        solarize_probability=0.0,
    )
    assert out.max() == 0


def test_shapes_determinism_and_thin_images():
    augmentation = augmentations.MultiCropAugmentation(
        global_crops_size=32, local_crops_number=3, local_crops_size=16
    )
    for height, width in ((40, 60), (1, 500), (500, 1), (1, 1)):
        image = picture(height, width)
        crops = augmentation(image, np.random.default_rng(0))
        again = augmentation(Image.fromarray(image), np.random.default_rng(0))
        other = augmentation(image, np.random.default_rng(1))
        assert [c.shape for c in crops] == [(2, 32, 32, 3), (3, 16, 16, 3)]
        assert all(c.dtype == np.uint8 for c in crops)
        for a, b, c in zip(crops, again, other):
            np.testing.assert_array_equal(a, b)
            assert not np.array_equal(a, c)


def test_no_locals_and_unknown_blur():
    augmentation = augmentations.MultiCropAugmentation(
        global_crops_size=16, local_crops_number=0, local_crops_size=8
    )
    _, local_crops = augmentation(picture(), np.random.default_rng(0))
    assert local_crops.shape == (0, 8, 8, 3)
    with pytest.raises(ValueError, match="'much' is not one of"):
        augmentations.MultiCropAugmentation(blur="much")
