"""Going back to a checkpoint when the loss blows up, and past the batches that did it.

After a rollback from step F to step S, the step that follows S takes the batch that
would have followed F: the batches between are left out, as in PaLM (section 5.1).
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dinov2_jax import errors, files

_TIMES_UNIFORM = 1.5  # of the loss of a uniform prediction: worse than knowing nothing


class BlownUp(Exception):
    """The loss has not been sane for several steps in a row."""

    def __init__(self, step: int, why: str):
        super().__init__(why)
        self.step, self.why = step, why


class LossGuard:
    """Counts the steps in a row whose loss is not sane.

    Not finite (the step was skipped), or half as much again as that of a uniform
    prediction, where training begins.

    Args:
      uniform: That loss, 0 if there is none.
      patience: So many in a row are too many.
    """

    def __init__(self, uniform: float, patience: int):
        self._limit = _TIMES_UNIFORM * uniform or math.inf
        self._patience = patience
        self.in_a_row = 0

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the metrics of a finished step.

        Raises:
          BlownUp: Too many steps in a row.
        """
        loss = values["loss/total"]
        sane = not values["skipped_in_a_row"] and loss <= self._limit
        self.in_a_row = 0 if sane else self.in_a_row + 1
        if self.in_a_row < self._patience:
            return
        why = f"a loss above {self._limit:.4g}, the last one {loss:.4g}"
        if values["skipped_in_a_row"]:
            why = ", ".join(not_finite(values))
        raise BlownUp(step, why)


def uniform_loss(config: Any) -> float:
    """The total loss of a uniform prediction, without KoLeo."""
    ibot = config.ibot if config.ibot.separate_head else config.dino
    return config.dino.loss_weight * math.log(
        config.dino.head_n_prototypes
    ) + config.ibot.loss_weight * math.log(ibot.head_n_prototypes)


def not_finite(values: Mapping[str, float]) -> list[str]:
    """Names the metrics that are no numbers."""
    return [f"{name} = {v}" for name, v in values.items() if not math.isfinite(v)]


@dataclasses.dataclass(frozen=True)
class Rollback:
    """One of them.

    Attributes:
      failed: Finished steps when the loss had blown up.
      to: The step of the checkpoint, 0 for the start.
    """

    failed: int
    to: int


class Rollbacks:
    """Those of a run, in WORKDIR/rollbacks.json: a part of its state.

    Args:
      workdir: Of the run.

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
                    f"cannot read {self.path} ({error}): it says which batches the run "
                    "leaves out; restore it, or remove it to take them again"
                ) from error

    def __len__(self) -> int:
        return len(self._all)

    def forget(self, *, write: bool) -> None:
        """There are none: another run begins; `write` as for `add`."""
        self._all = []
        if write:
            self.path.unlink(missing_ok=True)

    def skips(self) -> tuple[tuple[int, int], ...]:
        """(step, batches left out from this step on), see `batch_builder`.

        Those of steps that a later rollback threw away are within what it leaves out.
        """
        found: list[tuple[int, int]] = []
        for r in self._all:
            before = sum(left_out for at, left_out in found if at <= r.failed)
            found = [(at, left_out) for at, left_out in found if at <= r.to]
            kept = sum(left_out for _, left_out in found)
            found.append((r.to, r.failed + before - (r.to + kept)))
        return tuple(found)

    def target(self, saved: Sequence[int]) -> int:
        """The checkpoint to go back to.

        The newest; the one before, where a rollback to the newest has not helped.

        Args:
          saved: Steps of the checkpoints, ascending.
        """
        candidates = [0, *saved]
        if self._all and self._all[-1].to == candidates[-1]:
            candidates = candidates[:-1] or [0]
        return candidates[-1]

    def add(self, rollback: Rollback, *, write: bool) -> None:
        """Adds one, for good; `write` is False for all but one of several processes."""
        self._all.append(rollback)
        if not write:
            return
        content = [dataclasses.asdict(rollback) for rollback in self._all]
        files.write_text(self.path, json.dumps(content, indent=1))
