"""Preprocessing for a trained backbone: resize, central crop, normalisation.

Mirrors the evaluation transform of the reference's `data/transforms.py`.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image

from dinov2_jax.augment import policies

_LONGEST = 100  # times the shorter side, or the crop; of longer ones only the middle


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Function from an image to the input of a backbone.

    Attributes:
      resize_size: Short side after the bicubic resize and before the crop, px.
      crop_size: Side of the central square, S, px.
      mean: Mean of each channel, for values in [0, 1].
      std: Standard deviation of each channel, for values in [0, 1].
    """

    resize_size: int = 256
    crop_size: int = 224
    mean: tuple[float, ...] = policies.IMAGENET_MEAN
    std: tuple[float, ...] = policies.IMAGENET_STD

    def __call__(self, image: np.ndarray | Image.Image) -> np.ndarray:
        """Prepare a uint8 [H, W, C] or Pillow image; return float32 [S, S, C]."""
        return self.normalize(resize_and_crop(image, self.resize_size, self.crop_size))

    def with_crop(self, crop_size: int) -> "Preprocessing":
        """Return a copy for another crop size, px; `resize_size` scales with it."""
        resize_size = round(crop_size * self.resize_size / self.crop_size)
        return dataclasses.replace(self, resize_size=resize_size, crop_size=crop_size)

    def fits_channels(self, in_chans: int) -> bool:
        """Return whether mean and deviation are for images of so many channels."""
        return {len(self.mean), len(self.std)} <= {1, in_chans}

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Normalise uint8 [..., C] with `mean` and `std`; return float32."""
        scaled = np.asarray(image, np.float32) / np.float32(255)
        return (scaled - np.float32(self.mean)) / np.float32(self.std)


def for_patches(patch_size: int) -> Preprocessing:
    """Return the reference's preprocessing, its crop rounded down to whole patches.

    Args:
      patch_size: Side of a patch, px.
    """
    crop_size = max(Preprocessing.crop_size // patch_size, 1) * patch_size
    return Preprocessing(max(Preprocessing.resize_size, crop_size), crop_size)


def make_preprocessing(config: Any, patch_size: int) -> Preprocessing:
    """Return the preprocessing of a run's own evaluations.

    Args:
      config: The config; sections and fields that old ones lack are the reference's.
      patch_size: Side of a patch, px.
    """
    default = for_patches(patch_size)
    data, evaluation = (getattr(config, name, None) for name in ("data", "evaluation"))
    return Preprocessing(
        resize_size=getattr(evaluation, "resize_size", default.resize_size),
        crop_size=getattr(evaluation, "image_size", default.crop_size),
        mean=tuple(getattr(data, "mean", ())) or default.mean,
        std=tuple(getattr(data, "std", ())) or default.std,
    )


def size_in_patches(
    width: int, height: int, size: int, patch_size: int
) -> tuple[int, int]:
    """Return the size that keeps the aspect ratio as far as whole patches allow.

    Args:
      width: Width of the photograph, px.
      height: Height of the photograph, px.
      size: Wanted longer side, px.
      patch_size: Side of a patch, px.

    Returns:
      (width, height), px. The longer side is the multiple of the patch size nearest to
      `size`, the other is the multiple nearest to the aspect ratio; at least one patch.
    """
    longer = max(int(size / patch_size + 0.5), 1)
    scale = longer / max(width, height)
    columns, rows = (max(int(n * scale + 0.5), 1) for n in (width, height))
    return columns * patch_size, rows * patch_size


def resize_and_crop(
    image: np.ndarray | Image.Image, resize_size: int, crop_size: int
) -> np.ndarray:
    """Resize the short side to `resize_size` and cut out the central square.

    Args:
      image: uint8 [H, W, C], or a Pillow image.
      resize_size: Short side after the bicubic resize, px.
      crop_size: Side of the square, S, px.

    Returns:
      uint8 [S, S, C].
    """
    if not isinstance(image, Image.Image):
        if image.ndim == 3 and image.shape[2] != 3:
            # One by one: Pillow would treat the fourth channel as alpha.
            planes = [
                resize_and_crop(np.ascontiguousarray(plane), resize_size, crop_size)
                for plane in np.moveaxis(image, 2, 0)
            ]
            return np.stack(planes, axis=2)
        image = Image.fromarray(image)
    width, height = image.size
    if min(width, height) != resize_size:
        # As torchvision: truncate the long side, round the crop's corner.
        size = [int(resize_size * n / min(width, height)) for n in (width, height)]
        if max(size) > _LONGEST * max(resize_size, crop_size):
            image = _resize_middle(image, size, crop_size)
        else:
            image = image.resize(size, Image.Resampling.BICUBIC)
    left = round((image.width - crop_size) / 2)
    top = round((image.height - crop_size) / 2)
    return np.asarray(image.crop((left, top, left + crop_size, top + crop_size)))


def _resize_middle(image: Image.Image, size: list[int], crop_size: int) -> Image.Image:
    """Resize to a very long size, but return only the crop's part of the long side.

    The pixels are those of the whole resize (within one level), in bounded memory.

    Args:
      image: The image.
      size: [width, height] of the whole image after the resize, px.
      crop_size: Side of the crop, px.
    """
    axis = int(size[1] > size[0])
    length, scale = image.size[axis], image.size[axis] / size[axis]
    start = round((size[axis] - crop_size) / 2)
    ends = [start * scale, (start + crop_size) * scale]
    reach = math.ceil(2 * max(scale, 1)) + 1  # of the bicubic filter
    first = max(math.floor(ends[0]) - reach, 0)
    last = min(math.ceil(ends[1]) + reach, length)
    # Cut first: Pillow keeps the box in float32, exact only for small numbers.
    corners = [0, 0, *image.size]
    corners[axis], corners[axis + 2] = first, last
    image = image.crop(tuple(corners))
    box = [0.0, 0.0, *image.size]
    box[axis], box[axis + 2] = (end - first for end in ends)
    wanted = [*size]
    wanted[axis] = crop_size
    return image.resize(wanted, Image.Resampling.BICUBIC, box=tuple(box))


def resize_whole(image: np.ndarray, size: int, patch_size: int) -> np.ndarray:
    """Resize a whole image to whole patches, near its aspect ratio, bicubic.

    Args:
      image: uint8 [H, W, 3].
      size: Wanted longer side, px; see `size_in_patches`.
      patch_size: Side of a patch, px.

    Returns:
      uint8 [H', W', 3].
    """
    height, width = image.shape[:2]
    wanted = size_in_patches(width, height, size, patch_size)
    return np.asarray(Image.fromarray(image).resize(wanted, Image.Resampling.BICUBIC))


def pad_to_square(image: np.ndarray) -> np.ndarray:
    """Pad the shorter side of [H, W, C] with zeros, the image centred, to [S, S, C]."""
    size = max(image.shape[:2])
    pads = [((size - n) // 2, size - n - (size - n) // 2) for n in image.shape[:2]]
    return np.pad(image, (*pads, (0, 0)))
