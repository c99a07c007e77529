"""KoLeo regulariser. Mirrors the reference's `loss/koleo_loss.py` (paper, section 4).

Always float32: in float16 the 1e-8 would be 0 and the loss of duplicates infinite.
"""

import jax
import jax.numpy as jnp

EPS = 1e-8


def koleo_loss(x: jax.Array) -> jax.Array:
    """Compute minus the mean log distance of samples to their nearest neighbours.

    Args:
      x: Features, [..., B, D]; neighbours are searched among the B of one set, B > 1.

    Returns:
      One loss a set, [...]. Gradients flow through both ends of each distance.
    """
    x = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), EPS**2))
    x = x / norm
    dots = jnp.einsum("...id,...jd->...ij", x, x, precision="highest")
    batch = x.shape[-2]
    dots = jnp.where(jnp.eye(batch, dtype=bool), -1.0, dots)
    nearest = jnp.argmax(dots, axis=-1)  # [..., B]
    neighbours = jnp.take_along_axis(x, nearest[..., None], axis=-2)
    distance = jnp.sqrt(jnp.sum((x - neighbours + EPS) ** 2, axis=-1))
    return -jnp.mean(jnp.log(distance + EPS), axis=-1)
