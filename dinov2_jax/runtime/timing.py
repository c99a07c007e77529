"""Where the time of a process goes, and the rates that follow."""

import collections
import contextlib
import time
from collections.abc import Iterator

STEP, DATA_WAIT = "step", "data wait"


def duration(seconds: float) -> str:
    """In words people read: 3 d 04:10:00, 4:10:00 or 10:00."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d}:{minutes:02d}:{seconds:02d}"
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02}"


class TimeAccount:
    """Every moment since the start belongs to one of the things a run does.

    The host's view: while it waits for data, devices may still compute.
    """

    def __init__(self, doing: str):
        self._seconds: collections.Counter[str] = collections.Counter()
        self._doing, self._since = doing, time.monotonic()

    def begin(self, doing: str) -> None:
        """From now on the process does something else."""
        now = time.monotonic()
        self._seconds[self._doing] += now - self._since
        self._doing, self._since = doing, now

    @contextlib.contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """For a block of code, and then as before."""
        before = self._doing
        self.begin(doing)
        try:
            yield
        finally:
            self.begin(before)

    def seconds(self) -> dict[str, float]:
        """Seconds up to now by what was done."""
        self.begin(self._doing)
        return dict(self._seconds)


class Rates:
    """Rates since the last logged step; evaluation and saving do not count.

    Args:
      account: Of this process.
      batch_size: Images a step.
      peak_rate: Images/s with all devices at their peak (`runtime.flops.peak_rate`);
        None where that is not known.
    """

    def __init__(
        self, account: TimeAccount, batch_size: int, peak_rate: float | None = None
    ):
        self._account, self._batch_size = account, batch_size
        self._peak_rate = peak_rate
        self.restart()

    def restart(self) -> None:
        """Begins a new interval now."""
        self._before, self._steps = self._account.seconds(), 0

    def step_done(self) -> None:
        """Counts a step."""
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Returns the rates of the interval and begins a new one.

        Returns:
          `images_per_second`, `data_wait` (share of time) and, where the peak rate is
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
