"""Ends a process that gets nowhere, and says where it stands.

A process of a cluster that hangs keeps all others waiting for ever: neither XLA's
collectives nor jax's heartbeat notice it.
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


class Watchdog:
    """Leaves with `errors.HUNG`, and all stacks, if nothing is finished for a while.

    Args:
      seconds: Of patience; 0 waits for ever.
      workdir: Where the stacks are written too.
      process: Of this process among several.

    Attributes:
      report: Called with what was going on and the file of the stacks.
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
        """What came before is finished, and this has begun."""
        self._doing, self._since = doing, time.monotonic()

    @contextlib.contextmanager
    def during(self, doing: str, times: float) -> Iterator[None]:
        """For what may take so many times the patience."""
        before, self._times = self._doing, times
        self.begin(doing)
        try:
            yield
        finally:
            self._times = 1.0
            self.begin(before)

    def close(self) -> None:
        """Nothing is watched any more."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._patience / 10, 10.0)):
            waited = time.monotonic() - self._since
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
            f"and in {path}; the same command goes on, and where this may take so long "
            "raise --config.train.hang_timeout",
            file=sys.stderr,
        )
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        sys.stderr.flush()

        def note():
            with open(path, "w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            self.report(self._doing, str(path))

        # In a thread, for the file system may be what hangs.
        noting = threading.Thread(target=note, daemon=True)
        noting.start()
        noting.join(5.0)
        os._exit(errors.HUNG)
