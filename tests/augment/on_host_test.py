"""Augmentations: against Pillow's enhancers, torch, colorsys and documented rates."""

import colorsys

import numpy as np
import pytest
from peers import torch
from PIL import Image, ImageEnhance, ImageOps

from configs import default
from dinov2_jax.augment import on_host, policies

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
        (on_host.adjust_brightness, ImageEnhance.Brightness),
        (on_host.adjust_contrast, ImageEnhance.Contrast),
        (on_host.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_equals_the_enhancers_of_pillow(factor, ours, theirs):
    for seed in range(6):
        pixels = picture(seed=seed)
        want = np.asarray(theirs(Image.fromarray(pixels)).enhance(factor))
        np.testing.assert_array_equal(ours(pixels, factor), want)


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.0, 0.07, 0.1, 0.5])
def test_hue_turns(shift):
    pixels = picture()
    turned = on_host.adjust_hue(pixels, shift)
    turned = turned.reshape(-1, 3)
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
    ours = on_host.gaussian_blur(pixels, sigma)
    assert ours.dtype == np.uint8
    difference = np.abs(ours.astype(int) - want)
    assert difference.max() <= 1 and np.mean(difference > 0) < 1e-3


def test_solarize():
    pixels = picture()
    want = np.asarray(ImageOps.solarize(Image.fromarray(pixels), 128))
    np.testing.assert_array_equal(on_host.solarize(pixels), want)


class Record:
    """What `augment` did to one crop after another, seen from outside."""

    def __init__(self, monkeypatch):
        self.calls = []
        for name in ("gaussian_blur", "solarize", "color_jitter"):
            self.wrap(monkeypatch, on_host, name)
        monkeypatch.setattr(
            on_host,
            "_ADJUSTMENTS",
            tuple(
                self.wrapped(kind, function)
                for kind, function in enumerate(on_host._ADJUSTMENTS)
            ),
        )

    def wrap(self, monkeypatch, module, name):
        monkeypatch.setattr(module, name, self.wrapped(name, getattr(module, name)))

    def wrapped(self, name, function):
        def call(*args):
            self.calls.append((name, args[:2][-1]))  # the amount is second
            return function(*args)

        return call


@pytest.mark.parametrize("blur", ["reference", "intended"])
def test_ten_thousand_draws(monkeypatch, blur):
    """Rates, ranges and orders as the reference documents them."""
    count, record = 10_000, Record(monkeypatch)
    policy = policies.Policy(blur_probabilities=policies.BLUR_PROBABILITIES[blur])
    crop = np.zeros((9, 9, 3), np.uint8)
    crop[:, :, 0] = np.arange(9) * 20 + 40  # red grows to the right
    seen = {name: np.zeros((3, count), bool) for name in ("blur", "sun", "jitter")}
    flips, grays, sigmas, orders = np.zeros(count), np.zeros(count), [], []
    amounts = {kind: [] for kind in range(4)}
    for i in range(count):
        view = i % 3
        record.calls.clear()
        out = on_host.augment(np.random.default_rng(i), crop, policy, view)
        names = [name for name, _ in record.calls]
        seen["blur"][view, i] = "gaussian_blur" in names
        seen["sun"][view, i] = "solarize" in names
        seen["jitter"][view, i] = "color_jitter" in names
        sigmas += [arg for name, arg in record.calls if name == "gaussian_blur"]
        changes = [(kind, arg) for kind, arg in record.calls if isinstance(kind, int)]
        if changes:
            orders.append(tuple(kind for kind, _ in changes))
        for kind, amount in changes:
            amounts[kind].append(amount)
        red = out.astype(int).sum(axis=2)
        if not seen["sun"][view, i]:
            flips[i] = np.sign(red[:, 0].sum() - red[:, -1].sum())
        grays[i] = np.all(out == out[..., :1])
    rate = 3 / count
    expected = {"reference": (0.0, 0.9, 0.5), "intended": (1.0, 0.1, 0.5)}[blur]
    np.testing.assert_allclose(seen["blur"].sum(1) * rate, expected, atol=0.025)
    assert seen["blur"][0].sum() * rate == pytest.approx(expected[0], abs=2e-4)
    np.testing.assert_allclose(seen["sun"].sum(1) * rate, [0, 0.2, 0], atol=0.02)
    np.testing.assert_allclose(seen["jitter"].sum(1) * rate, [0.8] * 3, atol=0.02)
    assert np.mean(grays) == pytest.approx(0.2, abs=0.02)
    assert np.mean(flips[flips != 0] > 0) == pytest.approx(0.5, abs=0.02)
    kinds, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(kinds) == 24
    np.testing.assert_allclose(counts / len(orders), 1 / 24, atol=0.01)
    uniform(sigmas, 0.1, 2.0)
    for kind, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.8, 1.2)]):
        uniform(amounts[kind], low, high)
    uniform(amounts[3], -0.1, 0.1)


@pytest.mark.parametrize("blur", ["intended", "none"])
def test_blur_off_leaves_every_crop(blur):
    """With every other change off too; as intended, global crop 1 is always blurred."""
    config = default.get_config()
    config.crops.blur = blur
    for name in policies.FIELDS:
        config.crops[name] = 0.0
    policy, crop = policies.make_policy(config), picture()
    changed = np.zeros((3, 20), bool)
    for view, seed in np.ndindex(changed.shape):
        rng = np.random.default_rng(seed)
        out = on_host.augment(rng, crop, policy, view)
        changed[view, seed] = not np.array_equal(out, crop)
    if blur == "none":
        assert not changed.any()
    else:
        assert changed[0].mean() > 0.5  # a small sigma leaves a crop too


def uniform(values, low, high):
    """Deciles, ends, mean of a uniform distribution."""
    width = high - low
    assert low <= min(values) < low + 0.01 * width
    assert high - 0.01 * width < max(values) <= high
    deciles = np.quantile(values, np.arange(0.1, 1, 0.1))
    want = low + width * np.arange(0.1, 1, 0.1)
    np.testing.assert_allclose(deciles, want, atol=0.025 * width)


def test_other_policies():
    """Turned crops keep their values; bands are changed each by its own mean."""
    bands = np.random.default_rng(0).integers(0, 256, (12, 12, 5), np.uint8)
    still = policies.Policy(
        flip_probability=0.5,
        vertical_flip_probability=0.5,
        quarter_turn_probability=0.5,
        jitter_probability=0.0,
        grayscale_probability=0.0,
        solarize_probability=0.0,
        blur_probabilities=(0.0, 0.0, 0.0),
    )
    positions = {
        np.ascontiguousarray(
            on_host.augment(np.random.default_rng(i), bands, still, 0)
        ).tobytes()
        for i in range(200)
    }
    turns = [np.rot90(x, k) for x in (bands, bands[:, ::-1]) for k in range(4)]
    assert positions == {np.ascontiguousarray(x).tobytes() for x in turns}
    out = on_host.adjust_contrast(bands, 0.5)
    mean = bands.reshape(-1, 5).mean(0).round()
    np.testing.assert_allclose(out, (bands + mean) / 2, atol=1.01)
    three = on_host.color_jitter(
        np.random.default_rng(0), bands[..., :3], policies.POLICIES["multispectral"]
    )
    four = on_host.color_jitter(
        np.random.default_rng(0), bands[..., :4], policies.POLICIES["multispectral"]
    )
    np.testing.assert_array_equal(three, four[..., :3])  # as bands, not as RGB
    for name in ("gray", "multispectral", "histology"):
        channels = {"gray": 1, "multispectral": 13, "histology": 3}[name]
        crop = np.random.default_rng(0).integers(0, 256, (9, 9, channels), np.uint8)
        for view in range(3):
            for i in range(50):
                rng = np.random.default_rng(i)
                out = on_host.augment(rng, crop, policies.POLICIES[name], view)
                assert out.shape == crop.shape and out.dtype == np.uint8
