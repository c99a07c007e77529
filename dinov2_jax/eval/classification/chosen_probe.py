"""One linear classifier, taken out of the many that were trained together."""

import dataclasses
from typing import Any

import numpy as np

from dinov2_jax.eval.classification import linear_probe


@dataclasses.dataclass(frozen=True)
class ChosenProbe:
    """A linear classifier.

    Attributes:
      head: What it sees and how it was trained.
      weight: Its weight, float32 [C, W].
      bias: Its bias, float32 [C].
    """

    head: linear_probe.Head
    weight: np.ndarray
    bias: np.ndarray

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Return scores, float32 [N, C].

        Args:
          rows: Class tokens of n last blocks, the oldest first, then the mean patch
            token of the last, [N, n + 1, D].
        """
        x = rows[:, -1 - self.head.blocks : -1].reshape(len(rows), -1)
        if self.head.average_pool:
            x = np.concatenate([x, rows[:, -1]], axis=1)
        return x @ self.weight.T + self.bias

    def arrays(self) -> dict[str, Any]:
        """Return what a file of the classifier holds, by name."""
        return {
            "weight": self.weight,
            "bias": self.bias,
            "blocks": self.head.blocks,
            "average_pool": self.head.average_pool,
            "lr": self.head.lr,
        }


def choose(
    probe: linear_probe.Probe, state: linear_probe.ProbeState, index: int
) -> ChosenProbe:
    """Take a classifier out of a trained grid.

    Args:
      probe: The classifiers.
      state: Their weights.
      index: Place of the classifier among `probe.heads`.
    """
    group, rate = divmod(index, len(probe.rates))
    kernel = np.asarray(state.kernels[group][:, rate])
    bias = np.asarray(state.biases[group][rate])
    return ChosenProbe(probe.heads[index], kernel.T, bias)
