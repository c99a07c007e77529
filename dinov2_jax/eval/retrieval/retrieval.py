"""Instance retrieval: Revisited Oxford and Paris, AmsterTime, and the Met.

The reference has no code for it; these are the benchmarks' own definitions, from their
public evaluation code: Radenovic et al. 2018 (average precision by trapezoids, junk
images), Yildiz et al. 2022, Ypsilantis et al. 2021.

Shapes: N images of a data base, M queries, D width.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dinov2_jax.eval.classification import nearest

# Setup -> (positives, junk): what counts, and what is taken out of the ranking.
SETUPS = {
    "E": (("easy",), ("junk", "hard")),
    "M": (("easy", "hard"), ("junk",)),
    "H": (("hard",), ("junk", "easy")),
}
MET_KS = (1, 2, 3, 5, 7, 10, 15, 20, 50)
MET_TEMPERATURES = (0.01, 0.1, 1, 5, 10, 15, 20, 25, 30, 50, 100, 500)


def unit(features: np.ndarray) -> np.ndarray:
    """Return features [N, D] divided by their lengths, float64; zeros stay zeros."""
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def similarities(database: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Compute cosines, float64 [M, N], of features [N, D] and [M, D] of any length."""
    return unit(queries) @ unit(database).T


def rankings(cosines: np.ndarray) -> np.ndarray:
    """Return the images of each query from the most similar on, int [M, N].

    Args:
      cosines: Similarities, [M, N]; equal ones keep the order of the images.
    """
    return np.argsort(-np.asarray(cosines), axis=1, kind="stable")


def positions(
    ranking: np.ndarray, positives: Sequence[int], junk: Sequence[int] = ()
) -> np.ndarray:
    """Return the places of the positives in a ranking without junk, from 0, ascending.

    Args:
      ranking: Images of one query, int [N].
      positives: Images that count.
      junk: Images that are taken out.
    """
    is_junk = np.isin(ranking, np.asarray(junk, int))
    places = np.arange(len(ranking)) - np.cumsum(is_junk)
    return places[np.isin(ranking, np.asarray(positives, int)) & ~is_junk]


def average_precision(places: np.ndarray, num_positives: int) -> float:
    """Return the area below the precision-recall curve, by trapezoids.

    Args:
      places: Places of the ranked positives, from 0, ascending.
      num_positives: Number of all positives, ranked or not.
    """
    found = np.arange(len(places))
    before = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    after = (found + 1) / (places + 1)
    return float((before + after).sum() / (2 * num_positives))


def precisions(places: np.ndarray, ks: Sequence[int]) -> list[float]:
    """Return the precision at each k, or at the last positive if that comes earlier.

    Args:
      places: Places of the positives, from 0, ascending; not empty.
      ks: Numbers of images looked at.
    """
    result = []
    for k in ks:
        looked_at = min(int(places.max()) + 1, k)
        result.append(float((places < looked_at).sum() / looked_at))
    return result


@dataclasses.dataclass(frozen=True)
class Revisited:
    """Results of one setup of Revisited Oxford or Paris.

    Attributes:
      mean_average_precision: mAP over the queries that have positives.
      average_precisions: AP of each query, NaN without positives, [M].
      mean_precisions: mP@k for each k.
      precisions: P@k of each query, [M, len(ks)].
    """

    mean_average_precision: float
    average_precisions: np.ndarray
    mean_precisions: np.ndarray
    precisions: np.ndarray


def revisited(
    ranking: np.ndarray,
    truth: Sequence[Mapping[str, Sequence[int]]],
    setup: str,
    *,
    ks: Sequence[int] = (1, 5, 10),
) -> Revisited:
    """Evaluate rankings as the Revisited Oxford and Paris benchmarks do.

    Args:
      ranking: Images of each query from the most similar on, int [M, N].
      truth: For each query its "easy", "hard" and "junk" images.
      setup: "E", "M" or "H".
      ks: Numbers of images for the precision.
    """
    counted, left_out = SETUPS[setup]
    aps, at_k = [], []
    for images, query in zip(ranking, truth, strict=True):
        positives = np.concatenate([np.asarray(query[n], int) for n in counted])
        junk = np.concatenate([np.asarray(query[n], int) for n in left_out])
        if not len(positives):
            aps.append(np.nan)
            at_k.append([np.nan] * len(ks))
            continue
        places = positions(images, positives, junk)
        aps.append(average_precision(places, len(positives)))
        at_k.append(precisions(places, ks) if len(places) else [0.0] * len(ks))
    aps, at_k = np.array(aps), np.array(at_k).reshape(len(aps), len(ks))
    counted = ~np.isnan(aps)
    if not counted.any():
        return Revisited(np.nan, aps, np.full(len(ks), np.nan), at_k)
    return Revisited(aps[counted].mean(), aps, at_k[counted].mean(axis=0), at_k)


def ranks_of_partners(cosines: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """Return the rank, from 1, of each query's only relevant image, int [M].

    Args:
      cosines: Similarities, [M, N].
      partners: The relevant image of each query, int [M].
    """
    cosines = np.asarray(cosines)
    rows = np.arange(len(cosines))
    own = cosines[rows, partners][:, None]
    earlier = np.arange(cosines.shape[1]) < np.asarray(partners)[:, None]
    return 1 + ((cosines > own) | ((cosines == own) & earlier)).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class MetPredictions:
    """Classes and confidences of Met queries.

    Attributes:
      classes: Predicted class of each query, int [M].
      confidences: Confidence of each prediction, float64 [M].
    """

    classes: np.ndarray
    confidences: np.ndarray


def met_predictions(
    similar: np.ndarray,
    labels: np.ndarray,
    *,
    k: int,
    temperature: float,
    num_classes: int,
) -> MetPredictions:
    """Classify Met queries by their nearest training images.

    A class scores its highest similarity among the neighbours. The confidence is a
    softmax over all classes, in which those without a neighbour count as score 0.

    Args:
      similar: Similarities of the nearest training images, highest first, [M, >= k].
      labels: Their classes, int [M, >= k].
      k: Number of neighbours.
      temperature: Factor of the scores in the softmax.
      num_classes: Number of classes of the training set.
    """
    similar, labels = np.asarray(similar, np.float64)[:, :k], np.asarray(labels)[:, :k]
    # Sorted, so the first neighbour of a class has its highest similarity.
    first = np.array([~np.isin(row[i], row[:i]) for row in labels for i in range(k)])
    first = first.reshape(similar.shape)
    exponents = np.where(first, temperature * similar, -np.inf)
    unseen = num_classes - first.sum(axis=1)
    shift = np.maximum(exponents[:, 0], 0.0)  # against overflow
    total = np.exp(exponents - shift[:, None]).sum(axis=1) + unseen * np.exp(-shift)
    return MetPredictions(labels[:, 0], np.exp(exponents[:, 0] - shift) / total)


def global_average_precision(
    predictions: MetPredictions, labels: np.ndarray, *, distractors: bool = True
) -> float:
    """Return the GAP: average precision of all predictions sorted by confidence.

    Args:
      predictions: Classes and confidences.
      labels: Class of each query, int [M]; -1 for distractors.
      distractors: Whether distractors are ranked too; False gives GAP-.
    """
    labels = np.asarray(labels)
    kept = np.ones(len(labels), bool) if distractors else labels >= 0
    order = np.argsort(-predictions.confidences[kept], kind="stable")
    correct = (predictions.classes == labels)[kept][order]
    precision = np.cumsum(correct) / np.arange(1, len(correct) + 1)
    return float((precision * correct).sum() / (labels >= 0).sum())


def met_accuracy(predictions: MetPredictions, labels: np.ndarray) -> float:
    """Return the share of queries, without distractors, that are classified right."""
    labels = np.asarray(labels)
    return float((predictions.classes == labels)[labels >= 0].mean())


def tune_met(
    similar: np.ndarray,
    neighbour_labels: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    ks: Sequence[int] = MET_KS,
    temperatures: Sequence[float] = MET_TEMPERATURES,
) -> tuple[int, float, float]:
    """Choose the number of neighbours and the temperature by the GAP of a set.

    Args:
      similar: Similarities of the nearest training images, highest first.
      neighbour_labels: Their classes.
      labels: Class of each query, int [M]; -1 for distractors.
      num_classes: Number of classes of the training set.
      ks: Numbers of neighbours to try.
      temperatures: Temperatures to try.

    Returns:
      The first best k, its temperature and its GAP.
    """
    best = (ks[0], temperatures[0], -1.0)
    for k in ks:
        if k > similar.shape[1]:
            break
        for temperature in temperatures:
            gap = global_average_precision(
                met_predictions(
                    similar,
                    neighbour_labels,
                    k=k,
                    temperature=temperature,
                    num_classes=num_classes,
                ),
                labels,
            )
            if gap > best[2]:
                best = (k, temperature, gap)
    return best


def met_neighbours(
    train: np.ndarray, train_labels: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest training images of Met queries.

    Args:
      train: Training features, [N, D], of any length.
      train_labels: Their classes, int [N].
      queries: Features of the queries, [M, D], of any length.
      k: Number of neighbours; a k above N is taken as N.

    Returns:
      Similarities, float32 [M, k], the highest first, and classes, int [M, k].
    """
    bank = nearest.Bank(train, None)
    k = min(k, len(bank))
    blocks = list(bank.search(queries, k))
    similar = np.concatenate([block[1] for block in blocks])
    neighbours = np.concatenate([block[2] for block in blocks])
    return similar, np.asarray(train_labels)[neighbours]
