"""Plants faults, one at a time, in copies of the tree: the quick tests must catch each.

  python -m tests.mutants [--only NAME ...] [--jobs=2] [--write]

The tests of all faults run once on an unchanged copy first, because a fault is caught
only where the tests pass without it. All copies share one compilation cache, so that
no more than what a fault changes is compiled again. A fault is caught where a test
fails; a mutant of which no test can be imported is broken, which is not caught.
--write puts the table into tests/README.md. Exits with 1 if a fault was not caught.
"""

import argparse
import pathlib
import shutil
import signal
import sys
import tempfile
import time

import tqdm

from tests import processes
from tests.faults import document
from tests.mutants import faults, trial

DOCUMENT = processes.ROOT / "tests/README.md"
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs")


def main() -> int:
    """Plants the faults; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", metavar="FAULT", nargs="+", choices=[f.name for f in faults.ALL]
    )
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--write", action="store_true", help="the table into README.md")
    flags = parser.parse_args()
    if flags.write and flags.only:
        parser.error("--write needs all faults: leave out --only")
    chosen = [f for f in faults.ALL if not flags.only or f.name in flags.only]
    for number in (signal.SIGINT, signal.SIGTERM):  # ends what runs, removes copies
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dinov2_jax-mutants-") as name:
        folder = pathlib.Path(name)
        clean = folder / "clean"
        shutil.copytree(processes.ROOT, clean / "tree", ignore=_LEFT_OUT)
        if problem := run_clean(clean, chosen, folder / "compilations", flags.jobs):
            print(f"the tests do not pass without a fault:\n{problem}")
            return 2
        outcomes = plant_all(folder, chosen, flags.jobs)
    caught = [f for f in chosen if is_caught(f, outcomes[f.name])]
    minutes = (time.monotonic() - begin) / 60
    print(f"caught {len(caught)} of {len(chosen)} faults in {minutes:.0f} minutes")
    for fault in chosen:
        if fault not in caught:
            print(f"NOT CAUGHT: {fault.name} ({outcomes[fault.name].verdict})")
    if len(caught) < len(chosen):
        return 1
    if flags.write:
        document.write(DOCUMENT, "mutants", describe(outcomes))
    return 0


def run_clean(
    clean: pathlib.Path,
    chosen: list[faults.Fault],
    compilations: pathlib.Path,
    jobs: int,
) -> str:
    """Runs the tests of all faults on the unchanged copy; returns what is wrong."""
    tests = sorted({test for fault in chosen for test in fault.tests})
    print(f"running the tests of {len(chosen)} faults without any", flush=True)
    whole = {test for test in tests if "::" not in test}
    parts = [test for test in tests if test.partition("::")[0] not in whole]
    running = trial.Trial(
        clean, [*whole, *parts], compilations, limit=3600.0, processes=jobs
    )
    try:
        while not (outcome := running.outcome()):
            time.sleep(0.2)
        if outcome.verdict != "passed":
            return running.tail(40)
    finally:
        running.end()
    print(f"{len(outcome.passed)} tests passed in {outcome.seconds:.0f} s", flush=True)
    files_and_tests = {
        part
        for test in outcome.passed
        for part in (test, test.partition("[")[0], test.partition("::")[0])
    }
    idle = [test for test in tests if test not in files_and_tests]
    return "".join(f"{test} was not run: it is slow or skipped\n" for test in idle)


def plant_all(
    folder: pathlib.Path, chosen: list[faults.Fault], jobs: int
) -> dict[str, trial.Outcome]:
    """Tests every mutant, `jobs` at a time."""
    outcomes: dict[str, trial.Outcome] = {}
    running: dict[faults.Fault, trial.Trial] = {}
    waiting = list(chosen)
    bar = tqdm.tqdm(total=len(chosen), desc="mutants", disable=not sys.stderr.isatty())
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                fault = waiting.pop(0)
                plant(folder, fault)
                running[fault] = trial.Trial(
                    folder / fault.name, fault.tests, folder / "compilations"
                )
            time.sleep(0.1)
            for fault, tests in list(running.items()):
                outcome = tests.outcome()
                if outcome is None:
                    continue
                del running[fault]
                shutil.rmtree(folder / fault.name, ignore_errors=True)
                outcomes[fault.name] = outcome
                bar.update()
                bar.write(line(fault, outcome), file=sys.stdout)
                sys.stdout.flush()
    finally:
        for tests in running.values():
            tests.end()
        bar.close()
    return outcomes


def plant(folder: pathlib.Path, fault: faults.Fault) -> None:
    """Makes a copy of the tree that has the fault, with the bytecode of the rest."""
    tree = folder / fault.name / "tree"
    shutil.copytree(folder / "clean" / "tree", tree)
    path = tree / fault.file
    path.write_text(fault.planted(path.read_text()))


def is_caught(fault: faults.Fault, outcome: trial.Outcome) -> bool:
    """Whether a test failed, or waited for ever where that is what the fault does."""
    return outcome.verdict == "failed" or outcome.verdict == "timeout" and fault.hangs


def line(fault: faults.Fault, outcome: trial.Outcome) -> str:
    """What came of a mutant, for the console."""
    verdict = "caught" if is_caught(fault, outcome) else "SURVIVED"
    if verdict == "SURVIVED" and outcome.verdict != "passed":
        verdict = outcome.verdict.upper()
    by = f" by {outcome.test}" if outcome.test else ""
    message = f": {outcome.message[:100]}" if outcome.message else ""
    return f"{verdict:8} {outcome.seconds:4.0f} s  {fault.name}{by}{message}"


def describe(outcomes: dict[str, trial.Outcome]) -> str:
    """The table of faults and the tests that caught them, in Markdown."""
    lines = ["| Fault | File | Caught by |", "|---|---|---|"]
    for fault in faults.ALL:
        test = outcomes[fault.name].test or "the time limit"
        lines.append(f"| {fault.name} | `{fault.file}` | `{test}` |")
    return "\n".join([*lines, "", f"{len(faults.ALL)} of {len(faults.ALL)} caught."])


if __name__ == "__main__":
    sys.exit(main())
