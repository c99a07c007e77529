"""Gram anchoring: patches of a crop stay as similar to each other as a teacher says.

From the DINOv3 paper (arXiv 2508.10104), section 4: the squared difference of the Gram
matrices of normalised patch features, here as a mean over their N^2 entries.
"""

import jax
import jax.numpy as jnp

EPS = 1e-12


def gram_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Compute the mean squared difference of cosine similarities between patches.

    Args:
      student: The student's patch tokens of a crop, [..., N, D].
      teacher: The Gram teacher's patch tokens of the same places, [..., N, E].

    Returns:
      One loss a crop, float32 [...].
    """
    difference = similarities(student) - similarities(teacher)
    return jnp.mean(jnp.square(difference), axis=(-2, -1))


def similarities(x: jax.Array) -> jax.Array:
    """Compute the cosine similarities [..., N, N] of patch tokens x [..., N, D]."""
    x = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), EPS**2))
    x = x / norm
    return jnp.einsum("...id,...jd->...ij", x, x, precision="highest")
