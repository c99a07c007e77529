"""Worker processes for measurements, run one after the other or in turns.

On a shared machine the speed changes from minute to minute. Contestants that take
turns, one sample each, run under the same conditions: the ratio of two samples of one
turn is more reliable than that of two medians.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import timing

# glibc returns large arrays to the system after each use and faults their pages in
# again at the next one. Keeping them made a PyTorch step at batch 4 about a sixth
# faster.
# glibc reads these variables when a process starts.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
_PAUSE = 0.3  # seconds between turns, for spinning threads to go to sleep
_GRACE = 20  # additional seconds for reporting
_ERROR = re.compile(r"(\w+\.)*\w*(Error|Exception|error)\b")
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|OutOfMemoryError|out of memory", re.I)


class WorkerFailed(RuntimeError):
    """A measurement that failed; the message gives the reason in a few words."""


class Command(NamedTuple):
    """`python -m benchmarks.<module> <arguments>` with environment variables."""

    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]


def run_worker(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    timeout: float | None = None,
) -> dict[str, Any]:
    """Run `python -m benchmarks.<module>` and return the JSON that it prints.

    Raises:
      WorkerFailed: It failed, or took longer than `timeout` seconds.
    """
    with _Worker(Command(module, arguments, environment), timeout) as worker:
        return worker.result()


def alternate(
    commands: Sequence[Command], turns: int, timeout: float | None = None
) -> list[dict[str, Any] | WorkerFailed]:
    """Run several commands side by side, only one of them computing at a time.

    They warm up one after the other. Then each takes one sample per turn, in the given
    order, and waits for the others. The memory of all is in use at once.

    Args:
      commands: Commands, each of which calls `timing.samples` once.
      turns: Maximum number of turns; fewer if time runs out or a command takes fewer
        samples.
      timeout: Seconds for all of them.

    Returns:
      For each command the JSON that it prints, or the error.
    """
    end = None if timeout is None else time.monotonic() + timeout

    def left() -> float | None:
        return None if end is None else max(end - time.monotonic(), 0.0)

    with contextlib.ExitStack() as stack:
        workers = []
        for command in commands:
            worker = stack.enter_context(_Worker(command, left(), in_turns=True))
            workers.append(worker)
            worker.wait()
        taken = 0
        longest = 0.0
        while taken < turns and (end is None or left() > longest):
            start = time.monotonic()
            for worker in workers:
                time.sleep(_PAUSE)
                worker.take_turn()
            longest = max(longest, time.monotonic() - start)
            taken += 1
        if not taken:
            return [WorkerFailed("out of time") for _ in workers]
        for worker in workers:
            worker.end_turns()
        outcomes: list[dict[str, Any] | WorkerFailed] = []
        for worker in workers:
            try:
                outcomes.append(worker.result())
            except WorkerFailed as error:
                outcomes.append(error)
        return outcomes


class _Worker:
    """A command's process, killed with its children at the end of the block."""

    def __init__(
        self, command: Command, timeout: float | None, in_turns: bool = False
    ) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout
        self._output, self._errors = (tempfile.TemporaryFile("w+") for _ in range(2))
        variables = {**os.environ, **command.environment}
        self._turn, theirs = socket.socketpair()
        if in_turns:
            variables[timing.TURN] = str(theirs.fileno())
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{command.module}", *command.arguments],
            env=variables,
            stdout=self._output,
            stderr=self._errors,
            pass_fds=[theirs.fileno()] if in_turns else [],
            start_new_session=True,  # so that its children end with it
        )
        theirs.close()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._turn, self._output, self._errors):
            file.close()

    def _left(self) -> float | None:
        return None if self._end is None else max(self._end - time.monotonic(), 1e-3)

    def wait(self) -> None:
        """Wait until it is ready for a turn, has ended, or its time is up."""
        self._turn.settimeout(self._left())
        with contextlib.suppress(TimeoutError, ConnectionError):
            if self._turn.recv(1):
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._left())  # else it would disturb the next

    def take_turn(self) -> None:
        """Let it take a sample, if it is still running."""
        with contextlib.suppress(TimeoutError, ConnectionError):
            self._turn.send(b".")
            self.wait()

    def end_turns(self) -> None:
        """Tell it to report its samples."""
        with contextlib.suppress(OSError):  # it has ended already
            self._turn.shutdown(socket.SHUT_WR)
        if self._end is not None:
            self._end = max(self._end, time.monotonic() + _GRACE)

    def result(self) -> dict[str, Any]:
        """Wait for its end and return the JSON that it printed."""
        try:
            code = self._process.wait(self._left())
        except subprocess.TimeoutExpired:
            raise WorkerFailed("out of time") from None
        self._output.seek(0)
        self._errors.seek(0)
        if not code:
            return json.load(self._output)
        errors = self._errors.read()
        if _OUT_OF_MEMORY.search(errors) or code == -signal.SIGKILL:
            raise WorkerFailed("out of memory")
        print(errors[-4000:], file=sys.stderr)
        raise WorkerFailed(last_error(errors) or f"exit code {code}")


def last_error(text: str) -> str:
    """Return the last line that names an error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if _ERROR.match(line)]
    return (named or lines or [""])[-1][:100]
