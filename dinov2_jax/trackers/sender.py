"""The training process's side of trackers: it never waits for them, and never fails."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

FOLDER = "trackers"  # in the workdir
_MOST_WAITING = 2**24  # bytes that a tracker may lag behind
_PACKAGE = pathlib.Path(__file__).parents[1]


class Trackers:
    """The trackers of a run, each in a process of its own.

    Args:
      names: Names of the trackers; with none nothing is started.
      workdir: The run's folder.
      run: Fields of `backends.RunInfo` but `id` and `folder`.
      new: Whether the run is another one than before in this folder.
    """

    def __init__(
        self,
        names: Sequence[str],
        workdir: pathlib.Path,
        run: Mapping[str, Any],
        *,
        new: bool,
    ):
        self._processes: list[_Process] = []
        self._failures: list[tuple[str, str]] = []
        for name in names:
            try:
                (workdir / FOLDER).mkdir(exist_ok=True)
                process = _Process(name, workdir / FOLDER)
            except OSError as error:
                self._failures.append((name, f"cannot be started ({error})"))
                continue
            process.send({"run": dict(run), "new": new})
            self._processes.append(process)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers of a row of metrics.

        Args:
          step: Number of finished steps.
          values: The row; what is no number is left out.
        """
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._send({"log": [step, numbers]})

    def picture(self, step: int, name: str, path: pathlib.Path) -> None:
        """Send the path of an image file.

        Args:
          step: Number of finished steps.
          name: Name of the picture.
          path: The file.
        """
        self._send({"picture": [step, name, str(path.absolute())]})

    def _send(self, message: Mapping[str, Any]) -> None:
        for process in self._processes:
            process.send(message)

    def news(self) -> tuple[list[str], list[tuple[str, str]]]:
        """Return what the trackers reported since the last call.

        Returns:
          Lines for the console, and (name, why) of each tracker that failed for the
          first time.
        """
        lines, failures = [], self._failures
        self._failures = []
        for process in self._processes:
            process.receive()
            lines += process.take_lines()
            failures += process.take_failures()
        return lines, failures

    def end(self, code: int, reason: str, *, patience: float) -> list[str]:
        """Tell the trackers that the run ends, and wait a little for them.

        Args:
          code: Exit code of the run.
          reason: Description of the end.
          patience: Seconds to wait; what is not sent by then is left to the processes
            of the trackers.

        Returns:
          Lines for the console.
        """
        self._send({"end": [code, reason]})
        deadline = time.monotonic() + patience
        lines = [process.close(deadline) for process in self._processes]
        said, failures = self.news()
        self._processes = []
        return [
            *said,
            *(f"{name}: {why}" for name, why in failures),
            *(line for line in lines if line),
        ]


class _Process:
    """The process of a tracker; it is sent lines and never waited for.

    Args:
      name: Name of the tracker.
      folder: Folder for its files, which exists.
    """

    def __init__(self, name: str, folder: pathlib.Path):
        self.name, self._log = name, folder / f"{name}.log"
        paths = [str(_PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dinov2_jax.trackers", name, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
                start_new_session=True,  # signals to the group are for the training
            )
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)
        self._waiting, self._received = b"", b""
        self._lines: list[str] = []
        self._failures: list[tuple[str, str]] = []
        self._failed = self._gone = False

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message, now or with a later one."""
        line = json.dumps(message).encode() + b"\n"
        if len(self._waiting) + len(line) > _MOST_WAITING:
            self._fail("does not keep up, so rows are left out")
        elif not self._gone:
            self._waiting += line
        self._flush()

    def _flush(self) -> None:
        try:
            while self._waiting:
                written = os.write(self._process.stdin.fileno(), self._waiting)
                self._waiting = self._waiting[written:]
        except BlockingIOError:
            pass
        except OSError:  # it has ended
            self._gone, self._waiting = True, b""
            self.receive()  # perhaps it said why
            self._fail("has ended")

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failures.append((self.name, f"{why} (see {self._log})"))
        self._failed = True

    def receive(self) -> None:
        """Read what the process answered so far."""
        if self._process.stdout.closed:
            return
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._process.stdout.fileno(), 65536):
                self._received += data
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            for key, value in json.loads(line).items():
                if key == "failed":
                    self._fail(value)
                else:
                    self._lines.append(f"{self.name}: {value}")

    def take_lines(self) -> list[str]:
        """Return the lines for the console since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def take_failures(self) -> list[tuple[str, str]]:
        """Return the failures since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def close(self, deadline: float) -> str:
        """Close the process's input and wait for its end, up to a time.

        Returns:
          A line for the console if it goes on by itself, else "".
        """
        while self._waiting and time.monotonic() < deadline:
            time.sleep(0.02)
            self._flush()
        left = bool(self._waiting)
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            left = True
        self.receive()
        self._process.stdout.close()
        return f"{self.name} is still sending, and goes on by itself" if left else ""
