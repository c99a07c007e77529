"""Data sets of another domain, made from the embedded photographs.

Each is a folder with `train`, `bank`, `val` and `test`, the tiles of the photographs'
splits, with a sub-folder for each photograph.
"""

import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from benchmarks.learning import results
from dinov2_jax.data.sources import photos

# Optical densities of red, green and blue in haematoxylin and eosin (Ruifrok and
# Johnston 2001).
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
_ZOOM = 2  # of texture crops


def grey(pixels: np.ndarray) -> np.ndarray:
    """Return the luma of uint8 [H, W, 3] in all three channels."""
    return np.repeat(photos.luma(pixels), 3, axis=-1)


def histology(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W, 3] in the colours of a section stained with H&E.

    Haematoxylin lies where the image is dark, eosin where it is red.
    """
    share = pixels / 255
    dark = 1 - photos.luma(pixels)[..., 0] / 255
    red = np.clip(share[..., 0] - share[..., 2] + 0.3, 0, 1)
    density = np.stack([1.5 * dark, red], axis=-1) @ _STAINS
    return np.round(255 * np.exp(-density)).astype(np.uint8)


def texture(pixels: np.ndarray) -> np.ndarray:
    """Return the middle of uint8 [H, W, 3], magnified: surfaces without layout."""
    height, width = pixels.shape[:2]
    h, w = height // _ZOOM, width // _ZOOM
    top, left = (height - h) // 2, (width - w) // 2
    middle = Image.fromarray(pixels[top : top + h, left : left + w])
    return np.asarray(middle.resize((width, height), Image.Resampling.BICUBIC))


SHIFTS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "grey": grey,
    "histology": histology,
    "texture": texture,
}


def write(folder: pathlib.Path, name: str) -> None:
    """Write a shifted data set, unless that is done already.

    Args:
      folder: Its folder.
      name: One of `SHIFTS`.
    """
    done = folder / "done"
    with results.hold(folder.with_suffix(".lock")):
        if done.exists():
            return
        for split in photos.SPLITS:
            source = photos.PhotosSource(split)
            for index, label in enumerate(source.labels):
                path = folder / split / source.label_names[label] / f"{index:05}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = SHIFTS[name](source.open(index).pixels())
                Image.fromarray(pixels).save(path)
        done.touch()
