"""Two students of one teacher in one program, against one run after the other.

The teacher (ViT-B/14 with heads) is random, and so are the batches. What one can hope
for is the ratio of useful FLOPs, as `distillation.workloads` counts them: the teacher's
pass is saved once. Contestants take turns.
"""

import json

from benchmarks import contest, report, timing, workers
from benchmarks.settings import Settings

SIZES = {"size": 56, "group": 8, "prototypes": 4096, "tiny": 0}
TINY = {"size": 28, "group": 2, "prototypes": 16, "tiny": 1}


def run(args: Settings) -> None:
    """Measure, print the table and write the results."""
    sizes = TINY if args.tiny else SIZES
    flags = [json.dumps(sizes), f"--samples={args.samples}"]
    contestants = [
        contest.Contestant(
            name,
            workers.Command("students_jax", [name, *flags], {"JAX_PLATFORMS": "cpu"}),
        )
        for name in ("together", "apart")
    ]
    measured: contest.Measured = {}
    for _ in range(args.rounds):
        contest.measure_round(contestants, measured, args)
    rows = []
    for name, result in measured.items():
        row = {"contestant": name} | result
        row.pop("ratios", None)
        if result["seconds"]:
            row["time"] = timing.spread(result["seconds"])
            if measured["together"]["seconds"]:
                row["ours_over_this"] = contest.ours_over(result, measured["together"])
        rows.append(row)
    report.write("students", args, rows, sizes=sizes)
    report.show(COLUMNS, rows)


COLUMNS = {
    "contestant": lambda row: row["contestant"],
    "ms": lambda row: row.get("error") or report.milliseconds(row["time"]),
    "together is": lambda row: contest.factor(row["ours_over_this"]),
    "MFLOP an image": lambda row: f"{row['flops'] / 1e6:,.0f}",
}
