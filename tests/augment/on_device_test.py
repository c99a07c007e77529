"""Augmentation on the device: against the host's, and documented distributions."""

import colorsys
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.color

from configs import default
from dinov2_jax.augment import on_device, policies
from dinov2_jax.augment import on_host as on_host_lib

NOTHING = policies.Policy(
    flip_probability=0.0,
    jitter_probability=0.0,
    grayscale_probability=0.0,
    solarize_probability=0.0,
    blur_probabilities=(0.0, 0.0, 0.0),
)


# Compiled whole, as in the step: one after the other is many small compilations.


def draw(keys, policy, *, num_local):
    @jax.jit
    def run(keys):
        return vars(on_device.draw(keys, policy, num_local=num_local))

    return on_device.Draws(**run(keys))


def apply(crops, draws, policy):
    @jax.jit
    def run(crops, fields):
        fields = on_device.Draws(**fields)
        return on_device.apply(crops, fields, policy)

    return run(crops, vars(draws))


def augment(batch, policy):
    return jax.jit(on_device.augment, static_argnums=1)(batch, policy)


def crops_like_photographs(groups=2, count=24, size=32, channels=3, seed=0):
    """uint8 [G, n B, S, S, C], smooth and noisy, with all values."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-60, 315, (groups, count, 4, 4, channels))
    x = np.repeat(np.repeat(x, size // 4, axis=2), size // 4, axis=3)
    x += rng.normal(0, 12, x.shape)
    return np.clip(x, 0, 255).astype(np.uint8)


def random_keys(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, (*shape, 2), np.uint32)


def exact_hue(pixels, shift):
    """Without the host's 256 steps, which a change of contrast would make visible."""
    hsv = skimage.color.rgb2hsv(pixels)
    hsv[..., 0] = (hsv[..., 0] + shift) % 1
    return np.rint(skimage.color.hsv2rgb(hsv) * 255).astype(np.uint8)


def on_host(crop, draws, policy):
    """The host's own functions, one after the other, with given draws."""
    if draws.flip:
        crop = crop[:, ::-1]
    if draws.vertical_flip:
        crop = crop[::-1]
    if draws.quarter_turn:
        crop = np.rot90(crop)
    strengths = (policy.brightness, policy.contrast, policy.saturation, policy.hue)
    if not np.array_equal(draws.amounts, [1, 1, 1, 0]):
        for kind in draws.order:
            if strengths[kind]:
                change = exact_hue if kind == 3 else on_host_lib._ADJUSTMENTS[kind]
                more = {"in_color": policy.in_color} if kind == 1 else {}
                crop = change(crop, float(draws.amounts[kind]), **more)
    if draws.gray:
        crop = np.repeat(on_host_lib._gray(crop)[:, :, None], 3, axis=2)
    if draws.sigma:
        crop = on_host_lib.gaussian_blur(crop, float(draws.sigma))
    return on_host_lib.solarize(crop) if draws.solarize else crop


@pytest.mark.parametrize(
    "name, channels",
    [("rgb", 3), ("histology", 3), ("gray", 1), ("multispectral", 5)]
    + [("multispectral", 3)],
)
def test_equals_the_host(name, channels):
    """Every crop, every change together, given the same draws."""
    policy = policies.POLICIES[name]
    crops = crops_like_photographs(channels=channels)
    draws = draw(random_keys(2, 6), policy, num_local=2)
    out = np.asarray(apply(crops, draws, policy))
    assert out.dtype == np.uint8 and out.shape == crops.shape
    fields = {k: np.asarray(v) for k, v in vars(draws).items()}
    changed = 0
    for group, crop in np.ndindex(2, 24):
        this = on_device.Draws(**{k: v[..., group, crop] for k, v in fields.items()})
        want = on_host(crops[group, crop], this, policy)
        difference = np.abs(out[group, crop].astype(int) - want)
        # The host cuts off fractions after every change.
        assert difference.mean() < 2 and difference.max() <= 7, this
        changed += not np.array_equal(want, crops[group, crop])
    assert changed > 40


@pytest.mark.parametrize("change", ["flip", "brightness", "blur", "solarize", "gray"])
def test_single_changes_equal_the_host_within_a_level(change):
    policy = {
        "flip": {"flip_probability": 1.0},
        "brightness": {
            "jitter_probability": 1.0,
            **{"contrast": 0.0, "saturation": 0.0, "hue": 0.0},
        },
        "blur": {"blur_probabilities": (1.0, 1.0, 1.0)},
        "solarize": {"solarize_probability": 1.0},
        "gray": {"grayscale_probability": 1.0},
    }[change]
    policy = policies.Policy(**{**vars(NOTHING), **policy})
    crops = crops_like_photographs()
    draws = draw(random_keys(2, 6), policy, num_local=2)
    out = np.asarray(apply(crops, draws, policy))
    fields = {k: np.asarray(v) for k, v in vars(draws).items()}
    for group, crop in np.ndindex(2, 24):
        this = on_device.Draws(**{k: v[..., group, crop] for k, v in fields.items()})
        want = on_host(crops[group, crop], this, policy)
        assert np.abs(out[group, crop].astype(int) - want).max() <= 1
    assert not np.array_equal(out, crops)


@pytest.mark.parametrize("blur", ["intended", "none"])
def test_blur_off_leaves_every_crop(blur):
    """With every other change off too; as intended, global crop 1 is always blurred."""
    policy = policies.make_policy(only_blur(blur))
    crops = crops_like_photographs()
    draws = on_device.draw(random_keys(2, 6), policy, num_local=2)
    out = np.asarray(on_device.apply(jnp.asarray(crops), draws, policy))
    changed = np.any(out != crops, axis=(2, 3, 4))  # [G, n B]
    if blur == "none":
        assert not changed.any()
    else:
        assert changed[:, :6].mean() > 0.5  # a small sigma leaves a crop too


def only_blur(blur):
    """A config in which nothing else happens to a crop."""
    config = default.get_config()
    config.crops.blur = blur
    for name in policies.FIELDS:
        config.crops[name] = 0.0
    return config


def test_hue_equals_colorsys():
    policy = policies.Policy(**{**vars(NOTHING), "jitter_probability": 1.0})
    policy = dataclasses.replace(policy, brightness=0, contrast=0, saturation=0)
    crops = crops_like_photographs(groups=1, count=6, size=8)
    draws = draw(random_keys(1, 3), policy, num_local=0)
    out = np.asarray(apply(crops, draws, policy))
    shifts = np.asarray(draws.amounts)[3, 0]
    assert np.abs(shifts).min() > 1e-3
    for crop, turned, shift in zip(crops[0], out[0], shifts):
        for before, after in zip(crop.reshape(-1, 3) / 255, turned.reshape(-1, 3)):
            hue, saturation, value = colorsys.rgb_to_hsv(*before)
            want = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
            assert np.abs(np.array(want) * 255 - after).max() < 0.51


def test_identity_policy_changes_no_bit():
    crops = crops_like_photographs()
    draws = draw(random_keys(2, 6), policies.Policy(), num_local=2)
    still = on_device.Draws(
        **{name: jnp.zeros_like(x) for name, x in vars(draws).items()}
        | {
            "order": draws.order,
            "amounts": jnp.broadcast_to(
                jnp.asarray([1.0, 1, 1, 0])[:, None, None], draws.amounts.shape
            ),
        }
    )
    out = apply(crops, still, policies.Policy())
    np.testing.assert_array_equal(np.asarray(out), crops)


def uniform(values, low, high):
    """Ends and deciles of a uniform distribution."""
    width = high - low
    assert low <= values.min() < low + 0.01 * width
    assert high - 0.01 * width < values.max() <= high + 1e-6
    shares = np.arange(0.1, 1, 0.1)
    np.testing.assert_allclose(
        np.quantile(values, shares), low + width * shares, atol=0.02 * width
    )


@pytest.mark.parametrize("blur", ["reference", "intended"])
def test_ten_thousand_draws(blur):
    """Rates, ranges and orders as the reference documents them, view by view."""
    policy = policies.Policy(blur_probabilities=policies.BLUR_PROBABILITIES[blur])
    images = 2500
    draws = draw(random_keys(4, images), policy, num_local=2)
    views = {
        k: np.asarray(v).reshape(*v.shape[:-2], 4, 4, images)
        for k, v in vars(draws).items()
    }  # [..., G, view, B]
    by_view = {
        name: np.moveaxis(x, -2, 0).reshape(4, *x.shape[:-3], -1)
        for name, x in views.items()
    }
    for name, rate in (("flip", 0.5), ("gray", 0.2)):
        np.testing.assert_allclose(by_view[name].mean(-1), rate, atol=0.02)
    np.testing.assert_allclose(by_view["solarize"].mean(-1), [0, 0.2, 0, 0], atol=0.015)
    assert not by_view["vertical_flip"].any() and not by_view["quarter_turn"].any()
    expected = {"reference": (0.0, 0.9, 0.5, 0.5), "intended": (1.0, 0.1, 0.5, 0.5)}
    blurred = by_view["sigma"] > 0
    np.testing.assert_allclose(blurred.mean(-1), expected[blur], atol=0.02)
    assert blurred[0].mean() == expected[blur][0]  # never, or always
    uniform(by_view["sigma"][blurred], 0.1, 2.0)
    amounts = by_view["amounts"]  # [view, kind, G B]
    jittered = np.any(amounts != np.array([1, 1, 1, 0])[:, None], axis=1)
    np.testing.assert_allclose(jittered.mean(-1), 0.8, atol=0.015)
    for kind, (low, high) in enumerate(
        [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]
    ):
        uniform(amounts[:, kind][jittered], low, high)
    orders = np.moveaxis(by_view["order"], 1, -1).reshape(-1, 4)
    kinds, counts = np.unique(orders, axis=0, return_counts=True)
    assert sorted(map(tuple, kinds)) == sorted(itertools.permutations(range(4)))
    np.testing.assert_allclose(counts / len(orders), 1 / 24, atol=0.004)
    # Nothing follows from anything else, nor one crop's draws from another's.
    columns = np.stack(
        [by_view["flip"][v] for v in range(4)]
        + [by_view["gray"][1], by_view["solarize"][1], by_view["amounts"][0][0]]
    ).astype(float)
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.05


def test_changes_do_not_depend_on_the_batch_position():
    """Its key decides: not its place, its neighbours, or the number of groups."""
    policy = policies.Policy()
    keys = random_keys(2, 3)
    crops = crops_like_photographs(count=3 * 4)
    batch = {
        "global_crops": crops[:, :6],
        "local_crops": crops[:, 6:, :16, :16],
        "augmentation_keys": keys,
    }
    out = augment(batch, policy)
    assert set(out) == {"global_crops", "local_crops"}
    turned = {
        name: x.reshape(2, -1, 3, *x.shape[2:])[::-1, :, ::-1].reshape(x.shape)
        for name, x in batch.items()
        if name != "augmentation_keys"
    }
    turned["augmentation_keys"] = keys[::-1, ::-1]
    other = augment(turned, policy)
    for name, x in other.items():
        x = np.asarray(x)
        x = x.reshape(2, -1, 3, *x.shape[2:])[::-1, :, ::-1].reshape(x.shape)
        np.testing.assert_array_equal(x, np.asarray(out[name]))


def test_undistorted_crops_are_only_flipped_and_turned():
    policy = dataclasses.replace(  # any side is up
        policies.POLICIES["histology"],
        jitter_probability=0.0,
        blur_probabilities=(1.0, 1.0, 1.0),
    )
    crops, keys = crops_like_photographs(count=6), random_keys(2, 3)
    batch = {
        "global_crops": crops,
        "local_crops": np.zeros((2, 0, 8, 8, 3), np.uint8),
        "augmentation_keys": keys,
        "gram_crops": crops.repeat(2, axis=2).repeat(2, axis=3),
    }
    drawn = on_device.draw(keys, policy, num_local=0)
    fields = ("flip", "vertical_flip", "quarter_turn")
    draws = {name: np.asarray(getattr(drawn, name)) for name in fields}
    assert all(0 < x.sum() < x.size for x in draws.values())
    out = on_device.augment(batch, policy, undistorted=True)["gram_crops"]
    for group, crop in np.ndindex(2, 6):
        expected = batch["gram_crops"][group, crop]
        if draws["flip"][group, crop]:
            expected = expected[:, ::-1]
        if draws["vertical_flip"][group, crop]:
            expected = expected[::-1]
        if draws["quarter_turn"][group, crop]:
            expected = np.rot90(expected)
        np.testing.assert_array_equal(out[group, crop], expected)


def test_without_keys_or_local_crops():
    batch = {"global_crops": crops_like_photographs(), "local_crops": None}
    assert on_device.augment(batch, policies.Policy()) is batch
    crops = crops_like_photographs(count=6)
    batch = {
        "global_crops": crops,
        "local_crops": np.zeros((2, 0, 8, 8, 3), np.uint8),
        "augmentation_keys": random_keys(2, 3),
    }
    out = augment(batch, policies.Policy())
    assert out["local_crops"].shape == (2, 0, 8, 8, 3)
    assert not np.array_equal(out["global_crops"], crops)
