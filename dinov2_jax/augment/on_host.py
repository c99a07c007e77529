"""Augmentation of one crop on the host, in NumPy and Pillow.

Mirrors the reference's data/augmentations.py with the arithmetic of torchvision's
transforms on PIL images: the same random draws give the same pixels (within one level
if blurred). The draws come from an explicit `np.random.Generator`. Crops stay uint8;
they are normalised on the device.
"""

import numpy as np
from PIL import Image

from dinov2_jax.augment import policies


def augment(
    rng: np.random.Generator, pixels: np.ndarray, policy: policies.Policy, view: int
) -> np.ndarray:
    """Flip, jitter, gray, blur and solarize one crop at random.

    Args:
      rng: The only source of randomness.
      pixels: The crop, uint8 [S, S, C].
      policy: Augmentations and their probabilities.
      view: Kind of crop: 0 and 1 for the two global crops, 2 for a local one.

    Returns:
      uint8 [S, S, C].
    """
    flip, jitter, gray, blur, sun = rng.random(5)
    if flip < policy.flip_probability:
        pixels = pixels[:, ::-1]
    # Drawn only if possible: the reference's policy, which has neither, stays the same.
    if policy.vertical_flip_probability:
        if rng.random() < policy.vertical_flip_probability:
            pixels = pixels[::-1]
    if policy.quarter_turn_probability:
        if rng.random() < policy.quarter_turn_probability:
            pixels = np.rot90(pixels)
    if jitter < policy.jitter_probability:
        pixels = color_jitter(rng, pixels, policy)
    if gray < policy.grayscale_probability:
        pixels = np.repeat(_gray(pixels)[:, :, None], 3, axis=2)
    if blur < policy.blur_probabilities[view]:
        pixels = gaussian_blur(pixels, rng.uniform(*policies.BLUR_SIGMA))
    if sun < policy.solarize_probabilities[view]:
        pixels = solarize(pixels)
    return pixels


def adjust_brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Scale uint8 [H, W, C] by `factor`; 1 changes nothing."""
    return _blend(np.zeros_like(pixels), pixels, factor)


def adjust_contrast(
    pixels: np.ndarray, factor: float, in_color: bool = True
) -> np.ndarray:
    """Scale the distance to the mean gray of RGB, or to each band's own mean.

    Args:
      pixels: The image, uint8 [H, W, C].
      factor: Factor; 1 changes nothing.
      in_color: Whether three channels are RGB.
    """
    mean = _gray(pixels) if in_color and pixels.shape[2] == 3 else pixels
    total = mean.sum(axis=(0, 1), dtype=np.int64)
    mean = (total / (pixels.shape[0] * pixels.shape[1]) + 0.5).astype(np.uint8)
    return _blend(np.broadcast_to(mean, pixels.shape), pixels, factor)


def adjust_saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Scale each RGB pixel's distance to its own gray by `factor`."""
    gray = np.repeat(_gray(pixels)[:, :, None], 3, axis=2)
    return _blend(gray, pixels, factor)


def adjust_hue(pixels: np.ndarray, shift: float) -> np.ndarray:
    """Shift the hue of RGB by `shift` full turns, in [-0.5, 0.5]."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    hue, saturation, value = image.convert("HSV").split()
    # Steps of 1/255 on a circle of 256, as in torchvision.
    turned = np.asarray(hue) + np.uint8(int(shift * 255) % 256)
    hue = Image.fromarray(turned)
    return np.asarray(Image.merge("HSV", (hue, saturation, value)).convert("RGB"))


_ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def color_jitter(
    rng: np.random.Generator, pixels: np.ndarray, policy: policies.Policy
) -> np.ndarray:
    """Apply the colour changes of a policy by random amounts in random order.

    Args:
      rng: The only source of randomness.
      pixels: The image, uint8 [H, W, C].
      policy: Strengths of the changes; those of strength 0 are skipped.
    """
    order = rng.permutation(4)
    strengths = np.array(
        [policy.brightness, policy.contrast, policy.saturation, policy.hue]
    )
    center = np.array([1.0, 1.0, 1.0, 0.0])
    low, high = center - strengths, center + strengths
    amounts = low + (high - low) * rng.random(4)
    for i in order:
        if strengths[i]:
            more = (policy.in_color,) if i == 1 else ()  # of contrast
            pixels = _ADJUSTMENTS[i](pixels, float(amounts[i]), *more)
    return pixels


def gaussian_blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with `policies.BLUR_TAPS` taps and reflected borders.

    Args:
      pixels: The image, uint8 [H, W, C]; H and W at least 5.
      sigma: Standard deviation in pixels.

    Returns:
      uint8 [H, W, C].
    """
    radius = policies.BLUR_TAPS // 2
    offsets = np.arange(radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / (kernel[0] + 2 * kernel[1:].sum())).astype(np.float32)
    # Skip taps that are too small to change a float32 sum of 255.
    radius = int(np.count_nonzero(kernel > 1e-8)) - 1
    if radius == 0:
        return pixels
    height, width, channels = pixels.shape
    x = pixels.astype(np.float32).reshape(height, width * channels)
    x = np.concatenate([x[radius:0:-1], x, x[-2 : -2 - radius : -1]])
    x = _convolve(x, kernel, radius, height, step=1, axis=0)
    x = x.reshape(height, width, channels)
    x = np.concatenate([x[:, radius:0:-1], x, x[:, -2 : -2 - radius : -1]], axis=1)
    x = x.reshape(height, (width + 2 * radius) * channels)
    x = _convolve(x, kernel, radius, width * channels, step=channels, axis=1)
    return np.rint(x, out=x).astype(np.uint8).reshape(pixels.shape)


def _convolve(x, kernel, radius, size, *, step, axis):
    """Sum the taps of a symmetric kernel along `axis` of a padded array."""

    def tap(i):
        part = slice((radius + i) * step, (radius + i) * step + size)
        return x[part] if axis == 0 else x[:, part]

    total = tap(0) * kernel[0]
    pair = np.empty_like(total)
    for i in range(1, radius + 1):
        np.add(tap(-i), tap(i), out=pair)
        pair *= kernel[i]
        total += pair
    return total


def solarize(pixels: np.ndarray) -> np.ndarray:
    """Invert uint8 values of at least `policies.SOLARIZE_THRESHOLD`."""
    return np.where(pixels < policies.SOLARIZE_THRESHOLD, pixels, ~pixels)


def _gray(pixels):
    """Convert RGB to gray, uint8 [H, W]."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))


def _blend(zero, pixels, factor):
    """Return zero + factor * (pixels - zero) in Pillow's byte arithmetic."""
    a, b = (
        Image.fromarray(np.ascontiguousarray(x).reshape(len(x), -1))
        for x in (zero, pixels)
    )
    return np.asarray(Image.blend(a, b, factor)).reshape(pixels.shape)
