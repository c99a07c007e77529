"""Worker processes end with who started them, however early that one is killed."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
STARTER = """
import multiprocessing
import os
import sys
import time

from dinov2_jax.data import workers

def work(begins):
    starter = os.getppid()
    if begins == "before":
        workers.initialise(0, 0)
    print("up", flush=True)
    while os.getppid() == starter:
        time.sleep(0.01)
    if begins == "after":
        workers.initialise(0, 0)
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=work, args=sys.argv[1:])
    worker.start()
    worker.join()
"""


@pytest.mark.parametrize("begins", ["before", "after"])
def test_a_worker_leaves_with_who_started_it(begins, tmp_path):
    script = tmp_path / "starter.py"
    script.write_text(STARTER)
    starter = subprocess.Popen(
        [sys.executable, str(script), begins],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout.readline() == "up\n"
    starter.kill()
    starter.communicate(timeout=300)  # until the worker has let go of the pipe too
