"""LayerNorm with the reference's epsilon, separate or folded into linear layers.

Statistics are float32. Shapes: [..., D] tokens, F features of a linear layer.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dinov2_jax import sharding

EPSILON = 1e-6


def layer_norm(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Normalise x [..., D], then scale and shift by float32 [D], to float32."""
    return _normalised(x, *_statistics(x)) * scale + shift


@jax.custom_vjp
def project(
    x: jax.Array,
    kernels: tuple[jax.Array, ...],
    statistics: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, ...]:
    """Compute (x - mean) / deviation @ kernel for each kernel.

    The backward pass is written out so that it keeps only the tokens and two numbers
    for each, "norm" in the remat policies. They are named where the forward pass does
    not use the named values: jax puts a `reduce_precision` on values that are both kept
    and used in the forward pass, which on TPUs is a pass over them. Norm and matmuls
    are one function because the matmuls' gradients need the normalised tokens.

    Args:
      x: Tokens, [..., D].
      kernels: Kernels, [D, F] each, in the dtype of the matmuls, from
        `models.folded_block`: their columns sum to 0, so tokens need not be centred.
        With bfloat16 kernels, tokens are multiplied as they are and the products are
        divided, which accelerators do as part of the matmul.
      statistics: Mean and 1 / deviation of each row, float32 [..., 1], if known. The
        gradient of `x` is the same with and without them.

    Returns:
      Products, [..., F] each.
    """
    mean, inverse = statistics or _statistics(x)
    if kernels[0].dtype == jnp.bfloat16:
        wide = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
        return tuple((inverse * wide(x, kernel)).astype(x.dtype) for kernel in kernels)
    tokens = _normalised(x, mean, inverse).astype(kernels[0].dtype)
    return tuple(tokens @ kernel for kernel in kernels)


def _project_forward(x, kernels, statistics):
    kept = checkpoint_name((x, *(statistics or _statistics(x))), "norm")
    return project(x, kernels, statistics), (*kept, kernels)


def _project_backward(saved, grads):
    x, mean, inverse, kernels = saved
    normalised = _normalised(x, mean, inverse)
    tokens = normalised.astype(kernels[0].dtype)
    d_kernels = tuple(jnp.einsum("...d,...f->df", tokens, grad) for grad in grads)
    grad = sum(
        jnp.einsum("...f,df->...d", grad, kernel)
        for grad, kernel in zip(grads, kernels)
    ).astype(jnp.float32)
    # The mean of `grad` is 0, because that of each kernel column is.
    d_x = inverse * (grad - normalised * _mean_of_product(grad, normalised))
    return d_x.astype(x.dtype), d_kernels, None


project.defvjp(_project_forward, _project_backward)


def _normalised(x, mean, inverse):
    return (x.astype(jnp.float32) - mean) * inverse


def _statistics(x):
    """Return mean and 1 / deviation of each row, float32 [..., 1]."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    if x.dtype == jnp.bfloat16:
        # In one pass: the cancellation error is far below the rounding of x itself.
        variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        variance = jnp.maximum(variance - jnp.square(mean), 0.0)
    else:
        variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
    return mean, jax.lax.rsqrt(variance + EPSILON)


def _mean_of_product(x, y):
    """Return mean(x * y) of each row, [..., 1]."""
    if sharding.device_kind() == "cpu":  # six times faster there
        return jnp.einsum("...d,...d->...", x, y)[..., None] / x.shape[-1]
    return jnp.mean(x * y, axis=-1, keepdims=True)
