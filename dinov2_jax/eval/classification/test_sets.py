"""Further test sets of an ImageNet classifier: A, R, Sketch, V2, ReaL and C."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.eval.classification import accuracy, labelled

Scores = Callable[[Any], tuple[np.ndarray, np.ndarray, np.ndarray]]
_REAL_NAME = re.compile(r"ILSVRC2012_val_(\d+)")


@dataclasses.dataclass(frozen=True)
class TestSet:
    """A further test set of a classifier.

    Attributes:
      name: Its name among the numbers.
      source: Its labelled images.
      mapping: The classifier's class of each of its labels; None if they are the same.
    """

    name: str
    source: Any
    mapping: np.ndarray | None


def open_sets(
    paths: Sequence[str], classes: list[str], *, max_images: int = 0
) -> list[TestSet]:
    """Open test sets, each of which is called by the end of its path.

    Args:
      paths: Paths of their images.
      classes: Names of the classifier's classes.
      max_images: Number of images of each to keep, evenly spaced; 0 for all.

    Raises:
      UserError: One cannot be read, or has a class that the classifier does not know.
    """
    different = {pathlib.PurePath(path).parts: path for path in paths}
    return [
        _open(path, "--test-path", name, classes, max_images)
        for path, name in zip(different.values(), _short_names(list(different)))
    ]


def _short_names(parts: Sequence[tuple[str, ...]]) -> list[str]:
    """Return as many of the last parts of each path as tell it from the others."""

    def end(i, count):
        return str(pathlib.PurePath(*parts[i][-count:]))

    names = []
    for i, own in enumerate(parts):
        others = [k for k in range(len(parts)) if k != i]
        count = 1
        while count < len(own) and end(i, count) in {end(k, count) for k in others}:
            count += 1
        names.append(end(i, count))
    return names


def _open(path, flag, name, classes, max_images):
    source = labelled.open_labelled(path, flag, max_images=max_images)
    return TestSet(
        name, source, labelled.class_mapping(classes, source.label_names, path)
    )


def accuracies(
    scores: np.ndarray, labels: np.ndarray, mapping: np.ndarray | None
) -> dict[str, float]:
    """Return top-1, top-5 and mean-per-class accuracy on a test set.

    Args:
      scores: Scores of the classifier's classes, [N, C].
      labels: Labels of the test set, int [N].
      mapping: The classifier's class of each of its labels; None if they are the same.
    """
    if mapping is not None:
        scores = scores[:, mapping]
    first, five = (np.asarray(accuracy.predictions(scores, k=k)) for k in (1, 5))
    return {
        "top1": accuracy.micro(first, labels),
        "top5": accuracy.micro(five, labels),
        "mean_per_class": accuracy.macro(first, labels, num_classes=scores.shape[1]),
    }


def read_real(path: str, source: Any, num_classes: int) -> np.ndarray:
    """Read the labels of ImageNet-ReaL.

    Args:
      path: real.json: a list of labels for each image, in the order of the numbers in
        ILSVRC2012_val_00000001.JPEG and so on.
      source: Images of the validation set, whose names have these numbers.
      num_classes: Number of the classes; the labels are indices of ImageNet's 1,000.

    Returns:
      int [len(source), A], padded with -1.

    Raises:
      UserError: The file is missing or of another set of images.
    """
    try:
        lists = json.loads(pathlib.Path(path).read_bytes())
        most = max(map(len, lists))
        padded = np.full((len(lists), max(most, 1)), -1)
        for row, labels in zip(padded, lists):
            row[: len(labels)] = labels
    except OSError as error:
        raise errors.UserError(f"--real={path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise errors.UserError(
            f"--real={path} is not a JSON list of lists of labels: use real.json of "
            "ImageNet-ReaL"
        ) from error
    if padded.max() >= num_classes:
        raise errors.UserError(
            f"--real={path} has the label {padded.max()} and --train-path has "
            f"{num_classes} classes: its labels are of all classes of ImageNet-1k"
        )
    rows = []
    for index in range(len(source)):
        name = source.name(index)
        number = _REAL_NAME.search(name)
        if number is None or not 1 <= int(number[1]) <= len(padded):
            raise errors.UserError(
                f"--real={path} has labels of ILSVRC2012_val_00000001 to "
                f"{len(padded):08}, and --val-path has {name}: name the images of "
                "ImageNet's validation set under their own names"
            )
        rows.append(int(number[1]) - 1)
    return padded[rows]


def open_imagenet_c(
    path: str, classes: list[str], *, max_images: int = 0
) -> dict[str, list[TestSet]]:
    """Open ImageNet-C.

    Args:
      path: Folder of `corruption/severity/class/*.JPEG`.
      classes: Names of the classifier's classes.
      max_images: Number of images of each severity to keep, evenly spaced; 0 for all.

    Returns:
      {corruption: the sets of severities 1 to 5}.

    Raises:
      UserError: There are no corruptions, not all severities of one, or one has a class
        that the classifier does not know.
    """
    root = pathlib.Path(path)
    found = [name for name in accuracy.ALEXNET_ERRORS if (root / name).is_dir()]
    if not found:
        raise errors.UserError(
            f"--imagenet-c={path} has no folder of a corruption, such as "
            f"{next(iter(accuracy.ALEXNET_ERRORS))}: name the folder that holds them"
        )
    folders = [
        root / name / str(severity) for name in found for severity in range(1, 6)
    ]
    for folder in folders:
        if not folder.is_dir():
            raise errors.UserError(
                f"there is no folder {folder}: each corruption needs severities 1 to 5"
            )
    opened: dict[str, list[TestSet]] = {name: [] for name in found}
    for folder in folders:
        name = folder.parent.name
        opened[name].append(
            _open(str(folder), "--imagenet-c", name, classes, max_images)
        )
    return opened


def imagenet_c(sets: dict[str, list[TestSet]], scores: Scores) -> dict[str, Any]:
    """Measure a classifier on ImageNet-C.

    Args:
      sets: {corruption: the sets of severities 1 to 5}.
      scores: Function from labelled images to scores, labels and indices.

    Returns:
      "top1", {corruption: accuracies of severities 1 to 5}; "errors", {corruption:
      error relative to AlexNet}; "mce15" and "mce19", where all corruptions are there.
    """
    top1: dict[str, list[float]] = {}
    for name, severities in sets.items():
        top1[name] = []
        for each in severities:
            got, labels, _ = scores(each.source)
            top1[name].append(accuracies(got, labels, each.mapping)["top1"])
    relative = accuracy.corruption_errors(top1)
    result: dict[str, Any] = {"top1": top1, "errors": relative}
    for key, names in (
        ("mce15", accuracy.STANDARD_CORRUPTIONS),
        ("mce19", tuple(accuracy.ALEXNET_ERRORS)),
    ):
        if set(names) <= set(sets):
            result[key] = accuracy.mean_corruption_error(relative, names)
    return result
