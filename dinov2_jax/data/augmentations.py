"""Multi-crop augmentation of one image, in NumPy and Pillow.

Mirrors the reference's data/augmentations.py (DINOv2's two global and L local crops)
with the arithmetic of torchvision's transforms on PIL images, so that given the same
random draws the pixels are the same (blurred ones within one level). The draws come
from an explicit `np.random.Generator`. Crops stay uint8: normalisation by
`IMAGENET_MEAN` and `IMAGENET_STD` happens on the device.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)

# Probability of the blur in (global crop 1, global crop 2, local crops). The reference
# passes 1 - p where p is meant, and its released weights were trained that way.
BLUR_PROBABILITIES = {"reference": (0.0, 0.9, 0.5), "intended": (1.0, 0.1, 0.5)}

RATIO = (3 / 4, 4 / 3)  # width / height of a crop before it is resized
FLIP_PROBABILITY = 0.5
JITTER_PROBABILITY = 0.8
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
GRAYSCALE_PROBABILITY = 0.2
BLUR_TAPS = 9
BLUR_SIGMA = (0.1, 2.0)
SOLARIZE_PROBABILITY = 0.2  # of global crop 2
SOLARIZE_THRESHOLD = 128


def random_crop_box(
    rng: np.random.Generator, *, width: int, height: int, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draws the box of torchvision's RandomResizedCrop.

    The area is uniform in `scale`, the ratio log-uniform in `RATIO`; after 10 boxes
    that do not fit, the largest central box of an allowed ratio.

    Args:
      rng: the only source of randomness.
      width: of the image, in pixels.
      height: of the image, in pixels.
      scale: least and greatest share of the image's area.

    Returns:
      (left, top, right, bottom), inside the image and not empty.
    """
    log_low, log_high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(10):
        u, v = rng.random(2)
        area = width * height * (scale[0] + (scale[1] - scale[0]) * u)
        ratio = math.exp(log_low + (log_high - log_low) * v)
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    top, left = (height - h) // 2, (width - w) // 2
    return left, top, left + w, top + h


def adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    """Scales RGB by `factor` (1 changes nothing)."""
    return Image.blend(Image.new("RGB", image.size), image, factor)


def adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    """Moves RGB away from the mean gray of the image by `factor`."""
    gray = np.asarray(image.convert("L"))
    mean = int(gray.sum(dtype=np.int64) / gray.size + 0.5)
    return Image.blend(Image.new("RGB", image.size, (mean,) * 3), image, factor)


def adjust_saturation(image: Image.Image, factor: float) -> Image.Image:
    """Moves each RGB pixel away from its own gray by `factor`."""
    return Image.blend(image.convert("L").convert("RGB"), image, factor)


def adjust_hue(image: Image.Image, shift: float) -> Image.Image:
    """Turns the hue by `shift` (in turns, [-0.5, 0.5])."""
    hue, saturation, value = image.convert("HSV").split()
    # Steps of 1/255 in a circle of 256, as torchvision does.
    turned = np.asarray(hue) + np.uint8(int(shift * 255) % 256)
    hue = Image.fromarray(turned)
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


_ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
_LOW = np.array([1 - BRIGHTNESS, 1 - CONTRAST, 1 - SATURATION, -HUE])
_HIGH = np.array([1 + BRIGHTNESS, 1 + CONTRAST, 1 + SATURATION, HUE])


def color_jitter(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Applies the four colour changes by random amounts in random order."""
    order = rng.permutation(4)
    amounts = _LOW + (_HIGH - _LOW) * rng.random(4)
    for i in order:
        image = _ADJUSTMENTS[i](image, float(amounts[i]))
    return image


def gaussian_blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs with `BLUR_TAPS` taps and reflected borders.

    Args:
      pixels: uint8 [H, W, C]; H and W at least 5.
      sigma: standard deviation in pixels.

    Returns:
      uint8 [H, W, C].
    """
    radius = BLUR_TAPS // 2
    offsets = np.arange(radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / (kernel[0] + 2 * kernel[1:].sum())).astype(np.float32)
    # A tap that cannot change a float32 sum of 255 is not worth its pass.
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
    """Sums the taps of a symmetric kernel along `axis` of a padded array."""

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
    """Inverts the uint8 values from `SOLARIZE_THRESHOLD` on."""
    return np.where(pixels < SOLARIZE_THRESHOLD, pixels, ~pixels)


@dataclasses.dataclass(frozen=True)
class MultiCropAugmentation:
    """Turns one image into two global and L local crops.

    Attributes:
      global_crops_size: S, in pixels.
      global_crops_scale: least and greatest share of the image's area.
      local_crops_number: L; may be 0.
      local_crops_size: s, in pixels.
      local_crops_scale: least and greatest share of the image's area.
      blur: a key of `BLUR_PROBABILITIES`.
    """

    global_crops_size: int = 224
    global_crops_scale: tuple[float, float] = (0.32, 1.0)
    local_crops_number: int = 8
    local_crops_size: int = 96
    local_crops_scale: tuple[float, float] = (0.05, 0.32)
    blur: str = "reference"

    def __post_init__(self):
        if self.blur not in BLUR_PROBABILITIES:
            raise ValueError(
                f"blur = {self.blur!r} is not one of {sorted(BLUR_PROBABILITIES)}"
            )

    def __call__(
        self, image: Image.Image | np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws all crops of an image.

        Args:
          image: RGB, as a Pillow image or uint8 [H, W, 3].
          rng: the only source of randomness.

        Returns:
          uint8 [2, S, S, 3] and uint8 [L, s, s, 3].
        """
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        blur = BLUR_PROBABILITIES[self.blur]
        large, small = self.global_crops_size, self.local_crops_size
        global_crops = np.empty((2, large, large, 3), np.uint8)
        local_crops = np.empty((self.local_crops_number, small, small, 3), np.uint8)
        for i in range(2):
            global_crops[i] = random_view(
                rng,
                image,
                size=large,
                scale=self.global_crops_scale,
                blur_probability=blur[i],
                solarize_probability=SOLARIZE_PROBABILITY if i == 1 else 0.0,
            )
        for i in range(self.local_crops_number):
            local_crops[i] = random_view(
                rng,
                image,
                size=small,
                scale=self.local_crops_scale,
                blur_probability=blur[2],
                solarize_probability=0.0,
            )
        return global_crops, local_crops


def random_view(
    rng: np.random.Generator,
    image: Image.Image,
    *,
    size: int,
    scale: tuple[float, float],
    blur_probability: float,
    solarize_probability: float,
) -> np.ndarray:
    """Draws one crop with its flip, colours, blur and solarization.

    Args:
      rng: the only source of randomness.
      image: RGB.
      size: of the crop, in pixels.
      scale: least and greatest share of the image's area.
      blur_probability: as applied.
      solarize_probability: as applied.

    Returns:
      uint8 [size, size, 3].
    """
    box = random_crop_box(rng, width=image.width, height=image.height, scale=scale)
    # Cropped first: resize(box=...) would let pixels outside the box in.
    crop = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    flip, jitter, gray, blur, sun = rng.random(5)
    if flip < FLIP_PROBABILITY:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if jitter < JITTER_PROBABILITY:
        crop = color_jitter(rng, crop)
    if gray < GRAYSCALE_PROBABILITY:
        crop = crop.convert("L").convert("RGB")
    pixels = np.asarray(crop)
    if blur < blur_probability:
        pixels = gaussian_blur(pixels, rng.uniform(*BLUR_SIGMA))
    if sun < solarize_probability:
        pixels = solarize(pixels)
    return pixels
