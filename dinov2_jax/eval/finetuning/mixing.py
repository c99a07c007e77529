"""Mixup, CutMix and label smoothing, as pure functions of a group of images.

Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization"; Yun et al. 2019,
"CutMix"; Szegedy et al. 2016, "Rethinking the Inception Architecture", for the
smoothing. Each image is mixed with one of the same group, the first with the last, so
that no image moves between devices.

Shapes: B images of a group, H x W pixels, C channels, K classes.
"""

import jax
import jax.numpy as jnp

Mixed = tuple[jax.Array, jax.Array]


def smooth_labels(
    labels: jax.Array, *, num_classes: int, smoothing: float
) -> jax.Array:
    """Return targets that give every class smoothing / K, and the label the rest.

    Args:
      labels: Labels, int [...].
      num_classes: Number of classes K.
      smoothing: Share of the target that all classes divide, in [0, 1).

    Returns:
      float32 [..., K], rows sum to 1.
    """
    targets = jax.nn.one_hot(labels, num_classes)
    return targets * (1.0 - smoothing) + smoothing / num_classes


def mixup(images: jax.Array, targets: jax.Array, share: jax.Array) -> Mixed:
    """Average each image and its target with those of another image.

    Args:
      images: Normalised images, [B, H, W, C].
      targets: Targets, [B, K].
      share: Weight of an image itself, in [0, 1].
    """
    return _blend(images, share), _blend(targets, share)


def cutmix(
    images: jax.Array, targets: jax.Array, share: jax.Array, centre: jax.Array
) -> Mixed:
    """Replace a rectangle of each image by that of another image.

    Targets are averaged by the area that is left, which is more than `share` where the
    rectangle reaches over the border.

    Args:
      images: Normalised images, [B, H, W, C].
      targets: Targets, [B, K].
      share: Share of the area that a rectangle inside the image leaves, in [0, 1].
      centre: Row and column of the rectangle's centre, int [2].
    """
    sides = jnp.array(images.shape[1:3])
    half = jnp.floor(sides * jnp.sqrt(1.0 - share)).astype(jnp.int32) // 2
    first = jnp.clip(centre - half, 0, sides)
    last = jnp.clip(centre + half, 0, sides)  # exclusive
    rows, columns = (
        (jnp.arange(side) >= low) & (jnp.arange(side) < high)
        for side, low, high in zip(images.shape[1:3], first, last)
    )
    inside = (rows[:, None] & columns[None])[..., None]
    return (
        jnp.where(inside, images[::-1], images),
        _blend(targets, 1.0 - inside.mean(dtype=jnp.float32)),
    )


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> Mixed:
    """Mix a group by one of the two ways, drawn with equal chances if both are on.

    Args:
      key: PRNG key.
      images: Normalised images, [B, H, W, C].
      targets: Targets, [B, K].
      mixup_alpha: Parameter of mixup's distribution Beta(alpha, alpha); 0 for no mixup.
      cutmix_alpha: The same for CutMix.
    """
    choice_key, share_key, centre_key = jax.random.split(key, 3)
    ways = []
    if mixup_alpha:
        share = jax.random.beta(share_key, mixup_alpha, mixup_alpha)
        ways.append(mixup(images, targets, share))
    if cutmix_alpha:
        share = jax.random.beta(share_key, cutmix_alpha, cutmix_alpha)
        sides = jnp.array(images.shape[1:3])
        centre = jax.random.randint(centre_key, (2,), 0, sides)
        ways.append(cutmix(images, targets, share, centre))
    if len(ways) < 2:
        return ways[0] if ways else (images, targets)
    first = jax.random.bernoulli(choice_key)
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), *ways)


def _blend(x: jax.Array, share: jax.Array) -> jax.Array:
    return share * x + (1.0 - share) * x[::-1]
