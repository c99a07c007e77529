"""python -m benchmarks PART [PART ...]: measure, print tables, write JSON.

  step        the training step against PyTorch and the reference: images/s, MFU, memory
  attention   every attention kernel that runs here, against PyTorch
  input       images/s of the host's input pipeline (CPU)
  embed       features of a folder of photographs against PyTorch (CPU)
  evaluation  k-NN, linear probe, logistic regression and sliding windows against faiss,
              PyTorch, scikit-learn and the backbone alone (CPU)
  students    two students of one teacher in one program against two runs (CPU)
  aot         the compiler's predictions for machines that are not present

Results go to benchmarks/results/<part>[-device].json. Numbers are medians with their
range, after warm-up, on random input. Kernels for absent TPUs and GPUs are compiled by
`python -m benchmarks.tpu_attention`, `tpu_crops` and `gpu_compile`.
"""

import argparse
import importlib
import pathlib
import time
from collections.abc import Sequence

from benchmarks import settings, workers
from dinov2_jax import cli

PARTS = {  # name -> module, whether it uses the device, share of --minutes
    "step": ("step", True, 6),
    "attention": ("attention", True, 2),
    "input": ("input_pipeline", False, 1),
    "embed": ("embed", False, 2),
    "evaluation": ("evaluation", False, 6),
    "students": ("students", False, 2),
    "aot": ("aot", False, 6),
}
RESULTS = pathlib.Path(__file__).parent / "results"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each contestant")
    parser.add_argument("--samples", type=int, default=5, help="samples of each run")
    parser.add_argument(
        "--minutes", type=float, help="time for all parts; the rest is skipped"
    )
    parser.add_argument(
        "--reference",
        default="",
        metavar="CLONE",
        help="clone of facebookresearch/dinov2",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        help="workloads of step, aot and evaluation to run",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="config fields to change: model.remat=selective",
    )
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a test")
    parser.add_argument(
        "--plan",
        choices=("cpu", "gpu"),
        help="workloads to run instead of the device's",
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Run the parts one after the other."""
    flags = parse()
    cli.exit_on_signals()  # so that worker processes end with this one
    end = time.monotonic() + 60 * flags.minutes if flags.minutes else None
    device = {"platform": "cpu", "kind": "cpu"}
    if any(PARTS[part][1] for part in flags.parts):
        device = workers.run_worker("environment", [], {})
    for i, part in enumerate(flags.parts):
        deadline = None
        if end is not None:  # its share of the time that is left
            shares = [PARTS[name][2] for name in flags.parts[i:]]
            left = max(end - time.monotonic(), 0)
            deadline = time.monotonic() + left * shares[0] / sum(shares)
        args = settings.Settings(
            device=device,
            plan=flags.plan or ("cpu" if device["platform"] == "cpu" else "gpu"),
            results=flags.results,
            rounds=flags.rounds,
            samples=flags.samples,
            deadline=deadline,
            reference=flags.reference,
            tiny=flags.tiny,
            only=tuple(flags.only),
            overrides=tuple(flags.set),
        )
        print(f"{part}, {device['kind']}", flush=True)
        importlib.import_module(f"benchmarks.{PARTS[part][0]}").run(args)


if __name__ == "__main__":
    main()
