"""The cost of saving during training, and the time to save and restore a large state.

`debug`: the steps of configs/debug.py in pairs of turns of 50 steps, in random order.
One turn of each pair starts with a save; the share is the median over pairs. Large
models (`--only vitl14`) take no step: their state is saved, checked and restored
`--samples` times, read from the disk and not from the page cache.
"""

import statistics
import sys
from typing import Any

from benchmarks import report, timing, workers
from benchmarks.settings import Settings

STATES = {"vits14": "vits", "vitb14": "vitb", "vitl14": "vitl"}


def run(args: Settings) -> None:
    """Measure, print the table and write the results."""
    rows: list[report.Row] = []
    for name in args.only or ("debug",):
        print(f"  {name}", file=sys.stderr, flush=True)
        flags = [f"--config={STATES.get(name, name)}"]
        if name in STATES:
            flags += ["--state", f"--turns={args.samples}"]
        else:
            turns = 1 if args.tiny else 20 * args.rounds
            flags += ["--set=train.group_size=4", f"--turns={turns}"]
        try:
            found = workers.run_worker(
                "saving_jax",
                [*flags, *(f"--set={text}" for text in args.overrides)],
                {"JAX_PLATFORMS": "cpu"},
                args.seconds_left(),
            )
        except workers.WorkerFailed as error:
            found = {"error": str(error)}
        rows.append({"workload": name} | summarize(found))
        report.write("saving", args, rows)
    report.show(COLUMNS, rows)


def summarize(found: dict[str, Any]) -> report.Row:
    """Turn samples into spreads, and compute the time that a save adds."""
    row = {
        name: timing.spread(value) if isinstance(value, list) else value
        for name, value in found.items()
    }
    if "plain" in found:
        pairs = zip(found["saving"], found["plain"], strict=True)
        added = [with_save - without for with_save, without in pairs]
        row["added"] = timing.spread(added)
        row["share"] = statistics.median(added) / row["plain"]["median"]
    return row


COLUMNS = {
    "": lambda row: row["workload"],
    "50 steps ms": lambda row: row.get("error") or report.milliseconds(row["plain"]),
    "a save adds ms": lambda row: report.milliseconds(row["added"]),
    "share": lambda row: f"{row['share']:.1%}",
    "state GB": lambda row: report.gigabytes(row["bytes"]),
    "blocks ms": lambda row: report.milliseconds(row["blocked"]),
    "on disk after s": lambda row: f"{row['finished']['median']:.2f}",
    "checked s": lambda row: f"{row['verified']['median']:.2f}",
    "restored s": lambda row: f"{row['restored']['median']:.2f}",
}
