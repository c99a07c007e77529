"""A process that gets nowhere ends, and says where it stood."""

import contextlib
import subprocess
import sys
import types

import pytest

from dinov2_jax import errors, train
from dinov2_jax.runtime import watchdog

SCRIPT = """
import pathlib, sys, time
from dinov2_jax.runtime import watchdog

def report(doing, path):
    pathlib.Path(sys.argv[1], "reported").write_text(f"{doing} {path}")

dog = watchdog.Watchdog(3.0, pathlib.Path(sys.argv[1]), process=3)
dog.report = report
for step in range(8):
    dog.begin(f"step {step}")
    time.sleep(0.5)
with dog.during("a long one", times=4):
    time.sleep(5)
if len(sys.argv) > 2:
    dog.close()
def the_place_where_it_hangs():
    time.sleep(60 if len(sys.argv) == 2 else 4)
the_place_where_it_hangs()
print("over")
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """{"hangs", "closed": (folder, exit code, output, error output)}, run together."""
    running = {}
    for name, flags in (("hangs", []), ("closed", ["closed"])):
        folder = tmp_path_factory.mktemp(name)
        running[name] = (
            folder,
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(folder), *flags],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ),
        )
    texts = {name: process.communicate() for name, (_, process) in running.items()}
    return {
        name: (folder, process.returncode, *texts[name])
        for name, (folder, process) in running.items()
    }


def test_leaves_with_all_stacks(ended):
    folder, code, _, said = ended["hangs"]
    assert code == errors.HUNG == 134
    (error,) = (x for x in said.splitlines() if x.startswith("error: "))
    assert error.startswith("error: process 3: nothing was finished for ")
    assert "(at step 7)" in error and "--config.train.hang_timeout" in error
    assert "the_place_where_it_hangs" in said
    (stacks,) = folder.glob("stacks-process-3-*.txt")
    assert "the_place_where_it_hangs" in stacks.read_text() and str(stacks) in error
    assert (folder / "reported").read_text() == f"step 7 {stacks}"


class Closes:
    """Stands for the event of the end: each wait is late by some seconds."""

    def __init__(self, now, late):
        self.now, self.late = now, list(late)

    def wait(self, seconds):
        if not self.late:
            return True
        self.now[0] += seconds + self.late.pop(0)
        return False


@pytest.mark.parametrize("late, leaves", [([0.0, 30.0, 0.1], False), ([0.5] * 9, True)])
def test_a_pause_of_the_whole_process_does_not_count(
    tmp_path, monkeypatch, late, leaves
):
    """As by Ctrl-Z: then a wait takes much longer than it was asked to."""
    now, left = [100.0], []
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    dog = watchdog.Watchdog(0, tmp_path, process=0)
    dog._patience, dog._closed, dog._leave = 10.0, Closes(now, late), left.append
    dog._watch()
    assert bool(left) == leaves


def test_closed_it_lets_be(ended):
    folder, *done = ended["closed"]
    assert done == [0, "over\n", ""]
    assert not list(folder.iterdir())


def test_the_first_weights_may_take_as_long_as_a_checkpoint(monkeypatch):
    """Released ones are downloaded."""
    seen = []

    class Dog:
        @contextlib.contextmanager
        def during(self, doing, times):
            self.doing = (doing, times)
            yield
            self.doing = None

    run = object.__new__(train.Run)
    dog = run.watchdog = Dog()
    run.config = None
    run.checkpoints = types.SimpleNamespace(
        set_aside_damaged=lambda: [], latest_step=lambda: None
    )
    run.trainer = types.SimpleNamespace(
        meta_arch=None, first_state=lambda weights, gram: None
    )
    for name in ("read", "read_gram"):
        monkeypatch.setattr(train.initial, name, lambda *args: seen.append(dog.doing))
    assert run._restore() == []
    assert seen == [("reading the first weights", 4.0)] * 2
