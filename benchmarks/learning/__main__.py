"""python -m benchmarks.learning NAME: train the arms of a study and compare them.

  distill      a student of a frozen teacher against the same from scratch
  highres      a short stage at 84 px after a pretraining at 48 px
  gram         Gram anchoring of a model whose patch features were damaged
  small_batch  batches of 8 to 64, the teacher's momentum and its targets
  simdino      SimDINO's objective against the default at equal FLOPs
  adapt        continued training on other images, naive or guarded
  curated      a curated part of a long-tailed set against a random one

Each training has a process of its own. Models are judged on the photographs'
tiles "val" and reported on "test". Rows go to benchmarks/results/learning/NAME.json,
and the tables from them to docs/learning.md. What is finished is not run again, what
was interrupted is resumed; runs are kept in --folder.
"""

import argparse
import fnmatch
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.learning import catalogue, results, study, tables
from dinov2_jax import cli, errors

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "learning.md"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `arms` and `seeds` are then those of the study."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", choices=catalogue.STUDIES, metavar="NAME")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="default: all of the study"
    )
    parser.add_argument(
        "--steps", type=cli.positive, help="length; the others of a study follow it"
    )
    parser.add_argument("--arms", nargs="+", help="names or patterns, such as 'b16-*'")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    parser.add_argument(
        "--folder", type=pathlib.Path, default=pathlib.Path("runs/learning")
    )
    parser.add_argument("--results", type=pathlib.Path, default=results.FOLDER)
    flags = parser.parse_args(arguments)
    chosen = catalogue.STUDIES[flags.study]
    flags.folder = flags.folder.absolute()
    flags.steps = flags.steps or chosen.steps
    flags.seeds = range(chosen.seeds) if flags.seeds is None else flags.seeds
    patterns = flags.arms or ["*"]
    for pattern in patterns:
        if not fnmatch.filter(chosen.arms, pattern):
            parser.error(f"--arms: no {pattern} among {', '.join(chosen.arms)}")
    flags.arms = [
        name
        for name in chosen.arms
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]
    return flags


def main() -> int:
    """Run what is missing of a study, write its rows and tables, and print these."""
    flags = parse()
    chosen, path = catalogue.STUDIES[flags.study], flags.results / f"{flags.study}.json"
    code = 0
    if not flags.table:
        cli.exit_on_signals()
        code = _run_all(flags, path)
    print(tables.markdown(chosen, results.read(path)))
    return code


def _run_all(flags: argparse.Namespace, path: pathlib.Path) -> int:
    """Run the missing arms one after the other; return the code of one that failed."""
    for seed in flags.seeds:
        for arm in flags.arms:
            wanted = {"arm": arm, "seed": seed, "steps": flags.steps}
            if results.key(wanted) in map(results.key, results.read(path)):
                continue
            print(f"{flags.study}: {arm}, seed {seed}", flush=True)
            if code := _run(flags, arm, seed):
                return code
            if flags.results == results.FOLDER:
                write_page()
    return 0


def _run(flags: argparse.Namespace, arm: str, seed: int) -> int:
    """Train and measure an arm, each part in a process; return a failure's code."""
    setting = study.Setting(flags.folder, seed, flags.steps)
    for i, run in enumerate(catalogue.STUDIES[flags.study].arms[arm](setting).runs):
        parts = [] if run.prepare is None else ["prepare"]
        for part in parts if run.is_finished() else [*parts, "train"]:
            code = _start(flags, part, arm, seed, i)
            if code == errors.NON_FINITE:  # a result too
                return _start(flags, "measure", arm, seed)
            if code:
                return code
    return _start(flags, "measure", arm, seed)


def _start(
    flags: argparse.Namespace, part: str, arm: str, seed: int, run: int = 0
) -> int:
    """Run a process that ends with this one; return its exit code."""
    command = [sys.executable, "-m", "benchmarks.learning.single", part]
    command += [flags.study, arm, f"--seed={seed}", f"--steps={flags.steps}"]
    command += [f"--folder={flags.folder}", f"--results={flags.results}"]
    with subprocess.Popen([*command, f"--run={run}"]) as child:
        try:
            return child.wait()
        finally:
            child.terminate()  # a training saves its state first


def write_page() -> None:
    """Write the tables of all studies into the guide."""
    text = PAGE.read_text()
    found = {
        name: tables.markdown(made, results.read(results.FOLDER / f"{name}.json"))
        for name, made in catalogue.STUDIES.items()
    }
    PAGE.write_text(tables.fill(text, found))


if __name__ == "__main__":
    sys.exit(main())
