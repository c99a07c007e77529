"""Linear layers with hand-written backward passes, to control what is kept and summed.

Matmul outputs are kept without their bias, which is added again wherever they are used,
so no separate pass over all tokens is needed.

Shapes: [..., D] tokens, F features between two layers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Add a bias [F] to x [..., F]; return x if the bias is None."""
    return _plus(x, bias)


def _add_bias_forward(x, bias):
    return add_bias(x, bias), bias


def _add_bias_backward(bias, grad):
    return grad, None if bias is None else sum_rows(grad)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def sum_rows(x: jax.Array) -> jax.Array:
    """Sum [..., F] to [F] in float32; return it in the dtype of x.

    Autodiff would sum the gradient of a bias in bfloat16 and, by the TPU compiler's
    figures, take six times as long.
    """
    return jnp.sum(x, axis=range(x.ndim - 1), dtype=jnp.float32).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activated(
    activation: Callable[..., jax.Array],
    hidden: tuple[jax.Array, ...],
    biases: tuple[jax.Array | None, ...],
    kernel: jax.Array,
) -> jax.Array:
    """Compute activation(hidden + biases) @ kernel.

    The backward pass keeps `hidden`, "ffn_hidden" in the remat policies, and recomputes
    the activation.

    Args:
      activation: Elementwise function of as many arrays as there are in `hidden`.
      hidden: Matmul outputs of the previous layer, [..., F] each.
      biases: Biases of the previous layer, [F] or None each.
      kernel: Kernel of the layer, [F, D].

    Returns:
      Products, [..., D].
    """
    return activation(*map(_plus, hidden, biases)) @ kernel


def _activated_forward(activation, hidden, biases, kernel):
    # Named here, where the forward pass does not use the named value; see `layer_norm`.
    kept = checkpoint_name(hidden, "ffn_hidden")
    return activated(activation, hidden, biases, kernel), (kept, biases, kernel)


def _activated_backward(activation, saved, grad):
    hidden, biases, kernel = saved
    inner, pull = jax.vjp(activation, *map(_plus, hidden, biases))
    # XLA:CPU copies the transposed left operand, so put the narrower one there. On
    # TPUs (ViT-L on v5e) the compiler predicts the same step time either way.
    d_kernel = jnp.einsum("...d,...f->df", grad, inner).T
    d_hidden = pull(jnp.einsum("...d,fd->...f", grad, kernel))
    d_biases = tuple(
        None if bias is None else sum_rows(d) for bias, d in zip(biases, d_hidden)
    )
    # Otherwise the TPU compiler recomputes part of them in each matmul that reads them.
    return jax.lax.optimization_barrier(d_hidden), d_biases, d_kernel


activated.defvjp(_activated_forward, _activated_backward)


def _plus(x, bias):
    return x if bias is None else x + bias
