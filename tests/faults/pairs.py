"""Two processes of one run, started by launch/local.sh, one of which is killed."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from tests import processes
from tests.faults import runs

_LOCAL = processes.ROOT / "launch/local.sh"


def campaign(ours: runs.Runs, count: int, draw: random.Random, say: Callable) -> dict:
    """Kills a random one of the two after a few steps; the launcher starts both again.

    Returns:
      Kills; pairs that ended with the weights of an uninterrupted pair.
    """
    expected = ours.new_folder()
    output, kills = _run(ours, expected, 0, draw, say)
    workdir = ours.new_folder()
    output, kills = _run(ours, workdir, count, draw, say)
    assert output.count(": restart ") == kills, output
    assert processes.rows(workdir) == processes.rows(expected)
    processes.assert_same_arrays(
        processes.load(workdir, runs.STEPS), processes.load(expected, runs.STEPS)
    )
    return {"kills": kills, "ended": 1}


def _run(ours, workdir, count, draw, say) -> tuple[str, int]:
    """Runs a pair to its end; kills one of it so many times."""
    options = ["2", "--restarts", str(count), "--port", str(draw.randint(30000, 50000))]
    log = pathlib.Path(f"{workdir}.log")
    with open(log, "w") as file:
        launcher = subprocess.Popen(
            [_LOCAL, *options, "--", *runs.FLAGS, f"--workdir={workdir}"],
            env=ours.environment | {"PYTHON": sys.executable},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    kills = 0
    try:
        while kills < count:
            if not runs.wait_for_steps(launcher, workdir, draw.randint(2, 6)):
                break
            time.sleep(draw.uniform(0, 0.05))
            os.kill(processes.pid_of(draw.randint(0, 1), workdir), signal.SIGKILL)
            kills += 1
            say(kills)
        launcher.wait(timeout=600)
    finally:
        launcher.terminate()
        launcher.wait()
    output = log.read_text()
    assert launcher.returncode == 0, output
    return output, kills
