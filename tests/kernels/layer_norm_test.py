"""LayerNorm beside flax's, and a float64 twin with its automatic gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.kernels import layer_norm
from dinov2_jax.models import layers

FEATURES = (6, 10)


def inputs(shape):
    """Tokens, scale, shift, kernels, and a gradient of the product with each."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal(shape) * 3 + 1
    scale, shift = draw.standard_normal((2, shape[-1]))
    kernels = tuple(draw.standard_normal((shape[-1], f)) for f in FEATURES)
    kernels = tuple(kernel - kernel.mean(0) for kernel in kernels)
    grads = tuple(draw.standard_normal((*shape[:-1], f)) for f in FEATURES)
    return jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float32), (x, scale, shift, kernels, grads)
    )


def twin(x, scale, shift):
    """The definition, in the dtype of its arguments."""
    x = x - x.mean(-1, keepdims=True)
    deviation = jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    return x / deviation * scale + shift


def twin_projections(x, kernels):
    tokens = twin(x, 1, 0)
    return tuple(tokens @ kernel for kernel in kernels)


def in_float64(function, args, grads):
    """Result and automatic gradients."""
    with jax.enable_x64(True):
        args, grads = jax.tree.map(
            lambda a: jnp.asarray(np.asarray(a, np.float64)), (args, grads)
        )
        return with_gradients(function, args, grads)


def with_gradients(function, args, grads):
    """Result and gradients, compiled as one program."""

    @jax.jit
    def compute(args, grads):
        result, vjp = jax.vjp(function, *args)
        return result, vjp(grads)

    return compute(args, grads)


def check(function, exact, args, grads, tolerance):
    result, gradients = with_gradients(function, args, grads)
    found = jax.tree.leaves((result, gradients))
    known = jax.tree.leaves(in_float64(exact, args, grads))
    assert known[0].dtype == np.float64
    for a, b, like in zip(found, known, jax.tree.leaves((result, args)), strict=True):
        assert a.dtype == like.dtype
        a, b = (np.asarray(y, np.float64) for y in (a, b))
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("shape", [(2, 37, 48), (5, 48), (1, 1, 3, 8)])
def test_gradients(shape):
    x, _, _, kernels, grads = inputs(shape)
    check(layer_norm.project, twin_projections, (x, kernels), grads, 1e-5)


def test_gradients_of_bfloat16():
    x, _, _, kernels, grads = inputs((2, 37, 48))
    x, kernels, grads = jax.tree.map(
        lambda a: a.astype(jnp.bfloat16), (x, kernels, grads)
    )
    check(layer_norm.project, twin_projections, (x, kernels), grads, 2e-2)


def test_bfloat16_statistics_in_one_pass():
    # Tokens ten deviations from zero, and one all the same.
    x = inputs((64, 384))[0] + 30
    x = x.at[0].set(5.0).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    variance = exact.var(-1, keepdims=True) + 1e-6
    known = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(variance)
    found = layer_norm.layer_norm(x, jnp.ones(384), jnp.zeros(384))
    np.testing.assert_allclose(found, known, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equals_flax(dtype):
    x, scale, bias, *_ = inputs((2, 37, 48))
    params = {"params": {"scale": scale, "bias": bias}}
    theirs = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype)
    ours = layers.LayerNorm(dtype)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == jax.tree.map(
        jnp.shape, params
    )
    found, known = (m.apply(params, x.astype(dtype)) for m in (ours, theirs))
    assert found.dtype == known.dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-7
    np.testing.assert_allclose(
        found.astype(np.float32),
        known.astype(np.float32),
        rtol=tolerance,
        atol=tolerance,
    )


def test_through_vmap_scan_and_remat():
    x, _, _, (kernel, _), _ = inputs((4, 7, 8))

    def projected(x):
        return layer_norm.project(x, (kernel,))[0]

    def plain(x):
        return layer_norm.layer_norm(x, 1.0, 0.0) @ kernel

    def total(function, x):
        def step(carry, x):
            return carry + jnp.sum(jnp.sin(function(x))), None

        return jax.lax.scan(jax.checkpoint(step), 0.0, x)[0]

    found, known = (
        jax.jit(jax.vmap(jax.grad(lambda x, f=f: total(f, x))))(jnp.stack([x, 2 * x]))
        for f in (projected, plain)
    )
    np.testing.assert_allclose(found, known, rtol=1e-4, atol=1e-5)
