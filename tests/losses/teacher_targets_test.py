"""Sinkhorn-Knopp and centring against their textbook forms in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.losses import teacher_targets

PROTOTYPES = 7


def logits(*shape, seed=0, scale=0.3):
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((*shape, PROTOTYPES))).astype(np.float32)


def textbook(samples, temp, iterations=3):
    """[B, K] -> [B, K]: rows and columns of Q normalised in turn."""
    q = np.exp(np.asarray(samples, np.float64) / temp).T  # [K, B]
    q /= q.sum()
    prototypes, batch = q.shape
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True)
        q /= prototypes
        q /= q.sum(axis=0, keepdims=True)
        q /= batch
    return (q * batch).T


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("temp", [0.04, 0.07])
def test_sinkhorn_knopp(temp, iterations):
    x = logits(2, 6)
    ours = teacher_targets.sinkhorn_knopp(x, temp, num_iterations=iterations)
    expected = textbook(x.reshape(12, -1), temp, iterations).reshape(x.shape)
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(jnp.sum(ours, axis=-1), 1, rtol=1e-5)


def test_default_is_three_iterations():
    x = logits(2, 6)
    ours = teacher_targets.sinkhorn_knopp(x, 0.05)
    expected = textbook(x.reshape(12, -1), 0.05, 3).reshape(x.shape)
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-7)


def test_prototypes_are_balanced():
    x = logits(1, 64)
    x[..., 0] += 0.3  # everybody's favourite
    ours = teacher_targets.sinkhorn_knopp(x, 0.05)
    share = np.asarray(ours).sum(axis=(0, 1)) / 64
    assert 0.5 / PROTOTYPES < share.min() and share.max() < 2 / PROTOTYPES
    softmax = np.exp(x / 0.05) / np.exp(x / 0.05).sum(-1, keepdims=True)
    assert softmax.sum(axis=(0, 1))[0] / 64 > 2 / PROTOTYPES


def test_sinkhorn_knopp_spans_all_groups():
    x = logits(4, 3)
    ours = teacher_targets.sinkhorn_knopp(x, 0.05)
    flat = teacher_targets.sinkhorn_knopp(x.reshape(1, 12, -1), 0.05)
    np.testing.assert_allclose(ours.reshape(1, 12, -1), flat, rtol=1e-5, atol=1e-8)
    apart = teacher_targets.sinkhorn_knopp(x[:1], 0.05)
    assert np.abs(ours[:1] - apart).max() > 1e-2


def random_valid(shape, seed=5):
    valid = np.random.default_rng(seed).random(shape) < 0.6
    valid[0, 0], valid[-1, -1] = True, False
    return valid


@pytest.mark.parametrize("poison", [0.0, 50.0, -50.0, np.nan, np.inf])
def test_padding_is_ignored(poison):
    x, valid = logits(3, 5), random_valid((3, 5))
    x[~valid] = poison
    ours = np.asarray(teacher_targets.sinkhorn_knopp(x, 0.04, valid=valid))
    np.testing.assert_allclose(ours[valid], textbook(x[valid], 0.04), rtol=2e-5)
    assert np.all(ours[~valid] == 0)


def test_padding_alone_gives_zeros():
    ours = teacher_targets.sinkhorn_knopp(
        logits(2, 4), 0.04, valid=np.zeros((2, 4), bool)
    )
    assert ours.shape == (2, 4, PROTOTYPES) and not np.any(ours)


@pytest.mark.parametrize("scale", [10.0, 1e4])
def test_huge_logits_stay_finite(scale):
    ours = teacher_targets.sinkhorn_knopp(logits(2, 8, scale=scale), 0.04)
    assert np.all(np.isfinite(ours)) and np.all(ours >= 0)


def test_a_common_shift_changes_nothing():
    x = logits(2, 6).astype(np.float64)
    ours = teacher_targets.sinkhorn_knopp(x, 0.05)
    shifted = teacher_targets.sinkhorn_knopp(x + 40.0, 0.05)  # exp(800) overflows
    np.testing.assert_allclose(shifted, ours, rtol=2e-3, atol=1e-6)


def test_low_precision_logits_are_balanced_in_float32():
    x = jnp.asarray(logits(2, 6)).astype(jnp.bfloat16)
    ours = teacher_targets.sinkhorn_knopp(x, 0.05)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(jnp.sum(ours, axis=-1), 1, rtol=1e-5)


def test_centered_softmax():
    x, center = logits(2, 3), logits(seed=1)
    ours = teacher_targets.centered_softmax(x, center, 0.04)
    exact = np.exp((x.astype(np.float64) - center) / 0.04)
    exact /= exact.sum(-1, keepdims=True)
    np.testing.assert_allclose(ours, exact, rtol=2e-5, atol=1e-9)


def test_center_of_all_samples():
    x, center = logits(2, 6), logits(seed=1)
    ours = teacher_targets.update_center(center, x)
    mean = np.mean([row for group in x for row in group], axis=0)
    np.testing.assert_allclose(ours, 0.9 * center + 0.1 * mean, rtol=1e-5, atol=1e-8)


def test_center_of_groups_with_unequal_counts():
    """The mean of the groups' means, as of the reference's ranks; padding ignored."""
    x, center = logits(3, 5), logits(seed=1)
    valid = np.zeros((3, 5), bool)
    valid[0, :5] = valid[1, :2] = True  # the last group has nothing
    x[~valid] = 1e3
    means = [x[0].mean(axis=0), x[1, :2].mean(axis=0), np.zeros(PROTOTYPES)]
    expected = 0.9 * center + 0.1 * np.mean(means, axis=0)
    ours = teacher_targets.update_center(center, x, valid)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-8)
    over_tokens = 0.9 * center + 0.1 * x[valid].mean(axis=0)
    assert np.abs(ours - over_tokens).max() > 1e-3
