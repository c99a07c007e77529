"""Mean intersection over union of segmentation maps.

Mirrors mmseg's `intersect_and_union` and `total_area_to_metrics`: areas are summed over
the data set first, and classes that are in neither maps nor labels do not count.

Shapes: H x W pixels, K classes.
"""

import dataclasses
from typing import Any

import numpy as np

from dinov2_jax import errors

IGNORE = 255


@dataclasses.dataclass(frozen=True)
class Areas:
    """Numbers of pixels by class, over any number of images; they can be added.

    Attributes:
      intersect: Pixels predicted as the class that they are labelled as, int64 [K].
      predicted: Pixels predicted as each class, int64 [K].
      labelled: Pixels labelled as each class, int64 [K].
    """

    intersect: np.ndarray
    predicted: np.ndarray
    labelled: np.ndarray

    def __add__(self, other: "Areas") -> "Areas":
        return Areas(
            self.intersect + other.intersect,
            self.predicted + other.predicted,
            self.labelled + other.labelled,
        )

    @property
    def union(self) -> np.ndarray:
        """Pixels that are predicted or labelled as each class, int64 [K]."""
        return self.predicted + self.labelled - self.intersect


def no_areas(num_classes: int) -> Areas:
    """Return the areas of no image at all."""
    return Areas(*(np.zeros(num_classes, np.int64) for _ in range(3)))


def reduce_zero_label(labels: np.ndarray) -> np.ndarray:
    """Turn label 0 into "ignored" and move the others down by one, as for ADE20K.

    Args:
      labels: Labels as on disk, uint8 [H, W]; both 0 and 255 become 255.
    """
    moved = labels.astype(np.int32) - 1
    return np.where((labels == 0) | (labels == IGNORE), IGNORE, moved).astype(np.uint8)


def areas(predictions: np.ndarray, labels: np.ndarray, *, num_classes: int) -> Areas:
    """Count the areas of one image; pixels labelled 255 do not count.

    Args:
      predictions: Predicted classes, int [H, W] in [0, K).
      labels: Labels, int [H, W] in [0, K), or 255.
      num_classes: Number of classes K.

    Raises:
      UserError: The sizes differ, or a label is outside the classes.
    """
    if predictions.shape != labels.shape:
        raise errors.UserError(
            f"a segmentation map is {list(predictions.shape)} and its labels are "
            f"{list(labels.shape)}: predict at the size of the labels"
        )
    check_labels(labels, num_classes=num_classes, name="the labels")
    valid = labels != IGNORE
    predictions, labels = predictions[valid], labels[valid]

    def histogram(values):
        return np.bincount(values, minlength=num_classes).astype(np.int64)

    agreed = predictions[predictions == labels]
    return Areas(histogram(agreed), histogram(predictions), histogram(labels))


def check_labels(labels: np.ndarray, *, num_classes: int, name: str) -> None:
    """Raise UserError if a label is neither a class nor 255.

    Args:
      labels: Labels, int of any shape.
      num_classes: Number of classes.
      name: Name of the labels in the message.
    """
    wrong = labels[(labels != IGNORE) & ((labels >= num_classes) | (labels < 0))]
    if wrong.size:
        raise errors.UserError(
            f"{name} hold the value {int(wrong.flat[0])}, outside 0 to "
            f"{num_classes - 1} and not {IGNORE} (ignored): set the number of classes, "
            "or mark what is to be ignored with 255"
        )


def scores(total: Areas) -> dict[str, Any]:
    """Compute the scores of summed areas, as fractions.

    Returns:
      "IoU" and "Acc", float64 [K], NaN for classes that are nowhere; "mIoU" and "mAcc",
      their means without NaN; "aAcc", the share of all pixels that are right.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = total.intersect / total.union
        accuracy = total.intersect / total.labelled
        overall = total.intersect.sum() / total.labelled.sum()
    return {
        "mIoU": _mean(iou),
        "mAcc": _mean(accuracy),
        "aAcc": overall,
        "IoU": iou,
        "Acc": accuracy,
    }


def _mean(values: np.ndarray) -> np.floating:
    there = values[~np.isnan(values)]
    return there.mean() if there.size else np.float64(np.nan)
