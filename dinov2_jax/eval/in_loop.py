"""Evaluations inside the training loop; `config.EVALUATIONS` names them.

Each is a function of features and settings that returns metrics. To add one, write such
a function, enter it here with the metric to look at first, and name it in
`config.EVALUATIONS`.

Shapes: N labelled images, M images to classify, D width.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dinov2_jax.eval.classification import knn, logistic_regression
from dinov2_jax.eval.dense import dense_quality

CROPS = 8  # pairs of crops of an image
_CS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of logistic regression; a coarse grid is quick


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Features of two labelled sets.

    Attributes:
      bank: Features to learn from, [N, D].
      bank_labels: Their labels, int [N].
      queries: Features to classify, [M, D].
      query_labels: Their labels, int [M].
      num_classes: Number of classes.
    """

    bank: np.ndarray
    bank_labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray
    num_classes: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the evaluations.

    Attributes:
      ks: Numbers of neighbours that vote; `knn/top1` reports the first.
      temperature: Temperature of the votes.
      size: Side of the crops for matching, px.
    """

    ks: tuple[int, ...]
    temperature: float
    size: int


def measure_knn(features: Labelled, settings: Settings) -> dict[str, float]:
    """Return `knn/top1`, of the first k, and `knn/top1_k<k>`."""
    accuracy = knn.knn_top1(
        features.bank,
        features.bank_labels,
        features.queries,
        features.query_labels,
        ks=settings.ks,
        temperature=settings.temperature,
        num_classes=features.num_classes,
    )
    every = {f"knn/top1_k{k}": value for k, value in accuracy.items()}
    return {"knn/top1": accuracy[settings.ks[0]]} | every


def measure_logreg(features: Labelled, settings: Settings) -> dict[str, float]:
    """Return `logreg/top1`, with C chosen on a tenth of the bank."""
    del settings
    solution, _ = logistic_regression.fit_with_best_c(
        features.bank, features.bank_labels, _CS
    )
    predicted = solution.predict(features.queries)
    found = logistic_regression.mean_accuracy(predicted, features.query_labels)
    return {"logreg/top1": found}


def measure_matching(
    images: Sequence[np.ndarray],
    extract: dense_quality.Extract,
    settings: Settings,
) -> dict[str, float]:
    """Return `matching/accuracy` with what chance reaches, and two early warnings."""
    found = dense_quality.measure_crops(
        images, extract, size=settings.size, crops=CROPS
    )
    return {f"matching/{name}": value for name, value in found.items()}


LABELLED: Mapping[str, Callable[[Labelled, Settings], dict[str, float]]] = {
    "knn": measure_knn,
    "logreg": measure_logreg,
}
DENSE: Mapping[str, Callable[..., dict[str, float]]] = {"matching": measure_matching}
# The metric to look at first of each; higher is better.
FIRST: Mapping[str, str] = {
    "knn": "knn/top1",
    "logreg": "logreg/top1",
    "matching": "matching/accuracy",
}
