"""Evaluations of frozen features: python -m dinov2_jax.eval TASK --model=SOURCE ..."""

import argparse
import contextlib
import importlib
import os
import pathlib
import sys
from typing import Any

from dinov2_jax import cli, files
from dinov2_jax.data.decode import pillow_setup
from dinov2_jax.embed import __main__ as embed

# Task -> one line about it; each is a module of `eval.tasks` with `add_arguments` and
# `run(arguments, backbone)`, which returns a `report.Result`.
TASKS = {
    "knn": "k-nearest-neighbour classification",
    "linear": "linear classifiers at many learning rates",
    "logreg": "logistic regression",
    "finetune": "supervised fine-tuning for classification",
    "video": "classification of videos by single frames",
    "retrieval": "instance retrieval by cosine similarity",
    "segmentation": "semantic segmentation by a linear head on patches",
    "depth": "monocular depth by heads on patches",
    "matching": "matching of patches, without labels",
    "cluster": "objects without labels, by k-means over patches",
    "predict": "maps or classes of any images by a trained head",
}

_DESCRIPTION = """
Evaluates the frozen features of a backbone. TASK is one of

{tasks}

TASK --help lists the flags of a task; their defaults are the reference's protocol.
The numbers and the protocol are printed, and written to OUT/results.json and
OUT/report.html.
"""


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the flags say and return the exit code."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)

    def run() -> None:
        evaluate(args)

    return cli.exit_code(run, interrupted="the same command resumes the evaluation")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags; wrong ones give one line and exit code 2."""
    width = max(map(len, TASKS))
    tasks = "\n".join(f"  {name:{width}}  {about}" for name, about in TASKS.items())
    parser = cli.Parser(
        prog="dinov2-jax evaluate",
        description=_DESCRIPTION.format(tasks=tasks),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    for name, about in TASKS.items():
        task = commands.add_parser(name, help=about, description=about)
        _add_common_arguments(task)
        _module(name).add_arguments(task)
    args = parser.parse_args(argv)
    args.out = args.out or pathlib.Path("evaluation") / args.task
    args.cache = args.cache or files.cache_folder() / "features"
    return args


def evaluate(args: argparse.Namespace) -> Any:
    """Run a task, write its results and return them, a `report.Result`.

    Raises:
      UserError: A foreseen error.
    """
    # Imported here, so that --help and wrong flags need not wait for jax.
    from dinov2_jax.eval import baselines, features, report

    baselines.check(args)
    report.check_folder(args.out)
    task = _module(args.task)
    backbone = features.load(
        args.model,
        which=args.which,
        num_heads=args.num_heads,
        dtype=args.dtype,
        batch_size=args.batch_size,
        workers=args.workers,
        cache=args.cache,
    )
    with _memory_errors(args):
        result = task.run(args, backbone)
        if args.baselines:
            result = baselines.add(result, task.run, args, backbone)
    print(report.text(result))
    report.write(result, args.out)
    print(f"wrote {args.out / 'results.json'} and {args.out / 'report.html'}")
    return result


def _memory_errors(args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Name the flags that need less memory if there is too little."""
    from dinov2_jax.runtime import out_of_memory

    names = [n for n in ("train_batch_size", "batch_size") if hasattr(args, n)]
    flags = " or ".join(f"--{name.replace('_', '-')}" for name in names)
    return out_of_memory.explained(
        f"in the task {args.task}",
        lambda: f"lower {flags}, or use --dtype=bfloat16 or smaller images",
    )


def _module(task: str) -> Any:
    return importlib.import_module(f"dinov2_jax.eval.tasks.{task}")


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(baselines=False)  # of tasks that know none
    add = parser.add_argument

    def home(text: str) -> pathlib.Path:
        """Expand ~, which the shell does not do in --out=~/results."""
        return pathlib.Path(text).expanduser()

    add(
        "--model",
        required=True,
        type=os.path.expanduser,
        metavar="SOURCE",
        help="whatever dinov2_jax.load takes: a run's folder, a file of weights, a "
        "name such as dinov2_vits14",
    )
    add("--out", type=home, metavar="DIR", help="default: evaluation/TASK")
    add(
        "--cache",
        type=home,
        metavar="DIR",
        help="folder for features; default: below ~/.cache/dinov2_jax",
    )
    add("--which", choices=("teacher", "student"), help="of a training checkpoint")
    add("--num-heads", type=cli.positive, help="where the weights do not tell")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the matmuls; float32 on the CPU, bfloat16 on accelerators",
    )
    add(
        "--batch-size",
        type=cli.positive,
        help="images at a time when features are extracted",
    )
    add("--workers", type=cli.positive, help="threads that decode; one a core")


if __name__ == "__main__":
    cli.keep_freed_memory()
    embed.one_device_a_core()
    pillow_setup.configure()
    cli.start(main)
