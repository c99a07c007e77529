"""Changes of an image after which it still shows the same."""

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

_Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def _jpeg(image, rng, *, quality):
    del rng
    file = io.BytesIO()
    image.save(file, "jpeg", quality=quality)
    return Image.open(file).convert("RGB")


def _resize(image, rng, *, width, height):
    del rng
    size = max(round(image.width * width), 1), max(round(image.height * height), 1)
    return image.resize(size, Image.Resampling.BICUBIC)


def _blur(image, rng):
    del rng
    return image.filter(ImageFilter.GaussianBlur(2))


def _brighten(image, rng):
    del rng
    return ImageEnhance.Brightness(image).enhance(1.3)


def _grey(image, rng):
    del rng
    return image.convert("L").convert("RGB")


def _recolour(image, rng):
    del rng
    image = ImageEnhance.Color(image).enhance(1.5)
    return ImageEnhance.Contrast(image).enhance(1.3)


def _crop(image, rng, *, share):
    width = max(round(image.width * share), 1)
    height = max(round(image.height * share), 1)
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _flip(image, rng):
    del rng
    return ImageOps.mirror(image)


def _turn(image, rng):
    del rng
    return image.rotate(5, Image.Resampling.BICUBIC)


# By name. Crops keep a share of each side, at a random place.
CHANGES: dict[str, _Change] = {
    "JPEG 75": functools.partial(_jpeg, quality=75),
    "JPEG 30": functools.partial(_jpeg, quality=30),
    "half size": functools.partial(_resize, width=0.5, height=0.5),
    "blur 2 px": _blur,
    "width 90 %": functools.partial(_resize, width=0.9, height=1.0),
    "brightness 1.3": _brighten,
    "grey": _grey,
    "colour, contrast": _recolour,
    "crop 95 %": functools.partial(_crop, share=0.95),
    "crop 90 %": functools.partial(_crop, share=0.9),
    "crop 80 %": functools.partial(_crop, share=0.8),
    "crop 50 %": functools.partial(_crop, share=0.5),
    "mirrored": _flip,
    "turned 5 degrees": _turn,
}


def apply(name: str, pixels: np.ndarray, *, seed: tuple[int, ...]) -> np.ndarray:
    """Change an image.

    Args:
      name: Name of the change, a key of `CHANGES`.
      pixels: Image, uint8 [H, W, 3].
      seed: Seed of the place of a crop.

    Returns:
      The changed image, uint8 [H', W', 3].
    """
    changed = CHANGES[name](Image.fromarray(pixels), np.random.default_rng(seed))
    return np.asarray(changed)
