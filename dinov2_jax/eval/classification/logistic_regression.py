"""Logistic regression with an L2 penalty, solved to convergence in float64.

Mirrors the protocol of the reference's `eval/log_regression.py`, which calls cuML:
minimise C * sum_i CE_i + |W|^2 / 2, biases unpenalised, and choose C on a held-out part
of the training set. SciPy's L-BFGS runs on the host, loss and gradient on the device.

At large C the problem is so badly conditioned that plain L-BFGS stops far from the
optimum. So the weights are expressed in the principal axes of the features, each scaled
by its curvature at the start, and the scales are renewed on the way.

Shapes: N images, D width, K classes.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize

from dinov2_jax.eval.classification import splits


def _reference_grid() -> tuple[float, ...]:
    """Return the reference's 45 values of C, which it computes in float32."""
    exponents = np.linspace(-6, 5, 45).astype(np.float32)
    cs = (10.0 ** exponents.astype(np.float64)).astype(np.float32)
    cs[3] = np.nextafter(cs[3], np.float32(0))  # PyTorch's power is a unit off there
    return tuple(cs.tolist())


REFERENCE_CS = _reference_grid()
_STAGES = (30, 100, 1000)  # iterations between renewals of the scales
_LINE_SEARCH = 50
_PAIRS = 10  # of L-BFGS's memory
# Converged if this many iterations lower the objective by less than this share of it.
_PATIENCE, _DECREASE = 10, 1e-12
_HELD_OUT_FROM = 100  # images; of fewer, C is chosen on those that are fitted


@dataclasses.dataclass(frozen=True)
class Solution:
    """A fitted classifier.

    Attributes:
      weights: Weights, float64 [K, D].
      biases: Biases, float64 [K].
      classes: Label of each row, int [K], ascending; only those of the training set.
      objective: C * sum_i CE_i + |W|^2 / 2 at the solution.
      iterations: Number of iterations of the solver.
    """

    weights: np.ndarray
    biases: np.ndarray
    classes: np.ndarray
    objective: float
    iterations: int

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return each class's score, float64 [M, K], of features [M, D]."""
        return np.asarray(features, np.float64) @ self.weights.T + self.biases

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return each class's probability, float64 [M, K], of features [M, D]."""
        return scipy.special.softmax(self.scores(features), axis=1)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the label of highest score of features [M, D], int [M]."""
        return self.classes[self.scores(features).argmax(axis=1)]


@jax.jit
def _loss(flat, features, labels, scale, penalty):
    """Return the mean loss with its penalty, and the gradient, of scaled weights."""

    def loss(flat):
        scaled = flat * scale
        weights, biases = scaled[:-1], scaled[-1]  # [D, K], [K]
        scores = features @ weights + biases
        picked = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
        entropy = (jax.nn.logsumexp(scores, axis=1) - picked).mean()
        return entropy + 0.5 * penalty * (weights**2).sum()

    return jax.value_and_grad(loss)(flat)


@jax.jit
def _curvature(flat, features):
    """Return the diagonal of the mean loss's second derivative, [D + 1, K]."""
    probabilities = jax.nn.softmax(features @ flat[:-1] + flat[-1], axis=1)
    shares = probabilities * (1.0 - probabilities) / len(features)  # [N, K]
    return jnp.concatenate([(features**2).T @ shares, shares.sum(axis=0)[None]])


class Problem:
    """A training set that is fitted with several values of C.

    Args:
      features: Features, [N, D].
      labels: Labels, int [N], of at least two classes.

    Raises:
      ValueError: Empty, of mismatched lengths, or of one class only.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray):
        features = np.asarray(features, np.float64)
        if len(features) != len(labels) or not len(labels):
            raise ValueError(f"{len(features)} features, {len(labels)} labels")
        self.classes, labels = np.unique(labels, return_inverse=True)
        if len(self.classes) < 2:
            raise ValueError(f"all labels are {self.classes[0]}: two classes at least")
        self._mean = features.mean(axis=0)
        centred = features - self._mean  # absorbed by the biases, which are free
        _, self._axes = scipy.linalg.eigh(centred.T @ centred / len(features))
        self._count = len(features)
        with jax.enable_x64(True):
            self._features = jnp.asarray(centred @ self._axes)
            self._labels = jnp.asarray(labels)

    def solve(self, c: float, start: Solution | None = None) -> Solution:
        """Minimise the objective.

        Args:
          c: Weight C of the losses beside the penalty.
          start: Solution of another C from which to start; None starts from 0.
        """
        penalty = 1.0 / (c * self._count)
        flat = np.zeros((len(self._mean) + 1, len(self.classes)))
        if start is not None:
            flat[:-1] = (start.weights @ self._axes).T
            flat[-1] = start.biases + start.weights @ self._mean
        iterations = 0
        for limit in _STAGES:
            flat, value, done, converged = self._descend(flat, penalty, limit)
            iterations += done
            if converged:
                break
        weights = (self._axes @ flat[:-1]).T
        return Solution(
            weights=weights,
            biases=flat[-1] - weights @ self._mean,
            classes=self.classes,
            objective=value * c * self._count,
            iterations=iterations,
        )

    def _descend(self, flat, penalty, limit):
        """Run L-BFGS from weights and biases [D + 1, K], scaled by the curvature there.

        Returns:
          Weights and biases, the objective per image and C, the number of iterations,
          and whether they converged.
        """
        shape, values = flat.shape, []

        def stop_if_converged(intermediate_result):
            values.append(intermediate_result.fun)
            if len(values) > _PATIENCE:
                if values[-1 - _PATIENCE] - values[-1] <= _DECREASE * values[-1]:
                    raise StopIteration

        with jax.enable_x64(True):
            curvature = np.array(_curvature(flat, self._features))
            curvature[:-1] += penalty
            # A class that is certain everywhere has no curvature left in its bias.
            scale = 1.0 / np.sqrt(np.maximum(curvature, 1e-9 * curvature.max()))
            scale_on_device = jnp.asarray(scale)

            def value_and_gradient(scaled):
                value, gradient = _loss(
                    scaled.reshape(shape),
                    self._features,
                    self._labels,
                    scale_on_device,
                    penalty,
                )
                return float(value), np.asarray(gradient).ravel()

            found = scipy.optimize.minimize(
                value_and_gradient,
                (flat / scale).ravel(),
                jac=True,
                method="L-BFGS-B",
                callback=stop_if_converged,
                options={
                    "maxiter": limit,
                    "maxfun": 2 * limit + 10 * _LINE_SEARCH,
                    "maxls": _LINE_SEARCH,
                    "maxcor": _PAIRS,
                    "ftol": 0.0,
                    "gtol": 0.0,
                },
            )
        converged = found.nit < limit
        return found.x.reshape(shape) * scale, float(found.fun), found.nit, converged

    def path(self, cs: Iterable[float]) -> Iterator[Solution]:
        """Solve for ascending values of C, each from the solution before."""
        solution = None
        for c in cs:
            solution = self.solve(c, solution)
            yield solution


def mean_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of labels that are predicted."""
    return float((np.asarray(predicted) == np.asarray(labels)).mean())


def mean_class_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean accuracy of the classes that have labels."""
    labels, correct = np.asarray(labels), np.asarray(predicted) == labels
    return float(np.mean([correct[labels == c].mean() for c in np.unique(labels)]))


METRICS = {"accuracy": mean_accuracy, "mean_class_accuracy": mean_class_accuracy}


def select_c(
    train: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    cs: Iterable[float] = REFERENCE_CS,
    *,
    metric: str = "accuracy",
) -> Iterator[tuple[float, float]]:
    """Measure each C on a held-out part of the training set.

    Args:
      train: Features [N, D] and labels [N] to fit.
      held_out: Features and labels to measure on.
      cs: Values of C, ascending.
      metric: What to measure, one of `METRICS`.

    Yields:
      C and what was measured.
    """
    features, labels = held_out
    cs = list(cs)
    for c, solution in zip(cs, Problem(*train).path(cs)):
        yield c, METRICS[metric](solution.predict(features), labels)


def fit_with_best_c(
    features: np.ndarray, labels: np.ndarray, cs: Iterable[float]
) -> tuple[Solution, float]:
    """Fit with the C that is best on a held-out tenth.

    Of fewer than 100 images, or of one class without that tenth, C is chosen on those
    that are fitted.

    Args:
      features: Features, [N, D].
      labels: Labels, int [N], of at least two classes.
      cs: Values of C, ascending.

    Returns:
      The solution on all images, and its C.
    """
    inner = outer = slice(None)
    if len(labels) >= _HELD_OUT_FROM:
        inner, outer = splits.hold_out(len(labels), seed=0)
    if len(np.unique(labels[inner])) < 2:
        inner = outer = slice(None)
    fitted, held_out = ((features[part], labels[part]) for part in (inner, outer))
    best, _ = max(select_c(fitted, held_out, cs), key=lambda pair: pair[1])
    return Problem(features, labels).solve(best), best
