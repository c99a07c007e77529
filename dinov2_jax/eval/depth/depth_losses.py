"""Losses of depth heads: the scale-invariant one and that of gradients.

Mirrors the reference's `eval/depth/models/losses`. The reference's gradient loss takes
its differences along the batch and channels by mistake: it is 0 for batches of up to 2,
with which the released heads were trained. Here it is off, or along rows and columns.

Shapes: B images, H x W pixels.
"""

import jax
import jax.numpy as jnp

GRADIENT_LOSSES = ("none", "spatial")
GRADIENT_WEIGHT = 0.5  # of the gradient loss beside the scale-invariant one
WARM_UP_CALLS = 100  # first steps with `warm_up`
_EPSILON = 1e-3  # metres
_LAMBDA = 0.15
_STRIDES = (1, 2, 4, 6)


def valid_pixels(truth: jax.Array, max_depth: float | None = None) -> jax.Array:
    """Return which pixels have a true depth, of at most `max_depth` metres."""
    valid = truth > 0
    return valid if max_depth is None else valid & (truth <= max_depth)


def scale_invariant_loss(
    prediction: jax.Array,
    truth: jax.Array,
    *,
    warm_up: bool | jax.Array = False,
    max_depth: float | None = None,
) -> jax.Array:
    """Compute the loss over all valid pixels of the batch.

    Args:
      prediction: Depth in metres, of any shape.
      truth: True depth in metres, of the same shape; 0 where unknown.
      warm_up: Whether only the mean counts, as in the first 100 steps.
      max_depth: Depth above which pixels do not count, metres.

    Returns:
      sqrt(var(g) + 0.15 mean(g)^2) of g = log prediction - log truth, a scalar.
    """
    valid = valid_pixels(truth, max_depth)
    g = jnp.where(valid, _log(prediction, valid) - _log(truth, valid), 0.0)
    count = valid.sum()
    mean = g.sum() / jnp.maximum(count, 1)
    deviation = jnp.where(valid, g - mean, 0.0)
    variance = jnp.square(deviation).sum() / jnp.maximum(count - 1, 1)
    square = jnp.where(warm_up, 0.0, variance) + _LAMBDA * jnp.square(mean)
    # The root has no gradient at 0: keep it from making NaN there.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def gradient_loss(
    prediction: jax.Array,
    truth: jax.Array,
    *,
    axes: tuple[int, int] = (1, 2),
    max_depth: float | None = None,
) -> jax.Array:
    """Compare the slopes of log depth at four strides, weight 0.5 not included.

    Args:
      prediction: Depth in metres, [B, H, W].
      truth: True depth in metres, [B, H, W]; 0 where unknown.
      axes: Axes along which differences are taken.
      max_depth: Depth above which pixels do not count, metres.

    Returns:
      Sum over strides of the mean absolute difference between pixels two apart.
    """
    valid = valid_pixels(truth, max_depth)
    g = jnp.where(valid, _log(prediction, valid) - _log(truth, valid), 0.0)
    total = jnp.zeros(())
    for stride in _STRIDES:
        every = [slice(None)] * g.ndim
        for axis in axes:
            every[axis] = slice(None, None, stride)
        d, mask = g[tuple(every)], valid[tuple(every)]
        differences = jnp.zeros(())
        for axis in axes:
            length = d.shape[axis]
            if length > 2:
                near = [
                    jax.lax.slice_in_dim(x, 0, length - 2, axis=axis) for x in (d, mask)
                ]
                far = [jax.lax.slice_in_dim(x, 2, length, axis=axis) for x in (d, mask)]
                differences += (jnp.abs(near[0] - far[0]) * near[1] * far[1]).sum()
        total += differences / jnp.maximum(mask.sum(), 1)
    return total


def depth_loss(
    prediction: jax.Array,
    truth: jax.Array,
    *,
    warm_up: bool | jax.Array = False,
    gradient: str = "none",
    max_depth: float | None = None,
) -> jax.Array:
    """Compute the loss that depth heads are trained with.

    Args:
      prediction: Depth in metres at the size of the truth, [B, H, W].
      truth: True depth in metres, [B, H, W]; 0 where unknown.
      warm_up: Whether only the mean of the scale-invariant loss counts.
      gradient: "none", as the released heads were trained, or "spatial".
      max_depth: Depth above which pixels do not count, metres.
    """
    loss = scale_invariant_loss(prediction, truth, warm_up=warm_up, max_depth=max_depth)
    if gradient == "spatial":
        loss += GRADIENT_WEIGHT * gradient_loss(prediction, truth, max_depth=max_depth)
    return loss


def _log(depth: jax.Array, valid: jax.Array) -> jax.Array:
    """Return log(depth + eps), and log 1 where it is not valid, without NaN."""
    return jnp.log(jnp.where(valid, depth, 1.0 - _EPSILON) + _EPSILON)
