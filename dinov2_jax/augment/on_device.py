"""Augmentation of crops on the device, inside the training step.

The same augmentations as `augment.on_host`, for whole batches: flips, colours, blur and
solarization of uint8 crops, from one key an image. The host then only decodes, crops
and resizes. Values stay float32 between augmentations; the host rounds after each.

Mirrors the reference's `data/augmentations.py`. Shapes: G groups, B images a group, n
crops an image, S pixels, C channels; crop c of image i of a group has index c B + i.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.augment import policies

_UNIFORMS = 16  # random numbers drawn for each crop
Planes = list[jax.Array]  # one for each channel, [G, n B, S, S] in 0..255


@dataclasses.dataclass(frozen=True)
class Draws:
    """The augmentations drawn for each crop; arrays are [G, n B] unless stated.

    Attributes:
      flip: Whether to flip left to right.
      vertical_flip: Whether to flip top to bottom.
      quarter_turn: Whether to turn by 90 degrees to the left.
      order: Colour change to apply first, second, ..., int32 [4, G, n B]; 0 to 3 are
        brightness, contrast, saturation and hue.
      amounts: Amounts of brightness, contrast, saturation and hue, [4, G, n B]; 1, 1, 1
        and 0 change nothing.
      gray: Whether to make the crop gray.
      sigma: Standard deviation of the blur, in pixels; 0 does not blur.
      solarize: Whether to solarize.
    """

    flip: jax.Array
    vertical_flip: jax.Array
    quarter_turn: jax.Array
    order: jax.Array
    amounts: jax.Array
    gray: jax.Array
    sigma: jax.Array
    solarize: jax.Array


def augment(
    batch: dict[str, jax.Array], policy: policies.Policy, *, undistorted: bool = False
) -> dict[str, jax.Array]:
    """Augment the crops of a batch as the host would.

    Args:
      batch: The batch, see `data/batch_builder.py`; without `augmentation_keys` it is
        returned unchanged.
      policy: Augmentations and their probabilities.
      undistorted: Whether to add `gram_crops`: the global crops, or larger ones of the
        same places if the batch has them, flipped and turned alike but not changed
        otherwise.
    """
    if "augmentation_keys" not in batch:
        return batch
    batch = dict(batch)
    keys = batch.pop("augmentation_keys")
    images = keys.shape[1]
    num_local = batch["local_crops"].shape[1] // images
    draws = draw(keys, policy, num_local=num_local)
    first = 2 * images

    def changed(crops, start, stop, policy):
        taken = {
            field.name: getattr(draws, field.name)[..., start:stop]
            for field in dataclasses.fields(draws)
        }
        return apply(crops, Draws(**taken), policy)

    def part(name, start, stop):
        if start < stop:
            batch[name] = changed(batch[name], start, stop, policy)

    if undistorted:
        crops = batch.get("gram_crops", batch["global_crops"])
        batch["gram_crops"] = changed(crops, 0, first, policy.geometry())
    part("global_crops", 0, first)
    part("local_crops", first, first + num_local * images)
    return batch


def draw(keys: jax.Array, policy: policies.Policy, *, num_local: int) -> Draws:
    """Draw the augmentations of all crops of all images.

    Args:
      keys: Key of each image, uint32 [G, B, 2], derived from (seed, pass, image).
      policy: Probabilities and strengths.
      num_local: Local crops of an image; they come after the two global ones.
    """
    groups, images = keys.shape[:2]
    num_crops = 2 + num_local

    def uniforms(key):
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.uniform(key, (num_crops, _UNIFORMS))

    u = jax.vmap(jax.vmap(uniforms))(keys)  # [G, B, n, 16]
    u = jnp.transpose(u, (3, 0, 2, 1)).reshape(_UNIFORMS, groups, num_crops * images)
    views = np.minimum(np.arange(num_crops * images) // images, 2)
    blur = jnp.asarray(policy.blur_probabilities, jnp.float32)[views]
    sun = jnp.asarray(policy.solarize_probabilities, jnp.float32)[views]
    strengths = jnp.asarray(
        [policy.brightness, policy.contrast, policy.saturation, policy.hue]
    )[:, None, None]
    center = jnp.asarray([1.0, 1.0, 1.0, 0.0])[:, None, None]
    jitter = u[3] < policy.jitter_probability
    amounts = center + strengths * (2 * u[8:12] - 1)
    low, high = policies.BLUR_SIGMA
    return Draws(
        flip=u[0] < policy.flip_probability,
        vertical_flip=u[1] < policy.vertical_flip_probability,
        quarter_turn=u[2] < policy.quarter_turn_probability,
        order=jnp.argsort(u[4:8], axis=0),
        amounts=jnp.where(jitter, amounts, center),
        gray=u[12] < policy.grayscale_probability,
        sigma=jnp.where(u[13] < blur, low + (high - low) * u[14], 0.0),
        solarize=u[15] < sun,
    )


def apply(crops: jax.Array, draws: Draws, policy: policies.Policy) -> jax.Array:
    """Apply the augmentations that were drawn.

    Args:
      crops: Crops, uint8 [G, n B, S, S, C].
      draws: The augmentations of these crops.
      policy: The policy; augmentations that it never applies are not compiled.

    Returns:
      Augmented crops, uint8 [G, n B, S, S, C].
    """
    # One array a channel: an axis of three would be padded to a whole tile on TPUs.
    x = [crops[..., c].astype(jnp.float32) for c in range(crops.shape[-1])]
    if policy.flip_probability:
        x = [_where(draws.flip, p[..., ::-1], p) for p in x]
    if policy.vertical_flip_probability:
        x = [_where(draws.vertical_flip, p[..., ::-1, :], p) for p in x]
    if policy.quarter_turn_probability:
        x = [_where(draws.quarter_turn, _quarter_turn(p), p) for p in x]
    if policy.jitter_probability:
        x = _color_jitter(x, draws, policy)
    if policy.grayscale_probability:
        gray = _gray(x)
        x = [_where(draws.gray, gray, p) for p in x]
    if any(policy.blur_probabilities):
        x = [_blur(p, draws.sigma) for p in x]
    if policy.solarize_probability:
        x = [_where(draws.solarize, _solarized(p), p) for p in x]
    return jnp.stack([jnp.round(p).astype(jnp.uint8) for p in x], axis=-1)


def _where(crops, a, b):
    return jnp.where(crops[..., None, None], a, b)


def _quarter_turn(plane):
    """Turn by 90 degrees to the left, like `np.rot90`."""
    return jnp.swapaxes(plane, -1, -2)[..., ::-1, :]


def _gray(x: Planes) -> jax.Array:
    red, *others = (weight * p for weight, p in zip(policies.GRAY_WEIGHTS, x))
    return sum(others, start=red)


def _color_jitter(x: Planes, draws: Draws, policy: policies.Policy) -> Planes:
    """Apply the four colour changes in each crop's own order.

    Brightness, contrast and saturation share the formula zero + f (x - zero), where
    zero is black, the crop's mean gray and the pixel's own gray, respectively.
    """
    in_color = policy.in_color and len(x) == 3
    for kind in draws.order:  # [G, n B], one of the four changes for each crop
        amount = jnp.take_along_axis(draws.amounts, kind[None], axis=0)[0]
        is_hue = kind == 3
        factor = jnp.where(is_hue, 1.0, amount)[..., None, None]
        gray = [_gray(x)] * 3 if in_color else x
        linear = []
        for plane, own in zip(x, gray):
            mean = jnp.mean(own, axis=(-1, -2), keepdims=True)
            zero = _where(kind == 1, mean, jnp.zeros_like(mean))
            if policy.saturation:
                zero = _where(kind == 2, own, zero)
            linear.append(jnp.clip(zero + factor * (plane - zero), 0.0, 255.0))
        if policy.hue:
            turned = _turn_hue(x, jnp.where(is_hue, amount, 0.0)[..., None, None])
            linear = [_where(is_hue, t, p) for t, p in zip(turned, linear)]
        x = linear
    return x


def _turn_hue(x: Planes, shift: jax.Array) -> Planes:
    """Shift the hue by `shift` of a full turn; keep saturation and value (HSV)."""
    red, green, blue = x
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    safe = jnp.maximum(chroma, 1e-6)
    sixth = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixth = sixth + 6 * shift

    def channel(n):
        k = jnp.mod(sixth + n, 6.0)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)

    return [channel(5.0), channel(3.0), channel(1.0)]


def _blur(plane: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blur with `BLUR_TAPS` taps and reflected borders; sigma 0 changes nothing."""
    radius = policies.BLUR_TAPS // 2
    offsets = jnp.arange(radius + 1)
    exponent = -0.5 * (offsets / jnp.maximum(sigma, 1e-3)[..., None]) ** 2
    kernel = jnp.exp(exponent)  # [G, n B, 5], weights at 0, 1, ... pixels
    kernel /= kernel[..., :1] + 2 * jnp.sum(kernel[..., 1:], axis=-1, keepdims=True)
    size = plane.shape[-1]
    for axis in (-2, -1):
        padding = [(0, 0)] * plane.ndim
        padding[axis] = (radius, radius)
        padded = jnp.pad(plane, padding, mode="reflect")

        def tap(i, padded=padded, axis=axis):
            start = radius + i
            return jax.lax.slice_in_dim(padded, start, start + size, axis=axis)

        plane = kernel[..., 0, None, None] * tap(0)
        for i in range(1, radius + 1):
            plane += kernel[..., i, None, None] * (tap(i) + tap(-i))
    return plane


def _solarized(plane):
    return jnp.where(plane >= policies.SOLARIZE_THRESHOLD, 255.0 - plane, plane)
