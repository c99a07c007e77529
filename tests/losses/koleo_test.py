"""KoLeo against torch's normalize and PairwiseDistance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import torch

from dinov2_jax.losses import koleo


def features(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_torch(x):
    """One set [B, D], as the reference computes it."""
    x = torch.nn.functional.normalize(x, p=2, dim=-1, eps=1e-8)
    dots = (x @ x.T).fill_diagonal_(-1)
    nearest = dots.argmax(dim=1)
    distance = torch.nn.PairwiseDistance(2, eps=1e-8)(x, x[nearest])
    return -torch.log(distance + 1e-8).mean()


@pytest.mark.parametrize("batch", [2, 3, 16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_equals_torch(batch, scale):
    x = scale * features(batch, 6)
    theirs = torch.from_numpy(x).requires_grad_()
    loss = with_torch(theirs)
    loss.backward()
    ours, grads = jax.value_and_grad(lambda x: koleo.koleo_loss(x))(jnp.asarray(x))
    assert float(ours) == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    expected = theirs.grad.numpy()
    np.testing.assert_allclose(grads, expected, atol=2e-5 * np.abs(expected).max())


def test_sets_are_independent():
    x = features(2, 3, 5, 4)
    ours = koleo.koleo_loss(x)
    assert ours.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = with_torch(torch.from_numpy(x[i, j])).item()
            assert float(ours[i, j]) == pytest.approx(alone, rel=1e-5, abs=1e-6)


def test_gradient_flows_through_both_ends():
    # 0 and 1 are each other's neighbours; 2's neighbour is 1, nobody's is 2.
    x = jnp.asarray([[1.0, 0.0], [1.0, 0.2], [0.3, 1.0]])
    grads = jax.grad(lambda x: koleo.koleo_loss(x) * 3)(x)
    step = 1e-3
    for i in range(3):
        for j in range(2):
            up, down = (
                with_torch(torch.tensor(np.asarray(x.at[i, j].add(s)), dtype=float))
                for s in (step, -step)
            )
            numeric = 3 * (up - down).item() / (2 * step)
            assert float(grads[i, j]) == pytest.approx(numeric, abs=1e-3)


def test_duplicates_zeros_and_half_precision_are_finite():
    x = features(4, 6)
    x[1] = x[0]
    x[2] = 0.0
    for dtype in (jnp.float32, jnp.bfloat16):
        loss, grads = jax.value_and_grad(koleo.koleo_loss)(jnp.asarray(x, dtype))
        assert loss.dtype == jnp.float32
        assert np.isfinite(loss) and np.all(np.isfinite(grads.astype(jnp.float32)))
    # In float16 itself 1e-8 would be 0 and the loss infinite.
    assert np.isfinite(koleo.koleo_loss(jnp.asarray(x, jnp.float16)))
    # Two identical rows: the distance is |1e-8| over 6 channels.
    twins = np.repeat(features(1, 6), 2, axis=0)
    expected = -np.log(1e-8 * np.sqrt(6) + 1e-8)
    assert float(koleo.koleo_loss(twins)) == pytest.approx(expected, rel=1e-4)
