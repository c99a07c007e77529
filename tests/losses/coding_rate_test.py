"""SimDINO's losses against slow forms in NumPy, and torch's gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import torch

from dinov2_jax.losses import coding_rate

EPS = 0.05


def features(*shape, seed=0, common=1.0):
    """Unit-length features around a common direction, as those of a young network."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) + common).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slow_rate(z, eps):
    """One set [N, C]: a sum over the eigenvalues of its covariance."""
    count, dim = z.shape
    covariance = sum(np.outer(row, row) for row in z.astype(np.float64)) / count
    values = np.linalg.eigvalsh(covariance)
    return sum(0.5 * math.log(1.0 + dim / eps**2 * value) for value in values)


@pytest.mark.parametrize("eps", [0.05, 0.5])
@pytest.mark.parametrize("count", [1, 5, 8, 23])
def test_rate(count, eps):
    x = features(2, 3, count, 8)
    ours = jax.jit(coding_rate.coding_rate, static_argnames="eps")(x, eps=eps)
    expected = [[slow_rate(z, eps) for z in sets] for sets in x]
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


# The nearer features are to each other, the more digits a float32 covariance loses.
@pytest.mark.parametrize("common, tolerance", [(0.0, 1e-5), (2.0, 2e-4)])
@pytest.mark.parametrize("count", [5, 23])
def test_gradient_equals_torch(count, common, tolerance):
    x = features(count, 8, common=common)
    ours = jax.grad(lambda z: coding_rate.coding_rate(z, eps=EPS))(jnp.asarray(x))
    z = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    covariance = z.T @ z * (8 / (count * EPS**2))
    (torch.logdet(torch.eye(8, dtype=torch.float64) + covariance) / 2).backward()
    expected = z.grad.numpy()
    np.testing.assert_allclose(ours, expected, atol=tolerance * np.abs(expected).max())


def test_equal_features_have_the_smallest_rate_and_a_finite_gradient():
    equal = np.broadcast_to(features(1, 16), (12, 16))
    value, grad = jax.value_and_grad(lambda z: coding_rate.coding_rate(z, eps=EPS))(
        jnp.asarray(equal)
    )
    # A single direction of variance 1.
    assert float(value) == pytest.approx(0.5 * math.log(1 + 16 / EPS**2), rel=1e-4)
    assert np.isfinite(grad).all()
    nearly = equal + 1e-3 * features(12, 16, seed=1)
    assert float(value) < slow_rate(nearly, EPS) < slow_rate(features(12, 16), EPS)
    # All directions alike: the largest.
    most = 0.5 * 16 * math.log(1 + 1 / EPS**2)
    orthogonal = coding_rate.coding_rate(jnp.eye(16), eps=EPS)
    assert float(orthogonal) == pytest.approx(most, rel=1e-5)


@pytest.mark.parametrize("num_local", [0, 3])
def test_paired_distance(num_local):
    student, teacher = features(2, 4, 2 + num_local, 6), features(2, 4, 2, 6, seed=1)
    pairs = ((1,), (0,)) + ((0, 1),) * num_local
    ours = coding_rate.paired_distance(student, teacher, pairs)
    expected = np.zeros(2 + num_local)
    for group in range(2):
        for image in range(4):
            for s, row in enumerate(pairs):
                for t in row:
                    cosine = student[group, image, s] @ teacher[group, image, t]
                    expected[s] += 1.0 - cosine
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_low_precision_features_are_compared_in_float32():
    x, y = (jnp.asarray(features(5, 6, seed=s)).astype(jnp.bfloat16) for s in (0, 1))
    ours = coding_rate.half_squared_distance(x, y)
    assert ours.dtype == coding_rate.coding_rate(x, eps=EPS).dtype == jnp.float32
    wide = [np.asarray(v, np.float32) for v in (x, y)]
    exact = 0.5 * np.sum((wide[0] - wide[1]) ** 2, axis=-1)
    np.testing.assert_allclose(ours, exact, rtol=1e-5)


def test_balance():
    assert coding_rate.balance(64, 256) == pytest.approx(1 / 64 + 1 / 256)
