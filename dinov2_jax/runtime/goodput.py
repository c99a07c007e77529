"""The share of a run's time that went into steps that count, out of its events."""

import collections
import dataclasses
import datetime
from typing import Any

from dinov2_jax.runtime import timing

LOST, DOWN = "lost", "down"


@dataclasses.dataclass
class _Stretch:
    """Steps that one process did in a row and that still count: first < n <= last."""

    process: int
    first: int
    last: int
    skipped: list[int] = dataclasses.field(default_factory=list)

    def useful(self) -> int:
        return self.last - self.first - sum(n <= self.last for n in self.skipped)


def goodput(
    log: list[dict[str, Any]], now: datetime.datetime
) -> tuple[float, dict[str, float]]:
    """Where the time of a run went, from its first start on.

    Args:
      log: Of `runtime.event_log.read`; begins with a start.
      now: When to stop counting, if the run has not ended.

    Returns:
      Seconds in all, and {part: share}, which adds up to 1. "step" are the steps that
      count; "lost" those that were skipped, or thrown away by a kill or a rollback;
      "down" is the time between processes, and what a killed one did not come to tell.
      The other parts are those of `timing`.
    """
    stretches, done = _stretches(log)
    seconds = _seconds(log)
    useful = collections.Counter()
    for stretch in stretches:
        useful[stretch.process] += stretch.useful()
    parts: collections.Counter[str] = collections.Counter()
    for process, spent in enumerate(seconds):
        parts.update(spent)
        if done[process]:
            lost = 1 - useful[process] / done[process]
            lost *= spent.get(timing.STEP, 0.0)
            parts[timing.STEP] -= lost
            parts[LOST] += lost
    begun = log[0]["time"].timestamp() - sum(log[0]["seconds"].values())
    ended = log[-1]["event"] in ("end", "hang")
    total = (log[-1]["time"] if ended else now).timestamp() - begun
    parts[DOWN] = max(0.0, total - sum(parts.values()))
    total = sum(parts.values())
    return total, {name: part / total for name, part in parts.items()}


def _stretches(log) -> tuple[list[_Stretch], collections.Counter[int]]:
    """What of the run was done by whom, and how many steps each process did."""
    stretches: list[_Stretch] = []
    done: collections.Counter[int] = collections.Counter()
    process = -1

    def go_on_from(step):
        for earlier in stretches:
            earlier.last = max(min(earlier.last, step), earlier.first)
        stretches.append(_Stretch(process, step, step))

    for event in log:
        if event["event"] == "start":
            process += 1
            go_on_from(event["step"])
            continue
        here = stretches[-1]
        ahead = event.get("step", here.last) - here.last
        if ahead > 0:
            done[process] += ahead
            here.last += ahead
        if event["event"] == "skip":
            here.skipped.append(event["step"])
        if event["event"] == "rollback":
            go_on_from(event["to"])
    return stretches, done


def _seconds(log) -> list[dict[str, float]]:
    """The last account of its time that each process gave."""
    accounts: list[dict[str, float]] = []
    for event in log:
        if event["event"] == "start":
            accounts.append({})
        if isinstance(event.get("seconds"), dict):
            accounts[-1] = event["seconds"]
    return accounts
