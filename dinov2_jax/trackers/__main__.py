"""The process that passes the metrics of a run on to one tracker.

A process of its own, since libraries of trackers wait for networks, start threads and
leave handlers behind, none of which may hold up the training. It outlives a training
process that is killed, so nothing that was sent is lost.

    python -m dinov2_jax.trackers NAME FOLDER

reads one JSON object per line: first {"run": fields of `RunInfo`, "new": whether the
run is another one than before in this folder}, then {"log": [step, values]},
{"picture": [step, name, path]} and at last {"end": [exit code, reason]}. It writes one
JSON object per line, {"url": ...} or {"failed": why}. What libraries print goes to
standard error. FOLDER/NAME.json has the run's id and what was sent.
"""

import contextlib
import json
import os
import pathlib
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dinov2_jax import files
from dinov2_jax.trackers import backends

_LAST_SECONDS = 600.0  # for what is left when the training has ended
_LOCK_SECONDS = _LAST_SECONDS + 60.0  # for the tracker of the process before to end


class Sent:
    """The id of a tracker's run and the last step that it was sent, by metric.

    It is written before a row is sent: after a kill a row may be missing in the
    tracker, but none is there twice.

    Args:
      path: The file.
      new: Whether to forget what is in the file.
    """

    def __init__(self, path: pathlib.Path, *, new: bool):
        self._path = path
        self.id, self._last = "", {}
        if not new:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                content = json.loads(path.read_text())
                self.id, self._last = content["id"], dict(content["last"])

    def add(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that were not yet sent for this step, and note them."""
        unsent = {k: v for k, v in values.items() if step > self._last.get(k, -1)}
        if unsent:
            self._last |= dict.fromkeys(unsent, step)
            self.write()
        return unsent

    def write(self) -> None:
        """Write the file."""
        content = {"id": self.id, "last": self._last}
        files.write_text(self._path, json.dumps(content) + "\n")


def serve(
    name: str,
    folder: pathlib.Path,
    lines: Iterable[str],
    answer: Callable[[str, str], None],
) -> None:
    """Pass on lines until they end.

    Args:
      name: Name of the tracker.
      folder: Folder for its files.
      lines: Lines as described above.
      answer: Function that writes an answer, a key and a value.
    """
    lines = iter(lines)
    first = json.loads(next(lines))
    _lock(folder / f"{name}.lock")
    sent = Sent(folder / f"{name}.json", new=first["new"])
    sent.write()
    info = backends.RunInfo(**first["run"] | {"id": sent.id, "folder": str(folder)})
    tracker = _open(name, info)
    sent.id = tracker.id
    sent.write()
    if tracker.url:
        answer("url", tracker.url)
    failed, code, reason = False, None, "killed"
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:  # cut off by a kill
            break
        if "end" in message:
            code, reason = message["end"]
            break
        try:
            _pass_on(message, tracker, sent)
        except Exception as error:
            if not failed:
                answer("failed", describe(error))
                traceback.print_exc()
            failed = True
    tracker.finish(code, reason)


def _open(name: str, run: backends.RunInfo) -> backends.Tracker:
    """Open a run of a tracker, new or resumed; only its own package is imported."""
    if name == "wandb":
        from dinov2_jax.trackers import wandb_run

        return wandb_run.WandbRun(run)
    if name == "mlflow":
        from dinov2_jax.trackers import mlflow_run

        return mlflow_run.MlflowRun(run)
    from dinov2_jax.trackers import trackio_run

    return trackio_run.TrackioRun(run)


def _pass_on(message: dict[str, Any], tracker: backends.Tracker, sent: Sent) -> None:
    if "log" in message:
        step, values = message["log"]
        values = sent.add(step, values)
        if values:
            tracker.log(step, values)
    elif "picture" in message:
        step, name, path = message["picture"]
        if sent.add(step, {name: path}):
            tracker.picture(step, name, path)


def _lock(path: pathlib.Path) -> None:
    """Wait until no other process writes to this run of this tracker."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)  # closed by the process's end
    deadline = time.monotonic() + _LOCK_SECONDS
    while not _try_lock(descriptor):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the process before still holds {path}")
        time.sleep(0.2)


def _try_lock(descriptor: int) -> bool:
    try:
        return files.try_lock(descriptor)
    except OSError:  # a file system without locks
        return True


def _end_with_the_training() -> None:
    """End this process by force some time after the training process has ended.

    Lines that were not read yet, or a call that hangs, would hold the lock for ever.
    """
    poll = select.poll()
    poll.register(sys.stdin, 0)  # events=0: the other end was closed
    poll.poll()
    time.sleep(_LAST_SECONDS)
    os._exit(1)


def describe(error: BaseException) -> str:
    """Return an error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def main() -> None:
    """Serve the tracker that the command line names."""
    name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    # The training process decides when this one ends: by closing standard input.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_training, daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(key: str, value: str) -> None:
        with contextlib.suppress(OSError):  # the training process is gone
            answers.write(json.dumps({key: value}) + "\n")

    try:
        serve(name, folder, sys.stdin, answer)
    except BaseException as error:
        answer("failed", describe(error))
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    main()
