"""Checkpoints at intervals of time, so that a kill loses only minutes."""

import time

import jax
import numpy as np
from jax.experimental import multihost_utils


class Cadence:
    """Decides when a save is due, using the clock of process 0 for all processes.

    Several processes communicate only every `ask_every` steps, because the answer waits
    for the steps that are still running.

    Args:
      minutes: Minutes from one save to the next; 0 means no save is ever due.
      ask_every: Steps between two checks if there are several processes.
    """

    def __init__(self, minutes: float, ask_every: int):
        self._seconds = 60.0 * minutes
        self._ask_every = ask_every if jax.process_count() > 1 else 1
        self.saved()
        if self._seconds:
            self._agreed(False)  # compiles the broadcast

    def saved(self) -> None:
        """Restart the clock."""
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Return whether to save after a step; every process must ask at each step."""
        if not self._seconds or step % self._ask_every:
            return False
        return self._agreed(time.monotonic() - self._last >= self._seconds)

    def _agreed(self, own_answer: bool) -> bool:
        if jax.process_count() == 1:
            return own_answer
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(own_answer)))
