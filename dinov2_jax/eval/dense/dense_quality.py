"""Matching accuracy and early warnings of a backbone on photographs, without labels."""

import functools
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from dinov2_jax import errors, pretrained
from dinov2_jax.eval.dense import dense_features, dense_resize, matching, pairs

Extract = Callable[[np.ndarray], tuple[Any, Any]]


def image_paths(folder: str | pathlib.Path, *, most: int) -> list[pathlib.Path]:
    """Return images below a folder, at most so many, evenly spaced.

    Names that begin with a dot are skipped.

    Args:
      folder: The folder, or one image.
      most: Largest number of images.

    Raises:
      UserError: There is no image.
    """
    folder = pathlib.Path(folder)
    if folder.is_file():
        found = [folder]
    else:
        found = [p for p in sorted(folder.rglob("*")) if not p.name.startswith(".")]
    found = [path for path in found if path.suffix.lower() in pairs.IMAGES]
    if not found:
        raise errors.UserError(
            f"there is no image in {folder}: pass a folder of {', '.join(pairs.IMAGES)}"
        )
    if len(found) > most:
        found = [found[i * len(found) // most] for i in range(most)]
    return found


class ReadableImages:
    """The images of files, without those that cannot be read, which are logged.

    Args:
      paths: Paths of the files.

    Attributes:
      left_out: Number of files that could not be read, so far.
    """

    def __init__(self, paths: Sequence[pathlib.Path]):
        self._paths, self.left_out = paths, 0

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the index of a path, and its image, uint8 [H, W, 3].

        Raises:
          UserError: None can be read.
        """
        self.left_out = 0
        for index, path in enumerate(self._paths):
            try:
                image = pairs.read_image(path)
            except errors.UserError as error:
                self.left_out += 1
                if self.left_out == len(self._paths):
                    raise
                logging.warning("left out: %s", error)
                continue
            yield index, image


def measure(
    model: pretrained.Model,
    images: Iterable[np.ndarray],
    *,
    size: int,
    crops: int,
    within: float = 1.0,
    seed: int = 0,
) -> dict[str, float]:
    """Measure the patch features of a backbone.

    Args:
      model: The backbone.
      images: Images, uint8 [H, W, 3] each.
      size: Side of a crop, px.
      crops: Number of pairs of crops of an image.
      within: Distance that counts as found, in patches.
      seed: Seed of the crops.

    Returns:
      "accuracy": share of patches that are found in the other crop; "chance": what
      random features would reach; "cls_patch_cosine" and "patch_cosine": mean cosine of
      the class token and patches, and of two patches of an image.

    Raises:
      UserError: `size` is not a multiple of the patch size.
    """
    patch = model.module.config.patch_size
    if size % patch:
        fitting = max(round(size / patch), 1) * patch
        raise errors.UserError(
            f"--size={size} is not a multiple of the patch size {patch}: use "
            f"--size={fitting}"
        )

    def extract(crops):
        batch = model.preprocessing.normalize(crops)
        return _last(model.module, model.params, batch)

    return measure_crops(
        images, extract, size=size, crops=crops, within=within, seed=seed
    )


def measure_crops(
    images: Iterable[np.ndarray],
    extract: Extract,
    *,
    size: int,
    crops: int,
    within: float = 1.0,
    seed: int = 0,
) -> dict[str, float]:
    """Measure patch features; arguments and results are those of `measure`.

    Args:
      images: Images, uint8 [H, W, C] each.
      extract: Function from crops, uint8 [B, S, S, C], to patch features [B, h, w, D]
        and class tokens [B, D].
      size: Side S of a crop, px.
      crops: Number of pairs of crops of an image.
      within: Distance that counts as found, in patches.
      seed: Seed of the crops.
    """
    hits, by_chance, count, warnings = 0.0, 0.0, 0, []
    for index, image in enumerate(images):
        boxes = []
        for pair in range(crops):
            rng = np.random.default_rng((seed, index, pair))
            drawn = matching.overlapping_boxes(image.shape[:2], rng)
            boxes += [tuple(map(round, box)) for box in drawn]
        cut = [_cut(image, box, size) for box in boxes]
        patches, cls = map(np.asarray, extract(np.stack(cut)))
        for i in range(0, len(boxes), 2):
            share, chance, here = matching.matching_accuracy(
                patches[i], patches[i + 1], boxes[i : i + 2], within=within
            )
            hits, by_chance = hits + share * here, by_chance + chance * here
            count += here
        warnings.append(
            (
                matching.class_patch_cosine(cls, patches),
                matching.mean_off_diagonal_cosine(patches),
            )
        )
    with_cls, between = np.mean(warnings, axis=0)
    return {
        "accuracy": hits / max(count, 1),
        "chance": by_chance / max(count, 1),
        "cls_patch_cosine": float(with_cls),
        "patch_cosine": float(between),
    }


def patch_features(
    model: pretrained.Model, image: np.ndarray, *, short: int
) -> np.ndarray:
    """Compute the patch features of an image after the last block.

    Args:
      model: The backbone.
      image: uint8 [H, W, 3].
      short: Short side to which it is resized, px, rounded to whole patches.

    Returns:
      float32 [h, w, D].
    """
    patch = model.module.config.patch_size
    wanted = dense_resize.rescaled_size(image.shape[:2], short=short)
    height, width = (max(round(side / patch), 1) * patch for side in wanted)
    pixels = dense_resize.resize_image(image, (height, width))
    batch = model.preprocessing.normalize(pixels)[None]
    return np.asarray(_last(model.module, model.params, batch)[0])[0]


@functools.partial(jax.jit, static_argnums=0)
def _last(module: Any, params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    (taps,) = dense_features.dense_features(
        module, params, images, blocks=(module.config.depth - 1,), norm=True
    )
    return taps


def _cut(image: np.ndarray, box: Sequence[int], size: int) -> np.ndarray:
    """Cut a box out of an image and resize it to a square."""
    top, left, height, width = box
    part = image[top : top + max(height, 1), left : left + max(width, 1)]
    return dense_resize.resize_image(part, (size, size))
