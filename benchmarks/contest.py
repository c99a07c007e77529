"""Comparison of several contestants that do the same work.

On the CPU they take turns, one sample each, and are compared turn by turn. On an
accelerator, whose memory holds only one of them, they run one after the other.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import timing, workers
from benchmarks.settings import Settings

_MIN_SECONDS = 15  # with less time left, nothing is started

# Reports by contestant, {"seconds": [...], "ratios": [...], ...}, with "error" if it
# failed. Lists are joined over all rounds; the other values are from the last round.
Measured = dict[str, dict[str, Any]]


class Contestant(NamedTuple):
    """The name of a contestant and the command that measures it."""

    name: str
    command: workers.Command


def takes_turns(args: Settings) -> bool:
    """Return whether the contestants run side by side and take turns."""
    return args.plan == args.device["platform"] == "cpu"


def groups(contestants: Sequence[Contestant], args: Settings) -> list[list[Contestant]]:
    """Split contestants into the groups that `measure_round` measures together."""
    if takes_turns(args):
        return [list(contestants)]
    return [[contestant] for contestant in contestants]


def measure_round(
    group: Sequence[Contestant], measured: Measured, args: Settings
) -> None:
    """Measure a round of a group, add it to `measured`; the first is the baseline."""
    names = [contestant.name for contestant in group]
    print(f"  {', '.join(names)}", file=sys.stderr, flush=True)
    found = measure([contestant.command for contestant in group], args)
    if takes_turns(args):
        add_ratios(found)
    for name, result in zip(names, found, strict=True):
        add(measured.setdefault(name, {"seconds": []}), result)


def measure(
    commands: Sequence[workers.Command], args: Settings
) -> list[dict[str, Any]]:
    """Return the report of each command, or {"error": reason}."""
    left = args.seconds_left()
    if left is not None and left < _MIN_SECONDS:
        return [{"error": "out of time"}] * len(commands)
    if len(commands) > 1:
        found = workers.alternate(commands, args.samples, left)
    else:
        try:
            found = [workers.run_worker(*commands[0], left)]
        except workers.WorkerFailed as error:
            found = [error]
    return [
        {"error": str(result)} if isinstance(result, workers.WorkerFailed) else result
        for result in found
    ]


def add_ratios(found: list[dict[str, Any]]) -> None:
    """Add the ratios to the first contestant's seconds, turn by turn."""
    ours = found[0].get("seconds", [])
    for result in found:
        theirs = result.get("seconds", [])
        result["ratios"] = [b / a for a, b in zip(ours, theirs)]


def add(total: dict[str, Any], turn: dict[str, Any]) -> None:
    """Append the seconds and ratios of a round to those of earlier ones."""
    lists = {
        key: total.get(key, []) + turn.get(key, []) for key in ("seconds", "ratios")
    }
    total.update(turn | lists)


def ours_over(result: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Return the spread of our speedup, by turns, else by medians."""
    by_medians = (
        timing.spread(result["seconds"])["median"]
        / timing.spread(ours["seconds"])["median"]
    )
    return timing.spread(result["ratios"] or [by_medians])


def factor(ratio: dict[str, float]) -> str:
    """Format a ratio as "1.02 x (0.98 to 1.05)"."""
    if ratio["samples"] == 1:
        return f"{ratio['median']:.2f} x"
    return "{median:.2f} x ({low:.2f} to {high:.2f})".format(**ratio)
