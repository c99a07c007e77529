import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.eval.depth import depth_losses


def batch(seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 8.0, (2, 9, 11)).astype(np.float32)
    truth[rng.random(truth.shape) < 0.3] = 0
    return rng.uniform(0.5, 8.0, truth.shape).astype(np.float32), truth


def slow_gradient_loss(prediction, truth):
    total = 0.0
    for stride in (1, 2, 4, 6):
        p, t = (x[:, ::stride, ::stride] for x in (prediction, truth))
        valid = t > 0
        g = np.where(valid, np.log(p + 1e-3) - np.log(t + 1e-3), 0)
        total_here = 0.0
        for b, i, j in np.ndindex(g.shape):
            for other in ((b, i + 2, j), (b, i, j + 2)):
                if other[1] < g.shape[1] and other[2] < g.shape[2]:
                    both = valid[b, i, j] and valid[other]
                    total_here += both * abs(g[b, i, j] - g[other])
        total += total_here / valid.sum()
    return total


def test_gradient_loss_equals_a_loop():
    prediction, truth = batch()
    mine = jax.jit(depth_losses.gradient_loss)(prediction, truth)
    np.testing.assert_allclose(mine, slow_gradient_loss(prediction, truth), rtol=1e-5)


@pytest.mark.parametrize("warm_up", [False, True])
def test_a_perfect_prediction_has_loss_and_gradient_zero(warm_up):
    _, truth = batch()
    value, gradient = jax.value_and_grad(depth_losses.scale_invariant_loss)(
        jnp.asarray(truth), jnp.asarray(truth), warm_up=warm_up
    )
    assert value == 0
    assert (gradient == 0).all()


def test_pixels_without_truth_do_not_matter():
    prediction, truth = batch()
    other = np.where(truth > 0, prediction, 0.0)
    loss = jax.jit(functools.partial(depth_losses.depth_loss, gradient="spatial"))
    losses = [loss(p, truth) for p in (prediction, other)]
    assert losses[0] == losses[1]
