import numpy as np
import pytest

from dinov2_jax import errors
from dinov2_jax.eval.segmentation import mean_iou


def test_scores_equal_a_count_pixel_by_pixel():
    rng = np.random.default_rng(0)
    total, pixels = mean_iou.no_areas(5), []
    for size in ((7, 9), (4, 11)):
        labels = rng.choice([0, 1, 2, 3, 255], size)  # class 4 is nowhere
        predictions = rng.integers(0, 4, size)
        total += mean_iou.areas(predictions, labels, num_classes=5)
        pixels += list(zip(predictions.flat, labels.flat))
    pixels = [(p, t) for p, t in pixels if t != 255]
    found = mean_iou.scores(total)
    for k in range(4):
        both = sum(p == k and t == k for p, t in pixels)
        either = sum(p == k or t == k for p, t in pixels)
        assert found["IoU"][k] == both / either
    assert np.isnan(found["IoU"][4])
    assert found["mIoU"] == np.mean(found["IoU"][:4])
    assert found["aAcc"] == np.mean([p == t for p, t in pixels])


def test_zero_and_255_are_ignored_when_labels_are_moved():
    labels = np.array([[0, 1, 150, 255]], np.uint8)
    assert mean_iou.reduce_zero_label(labels).tolist() == [[255, 0, 149, 255]]


@pytest.mark.parametrize("value", [5, 254, -1])
def test_labels_outside_the_classes_are_named(value):
    labels = np.full((2, 2), value)
    with pytest.raises(errors.UserError, match=f"value {value}, outside 0 to 4"):
        mean_iou.areas(np.zeros((2, 2), int), labels, num_classes=5)


def test_sizes_that_differ_are_named():
    with pytest.raises(errors.UserError, match=r"\[2, 3\].*\[3, 2\]"):
        mean_iou.areas(np.zeros((2, 3), int), np.zeros((3, 2), int), num_classes=2)
