"""The images of the evaluations inside the training loop."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.config import combinations
from dinov2_jax.data import preprocessing
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base, photos, registry

NUM_PICTURES = 4


@dataclasses.dataclass(frozen=True)
class Data:
    """What is evaluated on.

    Attributes:
      bank: Labelled source to learn from; None if no task needs labels.
      queries: Source that is classified; it has the bank's classes.
      images: Images whose patches are matched, uint8 [H, W, C] each.
      pictures: Images for the PCA picture, uint8 [n, P, P, C], C 1 or 3; None for no
        picture.
    """

    bank: base.Source | None
    queries: base.Source | None
    images: Sequence[np.ndarray]
    pictures: np.ndarray | None

    def identities(self) -> tuple[str, str]:
        """Return two identities; at least one is unchanged if the images are.

        The first is unchanged if the images move, the second if they are copied anew to
        the same place, with other modification times.
        """
        sources = [source for source in (self.bank, self.queries) if source is not None]
        return (
            "-".join(source.fingerprint[:16] for source in sources),
            "-".join(source.digest().hex()[:16] for source in sources),
        )


def open_data(config: Any, training: base.Source | None = None) -> Data | None:
    """Open the images that `config.evaluation` names, None if there are none.

    Args:
      config: The config of the run.
      training: Source of the training images, on which a run that keeps its best
        weights measures matching if no others are named.

    Raises:
      UserError: A folder is missing, has no labels, or the labels do not match.
    """
    c, channels = config.evaluation, config.model.in_chans
    bank, queries, unseen = None, None, []
    if not c.tasks:
        return None
    labelled = any(combinations.EVALUATIONS[task] for task in c.tasks)
    if c.val_path:
        decoder = image_decoder.make_decoder(config)
        if labelled:
            bank = registry.open_path(
                c.train_path, decoder, field="evaluation.train_path"
            )
        queries = registry.open_path(c.val_path, decoder, field="evaluation.val_path")
        if bank is not None:
            _check_labels(bank, queries, c)
            for name, source in (("train_path", bank), ("val_path", queries)):
                _check_readable(source, f"evaluation.{name}", c.max_images)
    elif config.data.source == "photos":
        bank = photos.PhotosSource("bank", channels=channels)
        queries = photos.PhotosSource(c.photos_split, channels=channels)
        unseen = photos.load_unseen()
        if channels == 1:
            unseen = [photos.luma(picture) for picture in unseen]
    elif config.checkpoint.keep_best and training is not None:
        queries = training
    else:
        return None
    pictures = []
    if channels in (1, 3):
        pictures = unseen or _read_images(queries, NUM_PICTURES)
    size = c.picture_size
    pictures = [preprocessing.resize_and_crop(p, size, size) for p in pictures]
    images = []
    if "matching" in c.tasks:
        images = unseen or _read_images(queries, c.matching_images)
        side = 2 * c.image_size  # its crops are at least half as long
        images = [preprocessing.resize_and_crop(x, side, side) for x in images]
        if not images:
            raise errors.UserError(
                f"no image of {c.val_path or config.data.path} could be read for "
                "evaluation.tasks = "
                "matching: set --config.evaluation.val_path to other images"
            )
    return Data(bank, queries, images, np.stack(pictures) if pictures else None)


def _check_labels(bank: base.Source, queries: base.Source, c: Any) -> None:
    """Raise UserError if two sources cannot be classified; log doubts."""
    for source, path in ((bank, c.train_path), (queries, c.val_path)):
        if source.labels is None:
            raise errors.UserError(
                f"{path} has no sub-folders to serve as labels: k-NN needs one "
                "sub-folder a class, or leave evaluation.train_path and val_path "
                "empty"
            )
    if list(bank.label_names) != list(queries.label_names):
        differing = sorted(set(bank.label_names) ^ set(queries.label_names))
        raise errors.UserError(
            f"the classes of {c.train_path} and {c.val_path} differ "
            f"({', '.join(differing[:5]) or 'in their order'}): both need the same "
            "sub-folders"
        )
    if "logreg" in c.tasks and len(bank.label_names) < 2:
        raise errors.UserError(
            f"evaluation.train_path has one class ({bank.label_names[0]}), and logreg "
            "needs two: take it out of evaluation.tasks"
        )
    for doubt in _doubts(bank, queries):
        logging.warning("%s", doubt)


def chosen_indices(count: int, most: int) -> np.ndarray:
    """Return the indices of at most `most` of `count` images, evenly spaced; 0: all."""
    if most and count > most:
        return np.linspace(0, count - 1, most).astype(int)
    return np.arange(count)


def unreadable(name: str, count: int) -> errors.UserError:
    """Return the error of a labelled set of which no image can be read.

    Args:
      name: Name of its field.
      count: Number of images that were tried.
    """
    return errors.UserError(
        f"none of {count} images of {name} could be read: set --config.{name} to other "
        "images, or evaluation.tasks to none that needs labels"
    )


def _check_readable(source: base.Source, name: str, most: int) -> None:
    """Raise UserError if no image that is evaluated can be read."""
    indices = chosen_indices(len(source), most)
    for index in indices:
        with contextlib.suppress(image_decoder.BadImage):
            source.open(int(index)).pixels()
            return
    raise unreadable(name, len(indices))


def _read_images(source: base.Source, count: int) -> list[np.ndarray]:
    """Read up to `count` evenly spaced images, skipping unreadable ones."""
    found = []
    for index in np.unique(np.linspace(0, len(source) - 1, count).astype(int)):
        with contextlib.suppress(image_decoder.BadImage):
            found.append(source.open(int(index)).pixels())
    return found


def _doubts(bank: base.Source, queries: base.Source) -> Iterator[str]:
    """Yield what makes the accuracy between two labelled sources meaningless."""
    if bank.fingerprint == queries.fingerprint:
        yield (
            "evaluation.train_path and evaluation.val_path are the same images: each "
            "is its own nearest neighbour, so k-NN is near 100 % whatever the model; "
            "set --config.evaluation.val_path to other images"
        )
    if len(bank.label_names) == 1:
        yield (
            f"evaluation.train_path has one class ({bank.label_names[0]}): k-NN is "
            "100 % whatever the model; set --config.evaluation.train_path to a folder "
            "with a sub-folder for each class"
        )
