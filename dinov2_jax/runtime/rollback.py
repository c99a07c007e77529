"""Rollback to a checkpoint when the loss blows up, skipping the batches in between.

After a rollback from step F to step S, the step that follows S takes the batch that
would have followed F: the batches in between are skipped, as in PaLM (section 5.1).
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dinov2_jax import errors, files
from dinov2_jax.losses import dino as dino_loss

_TIMES_UNIFORM = 1.5  # times a uniform prediction's loss: worse than untrained


class BlownUp(Exception):
    """Raised after several bad steps in a row; see `LossGuard`."""

    def __init__(self, step: int, why: str):
        super().__init__(why)
        self.step, self.why = step, why


class LossGuard:
    """Counts consecutive bad steps.

    A step is bad if its loss is not finite (the step was skipped) or above 1.5 times
    the loss of a uniform prediction, where training starts. Of several students, each
    must be sane.

    Args:
      uniform: Loss of a uniform prediction, of one student; 0 checks only for
        non-finite losses.
      patience: Number of consecutive bad steps at which `check` raises.

    Attributes:
      uniform: The loss of a uniform prediction.
      in_a_row: Number of consecutive bad steps so far.
    """

    def __init__(self, uniform: float, patience: int):
        self.uniform = uniform
        self._limit = _TIMES_UNIFORM * uniform or math.inf
        self._patience = patience
        self.in_a_row = 0

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Check the metrics of a finished step.

        Raises:
          BlownUp: There were too many bad steps in a row.
        """
        students = [v for name, v in values.items() if name.endswith("/loss/total")]
        loss = max(students or [values["loss/total"]])
        sane = not values["skipped_in_a_row"] and loss <= self._limit
        self.in_a_row = 0 if sane else self.in_a_row + 1
        if self.in_a_row < self._patience:
            return
        why = f"a loss above {self._limit:.4g}, the last one {loss:.4g}"
        if values["skipped_in_a_row"]:
            why = ", ".join(not_finite(values))
        raise BlownUp(step, why)


def uniform_loss(terms: Iterable[tuple[float, int]]) -> float:
    """Return the total loss of a uniform prediction, without KoLeo.

    Args:
      terms: (weight, number of prototypes) of each cross-entropy in the loss.
    """
    return sum(weight * math.log(num_prototypes) for weight, num_prototypes in terms)


def make_loss_guard(config: Any) -> LossGuard:
    """Return the guard that a run's config describes."""
    if config.train.objective != "prototypes":  # no prediction is uniform
        return LossGuard(0.0, config.train.max_nonfinite_steps)
    dino, ibot = config.dino, config.ibot
    if config.distill.source and config.distill.objective == "features":
        return LossGuard(0.0, config.train.max_nonfinite_steps)
    ibot_head = ibot if ibot.separate_head else dino
    dino_weight = dino.loss_weight * dino_loss.uniform_share(
        config.crops.local_crops_number,
        views=config.distill.views if config.distill.source else "other",
        local_loss_weight=dino.local_loss_weight,
    )
    uniform = uniform_loss(
        [
            (dino_weight, dino.head_n_prototypes),
            (ibot.loss_weight, ibot_head.head_n_prototypes),
        ]
    )
    return LossGuard(uniform, config.train.max_nonfinite_steps)


def not_finite(values: Mapping[str, float]) -> list[str]:
    """List the metrics that are not finite, as "name = value"."""
    return [f"{name} = {v}" for name, v in values.items() if not math.isfinite(v)]


@dataclasses.dataclass(frozen=True)
class Rollback:
    """One rollback.

    Attributes:
      failed: Finished steps when the loss blew up.
      to: Step of the checkpoint that the run went back to, 0 for the start.
    """

    failed: int
    to: int


class Rollbacks:
    """All rollbacks of a run, in WORKDIR/rollbacks.json: part of the run's state.

    Args:
      workdir: The run's folder.

    Raises:
      UserError: The file is damaged.
    """

    def __init__(self, workdir: pathlib.Path):
        self.path = workdir / "rollbacks.json"
        self._all: list[Rollback] = []
        if self.path.exists():
            try:
                content = json.loads(self.path.read_text())
                self._all = [Rollback(int(r["failed"]), int(r["to"])) for r in content]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise errors.UserError(
                    f"cannot read {self.path} ({error}): it lists the batches that the "
                    "run skips; restore it, or remove it to use them again"
                ) from error

    def __len__(self) -> int:
        return len(self._all)

    def forget(self, *, write: bool) -> None:
        """Forget all rollbacks, because a new run starts; `write` as for `add`."""
        self._all = []
        if write:
            self.path.unlink(missing_ok=True)

    def skips(self) -> tuple[tuple[int, int], ...]:
        """Return (step, batches skipped from this step on), see `batch_builder`.

        Skips at steps that a later rollback discarded are included in its own skip.
        """
        found: list[tuple[int, int]] = []
        for r in self._all:
            before = sum(left_out for at, left_out in found if at <= r.failed)
            found = [(at, left_out) for at, left_out in found if at <= r.to]
            kept = sum(left_out for _, left_out in found)
            found.append((r.to, r.failed + before - (r.to + kept)))
        return tuple(found)

    def target(self, saved: Sequence[int]) -> int:
        """Return the step of the checkpoint to go back to.

        The newest, or the one before it if the last rollback already went to the
        newest.

        Args:
          saved: Steps of the checkpoints, ascending.
        """
        candidates = [0, *saved]
        if self._all and self._all[-1].to == candidates[-1]:
            candidates = candidates[:-1] or [0]
        return candidates[-1]

    def add(self, rollback: Rollback, *, write: bool) -> None:
        """Add a rollback; `write` saves it, False for every process but the first."""
        self._all.append(rollback)
        if not write:
            return
        content = [dataclasses.asdict(rollback) for rollback in self._all]
        files.write_text(self.path, json.dumps(content, indent=1))
