"""DINO and iBOT: cross-entropy between teacher and student prototype distributions.

Mirrors the reference's `loss/dino_clstoken_loss.py`, `loss/ibot_patch_loss.py` and
their weights in `train/ssl_meta_arch.py`. Shapes: G groups, b images a group, L local
crops, M masked-patch slots, K prototypes. All in float32.
"""

import jax
import jax.numpy as jnp

from dinov2_jax.losses import views as views_lib

STUDENT_TEMP = 0.1


def _log_softmax(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32) / STUDENT_TEMP, axis=-1)


def dino_loss(
    student_global: jax.Array, student_local: jax.Array, teacher: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute the loss of class tokens (paper, section 4, image-level objective).

    Args:
      student_global: Logits of the masked global crops, [G, 2b, K], crop-major.
      student_local: Logits of the local crops, [G, L*b, K], crop-major; L may be 0.
      teacher: Target probabilities of the global crops, [G, 2b, K], crop-major.

    Returns:
      The global and the local term. Each local crop is paired with both teacher views,
      each global crop with the other view; both terms are divided by the number of
      pairs.
    """
    groups, crops, prototypes = teacher.shape
    batch = crops // 2
    views = teacher.reshape(groups, 2, batch, prototypes)
    num_local = student_local.shape[1] // batch
    _, normaliser = crop_pairs(num_local)

    log_p = _log_softmax(student_global).reshape(views.shape)
    global_loss = -jnp.sum(views[:, ::-1] * log_p)

    log_p = _log_softmax(student_local)
    log_p = log_p.reshape(groups, num_local, batch, prototypes)
    local_loss = -jnp.einsum("gvbk,glbk->", views, log_p)
    scale = 1.0 / (groups * batch * normaliser)
    return global_loss * scale, local_loss * scale


def crop_pairs(
    num_local: int, views: str = "other"
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Return the teacher views paired with each crop of an image, and the normaliser.

    Args:
      num_local: Number of local crops of an image.
      views: Views that the global crops are paired with, a key of `views.VIEWS`.

    Returns:
      The views, 0 or 1, paired with each of the 2 + num_local crops; and the number of
      pairs that divides their sum (one more without local crops, as in the reference).
    """
    of_global = views_lib.VIEWS[views]
    pairs = of_global + ((0, 1),) * num_local
    return pairs, sum(map(len, of_global)) + max(2 * num_local, 1)


def uniform_share(
    num_local: int, *, views: str = "other", local_loss_weight: float = 1.0
) -> float:
    """Return the loss of a uniform prediction over ln K, 1 but for odd settings.

    Args:
      num_local: Number of local crops of an image; without any it is 2/3.
      views: As of `crop_pairs`.
      local_loss_weight: Factor on the pairs with local crops.
    """
    pairs, normaliser = crop_pairs(num_local, views)
    weight = sum(map(len, pairs[:2])) + local_loss_weight * sum(map(len, pairs[2:]))
    return weight / normaliser


def ibot_loss(
    student: jax.Array, teacher: jax.Array, weights: jax.Array, num_crops: int
) -> jax.Array:
    """Compute the loss of masked patches (paper, section 4, patch-level objective).

    Args:
      student: Logits of the masked patches, [G, M, K].
      teacher: Target probabilities of the same patches, unmasked, [G, M, K].
      weights: 1 / number of masked patches in the crop, [G, M]; 0 marks padding.
      num_crops: Number of global crops in a group, masked or not (the reference's
        denominator: with half of the crops masked, the term is half a mean
        cross-entropy).

    Returns:
      The loss, a scalar.
    """
    cross_entropy = -jnp.sum(teacher * _log_softmax(student), axis=-1)  # [G, M]
    return jnp.sum(cross_entropy * weights) / (weights.shape[0] * num_crops)
