"""Accuracies of a classifier: top-k, by class, with several labels, and corruptions.

Mirrors the metrics of the reference's `eval/metrics.py` (torchmetrics'
`MulticlassAccuracy`, ImageNet-ReaL, class mappings) and the ImageNet-C benchmark.

Shapes: M images, C classes, A labels of one image.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Mean error of AlexNet over the five severities: first the 15 corruptions of the
# benchmark, then the 4 extra ones.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
    "speckle_noise": 0.845388,
    "gaussian_blur": 0.787108,
    "spatter": 0.717512,
    "saturate": 0.658248,
}
STANDARD_CORRUPTIONS = tuple(ALEXNET_ERRORS)[:15]


@functools.partial(jax.jit, static_argnames="k")
def predictions(scores: jax.Array, *, k: int) -> jax.Array:
    """Return the k classes of highest score, best first, int [M, min(k, C)].

    Of equal scores the class with the lower index comes first.

    Args:
      scores: Score of each class, [M, C].
      k: Number of classes.
    """
    k = min(k, scores.shape[-1])
    if k == 1:
        return jnp.argmax(scores, axis=-1, keepdims=True)
    return jax.lax.top_k(scores, k)[1]


def hits(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return whether a label is among the predicted classes, bool [M].

    Args:
      predicted: Predicted classes, int [M, k].
      labels: Labels, int [M], or several of each image, int [M, A], padded with -1.
    """
    labels = np.asarray(labels).reshape(len(predicted), -1)
    return (np.asarray(predicted)[:, :, None] == labels[:, None, :]).any(axis=(1, 2))


def micro(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose label is predicted.

    Images whose labels are all -1 are left out, as in ImageNet-ReaL.

    Args:
      predicted: Predicted classes, int [M, k].
      labels: Labels, int [M], or several of each image, int [M, A], padded with -1.
    """
    labels = np.asarray(labels).reshape(len(predicted), -1)
    counted = (labels >= 0).any(axis=1)
    return float(hits(predicted, labels)[counted].mean()) if counted.any() else np.nan


def by_class(
    predicted: np.ndarray, labels: np.ndarray, *, num_classes: int
) -> np.ndarray:
    """Return the accuracy of each class, float64 [C]; 0 for a class without labels.

    Args:
      predicted: Predicted classes, int [M, k].
      labels: Labels, int [M].
      num_classes: Number of classes C.
    """
    labels = np.asarray(labels)
    correct = np.bincount(labels, hits(predicted, labels), minlength=num_classes)
    return correct / np.maximum(np.bincount(labels, minlength=num_classes), 1)


def macro(predicted: np.ndarray, labels: np.ndarray, *, num_classes: int) -> float:
    """Return the mean of the classes' accuracies.

    As torchmetrics, the mean leaves out classes without labels. But for top-1 a class
    that is predicted and never labelled counts as 0.

    Args:
      predicted: Predicted classes, int [M, k].
      labels: Labels, int [M].
      num_classes: Number of classes C.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    counted = np.bincount(labels, minlength=num_classes) > 0
    if predicted.shape[1] == 1:
        counted |= np.bincount(predicted[:, 0], minlength=num_classes) > 0
    return float(by_class(predicted, labels, num_classes=num_classes)[counted].mean())


def corruption_errors(
    accuracies: Mapping[str, Sequence[float]],
) -> dict[str, float]:
    """Compute each corruption's error relative to AlexNet's.

    Args:
      accuracies: {corruption: top-1 accuracies at its severities, in [0, 1]}.

    Returns:
      {corruption: error}, 1 for AlexNet.

    Raises:
      KeyError: A corruption is not one of `ALEXNET_ERRORS`.
    """
    return {
        name: float(np.mean(1.0 - np.asarray(values, np.float64)))
        / ALEXNET_ERRORS[name]
        for name, values in accuracies.items()
    }


def mean_corruption_error(
    errors: Mapping[str, float], corruptions: Sequence[str] = STANDARD_CORRUPTIONS
) -> float:
    """Return the mCE, the mean of the corruptions' relative errors.

    Args:
      errors: {corruption: relative error}, from `corruption_errors`.
      corruptions: Corruptions in the mean: the benchmark's 15, or all 19.
    """
    return float(np.mean([errors[name] for name in corruptions]))
