"""The run that the campaign breaks, and the result it must still reach."""

import contextlib
import itertools
import os
import pathlib
import re
import subprocess
import time
from collections.abc import Callable

from dinov2_jax.checkpoint import checksums
from tests import processes

STEPS = 60
EVERY = 2  # steps between saves
# The least to compile; the k-NN and the picture at the end are part of it.
FLAGS = (
    "--config=configs/debug.py",
    "--config.model.depth=1",
    "--config.data.augmentation=host",
    "--config.data.workers=0",
    "--config.train.batch_size=8",
    f"--config.train.steps={STEPS}",
    f"--config.checkpoint.every={EVERY}",
    "--config.evaluation.max_images=32",
    "--config.evaluation.picture_size=32",
)


class Runs:
    """Starts runs of one config and compares each with an uninterrupted one.

    Args:
      folder: For all of them.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder, self._numbers = folder, itertools.count()
        self._trainer = processes.Trainer(
            JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # compiles in half the time
            JAX_COMPILATION_CACHE_DIR=str(folder / "compilations"),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
        self.environment = self._trainer.environment
        self.uninterrupted = folder / "uninterrupted"
        for workdir in (folder / "first", self.uninterrupted):  # the first compiles
            start = time.monotonic()
            process = self.start(workdir)
            output, _ = process.communicate()
            assert process.returncode == 0, output
            self.seconds = time.monotonic() - start
        self._rows = processes.rows(self.uninterrupted)
        self._arrays = processes.load(self.uninterrupted, STEPS)

    def new_folder(self) -> pathlib.Path:
        """For a run."""
        return self._folder / f"run{next(self._numbers)}"

    def start(self, workdir: pathlib.Path, *flags: str) -> subprocess.Popen:
        """Starts or resumes a run."""
        return self._trainer.start(*FLAGS, f"--workdir={workdir}", *flags)

    def finish(self, workdir: pathlib.Path) -> None:
        """Resumes a run to its end and checks it."""
        process = self.start(workdir)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        self.check(workdir)

    def check(self, workdir: pathlib.Path) -> None:
        """Checks that rows and final state equal those of the uninterrupted run."""
        assert processes.rows(workdir) == self._rows
        processes.assert_same_arrays(processes.load(workdir, STEPS), self._arrays)
        assert not processes.unfinished_saves(workdir)
        picture = (self.uninterrupted / "pca.png").read_bytes()
        assert (workdir / "pca.png").read_bytes() == picture


def wait(process: subprocess.Popen, happened: Callable[[], bool]) -> bool:
    """Whether something happened before a process ended."""
    deadline = time.monotonic() + 600
    while process.poll() is None:
        if happened():
            return True
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return False


def wait_for_steps(process: subprocess.Popen, workdir: pathlib.Path, more: int) -> bool:
    """Whether a run logged so many steps more than ever before it ended."""
    goal = processes.steps_logged(workdir) + more
    return wait(process, lambda: processes.steps_logged(workdir) >= goal)


def saved(workdir: pathlib.Path) -> list[int]:
    """Steps of the finished checkpoints, sealed or not; none before the first."""
    if not (workdir / "checkpoints").is_dir():
        return []
    return processes.saved_steps(workdir)


def unsealed(workdir: pathlib.Path) -> list[int]:
    """Steps of the finished checkpoints that are not sealed."""
    folder = workdir / "checkpoints"
    return [s for s in saved(workdir) if not checksums.is_sealed(folder / str(s))]


def unfinished(workdir: pathlib.Path) -> set[tuple[str, int]]:
    """Names and inodes of the folders of saves under way or given up."""
    found = set()
    for folder in processes.unfinished_saves(workdir):
        with contextlib.suppress(FileNotFoundError):  # renamed in between
            found.add((folder.name, folder.stat().st_ino))
    return found


def resumed_step(output: str) -> int | None:
    """Returns the step a run resumed from; None if it started over or ended before."""
    found = re.search(r"^resumed from step (\d+)", output, re.MULTILINE)
    return int(found[1]) if found else None


def children(pid: int) -> list[int]:
    """Worker processes of a trainer."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(after_name[1]) == pid and b"spawn_main" in command:
            found.append(int(path.parent.name))
    return found


def leftovers(folder: pathlib.Path) -> list[str]:
    """Commands of processes that still run for one of our folders."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command and int(path.parent.name) != os.getpid():
            found.append(command[:200])
    return found
