"""Checks of what is passed to a loaded model, and images fitted to its patches."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FITS = ("error", "crop", "pad", "resize")
_RAW = 20  # normalised values are below it; those of 0..255 are not


def fit_to_patches(images: jax.Array, patch_size: int, fit: str) -> jax.Array:
    """Crop, pad or resize images so that their sides are multiples of the patch size.

    Args:
      images: Images, [B, H, W, C].
      patch_size: Side of a patch, in pixels.
      fit: The method, as in `pretrained.Model.__call__`.

    Raises:
      ValueError: `fit` is "error" and a side is not a multiple, the image is too small
        to crop, or `fit` is unknown.
    """
    if fit not in FITS:
        raise ValueError(f"fit={fit!r}: use one of {', '.join(FITS)}")
    height, width = images.shape[1:3]
    if height % patch_size == 0 and width % patch_size == 0:
        return images
    below = [max(n // patch_size, 1) * patch_size for n in (height, width)]
    above = [-(-n // patch_size) * patch_size for n in (height, width)]
    nearest = [max(int(n / patch_size + 0.5), 1) * patch_size for n in (height, width)]
    small = min(height, width) < patch_size
    if fit == "error" or (fit == "crop" and small):
        crop = "" if small else f"'crop' ({below[0]}x{below[1]}), "
        raise ValueError(
            f"image of {height}x{width} px is "
            + ("smaller than" if small else "not a multiple of")
            + f" the patch size {patch_size}: use {nearest[0]}x{nearest[1]}, or "
            f"fit={crop}'pad' ({above[0]}x{above[1]}) or 'resize'"
        )
    batch, chans = images.shape[0], images.shape[-1]
    if fit == "resize":
        return jax.image.resize(images, (batch, *nearest, chans), "cubic")
    if fit == "pad":
        pads = [(n - m) // 2 for n, m in zip(above, (height, width))]
        rests = [n - m - p for n, m, p in zip(above, (height, width), pads)]
        return jnp.pad(images, ((0, 0), *zip(pads, rests), (0, 0)))
    top, left = (height - below[0]) // 2, (width - below[1]) // 2
    return images[:, top : top + below[0], left : left + below[1]]


def side(size: Any, patch_size: int) -> int:
    """Return the side of an image in px, checked to be whole patches."""
    if isinstance(size, bool) or not isinstance(size, int | np.integer):
        raise ValueError(f"size={size!r}: pass a whole number of px, such as 518")
    if size < patch_size or size % patch_size:
        nearest = max(int(size / patch_size + 0.5), 1) * patch_size
        raise ValueError(
            f"size={size} is not a multiple of the patch size {patch_size}: use "
            f"size={nearest}"
        )
    return int(size)


def check_normalised(images: Any) -> None:
    """Refuse arrays of NumPy that hold raw values from 0 to 255 as floats."""
    if not isinstance(images, np.ndarray) or images.dtype.kind != "f":
        return
    if images.size and images.min() >= 0 and images.max() > _RAW:
        raise ValueError(
            f"images have values from {images.min():g} to {images.max():g}, as raw "
            "pixels do: pass model.preprocess(images.astype(np.uint8))"
        )


def masks(masks: Any, shape: tuple[int, ...], patch_size: int) -> jax.Array:
    """Return masks as bool [B, h*w]."""
    batch, height, width = shape[0], shape[1] // patch_size, shape[2] // patch_size
    masks = jnp.asarray(masks)
    allowed = ((batch, height, width), (batch, height * width))
    if masks.dtype != jnp.bool_ or masks.shape not in allowed:
        raise ValueError(
            f"masks are {masks.dtype} {list(masks.shape)}: expected bool "
            f"[{batch}, {height}, {width}] or [{batch}, {height * width}], one for "
            "each patch"
        )
    return masks.reshape(batch, -1)


def indices(name: str, numbers: Any) -> tuple[int, ...]:
    """Return indices of blocks or tokens as a tuple of plain ints."""
    try:
        found = tuple(operator.index(i) for i in numbers if not isinstance(i, bool))
        if len(found) == len(numbers):
            return found
    except TypeError:  # not whole numbers, or not a sequence
        pass
    raise ValueError(f"{name}={numbers!r}: pass a list of whole numbers, such as [-1]")
