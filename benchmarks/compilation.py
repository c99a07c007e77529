"""Seconds from a config to a compiled step, with scanned and unrolled blocks (CPU).

Measures tracing with lowering, and XLA's compilation, of the whole training step on
abstract state. Each measurement has its own process.
"""

import sys
from typing import Any

from benchmarks import report, workers, workloads
from benchmarks.settings import Settings

CASES = {"vits14": ("vits", 12), "vitg14": ("vitg", 40)}  # config, blocks


def run(args: Settings) -> None:
    """Measure, print the table and write the results."""
    rows: list[report.Row] = []
    for name, (config, depth) in CASES.items():
        if args.only and name not in args.only:
            continue
        workload = workloads.Workload(name, config, 4)
        if args.tiny:
            workload, depth = workloads.tiny(workload), 2
        scanned = None
        for blocks, unroll in (("scanned", 1), ("unrolled", depth)):
            print(f"  {name}: {blocks}", file=sys.stderr, flush=True)
            row = {"workload": name, "blocks": blocks} | compile_seconds(
                [*workload.arguments(), f"--set=model.scan_unroll={unroll}"], args
            )
            if "total" in row:
                scanned = scanned or row["total"]
                row["over_scanned"] = row["total"] / scanned
            rows.append(row)
            report.write("compile", args, rows)
    report.show(COLUMNS, rows)


def compile_seconds(arguments: list[str], args: Settings) -> dict[str, Any]:
    """Return the seconds that one process measured, or the error."""
    try:
        found = workers.run_worker(
            "jax_step",
            [
                *arguments,
                *(f"--set={text}" for text in args.overrides),
                "--compile_only",
            ],
            {"JAX_PLATFORMS": "cpu"},
            args.seconds_left(),
        )
    except workers.WorkerFailed as error:
        return {"error": str(error)}
    total = found["lower_seconds"] + found["compile_seconds"]
    return found | {"total": total}


COLUMNS = {
    "workload": lambda row: row["workload"],
    "blocks": lambda row: row["blocks"],
    "trace, lower s": lambda row: row.get("error") or f"{row['lower_seconds']:.1f}",
    "compile s": lambda row: f"{row['compile_seconds']:.1f}",
    "total s": lambda row: f"{row['total']:.1f}",
    "x scanned": lambda row: f"{row['over_scanned']:.1f}",
    "temporaries GB": lambda row: report.gigabytes(row["temp_bytes"]),
}
