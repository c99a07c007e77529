"""WORKDIR/events.jsonl: what happened to a run, an object a line, with the time of day.

Unlike metrics.jsonl it is never cut: what a killed run or a rollback threw away stays.

    event     fields beside `time` and, where there is one, `step`
    start     host, pid, processes, devices, device, jax, seconds; step: where it begins
    compiled  seconds
    progress  seconds: of this process so far, by what it did; each minute
    skip      terms that were not finite, lr
    rollback  to, why
    save      (begun)
    save failed  how
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

from dinov2_jax.runtime import append_file


class Events:
    """Appends events.

    Args:
      workdir: Of the run.
      enabled: False writes nothing, for all but one of several processes.
    """

    def __init__(self, workdir: pathlib.Path, *, enabled: bool = True):
        self._file = None
        if enabled:
            path = _path(workdir)
            torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
            self._file = append_file.RecordFile(path)
            if torn:  # by a kill
                self._file.write(b"\n")

    def add(self, event: str, **fields: Any) -> None:
        """Writes one event."""
        if self._file is None:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event} | fields)
        self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        """`add` may not be called any more."""
        if self._file is not None:
            self._file.close()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """All whole events of a run, oldest first; [] where there are none."""
    try:
        lines = _path(workdir).read_bytes().split(b"\n")
    except OSError:
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
            event["time"] = datetime.datetime.fromisoformat(event["time"])
            if event["event"] and event["time"].tzinfo:
                events.append(event)
        except (ValueError, KeyError, TypeError):
            continue  # blank, or cut by a kill
    return events


def _path(workdir: pathlib.Path) -> pathlib.Path:
    return workdir / "events.jsonl"
