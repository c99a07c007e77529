"""Tables on the terminal and JSON files of results."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import environment, settings
from dinov2_jax import files

Row = dict[str, Any]


def by_device(part: str, args: settings.Settings) -> str:
    """Return the file name of a part's results on a device, without .json."""
    return f"{part}-" + re.sub(r"\W+", "-", args.device["kind"]).lower()


def write(
    name: str, args: settings.Settings, rows: Sequence[Row], **fields: Any
) -> None:
    """Rewrite a part's file; call it after each measurement, so that none is lost."""
    args.results.mkdir(parents=True, exist_ok=True)
    header = environment.describe() | {
        "device": args.device,
        "rounds": args.rounds,
        "samples": args.samples,
        "tiny": args.tiny,
        "overrides": args.overrides,
    }
    text = json.dumps(header | fields | {"rows": list(rows)}, indent=1)
    files.write_text(args.results / f"{name}.json", text + "\n")


def show(columns: Mapping[str, Callable[[Row], str]], rows: Sequence[Row]) -> None:
    """Print a table; a cell is empty if the row lacks its value."""

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
    """Format a spread in seconds as "12.3 (12.1 to 13.0)", in milliseconds."""
    middle, low, high = (1e3 * spread[key] for key in ("median", "low", "high"))
    digits = 3 if middle < 1 else 2 if middle < 10 else 1 if middle < 100 else 0
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def gigabytes(count: float) -> str:
    """Format bytes as "1.23", in units of 1e9."""
    return f"{count / 1e9:.2f}"
