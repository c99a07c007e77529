"""Checkpoints by the clock, so that a kill loses minutes whatever a step takes."""

import time

import jax
import numpy as np
from jax.experimental import multihost_utils


class Cadence:
    """Says when the last save is too long ago: process 0's clock, the same for all.

    Several processes ask each other only every so many steps, for the answer waits for
    the steps under way.

    Args:
      minutes: From one save to the next; 0 never asks for one.
      ask_every: Steps between two questions, where there are several processes.
    """

    def __init__(self, minutes: float, ask_every: int):
        self._seconds = 60.0 * minutes
        self._ask_every = ask_every if jax.process_count() > 1 else 1
        self.saved()
        if self._seconds:
            self._agreed(False)  # compiles what asks

    def saved(self) -> None:
        """The time counts from now."""
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after this step; every process must ask at each step."""
        if not self._seconds or step % self._ask_every:
            return False
        return self._agreed(time.monotonic() - self._last >= self._seconds)

    def _agreed(self, mine: bool) -> bool:
        if jax.process_count() == 1:
            return mine
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(mine)))
