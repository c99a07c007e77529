"""What others take of the cores of this machine, and moments when they take little."""

import os
import pathlib
import resource
import time

CORES = 2
NOISE = 0.05  # share of the cores taken by others below which a sample counts


class Watch:
    """Measures from its making on, and what others took of the cores meanwhile."""

    def __init__(self):
        self._start, self._ours = time.perf_counter(), cpu_seconds()
        self._all = busy_seconds()

    def sample(self, images: int) -> dict[str, float]:
        """A sample of so many images."""
        seconds = time.perf_counter() - self._start
        others = (busy_seconds() - self._all) - (cpu_seconds() - self._ours)
        return {
            "images_per_second": images / seconds,
            "seconds": seconds,
            "others": max(others, 0.0) / (CORES * seconds),
        }


def cpu_seconds() -> float:
    """Of this process and its finished children."""
    both = (
        resource.getrusage(who)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def busy_seconds() -> float:
    """Of all cores since the machine started."""
    fields = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, *interrupts_and_steal = map(int, fields[:8])
    ticks = user + nice + system + sum(interrupts_and_steal)
    return ticks / os.sysconf("SC_CLK_TCK")


def await_quiet(patience: float) -> None:
    """Returns when the cores are idle, or after `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before = busy_seconds()
        time.sleep(0.5)
        if busy_seconds() - before < 0.1:
            break
