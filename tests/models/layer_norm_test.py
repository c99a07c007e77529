"""LayerNorm beside flax's, and its CPU gradients beside automatic ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models import layer_norm


def inputs(shape):
    draw = np.random.default_rng(0)
    x, grad = draw.standard_normal((2, *shape)) * 3 + 1
    scale, bias = draw.standard_normal((2, shape[-1]))
    return [jnp.asarray(a, jnp.float32) for a in (x, scale, bias, grad)]


@pytest.mark.parametrize("shape", [(2, 37, 48), (5, 48), (1, 1, 3, 8)])
def test_gradients(shape):
    x, scale, bias, grad = inputs(shape)
    y, vjp = jax.vjp(layer_norm._by_sums, x, scale, bias)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale, bias)]
        expected, of_exact = jax.vjp(layer_norm.plain, *exact)
        expected = [expected, *of_exact(jnp.asarray(np.asarray(grad, np.float64)))]
    for found, known in zip([y, *vjp(grad)], expected, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equals_flax(dtype):
    x, scale, bias, _ = inputs((2, 37, 48))
    params = {"params": {"scale": scale, "bias": bias}}
    theirs = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype)
    ours = layer_norm.LayerNorm(dtype)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == jax.tree.map(
        jnp.shape, params
    )
    found, known = (m.apply(params, x.astype(dtype)) for m in (ours, theirs))
    assert found.dtype == known.dtype == dtype
    np.testing.assert_allclose(
        found.astype(np.float32), known.astype(np.float32), rtol=1e-6, atol=1e-6
    )


def test_through_vmap_scan_and_remat():
    x, scale, bias, _ = inputs((4, 7, 8))

    def total(function, x):
        def step(carry, x):
            return carry + jnp.sum(jnp.sin(function(x, scale, bias))), None

        return jax.lax.scan(jax.checkpoint(step), 0.0, x)[0]

    found, known = (
        jax.vmap(jax.grad(lambda x, f=f: total(f, x)))(jnp.stack([x, 2 * x]))
        for f in (layer_norm._by_sums, layer_norm.plain)
    )
    np.testing.assert_allclose(found, known, rtol=1e-4, atol=1e-5)
