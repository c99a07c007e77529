"""WORKDIR/best: the teacher of a run's best evaluation, its start included.

best/STEP has the weights, sealed like a checkpoint, and best/record.json says which
step it is and what was measured. A step is better than another if the measure that has
gained least since step 0 has gained more. So a run that keeps its best weights never
ends below its start in any of its measures. Checkpoints, resuming and rollbacks do not
touch the folder.
"""

import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dinov2_jax import errors, files
from dinov2_jax.checkpoint import checksums, saved_weights

FOLDER = "best"
_RECORD = "record.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """The best evaluation of a run so far.

    Attributes:
      step: Its step.
      start: The measures at step 0 by name; higher is better.
      best: The measures at `step`.
    """

    step: int
    start: Mapping[str, float]
    best: Mapping[str, float]

    def gains(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return how far measures are above those of the start."""
        return {name: values[name] - start for name, start in self.start.items()}

    def is_beaten_by(self, values: Mapping[str, float]) -> bool:
        """Return whether measures are better than `best`; NaN never is."""
        gains = self.gains(values).values()
        known = not any(math.isnan(gain) for gain in gains)
        return known and min(gains) > min(self.gains(self.best).values())


def read(workdir: pathlib.Path) -> Record | None:
    """Return what a run keeps in WORKDIR/best, None if it keeps nothing.

    Raises:
      UserError: The record is damaged.
    """
    path = workdir / FOLDER / _RECORD
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        start, best = (
            {str(name): float(value) for name, value in content[field].items()}
            for field in ("start", "best")
        )
        return Record(int(content["step"]), start, best)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.UserError(
            f"cannot read {path} ({error}): it says which weights are the run's best; "
            f"restore it, or name other weights, such as {workdir / 'checkpoints'}"
        ) from error


def forget(workdir: pathlib.Path) -> None:
    """Remove WORKDIR/best, because a new run starts."""
    (workdir / FOLDER / _RECORD).unlink(missing_ok=True)
    shutil.rmtree(workdir / FOLDER, ignore_errors=True)


def folder(workdir: pathlib.Path, record: Record) -> pathlib.Path:
    """Return the folder of a run's best weights, for `saved_weights.read`."""
    return workdir / FOLDER / str(record.step)


class BestWeights:
    """Keeps the weights of the best evaluation of a run.

    Process 0 decides for all, so processes need not agree to the last bit.

    Args:
      workdir: The run's folder, the same for all processes.
      measures: Names of the metrics that are compared.
      resumed: Whether the run goes on after step 0, which it measured before.

    Raises:
      UserError: A run that goes on has no record of its start.
    """

    def __init__(
        self, workdir: pathlib.Path, measures: Sequence[str], *, resumed: bool
    ):
        self._workdir, self._measures = workdir, tuple(measures)
        self.record = read(workdir) if resumed else None
        if resumed and self.record is None:
            raise errors.UserError(
                f"{workdir / FOLDER / _RECORD} is missing, which says what the run's "
                "start was worth: restore it, or go on in another --workdir with "
                f"--config.init.source={workdir / 'checkpoints'}"
            )

    def offer(self, step: int, metrics: Mapping[str, float], weights: Any) -> bool:
        """Keep weights if they are the best so far; every process must ask.

        They are on disk when this returns, and the ones before are removed after that.

        Args:
          step: Number of finished steps; 0 begins the record, unless the run went back
            to its start.
          metrics: What was measured after them.
          weights: The teacher's parameters.

        Returns:
          Whether they are kept.

        Raises:
          UserError: They cannot be written.
        """
        values = {name: float(metrics[name]) for name in self._measures}
        if self.record is None:
            if step:
                raise ValueError(f"step {step} was offered before step 0")
            record = Record(0, values, values)
        elif _agree(self.record.is_beaten_by(values)):
            record = dataclasses.replace(self.record, step=step, best=values)
        else:
            return False
        target = folder(self._workdir, record)
        saved_weights.write(target, weights)
        if jax.process_index() == 0:
            checksums.write(target)
            content = json.dumps(dataclasses.asdict(record), indent=1)
            files.write_text(target.parent / _RECORD, content)
            for other in target.parent.iterdir():
                if other.is_dir() and other != target:
                    shutil.rmtree(other, ignore_errors=True)
        self.record = record
        return True

    def promise(self) -> str:
        """Return what the run promises of its workdir, in a line for its end."""
        record = self.record
        if record is None:
            return ""
        gains = ", ".join(
            f"{name} {record.best[name]:.1%} ({100 * gain:+.1f} points)"
            for name, gain in record.gains(record.best).items()
        )
        read_as = f"{self._workdir} is read, converted and embedded as"
        if not record.step:
            return f"no better than where it began: {read_as} its starting weights"
        return (
            f"better than the start: {gains} at step {record.step}, the best; "
            f"so {read_as} that step"
        )


def _agree(answer: bool) -> bool:
    """Return process 0's answer in all processes."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))
