"""SIGKILL at random moments: from the start of the process on, in saves, in between."""

import random
import signal
import time
from collections.abc import Callable

from tests import processes
from tests.faults import runs


def campaign(ours: runs.Runs, count: int, draw: random.Random, say: Callable) -> dict:
    """Kills runs again and again until they are done.

    Returns:
      Kills; those inside a save; those between a save and its seal; runs that ended
      with the weights of the uninterrupted one.
    """
    kills = inside = before_seal = ended = 0
    while kills < count:
        workdir = ours.new_folder()
        while kills < count:
            old = runs.saved(workdir)
            torn = runs.unfinished(workdir)
            process = ours.start(workdir)
            come = _moment(draw, workdir, ours.seconds, process)
            process.kill()
            output, _ = process.communicate()
            if not come and process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, output
            resumed = runs.resumed_step(output)
            assert resumed in (None, old[-1] if old else None), (old, output)
            # The save before the last one is always there.
            step = processes.steps_logged(workdir)
            now = runs.saved(workdir)
            assert step <= (now[-1] if now else 0) + 2 * runs.EVERY, (now, step)
            kills += 1
            inside += bool(runs.unfinished(workdir) - torn)
            before_seal += bool(set(runs.unsealed(workdir)) - set(old))
            say(kills)
        ours.finish(workdir)
        ended += 1
    return {
        "kills": kills,
        "inside": inside,
        "before_seal": before_seal,
        "ended": ended,
    }


def _moment(draw, workdir, seconds, process) -> bool:
    """Waits for one; False if the process ended before."""
    kind = draw.choices(["any", "step", "save", "seal"], [3, 2, 4, 2])[0]
    torn, old = runs.unfinished(workdir), set(runs.saved(workdir))
    number = draw.randint(0, 1)  # of new saves to let pass
    end = time.monotonic() + draw.uniform(0, seconds)
    if kind == "any":
        return runs.wait(process, lambda: time.monotonic() > end)
    if kind == "seal":
        return runs.wait(process, lambda: set(runs.unsealed(workdir)) - old)
    if kind == "step":
        come = runs.wait_for_steps(process, workdir, draw.randint(1, 4))
    else:
        come = runs.wait(
            process,
            lambda: (
                len(set(runs.saved(workdir)) - old) >= number
                and runs.unfinished(workdir) - torn
            ),
        )
    time.sleep(draw.uniform(0, 0.03))
    return come and process.poll() is None
