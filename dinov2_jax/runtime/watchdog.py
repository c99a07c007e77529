"""A watchdog that ends a hanging process after writing its stack traces.

One hanging process keeps all others of a cluster waiting forever: neither XLA's
collectives nor jax's heartbeat detect it.
"""

import contextlib
import faulthandler
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from dinov2_jax import errors

LONG = 4.0  # times the time limit, for compiling, evaluating and reading weights


class Watchdog:
    """Exits with `errors.HUNG` and all stack traces if nothing finishes for a while.

    Args:
      seconds: Time limit for one activity; 0 waits forever.
      workdir: The folder for the stack traces, which also go to standard error.
      process: Index of this process.

    Attributes:
      report: Called with the activity that hung and the path of the stack traces.
    """

    def __init__(
        self,
        seconds: float,
        workdir: pathlib.Path,
        *,
        process: int,
    ):
        self._patience, self._times = seconds, 1.0
        self._workdir, self._process = workdir, process
        self.report: Callable[[str, str], None] = lambda doing, path: None
        self._doing, self._since = "the start", time.monotonic()
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, daemon=True).start()

    def begin(self, doing: str) -> None:
        """Note that the previous activity has finished and this one has started."""
        self._doing, self._since = doing, time.monotonic()

    @contextlib.contextmanager
    def during(self, doing: str, times: float) -> Iterator[None]:
        """Allow `times` the time limit for the activity inside the `with` block."""
        before, self._times = self._doing, times
        self.begin(doing)
        try:
            yield
        finally:
            self._times = 1.0
            self.begin(before)

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        interval, looked = min(self._patience / 10, 10.0), time.monotonic()
        while not self._closed.wait(interval):
            stopped = time.monotonic() - looked - interval
            if stopped > interval:  # of the whole process, by Ctrl-Z or a container
                self._since += stopped
            looked = time.monotonic()
            waited = looked - self._since
            if waited > self._patience * self._times:
                self._leave(waited)

    def _leave(self, waited: float) -> None:
        path = self._workdir / (
            f"stacks-process-{self._process}-{time.strftime('%Y%m%dT%H%M%S')}.txt"
        )
        name = f"process {self._process}: " if self._process else ""
        print(
            f"error: {name}nothing was finished for {waited:.0f} s (at {self._doing}): "
            f"a device, another process or a file system hangs; all stacks are below "
            f"and in {path}; run the same command to resume, and if this may take so "
            "long, raise --config.train.hang_timeout",
            file=sys.stderr,
        )
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        sys.stderr.flush()

        def note():
            with open(path, "w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            self.report(self._doing, str(path))

        # In a thread, because the file system may be what hangs.
        noting = threading.Thread(target=note, daemon=True)
        noting.start()
        noting.join(5.0)
        os._exit(errors.HUNG)
