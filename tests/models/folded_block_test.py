"""Folded blocks beside the blocks whose weights they have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models import folded_block, layers, model_config

SEQUENCES = ((2, 5),)


def make_block(**settings):
    """A block, its weights, none of them near 0 or 1, and tokens [1, 10, 32]."""
    config = model_config.ModelConfig(embed_dim=32, depth=1, num_heads=2, **settings)
    block = layers.Block(config)
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.standard_normal((1, 10, 32)) * 2 + 1, jnp.float32)
    shapes = jax.eval_shape(lambda k: block.init(k, x, SEQUENCES), jax.random.key(0))
    params = jax.tree.map(
        lambda p: jnp.asarray(draw.uniform(-0.4, 0.4, p.shape), jnp.float32),
        shapes["params"],
    )
    return block, params, x


def folded(block, params, x):
    """What the block gives, from folded weights."""
    weights = folded_block.fold(params, block.dtype)
    function = folded_block.bind(
        weights, block.config, kernel=block.kernel, dtype=block.dtype
    )
    return function(x, SEQUENCES)


def plain(block, params, x):
    return block.apply({"params": params}, x, SEQUENCES)


WITHOUT = {name: False for name in ("qkv_bias", "proj_bias", "ffn_bias")}


@pytest.mark.parametrize("settings", [{}, WITHOUT, {"layerscale": 0.0}])
@pytest.mark.parametrize("ffn", ["mlp", "swiglufused"])
def test_values_and_gradients(ffn, settings):
    block, params, x = make_block(ffn_layer=ffn, **settings)
    grad = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    results = []
    for function in (folded, plain):
        result, vjp = jax.vjp(functools.partial(function, block), params, x)
        results.append((result, vjp(grad)))
    for found, known in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(found, known, atol=3e-6 * np.abs(known).max())


@pytest.mark.slow
def test_bfloat16_is_as_exact():
    """Over tokens far from 0 its error beside float32 is that of the plain block."""
    block, params, x = make_block()
    x += 5 * np.random.default_rng(2).standard_normal((10, 1))
    exact = plain(block, params, x)
    half = block.clone(dtype=jnp.bfloat16)
    error, of_plain = (
        np.abs(function(half, params, x.astype(jnp.bfloat16)) - exact).mean()
        for function in (folded, plain)
    )
    assert 0 < error < 1.2 * of_plain


@pytest.mark.slow
def test_blocks_of_a_stack_are_folded_one_by_one():
    block, params, _ = make_block(ffn_layer="swiglufused")
    other = jax.tree.map(lambda p: 2 * p + 0.1, params)
    stack = jax.tree.map(lambda *p: jnp.stack(p), params, other)
    found = folded_block.fold(stack, jnp.float32)
    known = folded_block.fold(other, jnp.float32)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-6), found, known
    )
