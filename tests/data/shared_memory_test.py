"""Shared memory that is full or read-only: named, or done without."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import sys
from dinov2_jax import cli
from dinov2_jax.data import loader
from tests.data.loader_test import Noise, small_config

def main():
    config = small_config(data__workers=int(sys.argv[1]))
    with loader.make_loader(config, Noise(40), start_step=0, num_steps=3) as batches:
        print(len(list(batches)), "batches")

if __name__ == "__main__":
    cli.start(lambda: cli.exit_code(main))
"""
FILL = "dd if=/dev/zero of=/dev/shm/filler bs=1k count=100"
READ_ONLY = "mount -o remount,ro /dev/shm"


@pytest.mark.parametrize(
    "change, workers", [(FILL, 0), (FILL, 1), pytest.param(READ_ONLY, 1)]
)
def test_shared_memory_that_cannot_be_written(change, workers):
    """In a mount name space of its own."""
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    command = f'{mount} || exit 99; {change} 2>/dev/null; exec "$0" -c "$1" {workers}'
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", command, sys.executable, PROGRAM],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no command unshare")
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no disk can be mounted: {done.stderr}")
    if workers:
        assert done.returncode == 75
        (line,) = done.stderr.splitlines()
        assert "/dev/shm is full or cannot be written" in line
        assert "--shm-size" in line and "--config.data.workers=0" in line
    else:
        assert (done.returncode, done.stdout) == (0, "3 batches\n"), done.stderr
