"""WORKDIR/best: the teacher of a run's best evaluation, its start included.

best/STEP (STEP-again, if the step was measured twice) has the weights, sealed like a
checkpoint, and best/record.json says which step it is and what was measured. A step is
better than another if the measure that has gained least since step 0 has gained more.
So a run that keeps its best weights never ends below its start in any of its measures.
Checkpoints, resuming and rollbacks do not touch the folder.
"""

import dataclasses
import json
import math
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dinov2_jax import errors, files, sharding
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
      name: Name of the weights' folder; "" if it is the step.
      judges: Identities of the images that are measured; () in older runs.
    """

    step: int
    start: Mapping[str, float]
    best: Mapping[str, float]
    name: str = ""
    judges: tuple[str, ...] = ()

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
        judges = tuple(map(str, content.get("judges", ())))
        name = content.get("name", "")
        return Record(int(content["step"]), start, best, name, judges)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.UserError(
            f"cannot read {path} ({error}): it says which weights are the run's best; "
            f"restore it, or name other weights, such as {workdir / 'checkpoints'}"
        ) from error


def forget(workdir: pathlib.Path) -> str:
    """Put WORKDIR/best aside, or remove it if nothing was learned: a new run starts.

    Returns:
      A line for the log; "" if nothing is kept.
    """
    record = _readable(workdir)
    if record is not None and record.step:
        now = time.strftime("%Y%m%dT%H%M%S")
        aside = workdir / f"{FOLDER}.old-{now}"
        (workdir / FOLDER).rename(aside)
        return (
            f"there is no checkpoint, so the run starts at step 0; the best weights of "
            f"the run before, of step {record.step}, are in {aside}"
        )
    (workdir / FOLDER / _RECORD).unlink(missing_ok=True)
    shutil.rmtree(workdir / FOLDER, ignore_errors=True)
    return ""


def _readable(workdir: pathlib.Path) -> Record | None:
    try:
        return read(workdir)
    except errors.UserError:  # damaged
        return None


def folder(workdir: pathlib.Path, record: Record) -> pathlib.Path:
    """Return the folder of a run's best weights, for `saved_weights.read`."""
    return workdir / FOLDER / (record.name or str(record.step))


class BestWeights:
    """Keeps the weights of the best evaluation of a run.

    Process 0 decides for all, so processes need not agree to the last bit.

    Args:
      workdir: The run's folder, the same for all processes.
      measures: Names of the metrics that are compared.
      judges: Identities of the evaluation images, which differ for other images.
      resumed: Whether the run goes on after step 0, which it measured before.

    Raises:
      UserError: A run that goes on has no record of its start, or it was measured on
        other images.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        measures: Sequence[str],
        *,
        judges: Sequence[str],
        resumed: bool,
    ):
        self._workdir, self._measures = workdir, tuple(measures)
        self._judges = tuple(judges)
        if jax.process_index() == 0:  # it may have been killed in a save
            saved_weights.remove_unfinished(workdir / FOLDER)
        self.record = read(workdir) if resumed else None
        if resumed and self.record is None:
            raise errors.UserError(
                f"{workdir / FOLDER / _RECORD} is missing, which says what the run's "
                "start was worth: restore it, or go on in another --workdir with "
                f"--config.init.source={workdir / 'checkpoints'}"
            )
        before = self.record.judges if self.record else ()
        if before and all(x != y for x, y in zip(before, self._judges, strict=False)):
            raise errors.UserError(
                f"the images that choose the best weights of {workdir} are no longer "
                "those that its start was measured on: restore them, or go on in "
                f"another --workdir with --config.init.source={workdir / 'checkpoints'}"
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
            record = Record(0, values, values, judges=self._judges)
        elif sharding.of_first_process(self.record.is_beaten_by(values)):
            # A step that was measured before, in a run that was killed or rolled back,
            # does not overwrite its weights: a kill in between would leave none.
            again = folder(self._workdir, self.record).name == str(step)
            name = f"{step}-again" if again else ""
            record = Record(step, self.record.start, values, name, self._judges)
        else:
            return False
        target = folder(self._workdir, record)
        saved_weights.write(target, weights)
        if jax.process_index() == 0:
            checksums.write(target)
            content = {
                k: v for k, v in dataclasses.asdict(record).items() if v not in ("", ())
            }
            files.write_text(target.parent / _RECORD, json.dumps(content, indent=1))
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
