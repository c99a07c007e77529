"""Linear layers whose backward passes are written out, for what they keep and sum.

The products of matmuls are kept before their bias is added, and it is added again where
they are used: no pass over all tokens is spent on it.

Shapes: [..., D] tokens, F features between two layers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array | None) -> jax.Array:
    """x + bias, [..., F] and [F]; x where there is none."""
    return _plus(x, bias)


def _add_bias_forward(x, bias):
    return add_bias(x, bias), bias


def _add_bias_backward(bias, grad):
    return grad, None if bias is None else sum_rows(grad)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def sum_rows(x: jax.Array) -> jax.Array:
    """[..., F] -> [F] in the dtype of x, summed in float32.

    The automatic gradient of a bias is summed in bfloat16, and by the TPU compiler's
    figures in six times the time.
    """
    return jnp.sum(x, axis=range(x.ndim - 1), dtype=jnp.float32).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activated(
    activation: Callable[..., jax.Array],
    hidden: tuple[jax.Array, ...],
    biases: tuple[jax.Array | None, ...],
    kernel: jax.Array,
) -> jax.Array:
    """activation(hidden + biases) @ kernel.

    Keeps `hidden` for its backward pass, as "ffn_hidden" of the remat policies, and
    computes the activation again.

    Args:
      activation: Elementwise, of as many arrays as there are in `hidden`.
      hidden: [..., F] each, products of the layer before.
      biases: [F] or None each, of that layer.
      kernel: [F, D].

    Returns:
      [..., D].
    """
    return activation(*map(_plus, hidden, biases)) @ kernel


def _activated_forward(activation, hidden, biases, kernel):
    # Named here, where the forward pass does not use what is named; see `layer_norm`.
    kept = checkpoint_name(hidden, "ffn_hidden")
    return activated(activation, hidden, biases, kernel), (kept, biases, kernel)


def _activated_backward(activation, saved, grad):
    hidden, biases, kernel = saved
    inner, pull = jax.vjp(activation, *map(_plus, hidden, biases))
    # XLA:CPU copies the transpose of the left operand, so that is the narrower one. For
    # TPUs (ViT-L on v5e) the compiler predicts the same step either way.
    d_kernel = jnp.einsum("...d,...f->df", grad, inner).T
    d_hidden = pull(jnp.einsum("...d,fd->...f", grad, kernel))
    d_biases = tuple(
        None if bias is None else sum_rows(d) for bias, d in zip(biases, d_hidden)
    )
    # Else the TPU compiler computes a part of them in each matmul that reads them.
    return jax.lax.optimization_barrier(d_hidden), d_biases, d_kernel


activated.defvjp(_activated_forward, _activated_backward)


def _plus(x, bias):
    return x if bias is None else x + bias
