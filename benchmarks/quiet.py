"""CPU time that other processes take, and waiting until they take little."""

import os
import pathlib
import resource
import time

CORES = 2
NOISE = 0.05  # a sample counts if others took at most this share of the cores


class Watch:
    """A stopwatch that also measures the CPU time of other processes."""

    def __init__(self):
        self._start, self._ours = time.perf_counter(), cpu_seconds()
        self._all = busy_seconds()

    def sample(self, images: int) -> dict[str, float]:
        """Return the sample of a turn that processed `images` images."""
        seconds = time.perf_counter() - self._start
        others = (busy_seconds() - self._all) - (cpu_seconds() - self._ours)
        return {
            "images_per_second": images / seconds,
            "seconds": seconds,
            "others": max(others, 0.0) / (CORES * seconds),
        }


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its finished children."""
    both = (
        resource.getrusage(who)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def busy_seconds() -> float:
    """Return the busy seconds of all cores since the machine started."""
    fields = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, *interrupts_and_steal = map(int, fields[:8])
    ticks = user + nice + system + sum(interrupts_and_steal)
    return ticks / os.sysconf("SC_CLK_TCK")


def await_quiet(patience: float) -> None:
    """Wait until the cores are idle, for at most `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before = busy_seconds()
        time.sleep(0.5)
        if busy_seconds() - before < 0.1:
            break
