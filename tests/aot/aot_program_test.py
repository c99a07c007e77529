"""The program as a process: what it refuses, and a tiny step compiled for real TPUs."""

import json

import programs
import pytest

DEBUG = "--config=configs/debug.py"
V5E = "--topology=v5e:2x4"


@pytest.mark.parametrize(
    "flags, words",
    [
        ([DEBUG, "--topology=v5x:2x4"], "unknown chip 'v5x': use one of v5e"),
        ([DEBUG, "--topology=v5e"], "name a chip and a shape"),
        (["--config=configs/none.py", V5E], "there is no config configs/none.py: use"),
        ([DEBUG, V5E, "--config.train.stps=1"], "did you mean --config.train.steps?"),
        ([DEBUG, V5E, "--config.train.group_size=5"], "not a multiple"),
        ([DEBUG, "--topology=v5e:4x4"], "16 devices do not divide the 8 groups"),
        ([DEBUG, V5E, "--config.mesh.replica=3"], "mesh.replica = 3 does not divide"),
        ([DEBUG, V5E, "--out=no/such/folder/r.json"], "there is no folder"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_compiled(flags, words):
    result = programs.run(*flags)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line


def test_a_missing_compiler_says_how_to_install_it():
    result = programs.run(DEBUG, V5E, TPU_LIBRARY_PATH="/no/libtpu.so")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "pip install -r requirements-aot.txt" in line
    if programs.has_cuda():
        pytest.skip("the compiler for GPUs is installed")
    result = programs.run(DEBUG, "--topology=h200:8")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "pip install" in line and "cuda13" in line


@programs.needs_libtpu
def test_a_shape_that_libtpu_does_not_know():
    result = programs.run(
        DEBUG,
        "--topology=v5e:3x5",
        "--config.train.batch_size=60",
        "--config.train.group_size=4",
    )
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 2 and "compiling" in lines[0]
    assert lines[1].startswith("error: --topology=v5e:3x5: the compiler knows no such")


@programs.needs_libtpu
def test_a_small_step_for_eight_chips(tmp_path):
    dim, depth = 512, 3
    flags = (
        DEBUG,
        V5E,
        f"--config.model.embed_dim={dim}",
        f"--config.model.depth={depth}",
    )
    report = programs.report(tmp_path, *flags)
    assert report["machine"]["devices"] == 8
    memory = report["memory"]
    assert memory["fits"] and 0 < memory["share"] < 0.05
    assert memory["arguments"] > 0 and memory["temporaries"] > 0
    assert report["float32_weight_gathers"] == []
    assert report["activation_all_to_alls"] == []
    # Two passes of the student and one of the teacher gather qkv, proj and the MLP of
    # every block in bfloat16; the rest is small.
    gathered = sum(
        row["bytes"]
        for row in report["collectives"]
        if row["kind"].startswith("all-gather") and row["dtype"] == "bf16"
    )
    blocks = depth * 12 * dim * dim * 2
    assert 2 * blocks <= gathered <= 3.3 * blocks
    hidden, exposed = (report["prediction"][k] for k in ("hidden", "exposed"))
    assert 0 < hidden["mfu"] < 1
    assert 0 < hidden["step_seconds"] <= exposed["step_seconds"]
    assert "never run" in report["stdout"] and "PREDICTION" in report["stdout"]

    quick = programs.report(tmp_path, *flags, "--quick")
    assert quick["collectives"] == report["collectives"]
    assert quick["memory"]["arguments"] == memory["arguments"]
    assert "prediction" not in quick and "PREDICTION" not in quick["stdout"]


@programs.needs_libtpu
def test_a_step_that_does_not_fit_names_what_lacks_and_a_change_that_does(tmp_path):
    out = tmp_path / "report.json"
    result = programs.run(
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
        f"--out={out}",
    )
    assert result.returncode == 1, result.stderr
    assert "DOES NOT FIT, lacks" in result.stdout
    report = json.loads(out.read_text())
    assert report["memory"]["needed"] > report["memory"]["limit"]
    change = report["change"]
    assert change["report"]["memory"]["fits"]
    assert f"it fits with  {change['flags']}" in result.stdout
    assert change["flags"] == "--config.model.remat=selective"
