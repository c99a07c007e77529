"""The state of a run in ten lines, from the files that it writes."""

import datetime
import json
import pathlib
import statistics
from typing import Any

from dinov2_jax import errors
from dinov2_jax.runtime import bad_images, event_log, timing

_SILENT = 300.0  # seconds without an event after which a run may be dead
_LOSS_INTERVAL = 1000  # steps between the two losses that are shown


def status(workdir: pathlib.Path, now: datetime.datetime) -> str:
    """Return the lines about one run.

    Args:
      workdir: The run's folder.
      now: The time of writing.

    Raises:
      UserError: There is no run in the folder.
    """
    lines = fields(workdir, now)
    return "\n".join(f"{name:9} {text}" for name, text in lines.items())


def fields(workdir: pathlib.Path, now: datetime.datetime) -> dict[str, str]:
    """Return the same as {name: text}.

    Args:
      workdir: The run's folder.
      now: The time of writing.

    Raises:
      UserError: There is no run in the folder.
    """
    log = event_log.read(workdir)
    started = [n for n, event in enumerate(log) if event["event"] == "start"]
    log = log[started[0] :] if started else []
    try:
        config = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError):
        config = None
    if config is None or not log:
        raise errors.UserError(
            f"there is no run in {workdir}: pass the --workdir of a training run, "
            "which has config.json and events.jsonl"
        )
    rows = _last_rows(workdir / "metrics.jsonl")
    try:
        return {
            "run": _run(workdir, config, log),
            "state": _state(log, now),
            "step": _step(config, log, rows),
            "loss": _loss(rows),
            "speed": _speed(rows),
            "saved": _saved(workdir, log, now),
            "accuracy": _accuracy(log),
            "goodput": _goodput(log, now),
            "trouble": _trouble(workdir, log),
            "last": _last(log, now),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise errors.UserError(
            f"{workdir} is not the folder of a training run ({error!r} in config.json, "
            "events.jsonl or metrics.jsonl): pass the --workdir of a training run"
        ) from error


def _last_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the last rows of metrics.jsonl that have losses (2 MiB of the file)."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 2**21))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
            if "loss/total" in row:
                rows.append(row)
        except (ValueError, TypeError):
            continue  # the first may be cut, the last empty or incomplete
    return rows


def _run(workdir, config, log) -> str:
    start = _select(log, "start")[-1]
    hosts = f", {start['processes']} processes" if start["processes"] > 1 else ""
    return (
        f"{workdir}: {config['model']['arch']}, batch {config['train']['batch_size']}, "
        f"{start['devices']} {start['device']}{hosts}"
    )


def _state(log, now) -> str:
    last = log[-1]
    if last["event"] == "end":
        outcome = {
            0: "finished",
            errors.REQUEUE: "saved, waiting to be restarted",
            errors.INTERRUPTED: "interrupted from the keyboard",
        }.get(last["code"], f"ended with exit code {last['code']}: {last['reason']}")
        return f"{outcome}, {_ago(last, now)}"
    start = _select(log, "start")[-1]
    where = f"process {start['pid']} on {start['host']}"
    if last["event"] == "hang":
        return f"hung at {last['doing']}, {_ago(last, now)}; stacks in {last['path']}"
    silent = (now - last["time"]).total_seconds()
    if silent > _SILENT:
        return (
            f"silent for {timing.duration(silent)} ({where}): in a long operation or "
            "killed; if killed, run the same command to resume"
        )
    compiled = log.index(start) < len(log) - 1
    return (
        f"{'training' if compiled else 'starting'}, {where}, started {_ago(start, now)}"
    )


def _step(config, log, rows) -> str:
    step = max([_last_step(log), *(row["step"] for row in rows[-1:])])
    total = config["train"]["steps"]
    text = f"{step:,} of {total:,} ({step / total:.1%})"
    if step < total and rows:
        left = (total - step) * config["train"]["batch_size"]
        seconds = left / _median(rows, "images_per_second")
        text += f", {timing.duration(seconds)} to go"
    return text


def _last_step(log) -> int:
    """Return the last step in the events."""
    for event in reversed(log):
        if event["event"] == "rollback":
            return event["to"]
        if "step" in event:
            return event["step"]
    return 0


def _loss(rows) -> str:
    if not rows:
        return "none yet"
    last = rows[-1]
    text = f"{last['loss/total']:.4f}"
    before = [r for r in rows if r["step"] <= last["step"] - _LOSS_INTERVAL]
    before = before[-1] if before else rows[0]
    if before is not last:
        ago = last["step"] - before["step"]
        text += f", {before['loss/total']:.4f} {ago:,} steps before"
    return f"{text}; lr {last.get('lr', float('nan')):.3g}"


def _speed(rows) -> str:
    if not rows:
        return "unknown yet"
    return (
        f"{_median(rows, 'images_per_second'):.4g} images/s, waiting for data "
        f"{_median(rows, 'data_wait'):.0%} of the time"
    )


def _median(rows, name: str) -> float:
    """Return the median over the last 100 logged steps."""
    return statistics.median(row[name] for row in rows[-100:])


def _saved(workdir, log, now) -> str:
    folder = workdir / "checkpoints"
    try:
        steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())
    except OSError:
        steps = []
    if not steps:
        return "nothing yet"
    saves = {e["step"]: e for e in _select(log, "save")}
    ago = f", {_ago(saves[steps[-1]], now)}" if steps[-1] in saves else ""
    best = [e["step"] for e in _select(log, "best")][-1:]
    best = "".join(f"; best step {step:,} in {workdir / 'best'}" for step in best)
    return f"step {steps[-1]:,}{ago}; {len(steps)} kept in {folder}{best}"


def _accuracy(log) -> str:
    """Describe the first metric of the evaluations, of each student."""
    measured: dict[str, list[tuple[float, int]]] = {}  # of each the value and the step
    for event in _select(log, "evaluate"):
        for name, value in [*event["accuracies"].items()][:1]:
            measured.setdefault(name, []).append((value, event["step"]))
    return "; ".join(map(_course, measured, measured.values())) or "not measured yet"


def _course(name: str, found: list[tuple[float, int]]) -> str:
    value, step = found[-1]
    text = f"{name} {value:.1%} at step {step:,}"
    best, best_step = max(found, key=lambda pair: pair[0])
    return text if best == value else f"{text}, best {best:.1%} at step {best_step:,}"


def _goodput(log, now) -> str:
    total, shares = timing.goodput(log, now)
    useful = shares.pop(timing.STEP, 0.0)
    rest = sorted(((s, n) for n, s in shares.items() if s >= 0.0005), reverse=True)
    return (
        f"{useful:.1%} of {timing.duration(total)} in useful steps; "
        f"{', '.join(f'{name} {share:.1%}' for share, name in rest)}"
    )


def _trouble(workdir, log) -> str:
    starts, ends = _select(log, "start"), _select(log, "end")
    hangs = _select(log, "hang")
    unfinished = log[-1]["event"] not in ("end", "hang")
    try:
        bad = len(bad_images.names(workdir))
    except OSError:
        bad = 0
    counted = {
        "restart": len(starts) - 1,
        "preemption": sum(e["code"] == errors.REQUEUE for e in ends),
        "sudden end": len(starts) - len(ends) - len(hangs) - unfinished,
        "hang": len(hangs),
        "skipped step": len(_select(log, "skip")),
        "rollback": len(_select(log, "rollback")),
        "recompilation": len(_select(log, "recompiled")),
        "unreadable image": bad,
    }
    parts = [f"{n:,} {name}{'s' * (n != 1)}" for name, n in counted.items() if n > 0]
    return ", ".join(parts) or "none"


def _last(log, now) -> str:
    event = log[-1]
    fields = {
        "start": lambda e: f"started at step {e['step']:,}",
        "compiled": lambda e: f"compiled the step in {e['seconds']} s",
        "progress": lambda e: f"finished step {e['step']:,}",
        "skip": lambda e: f"skipped step {e['step']:,}: {e['terms']}",
        "rollback": lambda e: f"rolled back from step {e['step']:,} to {e['to']:,}",
        "save": lambda e: f"saved step {e['step']:,}",
        "evaluate": lambda e: f"evaluated step {e['step']:,}",
        "best": lambda e: f"kept step {e['step']:,} as the best so far",
        "recompiled": lambda e: f"recompiled at step {e['step']:,}",
        "profile": lambda e: f"wrote a trace to {e['path']}",
        "hang": lambda e: f"hung at {e['doing']}",
        "console": lambda e: f"lost its console at step {e['step']:,}: {e['why']}",
        "end": lambda e: f"ended at step {e['step']:,}: {e['reason']}",
    }
    description = fields.get(event["event"], lambda e: e["event"])(event)
    return f"{event['time']:%Y-%m-%d %H:%M:%S} UTC, {_ago(event, now)}: {description}"


def _select(log, kind: str) -> list[dict[str, Any]]:
    return [event for event in log if event["event"] == kind]


def _ago(event, now) -> str:
    seconds = (now - event["time"]).total_seconds()
    return f"{timing.duration(max(seconds, 0.0))} ago"  # clocks may differ
