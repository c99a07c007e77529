"""Target probabilities from teacher logits, by Sinkhorn-Knopp or EMA centring.

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
    """Assign samples to prototypes in a balanced way.

    Args:
      logits: Teacher logits, [..., K].
      temp: Teacher temperature.
      valid: Optional bool [...]; False samples are ignored and get zeros.
      num_iterations: Iterations of the alternating normalisation, at least 1.

    Returns:
      Probabilities, [..., K]; each valid row sums to 1.
    """
    shape, num_prototypes = logits.shape, logits.shape[-1]
    logits = logits.astype(jnp.float32).reshape(-1, logits.shape[-2], num_prototypes)
    valid = jnp.ones(logits.shape[:2], bool) if valid is None else valid
    valid = valid.reshape(logits.shape[:2])
    # The common shift keeps exp finite and cancels in the first normalisation.
    scaled = jnp.where(valid[..., None], logits / temp, -jnp.inf)
    peak = jnp.max(scaled)
    q = jnp.exp(scaled - jnp.where(jnp.isfinite(peak), peak, 0.0))  # padding: 0

    # Each normalisation scales rows or columns, so Q is q * per_sample * per_prototype.
    per_sample = valid.astype(jnp.float32)
    for _ in range(num_iterations):
        total = jnp.einsum("gmk,gm->k", q, per_sample, precision="highest")
        per_prototype = 1.0 / (jnp.maximum(total, _TINY) * num_prototypes)
        total = jnp.einsum("gmk,k->gm", q, per_prototype, precision="highest")
        per_sample = jnp.where(valid, 1.0 / (jnp.maximum(total, _TINY)), 0.0)
    q = q * per_prototype * per_sample[..., None]
    return q.reshape(shape)


def centered_softmax(
    logits: jax.Array, center: jax.Array, temp: jax.Array | float
) -> jax.Array:
    """Compute softmax((logits - center) / temp); [..., K] and [K] -> [..., K]."""
    return jax.nn.softmax((logits.astype(jnp.float32) - center) / temp, axis=-1)


def update_center(
    center: jax.Array, logits: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    """Return the centre for the next step: 0.9 of the old, 0.1 of this batch's mean.

    Args:
      center: The old centre, [K].
      logits: Teacher logits of this batch, [G, B, K].
      valid: Optional bool [G, B]. Each group averages its valid samples, then groups
        are averaged unweighted, like the reference's ranks.

    Returns:
      The new centre, [K].
    """
    logits = logits.astype(jnp.float32)
    if valid is None:
        mean = jnp.mean(logits, axis=(0, 1))
    else:
        totals = jnp.einsum("gbk,gb->gk", logits, valid.astype(jnp.float32))
        counts = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
        mean = jnp.mean(totals / counts, axis=0)
    return move_center(center, mean)


def move_center(center: jax.Array, mean: jax.Array) -> jax.Array:
    """Return the centre for the next step, given the mean logits [K] of this batch."""
    return center * CENTER_MOMENTUM + mean * (1 - CENTER_MOMENTUM)
