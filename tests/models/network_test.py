"""The parts of a backbone that learn: they have gradients, and the rest has none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dinov2_jax.models import network


def class_tokens(made, params):
    """A number that depends on the class tokens of two crops."""
    crops = np.random.default_rng(1).standard_normal((1, 2, 16, 16, 3), np.float32)
    (cls,), _ = made.tokens(params, [crops], [None], np.zeros((1, 1), np.int32))
    return jnp.sum(jnp.sin(cls))


def make(part):
    """A network of which a part learns, its parameters and their gradients."""
    c = tiny.config(optim={"trainable": part, "last_blocks": 1, "lora_rank": 2})
    made = network.make_network(c, jnp.float32)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape, np.float32),
        jax.eval_shape(made.init, jax.random.key(0)),
    )
    gradient = jax.jit(jax.grad(functools.partial(class_tokens, made)))
    return made, params, gradient


def leaves(tree):
    """Gradients by name, those of blocks by block."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "/blocks/" in name:
            named |= {f"{name}/{i}": block for i, block in enumerate(leaf)}
        else:
            named[name] = leaf
    return {name: np.asarray(leaf) for name, leaf in named.items()}


def test_the_last_blocks_have_the_gradients_that_they_have_among_all():
    every, last = (
        leaves(gradient(params)) for _, params, gradient in map(make, ("all", "last"))
    )
    assert every.keys() == last.keys()
    learning = set()
    for name, grad in last.items():
        if grad.any():
            learning.add(name)
            np.testing.assert_allclose(grad, every[name], rtol=1e-4, atol=1e-5)
    expected = {
        name
        for name, grad in every.items()
        if grad.any() and (name.endswith("/1") or name.startswith("backbone/norm/"))
    }
    assert learning == expected and expected
    assert every["backbone/pos_embed"].any()


@pytest.mark.slow
def test_lora_has_the_gradients_of_the_chain_rule():
    """With W' = W + s A B and G the gradient of W': s G B^T and s A^T G."""
    made, params, gradient = make("lora")
    grads = gradient(params)
    assert not any(g.any() for g in leaves(grads["backbone"]).values())
    merged = made.merged(params)
    assert merged.keys() == params.keys() - {"lora"}
    whole = make("all")[2](merged)["backbone"]["blocks"]["attn"]
    for name, found in grads["lora"]["blocks"]["attn"].items():
        pair = params["lora"]["blocks"]["attn"][name]
        for i in range(2):
            g = np.float64(whole[name]["kernel"][i])
            a, b = np.float64(pair["a"][i]), np.float64(pair["b"][i])
            for ours, expected in (
                (found["a"][i], 8.0 * g @ b.T),  # 16 / 2
                (found["b"][i], 8.0 * a.T @ g),
            ):
                scale = np.abs(expected).max()
                assert scale > 0
                np.testing.assert_allclose(ours, expected, atol=1e-3 * scale)
