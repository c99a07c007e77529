"""SIGTERM, with damage to the saved checkpoint before the run resumes."""

import random
import signal
import time
from collections.abc import Callable

from tests import processes
from tests.faults import damage, runs


def campaign(ours: runs.Runs, count: int, draw: random.Random, say: Callable) -> dict:
    """Ends runs with SIGTERM, damages the newest checkpoint and resumes.

    Returns:
      Number of SIGTERMs that ended with exit code 42; those sent
      twice; damaged checkpoints that the next start found; runs that ended as the
      uninterrupted one.
    """
    terminated = twice = found = ended = 0
    while terminated < count:
        workdir, damaged = ours.new_folder(), None
        while terminated < count or damaged:
            left = len(runs.saved(workdir))
            process = ours.start(workdir)
            more = draw.randint(1, 3)
            if terminated < count and runs.wait_for_steps(process, workdir, more):
                process.send_signal(signal.SIGTERM)
                if draw.random() < 0.5:  # once more, in the save or near it
                    time.sleep(draw.uniform(0, 0.3))
                    process.send_signal(signal.SIGTERM)
                    twice += 1
            output, _ = process.communicate(timeout=600)
            if damaged:
                assert f"checkpoint {damaged} is damaged (" in output, output
                assert runs.resumed_step(output) < int(damaged.name), output
                assert left > 1
                found, damaged = found + 1, None
            if process.returncode == 0:  # it was done before the signal came
                break
            assert process.returncode == 42, output
            step = runs.saved(workdir)[-1]
            assert f"stopped on request: saved step {step}; " in output
            assert processes.steps_logged(workdir) == step  # nothing is lost
            terminated += 1
            say(terminated)
            if len(runs.saved(workdir)) > 1:
                damaged = workdir / "checkpoints" / str(step)
                damage.damage(damaged, draw)
        if process.returncode:
            ours.finish(workdir)
        else:
            ours.check(workdir)
        ended += 1
    return {"terminated": terminated, "twice": twice, "found": found, "ended": ended}
