"""What happened to a run besides training, for people to read."""

import dataclasses
import pathlib
from typing import Any

from dinov2_jax import errors


@dataclasses.dataclass(frozen=True)
class Happening:
    """One thing that happened.

    Attributes:
      time: When, as text.
      step: Number of finished steps, or None if unknown.
      text: Description.
      mark: Whether it is marked in the curves.
    """

    time: str
    step: int | None
    text: str
    mark: bool = False


def of_run(workdir: pathlib.Path, log: list[dict[str, Any]]) -> list[Happening]:
    """Return restarts, ends, rollbacks, skipped steps, failures and damage, in order.

    Args:
      workdir: The run's folder.
      log: Events from `runtime.event_log.read`.
    """
    found: list[Happening] = []
    previous: dict[str, Any] | None = None  # the event before
    skips: list[dict[str, Any]] = []
    for event in [*log, {"event": ""}]:
        kind = event["event"]
        if kind == "skip":
            skips.append(event)
            continue
        if skips:
            found.append(_skipped(skips))
            previous, skips = skips[-1], []
        if kind == "start" and previous is not None:
            if previous["event"] not in ("end", "hang"):
                text = "the process ended without a word, probably killed"
                found.append(_at(previous, text))
            where = f"on {event.get('host', 'an unknown host')}"
            found.append(_at(event, f"restarted {where}", mark=True))
        elif text := _describe(event):
            found.append(_at(event, text, mark=kind == "rollback"))
        previous = event
    return found + _damaged(workdir)


def _describe(event: dict[str, Any]) -> str:
    """Return an event's description; "" if it is nothing special."""
    kind = event["event"]
    if kind == "rollback":
        return f"rolled back to step {event.get('to')}: {event.get('why')}"
    if kind == "save failed":
        return f"a save failed: {event.get('how')}"
    if kind == "hang":
        return f"hung at {event.get('doing')}; stacks in {event.get('path')}"
    if kind == "recompiled":
        return "something was compiled again"
    if kind == "tracker":
        return f"{event.get('name')}: {event.get('why')}"
    if kind == "console":
        return f"the console was lost: {event.get('why')}"
    if kind == "best":
        return "kept as the best so far"
    if kind == "profile":
        return f"wrote a trace to {event.get('path')}"
    if kind == "end":
        code = event.get("code")
        known = {errors.DONE: "finished", errors.REQUEUE: "preempted"}
        reason = f"{event.get('reason')}"
        if code == errors.DONE:
            return "finished"
        return f"{known.get(code, f'ended with exit code {code}')}: {reason}"
    return ""


def _skipped(skips: list[dict[str, Any]]) -> Happening:
    first, last = skips[0], skips[-1]
    terms = first.get("terms")
    if len(skips) == 1:
        return _at(first, f"skipped, not finite: {terms}")
    text = f"{len(skips)} steps skipped up to step {last.get('step')}, not finite"
    return _at(first, f"{text}: {terms}")


def _at(event: dict[str, Any], text: str, *, mark: bool = False) -> Happening:
    time = f"{event['time']:%Y-%m-%d %H:%M:%S}"
    step = event.get("step")
    return Happening(time, step if isinstance(step, int) else None, text, mark)


def _damaged(workdir: pathlib.Path) -> list[Happening]:
    """Return the checkpoints that were set aside."""
    try:
        names = sorted(p.name for p in (workdir / "damaged_checkpoints").iterdir())
    except OSError:
        return []
    return [
        Happening(
            "",
            int(step) if (step := name.partition("-")[0]).isdecimal() else None,
            f"a checkpoint that was damaged or given up is damaged_checkpoints/{name}",
        )
        for name in names
    ]
