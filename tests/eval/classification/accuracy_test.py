"""Accuracies against loops over images and classes."""

import numpy as np
import pytest
from sklearn import metrics

from dinov2_jax.eval.classification import accuracy

CLASSES = 9


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(150, CLASSES)).astype(np.float32)
    scores[:, 7] -= 10  # never predicted first
    labels = rng.integers(0, CLASSES - 2, 150)  # 7 and 8 are nobody's label
    return scores, labels


def order(row):
    """Classes by score; of equal ones the lower first."""
    return sorted(range(len(row)), key=lambda c: (-row[c], c))


@pytest.mark.parametrize("k", [1, 3, 5, 20])
def test_top_k(data, k):
    scores, labels = data
    predicted = np.asarray(accuracy.predictions(scores, k=k))
    expected = np.array([order(row)[:k] for row in scores])
    np.testing.assert_array_equal(predicted, expected)
    share = np.mean([label in row for label, row in zip(labels, expected)])
    assert accuracy.micro(predicted, labels) == pytest.approx(share, abs=1e-12)


def test_ties_go_to_the_first_class():
    scores = np.float32([[0, 1, 1, 0], [2, 2, 2, 2]])
    assert np.asarray(accuracy.predictions(scores, k=1)).tolist() == [[1], [0]]
    assert np.asarray(accuracy.predictions(scores, k=3)).tolist() == [
        [1, 2, 0],
        [0, 1, 2],
    ]


def test_top_k_equals_scikit_learn(data):
    scores, labels = data
    expected = metrics.top_k_accuracy_score(labels, scores, k=3, labels=range(CLASSES))
    predicted = accuracy.predictions(scores, k=3)
    assert accuracy.micro(predicted, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 5])
def test_macro_is_the_mean_of_the_right_classes(data, k):
    scores, labels = data
    predicted = np.asarray(accuracy.predictions(scores, k=k))
    of_class = {
        c: np.mean([c in row for row in predicted[labels == c]])
        for c in np.unique(labels)
    }
    every = accuracy.by_class(predicted, labels, num_classes=CLASSES)
    assert every.tolist() == [pytest.approx(of_class.get(c, 0)) for c in range(CLASSES)]
    # Class 8 is predicted without being anyone's: that counts for top-1 alone.
    counted = [*of_class.values()] + [0.0] * (k == 1)
    assert accuracy.macro(predicted, labels, num_classes=CLASSES) == pytest.approx(
        np.mean(counted), abs=1e-12
    )


def test_several_labels_and_none():
    predicted = np.array([[1, 2], [1, 2], [1, 2], [0, 3]])
    labels = np.array([[2, -1], [-1, -1], [0, 3], [3, 0]])
    assert accuracy.micro(predicted, labels) == pytest.approx(2 / 3)
    assert np.isnan(accuracy.micro(predicted[1:2], labels[1:2]))


def test_corruption_errors():
    alexnet = {name: [1 - error] * 5 for name, error in accuracy.ALEXNET_ERRORS.items()}
    errors = accuracy.corruption_errors(alexnet)
    assert len(errors) == 19
    assert accuracy.mean_corruption_error(errors) == pytest.approx(1.0)
    errors |= dict.fromkeys(list(accuracy.ALEXNET_ERRORS)[15:], 0.05)
    assert accuracy.mean_corruption_error(errors) == pytest.approx(1.0)
    everything = tuple(accuracy.ALEXNET_ERRORS)
    assert accuracy.mean_corruption_error(errors, everything) == pytest.approx(
        (15 + 4 * 0.05) / 19
    )
