"""Accuracies of linear probes on cached features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.eval import feature_cache
from dinov2_jax.eval.classification import linear_probe

_BATCH = 256


@functools.partial(jax.jit, static_argnums=0)
def _predictions(probe, kernels, biases, rows):
    """Return the class that each classifier predicts, int [B, heads]."""
    return probe.scores(kernels, biases, rows[:, :-1], rows[:, -1]).argmax(axis=-1)


def accuracies(
    probe: linear_probe.Probe,
    state: linear_probe.ProbeState,
    features: feature_cache.Features,
) -> np.ndarray:
    """Return each classifier's top-1 accuracy, float64 [heads].

    Args:
      probe: The classifiers.
      state: Their weights.
      features: Features "last<n>" of labelled images.
    """
    correct = np.zeros(len(probe.heads), np.int64)
    for start in range(0, len(features), _BATCH):
        part = slice(start, start + _BATCH)
        rows = jnp.asarray(np.asarray(features.rows[part]))
        found = _predictions(probe, state.kernels, state.biases, rows)
        correct += (np.asarray(found) == features.labels[part, None]).sum(axis=0)
    return correct / len(features)
