"""From a folder of images to a balanced list without duplicates, in one command.

    dinov2-jax curate photos/ --count 100000 --out curated.csv

computes features of all images, finds duplicates by a threshold that is calibrated on
these images and this model, clusters the images, chooses --count of them evenly from
the clusters, and draws a report. curated.csv is what training takes as data.path.

Each step is printed as the command that does the same; run these commands yourself to
change their settings, which follow from the number of images. Their files are in
curated.steps/, and the report is report.html there. To resume a killed run, repeat its
command: steps are done again only if their flags or what they read changed.
"""

import argparse
import importlib
import json
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

from dinov2_jax import cli, errors, files
from dinov2_jax.curate import finished_steps, tables
from dinov2_jax.weights import flags

_MODEL = "dinov2_vits14_reg"
_FEWEST_CALIBRATED, _MOST_CALIBRATED = 100, 500  # images, which embed 14 times each


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the one command.

    Args:
      parser: The parser that gets them.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    home = os.path.expanduser  # the shell does not expand --model=~/weights.pth
    add("data", metavar="FOLDER", type=home, help="image files: a folder or a list")
    add("--count", required=True, type=cli.positive, help="number of images to choose")
    add("--out", required=True, type=cli.path, help="the list of images, *.csv")
    add(
        "--model",
        type=home,
        default=_MODEL,
        help=f"file, folder or name of weights (default: {_MODEL})",
    )
    add("--size", type=cli.positive, help="side of the central crop, px")
    flags.add(parser)
    add(
        "--seed",
        type=cli.seed,
        default=0,
        help="seed of all steps (default: 0)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace OUT and discard the files of earlier steps",
    )


def run(args: argparse.Namespace) -> None:
    """Do all steps that are not finished.

    Args:
      args: The parsed flags.

    Raises:
      UserError: A step cannot be done, or OUT exists and is not from here.
    """
    tables.check_out(args.out, suffix=".csv", new=False)
    work = args.out.with_suffix(".steps")
    finished = finished_steps.FinishedSteps(work)
    ours = args.out.is_file() and finished.wrote("sample", args.out)
    if not ours and not args.overwrite:
        tables.check_out(args.out, suffix=".csv")
    work.mkdir(exist_ok=True)
    fix = "wait for it to end or choose another --out"
    with files.lock(work / "lock", what=str(work), fix=fix):
        _curate(args, work, finished)


def _curate(
    args: argparse.Namespace, work: pathlib.Path, finished: finished_steps.FinishedSteps
) -> None:
    """Do the steps one after the other."""
    features, hashes = work / "features.parquet", work / "hashes.parquet"
    dups, clusters = work / "dups.parquet", work / "clusters.parquet"
    model = [f"--model={args.model}", *_weights_flags(args)]
    size = [f"--size={args.size}"] if args.size else []
    embed = [args.data, *model, *size, f"--out={features}"]
    rows = _embed(embed, features, lambda: _discard(args, work, finished))
    calibrated = min(max(rows // 20, _FEWEST_CALIBRATED), _MOST_CALIBRATED)
    dedup = [f"--features={features}", f"--calibrate={calibrated}", *model]
    dedup.append(f"--hashes={hashes}")
    choose = [f"--clusters={clusters}", f"--exclude={dups}", f"--count={args.count}"]
    draw = [f"--dups={dups}", f"--clusters={clusters}", f"--manifest={args.out}"]
    page = work / "report.html"
    plan = (  # name, flags, what is read and what is written
        ("dedup", dedup, [features], dups),
        ("cluster", [f"--features={features}"], [features], clusters),
        ("sample", choose, [clusters, dups], args.out),
        (
            "report",
            [f"--features={features}", *draw],
            [features, dups, clusters, args.out],
            page,
        ),
    )
    for name, arguments, reads, out in plan:
        step = finished_steps.Step(
            name,
            [*arguments, f"--seed={args.seed}", f"--out={out}"],
            {path.name: files.sha256(path) for path in reads},
            out,
            intermediate=[hashes] if name == "dedup" else [],
        )
        _do(finished, step)
    _print(f"\nthe list is {args.out}, the report {page}")


def _weights_flags(args: argparse.Namespace) -> list[str]:
    """Return the flags of `weights.flags` that are set, as they were given."""
    chosen = flags.chosen(args).items()
    return [f"--{name.replace('_', '-')}={value}" for name, value in chosen if value]


def _discard(
    args: argparse.Namespace, work: pathlib.Path, finished: finished_steps.FinishedSteps
) -> None:
    """Remove what --overwrite replaces: the list and all files of earlier steps."""
    if args.overwrite:
        finished.forget()
        args.out.unlink(missing_ok=True)
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()


def _embed(argv: list[str], out: pathlib.Path, discard: Callable[[], None]) -> int:
    """Compute the features, which resumes by itself; return the number of rows.

    Args:
      argv: Flags of `embed`.
      out: The features file.
      discard: Function that removes earlier files, once images and model are checked.
    """
    from dinov2_jax.curate import image_files
    from dinov2_jax.embed import __main__ as embed
    from dinov2_jax.embed import images, output, resumable_output

    def check(source: Any, settings: Mapping[str, Any]) -> None:
        """Refuse what later steps would, and features of other images or flags."""
        root = images.root(source)
        if root is None:
            raise errors.UserError(
                f"{argv[0]} has shards, but the list that is written names files: name "
                "a folder of images or a list of them"
            )
        image_files.refuse_repeated(source)
        discard()
        if out.exists() and not output.is_complete(out, settings, root):
            _print(f"{out} is of other images or flags: embedding again")
            out.unlink()
        resumable_output.remove_other(out, settings)

    _print_command("embed", argv)
    embed.embed(embed.parse_arguments(argv), check)
    return json.loads(output.description_of(out).read_bytes())["rows"]


def _do(finished: finished_steps.FinishedSteps, step: finished_steps.Step) -> None:
    """Do a step unless it is finished; it goes on with what it had begun."""
    _print_command(f"curate {step.name}", step.arguments)
    if finished.has(step):
        _print("done before")
        return
    if not finished.has_begun(step):  # what is left there is of something else
        partial = step.output.with_name(f"{step.output.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for path in step.intermediate:
            path.unlink(missing_ok=True)
    step.output.unlink(missing_ok=True)
    finished.begin(step)
    module = importlib.import_module(f"dinov2_jax.curate.{step.name}")
    parser = cli.Parser(prog=f"dinov2-jax curate {step.name}")
    module.add_flags(parser)
    module.run(parser.parse_args(list(step.arguments)))
    finished.finish(step)


def _print_command(program: str, arguments) -> None:
    _print(f"\n$ dinov2-jax {program} {shlex.join(arguments)}")


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
