"""Time accounting of a process and of a whole run, and the rates from it."""

import collections
import contextlib
import dataclasses
import datetime
import time
from collections.abc import Iterator
from typing import Any

STEP, DATA_WAIT = "step", "data wait"
LOST, DOWN = "lost", "down"


def duration(seconds: float) -> str:
    """Format seconds as 3 d 04:10:00, 4:10:00 or 10:00."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d}:{minutes:02d}:{seconds:02d}"
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02}"


class TimeAccount:
    """The time of a process, split into activities that never overlap.

    This is the host's view: devices may still compute while it waits for data.

    Args:
      doing: The first activity.
    """

    def __init__(self, doing: str):
        self._seconds: collections.Counter[str] = collections.Counter()
        self._doing, self._since = doing, time.monotonic()

    def begin(self, doing: str) -> None:
        """Start another activity."""
        now = time.monotonic()
        self._seconds[self._doing] += now - self._since
        self._doing, self._since = doing, now

    @contextlib.contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """Count the `with` block as `doing`, then return to the activity before."""
        before = self._doing
        self.begin(doing)
        try:
            yield
        finally:
            self.begin(before)

    def seconds(self) -> dict[str, float]:
        """Return the seconds up to now, by activity."""
        self.begin(self._doing)
        return dict(self._seconds)


class Rates:
    """Rates since the last logged step, without evaluation and saving.

    Args:
      account: The time account of this process.
      batch_size: Images per step.
      peak_rate: Images/s with all devices at their peak (`runtime.flops.peak_rate`);
        None if unknown.
    """

    def __init__(
        self, account: TimeAccount, batch_size: int, peak_rate: float | None = None
    ):
        self._account, self._batch_size = account, batch_size
        self._peak_rate = peak_rate
        self.restart()

    def restart(self) -> None:
        """Start a new interval now."""
        self._before, self._steps = self._account.seconds(), 0

    def step_done(self) -> None:
        """Count a step."""
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Return the rates of the interval and start a new one.

        Returns:
          `images_per_second`, `data_wait` (share of time) and, if the peak rate is
          known, `mfu` (share of the peak).
        """
        now = self._account.seconds()
        step, waited = (
            now.get(what, 0.0) - self._before.get(what, 0.0)
            for what in (STEP, DATA_WAIT)
        )
        seconds = max(step + waited, 1e-9)
        rates = {
            "images_per_second": self._steps * self._batch_size / seconds,
            "data_wait": waited / seconds,
        }
        if self._peak_rate:
            rates["mfu"] = rates["images_per_second"] / self._peak_rate
        self.restart()
        return rates


@dataclasses.dataclass
class _Stretch:
    """Consecutive steps of one process that still count: first < n <= last."""

    process: int
    first: int
    last: int
    skipped: list[int] = dataclasses.field(default_factory=list)

    def useful(self) -> int:
        return self.last - self.first - sum(n <= self.last for n in self.skipped)


def goodput(
    log: list[dict[str, Any]], now: datetime.datetime
) -> tuple[float, dict[str, float]]:
    """Return how the time of a run was spent, from its first start on.

    Args:
      log: Events from `runtime.event_log.read`, the first of them a start.
      now: The end of the account if the run has not ended.

    Returns:
      Total seconds, and {part: share} with shares that add up to 1. "step": steps that
      count. "lost": steps that were skipped, or discarded by a kill or a rollback.
      "down": time between processes, and the last time of a killed process that it did
      not log. The other parts are the activities of `TimeAccount`.
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
            lost *= spent.get(STEP, 0.0)
            parts[STEP] -= lost
            parts[LOST] += lost
    begun = log[0]["time"].timestamp() - sum(log[0]["seconds"].values())
    ended = log[-1]["event"] in ("end", "hang")
    total = (log[-1]["time"] if ended else now).timestamp() - begun
    parts[DOWN] = max(0.0, total - sum(parts.values()))
    total = sum(parts.values())
    return total, {name: part / total for name, part in parts.items()}


def _stretches(log) -> tuple[list[_Stretch], collections.Counter[int]]:
    """Return the stretches of a run and the number of steps of each process."""
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
    """Return the last time account that each process logged."""
    accounts: list[dict[str, float]] = []
    for event in log:
        if event["event"] == "start":
            accounts.append({})
        if isinstance(event.get("seconds"), dict):
            accounts[-1] = event["seconds"]
    return accounts
