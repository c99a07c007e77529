"""From teacher logits to target probabilities: Sinkhorn-Knopp or EMA centring.

Mirrors `sinkhorn_knopp_teacher` and `softmax_center_teacher` of the reference's
`loss/dino_clstoken_loss.py` and `loss/ibot_patch_loss.py`. Leading axes [...] span the
whole batch, all groups and devices. Float32.
"""

import jax
import jax.numpy as jnp

CENTER_MOMENTUM = 0.9
_TINY = jnp.finfo(jnp.float32).tiny


def sinkhorn_knopp(
    logits: jax.Array,
    temp: jax.Array | float,
    *,
    valid: jax.Array | None = None,
    num_iterations: int = 3,
) -> jax.Array:
    """Balanced assignment of samples to prototypes.

    Args:
      logits: [..., K].
      temp: Teacher temperature.
      valid: Optional bool [...]; False samples take no part and get zeros.
      num_iterations: Of the alternating normalisation.

    Returns:
      [..., K] probabilities; each valid row sums to 1.
    """
    num_prototypes = logits.shape[-1]
    sample_axes = tuple(range(logits.ndim - 1))
    scaled = logits.astype(jnp.float32) / temp
    if valid is None:
        valid = jnp.ones(logits.shape[:-1], bool)
    valid = valid[..., None]
    # The shift by one maximum cancels in the first normalisation; it keeps exp finite.
    peak = jnp.max(jnp.where(valid, scaled, -jnp.inf))
    q = jnp.where(valid, jnp.exp(scaled - jnp.where(jnp.any(valid), peak, 0.0)), 0.0)
    num_samples = jnp.maximum(jnp.sum(valid), 1)
    q = q / jnp.maximum(jnp.sum(q), _TINY)
    for _ in range(num_iterations):
        per_prototype = jnp.sum(q, axis=sample_axes, keepdims=True)
        q = q / jnp.maximum(per_prototype, _TINY) / num_prototypes
        per_sample = jnp.sum(q, axis=-1, keepdims=True)
        q = q / jnp.maximum(per_sample, _TINY) / num_samples
    return q * num_samples


def centered_softmax(
    logits: jax.Array, center: jax.Array, temp: jax.Array | float
) -> jax.Array:
    """softmax((logits - center) / temp); [..., K] and [K] -> [..., K]."""
    return jax.nn.softmax((logits.astype(jnp.float32) - center) / temp, axis=-1)


def update_center(
    center: jax.Array, logits: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    """The centre for the next step: 0.9 of the old, 0.1 of this batch's mean.

    Args:
      center: [K].
      logits: [G, B, K] teacher logits of this batch.
      valid: Optional bool [G, B]. Each group averages its valid samples and the groups
        are averaged unweighted, as the reference's ranks are.

    Returns:
      [K].
    """
    logits = logits.astype(jnp.float32)
    if valid is None:
        mean = jnp.mean(logits, axis=(0, 1))
    else:
        totals = jnp.einsum("gbk,gb->gk", logits, valid.astype(jnp.float32))
        counts = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
        mean = jnp.mean(totals / counts, axis=0)
    return center * CENTER_MOMENTUM + mean * (1 - CENTER_MOMENTUM)
