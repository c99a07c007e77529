"""Words for a run that is not learning."""

import math
from collections.abc import Mapping

_NEAR = 0.01  # relative distance that counts as the uniform value


class UniformLossMonitor:
    """Says when the DINO loss sits at the value of a uniform prediction, ln K.

    Args:
      num_prototypes: K.
      loss_weight: `dino.loss_weight`; 0 turns the monitor off.
      patience_steps: Steps before it speaks, well after the warm-up.
    """

    def __init__(self, num_prototypes: int, *, loss_weight: float, patience_steps: int):
        self._uniform = loss_weight * math.log(num_prototypes)
        self._num_prototypes = num_prototypes
        self._next = patience_steps
        self._patience = patience_steps

    def message(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """A warning for the logged metrics of a step, or None."""
        if not self._uniform or step < self._next:
            return None
        value = metrics["loss/dino_local"] + metrics["loss/dino_global"]
        if not abs(value - self._uniform) <= _NEAR * self._uniform:  # also NaN
            return None
        self._next = step + self._patience
        return (
            f"step {step}: the DINO loss is {value:.3f}, the value of a uniform "
            f"prediction, ln K = ln {self._num_prototypes}: the model has learned "
            "nothing yet. Usual causes: a learning rate too low or too high for this "
            "batch size, too few images for so many prototypes "
            "(--config.dino.head_n_prototypes), or a warm-up longer than the run."
        )
