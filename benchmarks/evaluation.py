"""The evaluations against what people use instead, on this machine's CPU.

  linear     four steps of 52 classifiers on features that are there (ViT-S, 1,000
             classes, batch 128), against the reference's loop in PyTorch, as it is and
             with the memory kept that glibc would return to the system
  knn        the 200 nearest of 100,000 features for 10,000 queries, against faiss's
             flat index
  logreg     a logistic regression solved to convergence, against scikit-learn's L-BFGS;
             both objectives are in the table
  window     segmentation of images by sliding windows, against the backbone (ViT-S/14)
             alone on the same windows

Contestants take turns. Inputs are random. Peers that are not installed are left out.
"""

import importlib.util
import json
from typing import Any

from benchmarks import contest, report, timing, workers
from benchmarks.settings import Settings

# Case -> sizes, tiny sizes, (package, module) of its peer.
CASES: dict[str, tuple[dict[str, int], dict[str, int], tuple[str, str]]] = {
    "linear": (
        {"width": 384, "classes": 1000, "batch": 128, "steps": 4},
        {"width": 8, "classes": 3, "batch": 4, "steps": 2},
        ("torch", "evaluation_torch"),
    ),
    "knn": (
        {"width": 384, "bank": 100_000, "queries": 10_000, "k": 200},
        {"width": 8, "bank": 300, "queries": 10, "k": 5},
        ("faiss", "evaluation_peers"),
    ),
    "logreg": (
        {"width": 384, "images": 4000, "classes": 20},
        {"width": 8, "images": 60, "classes": 3},
        ("sklearn", "evaluation_peers"),
    ),
    "window": (
        {"width": 384, "depth": 12, "side": 512, "images": 4, "classes": 150},
        {"width": 16, "depth": 2, "side": 28, "images": 1, "classes": 3},
        ("jax", "evaluation_jax"),
    ),
}


def contestants(case: str, args: Settings) -> list[contest.Contestant]:
    """Return ours and, where it is installed, the peer."""
    sizes, tiny, (package, module) = CASES[case]
    flags = [json.dumps(tiny if args.tiny else sizes), f"--samples={args.samples}"]
    variables = {"JAX_PLATFORMS": "cpu"}
    ours = workers.Command("evaluation_jax", [case, *flags], variables)
    found = [contest.Contestant("ours", ours)]
    if importlib.util.find_spec(package):
        peer = "backbone" if case == "window" else case
        name = "backbone alone" if case == "window" else package
        kept = variables | workers.KEEP_MEMORY
        if case == "linear":
            theirs = workers.Command(module, [peer, *flags], variables)
            found.append(contest.Contestant(name, theirs))
            name += ", memory kept"
        theirs = workers.Command(module, [peer, *flags], kept)
        found.append(contest.Contestant(name, theirs))
    return found


def run(args: Settings) -> None:
    """Measure, print the table and write the results."""
    cases = [case for case in CASES if case in args.only or not args.only]
    measured: dict[str, contest.Measured] = {case: {} for case in cases}
    for case in cases * args.rounds:
        print(f"  {case}:", end="", flush=True)
        contest.measure_round(contestants(case, args), measured[case], args)
        rows = summarize(measured)
        report.write("evaluation", args, rows, sizes={c: CASES[c][:2] for c in cases})
    report.show(COLUMNS, rows)


def summarize(measured: dict[str, contest.Measured]) -> list[report.Row]:
    """Return a row for each contestant of each case."""
    rows = []
    for case, by_name in measured.items():
        ours: dict[str, Any] = by_name.get("ours", {})
        for name, result in by_name.items():
            row = {"case": case, "contestant": name} | result
            row.pop("ratios", None)
            if result["seconds"]:
                row["time"] = timing.spread(result["seconds"])
                if ours["seconds"]:
                    row["ours_over_this"] = contest.ours_over(result, ours)
            rows.append(row)
    return rows


COLUMNS = {
    "": lambda row: row["case"],
    "contestant": lambda row: row["contestant"],
    "ms": lambda row: row.get("error") or report.milliseconds(row["time"]),
    "ours is": lambda row: contest.factor(row["ours_over_this"]),
    "objective": lambda row: f"{row['objective']:.8g}",
}
