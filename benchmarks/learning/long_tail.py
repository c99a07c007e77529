"""A long-tailed set of images with duplicates, made from the embedded photographs.

The numbers of images follow Zipf's law, with the photographs in an order that depends
on the seed: the most frequent one has half of all images, the rarest one in 166. Each
image is a random crop of a window of the split "train", mirrored or not, with jittered
colours. Of the `HEADS` most frequent photographs, half of the images are copies: each
tenth of the others has about ten, by turns of the same bytes and changed a little.

FOLDER/PHOTOGRAPH/00012.png is an image, FOLDER/PHOTOGRAPH/00012-3.png a copy of it.
"""

import pathlib
import shutil

import numpy as np
from PIL import Image

from benchmarks.learning import results
from dinov2_jax.augment import crop_boxes, on_host, policies, resize
from dinov2_jax.curate import changes
from dinov2_jax.data.sources import photos

IMAGES = 4000
HEADS = 4
CHANGES = ("JPEG 30", "brightness 1.3", "crop 90 %", "mirrored")
_EXPONENT = 1.6
_SCALE = (0.25, 1.0)  # share of the window's area that an image shows
_COPIED = 10  # of so many images one is copied


def counts(classes: int, images: int) -> np.ndarray:
    """Return numbers of images by Zipf's law, the largest first, int [classes].

    Args:
      classes: Number of classes.
      images: Sum of the numbers.
    """
    weights = np.arange(1, classes + 1) ** -_EXPONENT
    exact = images * weights / weights.sum()
    found = np.floor(exact).astype(int)
    rounded_up = np.argsort(found - exact, kind="stable")[: images - found.sum()]
    found[rounded_up] += 1
    return found


def write(folder: pathlib.Path, seed: int, images: int = IMAGES) -> None:
    """Write a set, unless that is done already.

    Args:
      folder: Its folder.
      seed: Seed of everything random.
      images: Number of images.
    """
    done = folder / ".done"
    with results.hold(folder.with_suffix(".lock")):
        if done.exists():
            return
        source, rng = photos.PhotosSource("train"), np.random.default_rng(seed)
        names, labels = source.label_names, source.labels
        order = rng.permutation(len(names))
        for rank, (label, count) in enumerate(zip(order, counts(len(names), images))):
            sub_folder = folder / names[label]
            sub_folder.mkdir(parents=True, exist_ok=True)
            windows = np.flatnonzero(labels == label)
            copies = int(count) // 2 if rank < HEADS else 0
            for index in range(count - copies):
                window = source.open(int(rng.choice(windows))).pixels()
                image = Image.fromarray(_render(window, rng))
                image.save(sub_folder / f"{index:05}.png")
            _copy(sub_folder, count - copies, copies, seed)
        done.touch()


def _render(window: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random view of uint8 [H, W, 3], uint8 [64, 64, 3]."""
    height, width = window.shape[:2]
    box = crop_boxes.random_crop_box(rng, width=width, height=height, scale=_SCALE)
    pixels = resize.crop_and_resize(window, box, photos.TILE)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return on_host.color_jitter(rng, pixels, policies.POLICIES["rgb"])


def _copy(folder: pathlib.Path, originals: int, copies: int, seed: int) -> None:
    copied = max(originals // _COPIED, 1)
    for number in range(copies):
        turn, index = divmod(number, copied)
        original = folder / f"{index:05}.png"
        copy = folder / f"{index:05}-{turn + 1}.png"
        if turn % 2 == 0:
            shutil.copyfile(original, copy)
            continue
        name = CHANGES[turn // 2 % len(CHANGES)]
        pixels = np.asarray(Image.open(original))
        pixels = changes.apply(name, pixels, seed=(seed, number))
        Image.fromarray(pixels).save(copy)


def names(folder: pathlib.Path) -> list[str]:
    """Return the paths of the images below the folder of a set, sorted."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.glob("*/*.png")
    )


def photograph(name: str) -> str:
    """Return the photograph that an image of `names` shows."""
    return name.split("/")[0]


def original(name: str) -> str:
    """Return the name of what an image of `names` is a copy of, or its own name."""
    stem, copy, _ = name.partition("-")
    return f"{stem}.png" if copy else name
