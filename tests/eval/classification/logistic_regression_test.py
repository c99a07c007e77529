"""Logistic regression against scikit-learn's, and on ill-conditioned features."""

import numpy as np
import pytest
from sklearn import linear_model

from dinov2_jax.eval.classification import logistic_regression


@pytest.fixture(scope="module")
def data():
    """Overlapping classes; features of very different scale, far from 0."""
    rng = np.random.default_rng(0)
    labels = np.array([3, 5, 9])[rng.integers(0, 3, 200)]
    centres = rng.normal(size=(10, 6))
    features = centres[labels] + 1.5 * rng.normal(size=(200, 6))
    return features * np.logspace(-2, 2, 6) + 5.0, labels


def objective(features, labels, weights, biases, c):
    scores = features @ weights.T + biases
    log_z = np.log(np.exp(scores - scores.max(1, keepdims=True)).sum(1)) + scores.max(1)
    picked = scores[np.arange(len(labels)), np.unique(labels, return_inverse=True)[1]]
    return c * (log_z - picked).sum() + 0.5 * (weights**2).sum()


@pytest.mark.parametrize("c", [1e-4, 1.0, 1e4])
def test_is_the_optimum(data, c):
    features, labels = data
    ours = logistic_regression.Problem(features, labels).solve(c)
    value = objective(features, labels, ours.weights, ours.biases, c)
    assert ours.objective == pytest.approx(value, rel=1e-9)
    scores = ours.scores(features)
    probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    residual = probabilities - (labels[:, None] == ours.classes)
    # The gradient is 0: the penalty's share balances the residuals'.
    gradient = c * residual.T @ features + ours.weights
    scale = c * np.abs(residual).sum() * np.abs(features).max(axis=0)
    assert np.abs(gradient / scale).max() < 1e-7
    assert np.abs(residual.sum(axis=0)).max() < 1e-5 * np.abs(residual).sum()
    np.testing.assert_allclose(ours.probabilities(features), probabilities, atol=1e-12)


@pytest.mark.parametrize("c", [0.01, 10.0])
def test_equals_scikit_learn(data, c):
    features, labels = data
    features = (features - features.mean(0)) / features.std(0)  # for the peer's sake
    peer = linear_model.LogisticRegression(
        C=c, solver="newton-cholesky", tol=1e-10, max_iter=1000
    ).fit(features, labels)
    ours = logistic_regression.Problem(features, labels).solve(c)
    np.testing.assert_allclose(
        ours.probabilities(features), peer.predict_proba(features), atol=1e-6
    )
    np.testing.assert_array_equal(ours.predict(features), peer.predict(features))
    peers = objective(features, labels, peer.coef_, peer.intercept_, c)
    assert ours.objective <= peers * (1 + 1e-9)


def test_the_start_does_not_matter(data):
    problem = logistic_regression.Problem(*data)
    *_, along_the_path = problem.path([1e-3, 1.0, 100.0])
    alone = problem.solve(100.0)
    assert along_the_path.objective == pytest.approx(alone.objective, rel=1e-10)


def test_first_best_c_of_classes_that_are_not_all_there(data):
    features, labels = data
    known = labels != 9
    chosen = list(
        logistic_regression.select_c(
            (features[known], labels[known]), (features, labels), [1e-5, 1.0]
        )
    )
    assert [c for c, _ in chosen] == [1e-5, 1.0]
    assert all(value <= known.mean() for _, value in chosen)  # 9 is never right


def test_metrics():
    predicted, labels = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    assert logistic_regression.mean_accuracy(predicted, labels) == 0.75
    assert logistic_regression.mean_class_accuracy(predicted, labels) == pytest.approx(
        (2 / 3 + 1) / 2
    )


@pytest.mark.parametrize(
    "features, labels, text",
    [
        (np.ones((3, 2)), np.ones(2), "3 features, 2 labels"),
        (np.ones((0, 2)), np.ones(0), "0 features"),
        (np.ones((3, 2)), np.full(3, 4), "all labels are 4"),
    ],
)
def test_bad_input(features, labels, text):
    with pytest.raises(ValueError, match=text):
        logistic_regression.Problem(features, labels)
