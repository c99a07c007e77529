"""Labelled images for evaluations, and checks that sets fit each other."""

import argparse
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import registry

# What `images_of_a_set` returns for sets of which nothing is left out.
ALL_IMAGES = {"images of a set": "all"}


class Subset:
    """Some images of a source, itself a source.

    Args:
      source: All images.
      indices: Those to keep, int [N].
    """

    is_part = True

    def __init__(self, source: Any, indices: np.ndarray):
        self._source, self.indices = source, np.asarray(indices, np.int64)

    @property
    def labels(self) -> np.ndarray | None:
        """int [N], or None if there are none."""
        labels = self._source.labels
        return None if labels is None else np.asarray(labels)[self.indices]

    @property
    def label_names(self) -> list[str]:
        """The names of the labels."""
        return list(self._source.label_names)

    @property
    def fingerprint(self) -> str:
        """Hex string that differs if the images differ."""
        chosen = hashlib.sha256(self.indices.tobytes())
        chosen.update(self._source.fingerprint.encode())
        return chosen.hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Read an image's file and header; raises `BadImage`."""
        return self._source.open(int(self.indices[index]))

    def name(self, index: int) -> str:
        """Return the name of an image in messages."""
        return self._source.name(int(self.indices[index]))


class Renumbered:
    """A source whose labels are numbered as those of another.

    Args:
      source: The images.
      names: The names of all labels in the other's order.
    """

    def __init__(self, source: Any, names: Sequence[str]):
        self._source, self.label_names = source, list(names)
        numbers = {name: i for i, name in enumerate(names)}
        of_source = np.array([numbers[name] for name in source.label_names])
        self.labels = of_source[np.asarray(source.labels)]

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for before there is a source, by copy
            raise AttributeError(name)
        return getattr(self._source, name)


def open_images(path: str, flag: str, *, max_images: int = 0) -> Any:
    """Open a folder, list or shards of images.

    Args:
      path: What the user named.
      flag: The flag that named it, for messages.
      max_images: Number of images to keep, evenly spaced; 0 for all.

    Raises:
      UserError: There is nothing that can be read.
    """
    source = registry.open_path(path, image_decoder.Decoder(), field=flag)
    if not len(source):
        raise errors.UserError(f"{flag} = {path} has no images: choose another path")
    if max_images and len(source) > max_images:
        chosen = np.linspace(0, len(source) - 1, max_images).astype(int)
        return Subset(source, chosen)
    return source


def open_labelled(path: str, flag: str, *, max_images: int = 0) -> Any:
    """Open images with labels; the arguments are those of `open_images`.

    Raises:
      UserError: There is nothing that can be read, or there are no labels.
    """
    source = open_images(path, flag, max_images=max_images)
    if source.labels is None:
        raise errors.UserError(
            f"{flag} = {path} has no labels: put the images of each class into a "
            "sub-folder of its name"
        )
    return source


def open_train_and_val(args: argparse.Namespace) -> tuple[Any, Any]:
    """Open the images of --train-path and --val-path, which have the same classes.

    Args:
      args: Parsed flags, see `tasks.data_flags.add_labelled`.

    Raises:
      UserError: They cannot be read, or their classes differ.
    """
    train, val = (
        open_labelled(path, flag, max_images=args.max_images)
        for flag, path in (
            ("--train-path", args.train_path),
            ("--val-path", args.val_path),
        )
    )
    return train, same_classes(train, val, args.train_path, args.val_path)


def images_of_a_set(args: argparse.Namespace, *sources: Any) -> dict[str, Any]:
    """Return the setting of a protocol card that says whether all images are used.

    Args:
      args: Parsed flags, see `tasks.data_flags.add_labelled`.
      sources: The images, of which --max-images may have left out some.
    """
    if any(getattr(source, "is_part", False) for source in sources):
        return {"images of a set": f"at most {args.max_images}"}
    return ALL_IMAGES


def same_classes(train: Any, val: Any, train_path: str, val_path: str) -> Any:
    """Return the second of two labelled sources with the classes of the first.

    Args:
      train: Source of the training images.
      val: Source of the images to classify.
      train_path: Path of the first, for messages.
      val_path: Path of the second, for messages.

    Returns:
      The source itself, or with other numbers if its classes are sorted in another way.

    Raises:
      UserError: Their classes differ.
    """
    ours, theirs = list(train.label_names), list(val.label_names)
    differing = sorted(set(ours) ^ set(theirs))
    if not differing:
        return val if ours == theirs else Renumbered(val, ours)
    raise errors.UserError(
        f"{train_path} has {len(ours)} classes and {val_path} has {len(theirs)}; "
        f"{len(differing)} are in only one of them, such as {differing[0]!r}: both "
        "need the same sub-folders"
    )


def need_two_classes(train: Any, train_path: str) -> None:
    """Raise UserError if there is nothing to tell apart.

    Args:
      train: Source of the training images.
      train_path: Its path, for the message.
    """
    names = list(train.label_names)
    if len(names) < 2:
        raise errors.UserError(
            f"--train-path = {train_path} has only the class {names[0]!r}: two or more "
            "sub-folders are needed"
        )


def class_mapping(
    classes: list[str],
    test_classes: list[str],
    path: str,
    *,
    known: str = "--train-path",
    by_number: bool = True,
) -> np.ndarray | None:
    """Return which of the known classes a test set's labels stand for.

    Args:
      classes: Names of the known classes.
      test_classes: Names of a test set's classes: the same, some of them (ImageNet-A
        and -R), or, if none of these names is known, their indices (ImageNet-V2).
      path: Path of the test set, for messages.
      known: Flag that names the images of the known classes, for messages.
      by_number: Whether names may be indices.

    Returns:
      Indices into `classes`, int [len(test_classes)]; None if both are the same.

    Raises:
      UserError: A class of the test set is not known.
    """
    if list(classes) == list(test_classes):
        return None
    index = {name: i for i, name in enumerate(classes)}
    missing = [name for name in test_classes if name not in index]
    if not missing:
        return np.array([index[name] for name in test_classes])
    if by_number and len(missing) == len(test_classes):
        numbers = [int(name) for name in test_classes if name.isdecimal()]
        if len(numbers) == len(test_classes) and max(numbers) < len(classes):
            return np.array(numbers)
    raise errors.UserError(
        f"{path} has {len(missing)} classes that {known} does not have, such as "
        f"{missing[0]!r}: name its sub-folders as those of {known}"
        + (", or all of them by their numbers from 0" if by_number else "")
    )
