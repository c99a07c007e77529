"""Scripts of users that workers import: without a guard, the error names it."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LOADS = """
import sys
sys.path.insert(0, sys.argv[1])
from dinov2_jax.data import loader
from tests.data.loader_test import Noise, small_config

config = small_config(data__workers=2)
next(loader.make_loader(config, Noise(40), start_step=0, num_steps=3))
"""
SCANS = """
import sys
sys.path.insert(0, sys.argv[1])
from dinov2_jax.data.tools import process_pool

list(process_pool.in_order(abs, range(3), processes=1))
"""
MEASURES = """
import sys
sys.path.insert(0, sys.argv[1])
from dinov2_jax.data.tools import throughput

with throughput.workers_pool([], throughput.Sizes(), 1):
    pass
"""
TRAINS = """
import sys
sys.path.insert(0, sys.argv[1])
from configs import debug
from dinov2_jax import train

train.train(debug.get_config(), sys.argv[0] + ".run")
"""


@pytest.mark.parametrize(
    "script, said",
    [
        (LOADS, "of 2 could not start, its error is above; put your"),
        (SCANS, "cannot start a process (the decoder's process ended with code 1;"),
        (MEASURES, "a worker process could not start, its error is above; put your"),
        pytest.param(TRAINS, "loader worker 0 of ", marks=pytest.mark.slow),
    ],
)
def test_a_script_without_a_guard(tmp_path, script, said):
    path = tmp_path / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, str(path), str(ROOT)], capture_output=True, text=True
    )
    *_, last = done.stderr.strip().splitlines()
    assert done.returncode == 1
    assert said in last and "if __name__ == '__main__':" in last
    assert "a worker process ran the whole script: put your" in done.stderr
