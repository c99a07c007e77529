"""Linear layers beside the automatic gradients of what they compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.kernels import linear


def arrays(*shapes, dtype=jnp.float32):
    draw = np.random.default_rng(0)
    return [jnp.asarray(draw.standard_normal(s), dtype) for s in shapes]


def gated(gate, value):
    return jax.nn.silu(gate) * value


def plain(activation, hidden, biases, kernel):
    hidden = [h if b is None else h + b for h, b in zip(hidden, biases)]
    return activation(*hidden) @ kernel


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation, count", [(jax.nn.gelu, 1), (gated, 2)])
def test_activated(activation, count, use_bias):
    *hidden, kernel, grad = arrays(*[(2, 7, 12)] * count, (12, 5), (2, 7, 5))
    biases = arrays(*[(12,)] * count) if use_bias else [None] * count
    args = tuple(hidden), tuple(biases), kernel

    @functools.partial(jax.jit, static_argnums=0)
    def with_gradients(function, args, grad):
        result, pull = jax.vjp(lambda *a: function(activation, *a), *args)
        return result, pull(grad)

    found, gradients = with_gradients(linear.activated, args, grad)
    known, plain_gradients = with_gradients(plain, args, grad)
    np.testing.assert_allclose(found, known, rtol=1e-6, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        gradients,
        plain_gradients,
    )


def test_add_bias():
    x, bias, grad = arrays((2, 7, 12), (12,), (2, 7, 12))
    found, pull = jax.vjp(linear.add_bias, x, bias)
    np.testing.assert_array_equal(found, x + bias)
    d_x, d_bias = pull(grad)
    np.testing.assert_array_equal(d_x, grad)
    np.testing.assert_allclose(d_bias, grad.sum((0, 1)), rtol=1e-5, atol=1e-5)
    found, pull = jax.vjp(lambda x: linear.add_bias(x, None), x)
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(pull(grad)[0], grad)


def test_gradients_of_biases_are_summed_in_float32():
    # Automatically they would be sums in bfloat16, which end at 256 on some devices.
    x, bias = jnp.zeros((4, 1024, 3), jnp.bfloat16), jnp.zeros(3, jnp.bfloat16)
    kernel = jnp.ones((3, 2), jnp.bfloat16)
    for function, args in (
        (linear.add_bias, (x, bias)),
        (lambda *a: linear.activated(jax.nn.gelu, (a[0],), (a[1],), kernel), (x, bias)),
    ):
        result, pull = jax.vjp(function, *args)
        grad = jnp.ones_like(result)
        sums = [
            equation.invars[0].aval.dtype
            for equation in jax.make_jaxpr(pull)(grad).eqns
            if equation.primitive.name == "reduce_sum"
        ]
        assert sums == [jnp.float32]
    found = jax.vjp(linear.add_bias, x, bias)[1](jnp.full_like(x, 1.125))[1]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), 4608.0)
