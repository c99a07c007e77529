"""WORKDIR/events.jsonl: what happened to a run, an object a line, with the time of day.

Unlike metrics.jsonl it is never cut: what a killed run or a rollback threw away stays.

    event     fields beside `time` and, where there is one, `step`
    start     host, pid, processes, devices, device, jax, seconds; step: where it begins
    compiled  seconds
    progress  seconds: of this process so far, by what it did; each minute
    skip      terms that were not finite, lr
    rollback  to, why
    save      (begun)
    evaluate  accuracies
    recompiled  (what had been compiled before)
    profile   path
    hang      doing; path of the stacks
    end       code: exit code, reason, seconds as in progress
"""

import datetime
import json
import pathlib
from typing import Any


class Events:
    """Appends events; a disk that is full loses events, not the run.

    Args:
      workdir: Of the run.
      enabled: False writes nothing, for all but one of several processes.
    """

    def __init__(self, workdir: pathlib.Path, *, enabled: bool = True):
        self._path = workdir / "events.jsonl" if enabled else None
        # After half a line, of this process or of one that was killed.
        self._torn = True

    def add(self, event: str, **fields: Any) -> None:
        """Writes one event."""
        if self._path is None:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event} | fields) + "\n"
        try:
            with open(self._path, "ab", buffering=0) as file:
                if self._torn and file.tell():
                    line = "\n" + line
                written = file.write(line.encode())
                self._torn = written != len(line.encode())
        except OSError:
            self._torn = True


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """All whole events of a run, oldest first; [] where there are none."""
    try:
        lines = (workdir / "events.jsonl").read_bytes().split(b"\n")
    except OSError:
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
            event["time"] = datetime.datetime.fromisoformat(event["time"])
            event["event"]
        except (ValueError, KeyError, TypeError):
            continue  # blank, or cut by a kill or a full disk
        events.append(event)
    return events
