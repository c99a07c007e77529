"""Contestants for one piece of work, measured beside each other.

On the CPU they take turns, a sample each, and are compared turn by turn. On an
accelerator, whose memory is for one alone, they run one after the other.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import timing, workers
from benchmarks.settings import Settings

_LEAST_SECONDS = 15  # nothing is started with less time left

# What a contestant reports over all rounds, by its name; lists grow, the rest is of the
# last round: {"seconds": [...], "ratios": [...], ...}, with "error" where it failed.
Measured = dict[str, dict[str, Any]]


class Contestant(NamedTuple):
    """Who is measured, and the process that does it."""

    name: str
    command: workers.Command


def in_turns(args: Settings) -> bool:
    """Whether all of a contest run at once, of which one computes at a time."""
    return args.plan == args.device["platform"] == "cpu"


def groups(contestants: Sequence[Contestant], args: Settings) -> list[list[Contestant]]:
    """Those that `hold` takes together."""
    if in_turns(args):
        return [list(contestants)]
    return [[contestant] for contestant in contestants]


def hold(group: Sequence[Contestant], measured: Measured, args: Settings) -> None:
    """A round of one group, added to what was measured; its first is compared with."""
    names = [contestant.name for contestant in group]
    print(f"  {', '.join(names)}", file=sys.stderr, flush=True)
    found = measure([contestant.command for contestant in group], args)
    if in_turns(args):
        add_ratios(found)
    for name, result in zip(names, found, strict=True):
        add(measured.setdefault(name, {"seconds": []}), result)


def measure(
    commands: Sequence[workers.Command], args: Settings
) -> list[dict[str, Any]]:
    """What the processes report, or {"error": why not}."""
    left = args.seconds_left()
    if left is not None and left < _LEAST_SECONDS:
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
    """How many times as fast the first was, in each turn that both of them had."""
    ours = found[0].get("seconds", [])
    for result in found:
        theirs = result.get("seconds", [])
        result["ratios"] = [b / a for a, b in zip(ours, theirs)]


def add(total: dict[str, Any], turn: dict[str, Any]) -> None:
    """Joins the seconds and ratios of a round to those of earlier ones."""
    lists = {
        key: total.get(key, []) + turn.get(key, []) for key in ("seconds", "ratios")
    }
    total.update(turn | lists)


def ours_over(result: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """The spread of how many times as fast ours was, by turns where there were any."""
    by_medians = (
        timing.spread(result["seconds"])["median"]
        / timing.spread(ours["seconds"])["median"]
    )
    return timing.spread(result["ratios"] or [by_medians])


def factor(ratio: dict[str, float]) -> str:
    """ "1.02 x (0.98 to 1.05)" """
    if ratio["samples"] == 1:
        return f"{ratio['median']:.2f} x"
    return "{median:.2f} x ({low:.2f} to {high:.2f})".format(**ratio)
