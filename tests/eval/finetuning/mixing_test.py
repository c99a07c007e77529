"""Mixup, CutMix and smoothing, against loops in NumPy."""

import functools

import jax
import numpy as np
import pytest

from dinov2_jax.eval.finetuning import mixing

HEIGHT, WIDTH, CLASSES = 6, 9, 5


@pytest.fixture
def group():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, HEIGHT, WIDTH, 3)).astype(np.float32)
    return images, np.eye(CLASSES, dtype=np.float32)[[0, 3, 1, 3]]


def test_smoothing():
    labels = np.array([[2, 0]])
    expected = [[[0.02, 0.02, 0.92, 0.02, 0.02], [0.92, 0.02, 0.02, 0.02, 0.02]]]
    targets = mixing.smooth_labels(labels, num_classes=CLASSES, smoothing=0.1)
    np.testing.assert_allclose(targets, expected, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixup_equals_a_loop(group, share):
    images, targets = group
    mixed, mixed_targets = mixing.mixup(images, targets, share)
    for i in range(4):
        other = 3 - i
        expected = share * images[i] + (1 - share) * images[other]
        np.testing.assert_allclose(mixed[i], expected, atol=1e-6)
        expected = share * targets[i] + (1 - share) * targets[other]
        np.testing.assert_allclose(mixed_targets[i], expected, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("centre", [(0, 0), (3, 4), (5, 8)])
def test_cutmix_equals_a_loop(group, share, centre):
    images, targets = group
    mixed, mixed_targets = jax.jit(mixing.cutmix)(
        images, targets, share, np.array(centre)
    )
    half = [int(side * np.sqrt(1 - share)) // 2 for side in (HEIGHT, WIDTH)]
    for i in range(4):
        expected, replaced = images[i].copy(), 0
        for row in range(max(centre[0] - half[0], 0), centre[0] + half[0]):
            for column in range(max(centre[1] - half[1], 0), centre[1] + half[1]):
                if row < HEIGHT and column < WIDTH:
                    expected[row, column] = images[3 - i, row, column]
                    replaced += 1
        np.testing.assert_array_equal(mixed[i], expected)
        left = 1 - replaced / (HEIGHT * WIDTH)
        expected = left * targets[i] + (1 - left) * targets[3 - i]
        np.testing.assert_allclose(mixed_targets[i], expected, atol=1e-6)


def test_draws(group):
    """Which way is drawn, how much of an image is left, and that nothing is by 0."""
    images, _ = group
    targets = np.eye(4, dtype=np.float32)
    keys = jax.random.split(jax.random.key(0), 2000)

    off = mixing.mix(keys[0], images, targets, mixup_alpha=0.0, cutmix_alpha=0.0)
    assert off[0] is images and off[1] is targets
    mix = functools.partial(mixing.mix, mixup_alpha=0.8, cutmix_alpha=1.0)
    drawn = jax.jit(jax.vmap(mix, (0, None, None)))(keys, images, targets)
    mixed, shares = (np.asarray(x) for x in drawn)
    known = mixed[:, 0, ..., None] == images[[0, 3]].transpose(1, 2, 3, 0)
    by_cutmix = known.any(axis=-1).all(axis=(1, 2, 3))
    assert 900 < by_cutmix.sum() < 1100
    # Beta(a, a) has the mean 1/2 and the variance 1 / (8 a + 4).
    shares = shares[~by_cutmix, 0, 0]
    assert abs(shares.mean() - 0.5) < 0.04
    assert abs(shares.var() - 1 / (8 * 0.8 + 4)) < 0.01
