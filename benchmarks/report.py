"""Tables on the terminal and JSON files beside this package."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import environment, settings

Row = dict[str, Any]


def by_device(part: str, args: settings.Settings) -> str:
    """Name of the file of a part that is measured on a device."""
    return f"{part}-" + re.sub(r"\W+", "-", args.device["kind"]).lower()


def write(name: str, args: settings.Settings, rows: Sequence[Row], **more: Any) -> None:
    """Rewrites a part's file; called after each measurement, so that none is lost."""
    args.results.mkdir(parents=True, exist_ok=True)
    about = environment.describe() | {
        "device": args.device,
        "rounds": args.rounds,
        "samples": args.samples,
        "tiny": args.tiny,
        "overrides": args.overrides,
    }
    text = json.dumps(about | more | {"rows": list(rows)}, indent=1)
    (args.results / f"{name}.json").write_text(text + "\n")


def show(columns: Mapping[str, Callable[[Row], str]], rows: Sequence[Row]) -> None:
    """Prints a table; a cell whose value a row lacks is empty."""

    def cell(function: Callable[[Row], str], row: Row) -> str:
        try:
            return function(row)
        except (KeyError, TypeError):
            return ""

    table = [list(columns)]
    table += [[cell(function, row) for function in columns.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    for line in table:
        first, *others = (
            text.ljust(w) if i == 0 else text.rjust(w)
            for i, (text, w) in enumerate(zip(line, widths))
        )
        print("  ".join([first, *others]).rstrip())
    print(flush=True)


def milliseconds(spread: Mapping[str, float]) -> str:
    """ "12.3 (12.1 to 13.0)" of a spread in seconds."""
    middle, low, high = (1e3 * spread[key] for key in ("median", "low", "high"))
    digits = 3 if middle < 1 else 2 if middle < 10 else 1 if middle < 100 else 0
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def gigabytes(count: float) -> str:
    """ "1.23" of bytes, in 1e9."""
    return f"{count / 1e9:.2f}"
