"""Half an hour of training with evaluation and saves: does anything grow?

  python -m tests.faults.soak [--minutes=30] [--write]

Watches a real run of configs/debug.py: the memory of the trainer and of its workers,
open files, threads, the files in its folder, and whether anything is compiled again.
The first sixth is warm-up. --write puts the table into docs/runs.md.
"""

import argparse
import dataclasses
import pathlib
import signal
import statistics
import sys
import tempfile
import time

import psutil

from dinov2_jax import errors
from dinov2_jax.runtime import event_log
from tests import processes
from tests.faults import document

_EVERY = 5.0  # seconds between looks
_ALLOWED = 0.02  # growth of memory after the warm-up
FLAGS = (
    "--config=configs/debug.py",
    "--config.train.steps=10000000",
    "--config.optim.warmup_steps=100",
    "--config.checkpoint.every=100",
    "--config.evaluation.every=500",
    "--config.evaluation.max_images=64",
    "--config.log.every=10",
)


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a run holds at a moment; memory in MB."""

    second: float
    trainer: float
    workers: float
    open_files: int
    threads: int
    files: int


def main() -> int:
    """Prints the table; the exit code is 1 if something grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--write", action="store_true", help="the table into docs")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder, "run")
        trainer = processes.Trainer(JAX_COMPILATION_CACHE_DIR=f"{folder}/compilations")
        process = trainer.start(*FLAGS, f"--workdir={workdir}")
        try:
            samples = list(_watch(process, workdir, 60 * flags.minutes))
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == errors.REQUEUE, output
        log = event_log.read(workdir)
    table, grew = judge(samples, log)
    print("\n".join(table))
    if flags.write:
        document.write(processes.ROOT / "docs/runs.md", "soak", "\n".join(table))
    return int(grew)


def _watch(process, workdir, seconds):
    """Samples from the first step on."""
    begin = None
    while begin is None or time.monotonic() < begin + seconds:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(_EVERY)
        if begin is None:
            if processes.steps_logged(workdir):
                begin = time.monotonic()
            continue
        trainer = psutil.Process(process.pid)
        yield Sample(
            second=time.monotonic() - begin,
            trainer=_memory(process.pid),
            workers=sum(_memory(child.pid) for child in trainer.children(True)),
            open_files=trainer.num_fds(),
            threads=trainer.num_threads(),
            files=sum(path.is_file() for path in workdir.rglob("*")),
        )


def _memory(pid: int) -> float:
    """MB that belong to a process alone and come from no file."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    (size,) = (x.split()[1] for x in lines if x.startswith("RssAnon:"))
    return int(size) * 1024 / 1e6


def judge(samples: list[Sample], log: list[dict]) -> tuple[list[str], bool]:
    """A table in Markdown, a row for each sixth of the time; whether anything grew."""
    sixth = samples[-1].second / 6
    names = [field.name for field in dataclasses.fields(Sample)][1:]
    titles = ("minutes", "trainer, MB", "workers, MB", "open files", "threads", "files")
    table = [f"| {' | '.join(titles)} |", "|" + "---:|" * len(titles)]
    medians = []
    for part in range(6):
        inside = [s for s in samples if part * sixth <= s.second <= (part + 1) * sixth]
        median = {n: statistics.median(getattr(s, n) for s in inside) for n in names}
        medians.append(median)
        cells = [f"{part * sixth / 60:.0f} to {(part + 1) * sixth / 60:.0f}"]
        cells += [f"{value:,.0f}" for value in median.values()]
        table.append(f"| {' | '.join(cells)} |")
    first, last = medians[1], medians[-1]
    growth = {n: last[n] / first[n] - 1 for n in ("trainer", "workers")}
    kinds = [event["event"] for event in log]
    table += [
        "",
        f"{log[-1]['step']:,} steps, {kinds.count('save')} saves, "
        f"{kinds.count('evaluate')} evaluations, {kinds.count('recompiled')} "
        f"recompilations. Since the first sixth the memory of the trainer grew by "
        f"{growth['trainer']:.1%}, that of the workers by {growth['workers']:.1%}.",
    ]
    grew = max(growth.values()) > _ALLOWED or "recompiled" in kinds
    # Pools of threads fill late, and a checkpoint more or less is there at each look.
    for name, share in (("open_files", 0.1), ("threads", 0.25), ("files", 0.25)):
        grew |= last[name] > (1 + share) * first[name]
    return table, grew


if __name__ == "__main__":
    sys.exit(main())
