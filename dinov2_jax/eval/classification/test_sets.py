"""Further test sets of an ImageNet classifier: A, R, Sketch, V2, ReaL and C."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.eval.classification import accuracy, labelled

Scores = Callable[[Any], tuple[np.ndarray, np.ndarray, np.ndarray]]


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


def read_real(path: str, count: int) -> np.ndarray:
    """Read the labels of ImageNet-ReaL.

    Args:
      path: real.json: a list of labels for each image, in the order of the files.
      count: Number of validation images.

    Returns:
      int [count, A], padded with -1.

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
    if len(padded) != count:
        raise errors.UserError(
            f"--real={path} has labels of {len(padded)} images, --val-path {count}: "
            "both need the images of ImageNet's validation set, without --max-images"
        )
    return padded


def imagenet_c(path: str, classes: list[str], scores: Scores) -> dict[str, Any]:
    """Measure a classifier on ImageNet-C.

    Args:
      path: Folder of `corruption/severity/class/*.JPEG`.
      classes: Names of the classifier's classes.
      scores: Function from labelled images to scores, labels and indices.

    Returns:
      "top1", {corruption: accuracies of severities 1 to 5}; "errors", {corruption:
      error relative to AlexNet}; "mce15" and "mce19", where all corruptions are there.

    Raises:
      UserError: There are no corruptions, or not all severities of one.
    """
    root = pathlib.Path(path)
    found = [name for name in accuracy.ALEXNET_ERRORS if (root / name).is_dir()]
    if not found:
        raise errors.UserError(
            f"--imagenet-c={path} has no folder of a corruption, such as "
            f"{next(iter(accuracy.ALEXNET_ERRORS))}: name the folder that holds them"
        )
    top1 = {}
    for name in found:
        top1[name] = []
        for severity in range(1, 6):
            folder = root / name / str(severity)
            if not folder.is_dir():
                raise errors.UserError(
                    f"there is no folder {folder}: each corruption needs severities 1 "
                    "to 5"
                )
            source = labelled.open_labelled(str(folder), "--imagenet-c")
            mapping = labelled.class_mapping(classes, source.label_names, str(folder))
            got, labels, _ = scores(source)
            top1[name].append(accuracies(got, labels, mapping)["top1"])
    relative = accuracy.corruption_errors(top1)
    result: dict[str, Any] = {"top1": top1, "errors": relative}
    for key, names in (
        ("mce15", accuracy.STANDARD_CORRUPTIONS),
        ("mce19", tuple(accuracy.ALEXNET_ERRORS)),
    ):
        if set(names) <= set(found):
            result[key] = accuracy.mean_corruption_error(relative, names)
    return result
