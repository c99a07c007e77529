"""Gram anchoring against NumPy in float64 and torch's gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import torch

from dinov2_jax.losses import gram


def patches(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_numpy(student, teacher):
    """One crop [N, D], by loops over pairs of patches."""
    student, teacher = np.float64(student), np.float64(teacher)

    def cosine(x, i, j):
        return x[i] @ x[j] / np.sqrt((x[i] @ x[i]) * (x[j] @ x[j]))

    count = len(student)
    return np.mean(
        [
            (cosine(student, i, j) - cosine(teacher, i, j)) ** 2
            for i in range(count)
            for j in range(count)
        ]
    )


def test_equals_the_loops_for_each_crop():
    student, teacher = 30 * patches(2, 3, 5, 7), 0.01 * patches(2, 3, 5, 4, seed=1)
    found = gram.gram_loss(student, teacher)
    assert found.shape == (2, 3) and found.dtype == jnp.float32
    expected = [
        [in_numpy(*pair) for pair in zip(*group)] for group in zip(student, teacher)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_gradient_equals_torch():
    student, teacher = patches(2, 6, 9), patches(2, 6, 9, seed=1)
    theirs = torch.tensor(student, dtype=torch.float64, requires_grad=True)

    def similarities(x):
        x = torch.nn.functional.normalize(x, dim=-1)
        return x @ x.mT

    fixed = similarities(torch.tensor(teacher, dtype=torch.float64))
    torch.nn.functional.mse_loss(similarities(theirs), fixed).backward()
    ours = jax.grad(lambda x: jnp.mean(gram.gram_loss(x, teacher)))(student)
    expected = theirs.grad.numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_loss_and_no_gradient_where_both_are_equal(dtype):
    x = jnp.asarray(patches(2, 6, 9), dtype).at[0, 3].set(0)  # one without direction
    loss, grads = jax.value_and_grad(lambda x, y: gram.gram_loss(x, y).sum())(x, x)
    assert float(loss) == 0 and not np.any(grads)
    # Neither scale nor a rotation of all features matters.
    turn = np.linalg.qr(patches(9, 9, seed=2))[0]
    turned = 5 * x.astype(jnp.float32) @ turn
    assert float(gram.gram_loss(turned, x).max()) < 1e-10
