"""WORKDIR/events.jsonl: what happened to a run, one JSON object per line.

Unlike metrics.jsonl it is never truncated: events of steps that a kill or a rollback
discarded remain.

    event     fields besides `time` and, if known, `step`
    start     host, pid, processes, devices, device, jax, python, dinov2_jax (versions),
              seconds; step: the first one
    compiled  seconds
    progress  seconds: time of this process so far, by activity; once a minute
    skip      terms that were not finite, lr
    rollback  to, why
    save      (started, not yet finished)
    save failed  how
    evaluate  accuracies
    best      (the weights of this evaluation are kept as the best so far)
    recompiled  (something was compiled when nothing should have been)
    profile   path
    hang      doing; path of the stack traces
    tracker   name, why: it failed; only the first time of a process
    console   why: messages could not be written to the console; only the first time
    end       code: exit code, reason, seconds as in progress
"""

import datetime
import json
import pathlib
from typing import Any

from dinov2_jax.runtime import append_file


class Events:
    """The event log of a run, open for appending.

    Args:
      workdir: The run's folder.
      enabled: False writes nothing; for every process but the first.
    """

    def __init__(self, workdir: pathlib.Path, *, enabled: bool = True):
        self._file = None
        if enabled:
            path = _path(workdir)
            torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
            self._file = append_file.RecordFile(path)
            if torn:  # the last line was cut off by a kill
                self._file.write(b"\n")

    def add(self, event: str, **fields: Any) -> None:
        """Append one event."""
        if self._file is None:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event} | fields)
        self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        """Close the file; `add` may not be called afterwards."""
        if self._file is not None:
            self._file.close()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Return all complete events of a run, oldest first; [] if there are none."""
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
            continue  # blank, or cut off by a kill
    return events


def _path(workdir: pathlib.Path) -> pathlib.Path:
    return workdir / "events.jsonl"
