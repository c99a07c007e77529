"""A process that gets nowhere ends, and says where it stood."""

import signal
import subprocess
import sys
import time

from dinov2_jax import errors

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


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_leaves_with_all_stacks(tmp_path):
    done = run(tmp_path)
    assert done.returncode == errors.HUNG == 134
    (error,) = (x for x in done.stderr.splitlines() if x.startswith("error: "))
    assert error.startswith("error: process 3: nothing was finished for ")
    assert "(at step 7)" in error and "--config.train.hang_timeout" in error
    assert "the_place_where_it_hangs" in done.stderr
    (stacks,) = tmp_path.glob("stacks-process-3-*.txt")
    assert "the_place_where_it_hangs" in stacks.read_text() and str(stacks) in error
    assert (tmp_path / "reported").read_text() == f"step 7 {stacks}"


def test_a_process_that_was_stopped_does_not_hang(tmp_path):
    """As by Ctrl-Z: the time that it stood still does not count."""
    script = (
        "import pathlib, sys, time\n"
        "from dinov2_jax.runtime import watchdog\n"
        "dog = watchdog.Watchdog(2.0, pathlib.Path(sys.argv[1]), process=0)\n"
        "print('ready', flush=True)\n"
        "until = time.monotonic() + 3.5\n"
        "while time.monotonic() < until: time.sleep(0.05)\n"
        "print('over')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(3.0)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == "over\n"
    assert process.returncode == 0 and not list(tmp_path.iterdir())


def test_closed_it_lets_be(tmp_path):
    done = run(tmp_path, "closed")
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")
    assert not list(tmp_path.iterdir())
