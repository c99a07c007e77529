"""Traces of steps and memory reports, on demand, in WORKDIR/profile."""

import contextlib
import logging
import pathlib
import re
import signal
from collections.abc import Iterator

import jax

_STEPS_ON_SIGNAL = 5


class Profiler:
    """Traces the given steps, and the next ones on SIGUSR1.

    Args:
      workdir: The run's folder.
      steps: (first, last) step to trace, or None.
      process: Index of this process. Each process that gets the signal traces itself.
    """

    def __init__(
        self, workdir: pathlib.Path, *, steps: tuple[int, int] | None, process: int
    ):
        self._workdir, self._process = workdir, process
        self._first, self._last = steps or (0, -1)
        self._folder: pathlib.Path | None = None
        self._asked = False
        signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, *_) -> None:
        self._asked = True

    def untraced(self, first: int, last: int) -> str:
        """Return a warning if steps to trace are not in the run, else "".

        Args:
          first: The first step that this run trains, counted from 1.
          last: The last one.
        """
        if self._last < 0 or first <= self._first <= self._last <= last:
            return ""
        start, end = max(first, self._first), min(last, self._last)
        traced = "nothing" if start > end else f"only {start}:{end}"
        return (
            f"--profile={self._first}:{self._last}: this run trains steps {first} to "
            f"{last}, so {traced} is traced; choose steps in that range"
        )

    def before_step(self, step: int) -> str | None:
        """Start or stop a trace if it is time; return its folder when it stops.

        Args:
          step: The step that comes next, counted from 1.
        """
        if self._asked and self._folder is None:
            self._first, self._last = step, step + _STEPS_ON_SIGNAL - 1
        self._asked = False
        written = None
        if self._folder is not None and step > self._last:
            written = self.close()
        if self._folder is None and self._first <= step <= self._last:
            name = f"step-{step}" + f"-process-{self._process}" * bool(self._process)
            folder = self._workdir / "profile" / name
            with _tolerating(folder):
                jax.profiler.start_trace(folder)
                self._folder = folder
            if self._folder is None:  # it failed: do not try again at each step
                self._last = -1
        return written

    def close(self) -> str | None:
        """Stop a running trace and return its folder; None if there is none."""
        if self._folder is None:
            return None
        folder, self._folder = self._folder, None
        self._last = -1  # a rollback does not trace the same steps again
        with _tolerating(folder):
            jax.profiler.stop_trace()
            jax.profiler.save_device_memory_profile(str(folder / "memory.prof"))
            (folder / "memory.txt").write_text(memory())
            return str(folder)
        return None


@contextlib.contextmanager
def _tolerating(folder: pathlib.Path) -> Iterator[None]:
    """Log a trace that fails, on a full disk say; the run goes on without it."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # jax raises the latter
        reason = " ".join(str(error).split())[:200]
        logging.warning("there is no trace in %s: %s", folder, reason)


def memory() -> str:
    """Describe the memory in use on the host and on each local device, in GB."""
    now, peak = host_bytes()
    lines = [f"host          {now / 1e9:8.3f} GB, at most {peak / 1e9:.3f}"]
    arrays = sum(x.nbytes for x in jax.live_arrays())
    lines.append(f"jax arrays    {arrays / 1e9:8.3f} GB over all devices")
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "bytes_in_use" in stats:
            lines.append(
                f"{device!s:13} {stats['bytes_in_use'] / 1e9:8.3f} GB, at most "
                f"{stats['peak_bytes_in_use'] / 1e9:.3f} of "
                f"{stats.get('bytes_limit', 0) / 1e9:.3f}"
            )
    return "\n".join(lines) + "\n"


def host_bytes() -> tuple[int, int]:
    """Return this process's resident memory, (current, peak); 0 without /proc."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return 0, 0
    found = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
    now, peak = (int(match[1]) * 1024 for match in found)
    return now, peak
