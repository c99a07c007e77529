"""Retrieval metrics against slow versions that follow the definitions."""

import numpy as np
import pytest

from dinov2_jax.eval.retrieval import retrieval


def slow_average_precision(ranking, positives, junk):
    """Area of the precision-recall curve, image by image without the junk."""
    kept = [image for image in ranking if image not in junk]
    area, recall, precision, found = 0.0, 0.0, 1.0, 0
    for place, image in enumerate(kept, start=1):
        found += image in positives
        new_recall, new_precision = found / len(positives), found / place
        area += (new_recall - recall) * (precision + new_precision) / 2
        recall, precision = new_recall, new_precision
    return area


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_of_rankings_with_junk(seed):
    rng = np.random.default_rng(seed)
    ranking = rng.permutation(40)
    chosen = rng.permutation(40)
    positives, junk = chosen[:6], chosen[6:15]
    places = retrieval.positions(ranking, positives, junk)
    expected = slow_average_precision(ranking, set(positives), set(junk))
    assert retrieval.average_precision(places, 6) == pytest.approx(expected, abs=1e-12)


def test_a_query_without_positives_is_left_out():
    ranking = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    truth = [
        {"easy": [], "hard": [2], "junk": [0]},
        {"easy": [3], "hard": [], "junk": []},
    ]
    easy = retrieval.revisited(ranking, truth, "E")
    assert np.isnan(easy.average_precisions[0]) and easy.mean_average_precision == 1.0
    hard = retrieval.revisited(ranking, truth, "H", ks=(1, 5))
    assert np.isnan(hard.average_precisions[1])
    # 0 is junk, 1 is before the positive: precision rises from 0 to 1/2.
    assert hard.mean_average_precision == pytest.approx(0.25)
    assert hard.mean_precisions.tolist() == [0.0, 0.5]
    medium = retrieval.revisited(ranking, truth, "M")
    assert medium.mean_average_precision == pytest.approx((0.25 + 1) / 2)


def test_ranks_of_partners_with_ties():
    cosines = np.array([[0.5, 0.9, 0.5], [0.1, 0.1, 0.1]])
    ranks = retrieval.ranks_of_partners(cosines, np.array([2, 1]))
    assert ranks.tolist() == [3, 2]  # equal ones keep the order of the images
    ordered = retrieval.rankings(cosines)
    assert [list(row).index(p) + 1 for row, p in zip(ordered, (2, 1))] == [3, 2]


def slow_met(similar, labels, k, t, num_classes):
    scores = {}
    for s, label in zip(similar[:k], labels[:k]):
        scores[label] = max(scores.get(label, -np.inf), s)
    best = max(scores, key=scores.get)
    total = sum(np.exp(t * s) for s in scores.values()) + num_classes - len(scores)
    return best, np.exp(t * scores[best]) / total


@pytest.mark.parametrize("k, t", [(1, 0.01), (5, 15), (9, 50)])
def test_met(k, t):
    rng = np.random.default_rng(k)
    train, queries = rng.normal(size=(30, 5)), rng.normal(size=(12, 5))
    train_labels = rng.integers(0, 6, 30)
    labels = rng.integers(-1, 6, 12)
    similar, neighbours = retrieval.met_neighbours(train, train_labels, queries, 9)
    ours = retrieval.met_predictions(
        similar, neighbours, k=k, temperature=t, num_classes=6
    )
    slow = [slow_met(s, n, k, t, 6) for s, n in zip(similar, neighbours)]
    assert ours.classes.tolist() == [best for best, _ in slow]
    np.testing.assert_allclose(ours.confidences, [conf for _, conf in slow], rtol=1e-6)
    order = np.argsort(-ours.confidences, kind="stable")
    gap, right = 0.0, 0
    for place, query in enumerate(order, start=1):
        if ours.classes[query] == labels[query]:
            right += 1
            gap += right / place
    expected = gap / (labels >= 0).sum()
    assert retrieval.global_average_precision(ours, labels) == pytest.approx(expected)
    assert retrieval.met_accuracy(ours, labels) == pytest.approx(
        right / (labels >= 0).sum()
    )


def test_a_high_temperature_does_not_overflow():
    ours = retrieval.met_predictions(
        np.array([[1.0, 0.5]]), np.array([[0, 1]]), k=2, temperature=5000, num_classes=9
    )
    assert ours.confidences == pytest.approx([1.0])


def test_tuning_takes_the_first_best():
    similar = np.array([[0.9, 0.8, 0.7], [0.9, 0.2, 0.1]])
    labels = np.array([[0, 1, 1], [1, 0, 0]])
    k, temperature, gap = retrieval.tune_met(
        similar, labels, np.array([0, 1]), num_classes=2
    )
    assert (k, temperature, gap) == (1, 0.01, 1.0)
