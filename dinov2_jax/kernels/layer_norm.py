"""LayerNorm with the reference's epsilon, alone or before linear layers.

Backward passes are written out, for what they keep: the tokens and two numbers for
each, "norm" of the remat policies. They are named where the forward pass does not use
what is named: jax puts a `reduce_precision` on what is both kept and used ahead, which
on TPUs is a pass over it. Hence one function for the norm and the linear layers behind
it, whose gradients need the normalised tokens again.

Statistics are float32. Shapes: [..., D] tokens, F features of a linear layer.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dinov2_jax import sharding

_EPSILON = 1e-6


def plain(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """What is computed: [..., D], float32 [D], [D] -> float32 [..., D]."""
    return _normalised(x, *_statistics(x)) * scale + shift


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """`plain` with the backward pass of this module."""
    return plain(x, scale, shift)


def _layer_norm_forward(x, scale, shift):
    return layer_norm(x, scale, shift), (*_kept(x), scale)


def _layer_norm_backward(saved, grad):
    x, mean, inverse, scale = saved
    return _gradients(x, mean, inverse, scale, grad)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def project(x: jax.Array, kernels: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The tokens less their mean, over their deviation, times each kernel.

    Args:
      x: [..., D].
      kernels: [D, F] each, in the dtype of the matmuls. The sum of each column is 0,
        so the mean need not be taken from tokens: bfloat16 ones go as they are, and
        results are divided, which matmuls on accelerators do on their way out.

    Returns:
      [..., F] each.
    """
    mean, inverse = _statistics(x)
    if kernels[0].dtype == jnp.bfloat16:
        wide = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
        return tuple((inverse * wide(x, kernel)).astype(x.dtype) for kernel in kernels)
    tokens = _normalised(x, mean, inverse)
    return tuple(tokens @ kernel for kernel in kernels)


def _project_forward(x, kernels):
    return project(x, kernels), (*_kept(x), kernels)


def _project_backward(saved, grads):
    x, mean, inverse, kernels = saved
    normalised = _normalised(x, mean, inverse)
    tokens = normalised.astype(kernels[0].dtype)
    d_kernels = tuple(jnp.einsum("...d,...f->df", tokens, grad) for grad in grads)
    grad = sum(
        jnp.einsum("...f,df->...d", grad, kernel)
        for grad, kernel in zip(grads, kernels)
    ).astype(jnp.float32)
    # The mean of `grad` is 0, as that of each column is.
    across = jnp.mean(grad * normalised, axis=-1, keepdims=True)
    return (inverse * (grad - normalised * across)).astype(x.dtype), d_kernels


project.defvjp(_project_forward, _project_backward)


def _normalised(x, mean, inverse):
    return (x.astype(jnp.float32) - mean) * inverse


def _statistics(x):
    """Mean and 1 / deviation of each row, float32 [..., 1]."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    if x.dtype == jnp.bfloat16:
        # In one pass: what cancels here is far below the rounding of x itself.
        variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        variance = jnp.maximum(variance - jnp.square(mean), 0.0)
    else:
        variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
    return mean, jax.lax.rsqrt(variance + _EPSILON)


def _kept(x):
    return checkpoint_name((x, *_statistics(x)), "norm")


def _gradients(x, mean, inverse, scale, grad):
    """Of tokens, scale and shift, from that of the normalised tokens.

    On the CPU the sums take a form of their own: XLA's library there takes tens of
    times as long for the sum of a product of two arrays as for the sum of one, which
    made these gradients a tenth of a step.
    """
    grad = grad.astype(jnp.float32)
    normalised = _normalised(x, mean, inverse)
    product = grad * normalised
    if sharding.device_kind() == "cpu":
        # Computed, then summed: as one operation it is the slow one.
        product = jax.lax.optimization_barrier(product)
    along = _mean_with(grad, scale)
    across = _mean_with(product, scale)
    d_x = inverse * (grad * scale - along - normalised * across)
    rows = tuple(range(x.ndim - 1))
    return d_x.astype(x.dtype), jnp.sum(product, rows), jnp.sum(grad, rows)


def _mean_with(x, scale):
    """mean(x * scale) of each row, [..., 1]."""
    if sharding.device_kind() == "cpu":  # a matrix times a vector
        return jnp.einsum("...d,d->...", x, scale)[..., None] / x.shape[-1]
    return jnp.mean(x * scale, axis=-1, keepdims=True)
