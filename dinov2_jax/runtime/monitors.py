"""Monitors for a run that does not learn, waits for data or recompiles."""

import math
from collections.abc import Mapping

import jax

_NEAR = 0.01  # relative distance that counts as the uniform value


class UniformLossMonitor:
    """Warns when the DINO loss stays at that of a uniform prediction, ln K.

    Args:
      num_prototypes: Number of prototypes K of the DINO head.
      loss_weight: `dino.loss_weight` times `losses.dino.uniform_share`; 0 turns the
        monitor off.
      patience_steps: Steps before each warning; choose it well above the warm-up.
    """

    def __init__(self, num_prototypes: int, *, loss_weight: float, patience_steps: int):
        self._uniform = loss_weight * math.log(num_prototypes)
        self._num_prototypes = num_prototypes
        self._next = patience_steps
        self._patience = patience_steps

    def message(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Return a warning for the logged metrics of a step, or None.

        Args:
          step: Number of finished steps.
          metrics: Metrics of the step. Of several students, those of each have its name
            as a prefix; without a DINO loss there is nothing to compare.
        """
        if not self._uniform or step < self._next:
            return None
        ends = "loss/dino_local", "loss/dino_global"
        for local in (name for name in metrics if name.endswith(ends[0])):
            student = local.removesuffix(ends[0])
            value = metrics[local] + metrics[student + ends[1]]
            if not abs(value - self._uniform) <= _NEAR * self._uniform:  # also NaN
                continue
            self._next = step + self._patience
            whose = f" of {student.rstrip('/')}" if student else ""
            return (
                f"step {step}: the DINO loss{whose} is {value:.3f}, that of a uniform "
                f"prediction, by ln K = ln {self._num_prototypes}: the model has "
                "learned nothing yet. Usual causes: a learning rate too low or too "
                "high for this batch size, too few images for so many prototypes "
                "(--config.dino.head_n_prototypes), or a warm-up longer than the run."
            )
        return None


class DataWaitMonitor:
    """Suggests what to change when the devices wait for data.

    Args:
      workers: Loader processes, `data.workers`.
      cores: CPU cores of this machine.
      augmentation: Where crops are augmented, `data.augmentation`.
    """

    _ALLOWED = 0.1  # share of the time
    _PATIENCE = 3  # logged steps in a row; the first ones fill the queues

    def __init__(self, *, workers: int, cores: int, augmentation: str):
        self._workers, self._cores, self._augmentation = workers, cores, augmentation
        self._in_a_row = 0

    def message(self, step: int, data_wait: float) -> str | None:
        """Return a hint, or None, given the share of time that was spent waiting."""
        self._in_a_row = self._in_a_row + 1 if data_wait > self._ALLOWED else 0
        if self._in_a_row != self._PATIENCE:
            return None
        smaller = "python -m dinov2_jax.data shard PATH DST --resize 512"
        if self._augmentation == "host":
            fix = (
                "let the devices augment, --config.data.augmentation=device (another "
                "run: the crops differ)"
            )
        elif self._workers < self._cores:
            fix = (
                f"raise --config.data.workers, {self._workers} of this machine's "
                f"{self._cores} cores, or store large images smaller, {smaller}"
            )
        else:
            fix = f"store the images smaller and together, {smaller}"
        return (
            f"step {step}: the devices wait for data {data_wait:.0%} of the time: "
            f"{fix}; python -m dinov2_jax.data bench PATH finds the bottleneck"
        )


class CompilationMonitor:
    """Notices compilations that happen when everything should be compiled."""

    def __init__(self):
        self._count, self._expected = 0, True
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_) -> None:
        del seconds
        self._count += event == "/jax/core/compile/backend_compile_duration"

    def expect(self) -> None:
        """Ignore what is compiled until the next call of `happened`."""
        self._expected = True

    def happened(self) -> bool:
        """Return whether anything was compiled unexpectedly since the last call."""
        happened = self._count > 0 and not self._expected
        self._count, self._expected = 0, False
        return happened

    def close(self) -> None:
        """Stop listening."""
        jax.monitoring.unregister_event_duration_listener(self._listen)
