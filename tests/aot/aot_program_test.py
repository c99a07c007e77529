"""What the program refuses, and a tiny step compiled for real TPUs."""

import json
import os
import subprocess
import sys
import unittest.mock

import programs
import pytest

from dinov2_jax.aot import __main__ as program

DEBUG = "--config=configs/debug.py"
V5E = "--topology=v5e:2x4"


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs the program in this process; returns the one line of its error."""
    monkeypatch.chdir(programs.ROOT)

    def run(*flags, **environment):
        with unittest.mock.patch.dict(os.environ, environment):  # it sets more
            assert program.main(list(flags)) == 2
        out, (line,) = (text.splitlines() for text in capsys.readouterr())
        assert not out and line.startswith("error: ")
        return line

    return run


@pytest.mark.parametrize(
    "flags, name",
    [
        ([DEBUG, "--topology=v5x:2x4"], "'v5x'"),
        ([DEBUG, "--topology=v5e"], "--topology=v5e"),
        (["--config=configs/none.py", V5E], "configs/none.py"),
        ([DEBUG, V5E, "--config.train.stps=1"], "--config.train.steps"),
        ([DEBUG, V5E, "--config.train.group_size=5"], "group_size"),
        ([DEBUG, "--topology=v5e:4x4"], "16 devices"),
        ([DEBUG, V5E, "--config.mesh.replica=3"], "mesh.replica"),
        ([DEBUG, V5E, "--out=no/such/folder/r.json"], "no/such/folder"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_compiled(refused, flags, name):
    assert name in refused(*flags)


def test_a_missing_compiler_says_how_to_install_it(refused):
    line = refused(DEBUG, V5E, TPU_LIBRARY_PATH="/no/libtpu.so")
    assert "requirements-aot.txt" in line
    if programs.has_cuda():
        pytest.skip("the compiler for GPUs is installed")
    assert "cuda13" in refused(DEBUG, "--topology=h200:8")


@programs.needs_libtpu
def test_shape_unknown_to_libtpu():
    result = programs.run(
        DEBUG,
        "--topology=v5e:3x5",
        "--config.train.batch_size=60",
        "--config.train.group_size=4",
    )
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 2 and "compiling" in lines[0]
    assert lines[1].startswith("error: --topology=v5e:3x5")


FLOAT32 = """
import sys
from dinov2_jax.aot import machines
machine = machines.parse("v5e:1x1")
machines.prepare(machine)
from jax import numpy as jnp
from configs import debug
from dinov2_jax import sharding, trainer
mesh = sharding.make_mesh(devices=machines.devices(machine))
made = trainer.Trainer(debug.get_config(), mesh=mesh, dtype=jnp.dtype(sys.argv[1]))
text = made.lower().as_text()
products = [line for line in text.splitlines() if "dot_general" in line]
print(sum("HIGHEST" in line for line in products), len(products))
"""


@pytest.mark.slow
@programs.needs_libtpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_as_exact_as_the_dtype_says(dtype):
    done = subprocess.run(
        [sys.executable, "-c", FLOAT32, dtype],
        cwd=programs.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    exact, products = map(int, done.stdout.split())
    assert products > 20 and (exact == products) == (dtype == "float32")


DIM, DEPTH = 512, 3
SMALL = (
    DEBUG,
    V5E,
    f"--config.model.embed_dim={DIM}",
    f"--config.model.depth={DEPTH}",
)


@programs.needs_libtpu
def test_a_small_step_for_eight_chips(tmp_path):
    """What `pods_test` shows of large models, in the one compilation of `make test`."""
    report = programs.report(tmp_path, *SMALL, "--quick")
    assert report["machine"]["devices"] == 8
    memory = report["memory"]
    assert memory["fits"] and 0 < memory["share"] < 0.05
    assert memory["arguments"] > 0 and memory["temporaries"] > 0
    assert report["float32_weight_gathers"] == []
    assert report["activation_all_to_alls"] == []
    assert report["activation_gathers"] == []
    sent = sum(row["sent"] for row in report["collectives"])
    assert sent <= 1.25 * 4 * 2 * report["config"]["parameters"]
    # Two passes of the student and one of the teacher gather qkv, proj and the MLP of
    # every block in bfloat16; the rest is small.
    gathered = sum(
        row["bytes"]
        for row in report["collectives"]
        if row["kind"].startswith("all-gather") and row["dtype"] == "bf16"
    )
    blocks = DEPTH * 12 * DIM * DIM * 2
    assert 2 * blocks <= gathered <= 3.3 * blocks


@pytest.mark.slow
@programs.needs_libtpu
def test_quick_compilation_equals_a_full_one(tmp_path):
    report = programs.report(tmp_path, *SMALL)
    quick = programs.report(tmp_path, *SMALL, "--quick")
    assert quick["collectives"] == report["collectives"]
    assert quick["memory"]["arguments"] == report["memory"]["arguments"]
    assert "prediction" not in quick and "PREDICTION" not in quick["stdout"]
    hidden, exposed = (report["prediction"][k] for k in ("hidden", "exposed"))
    assert 0 < hidden["mfu"] < 1
    assert 0 < hidden["step_seconds"] <= exposed["step_seconds"]
    assert "PREDICTION" in report["stdout"]


TEACHER = f"""from configs import default
def get_config():
    c = default.get_config()
    c.model.update(arch="custom", embed_dim={2 * DIM}, depth=2, num_heads=16)
    c.model.patch_size = 8
    return c
"""


@pytest.mark.slow
@programs.needs_libtpu
def test_gathers_of_a_frozen_teacher_are_of_weights(tmp_path):
    source = tmp_path / "teacher.py"
    source.write_text(TEACHER)
    report = programs.report(
        tmp_path,
        *SMALL,
        "--quick",
        f"--config.distill.source={source}",
        "--config.ibot.mask_sample_probability=0.0",
    )
    gathered = max(
        row["bytes"]
        for row in report["collectives"]
        if row["kind"].startswith("all-gather") and row["dtype"] == "bf16"
    )
    assert gathered > 2 * 12 * (2 * DIM) ** 2 * 2  # the teacher's blocks
    assert report["float32_weight_gathers"] == report["activation_gathers"] == []


TOO_LARGE = (
    DEBUG,
    "--topology=v5e:1x1",
    "--quick",
    "--config.model.depth=12",
    "--config.model.remat=none",
    "--config.model.drop_path_rate=0",
    "--config.crops.global_crops_size=224",
    "--config.crops.local_crops_number=0",
    "--config.train.batch_size=128",
    "--config.train.group_size=128",
)


@programs.needs_libtpu
def test_excess_memory_is_reported(tmp_path):
    out = tmp_path / "report.json"
    result = programs.run(*TOO_LARGE, "--no-search", f"--out={out}")
    assert result.returncode == 1, result.stderr
    assert "DOES NOT FIT" in result.stdout
    report = json.loads(out.read_text())
    assert report["memory"]["needed"] > report["memory"]["limit"]
    assert report["change"] is None


@pytest.mark.slow
@programs.needs_libtpu
def test_change_that_fits_is_suggested(tmp_path):
    out = tmp_path / "report.json"
    result = programs.run(*TOO_LARGE, f"--out={out}")
    assert result.returncode == 1, result.stderr
    change = json.loads(out.read_text())["change"]
    assert change["report"]["memory"]["fits"]
    assert f"it fits with  {change['flags']}" in result.stdout
    assert change["flags"] == "--config.model.remat=selective"
