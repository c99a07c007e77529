"""A disk that is filled to the last byte, and freed, again and again."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests import disks
from tests.faults import runs


def campaign(ours: runs.Runs, count: int, draw: random.Random, say: Callable) -> dict:
    """Fills the disk of a run at a random moment, frees it after its first message.

    Returns:
      Times that a full disk was survived; those where the run was killed while it was
      full; runs that ended as the uninterrupted one.
    """
    filled = killed = ended = 0
    while filled < count:
        with (
            tempfile.TemporaryDirectory() as folder,
            disks.mounted(Path(folder) / "disk", "24m") as disk,
        ):
            workdir = disk.path / "run"
            while filled < count:
                process = ours.start(workdir)
                while filled < count and _fill(process, disk, workdir, draw):
                    filled += 1
                    say(filled)
                    kill = draw.random() < 0.2
                    if kill:
                        killed += 1
                        process.kill()
                    disk.free()
                    if kill or not _saves_again(process, workdir):
                        break
                output, _ = process.communicate(timeout=600)
                assert process.returncode in (0, -9), output
                if process.returncode == 0:
                    break
            disk.free()
            ours.finish(workdir)
            ended += 1
    return {"filled": filled, "killed": killed, "ended": ended}


def _fill(process, disk, workdir, draw) -> bool:
    """Waits for a checkpoint, then for the message; False if the run ended before."""
    step = draw.randint(1, 4) + _newest(workdir)
    if step > runs.STEPS - 16 or not runs.wait(
        process, lambda: _newest(workdir) >= step
    ):
        return False
    disk.fill()
    good = _newest(workdir)
    for line in process.stdout:
        if line.startswith("cannot save step"):
            break
        assert "Traceback" not in line, process.stdout.read()
    else:
        return False  # the run was over
    assert "No space left on device" in line
    assert not runs.unfinished(workdir), line
    assert _newest(workdir) >= good
    return process.poll() is None


def _saves_again(process, workdir) -> bool:
    newest = _newest(workdir)
    return runs.wait(process, lambda: _newest(workdir) > newest)


def _newest(workdir) -> int:
    """Step of the newest sealed checkpoint, whose content is as it was."""
    sealed = sorted(set(runs.saved(workdir)) - set(runs.unsealed(workdir)))
    return sealed[-1] if sealed else 0
