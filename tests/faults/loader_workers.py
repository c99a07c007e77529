"""Worker processes of the data loader that are killed, as when memory runs out."""

import os
import random
import signal
from collections.abc import Callable

from dinov2_jax import errors
from tests.faults import runs


def campaign(ours: runs.Runs, count: int, draw: random.Random, say: Callable) -> dict:
    """Kills a worker of a run at a random step.

    Returns:
      Killed workers, each of which ended its run with exit code 75 and its signal; runs
      that ended as the uninterrupted one.
    """
    killed = ended = 0
    while killed < count:
        workdir = ours.new_folder()
        while killed < count:
            process = ours.start(workdir, "--config.data.workers=1")
            if runs.wait_for_steps(process, workdir, draw.randint(1, 3)):
                workers = runs.children(process.pid)  # none, once all is loaded
                if workers:
                    os.kill(draw.choice(workers), signal.SIGKILL)
            output, _ = process.communicate(timeout=600)
            if process.returncode == 0:  # all was loaded before the kill
                break
            assert process.returncode == errors.TRY_AGAIN, output
            assert "Traceback" not in output and "died of signal 9" in output, output
            killed += 1
            say(killed)
        ours.finish(workdir)
        ended += 1
    return {"killed": killed, "ended": ended}
