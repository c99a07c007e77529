"""python -m benchmarks at tiny sizes, without optional packages."""

import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import types

import pytest

from benchmarks import __main__ as program
from benchmarks import (
    aot,
    contest,
    environment,
    evaluation,
    report,
    settings,
    timing,
    workers,
    workloads,
)

ROOT = pathlib.Path(__file__).parents[2]
ABSENT = ("grain", "tensorboard", "tensorflow_datasets")


@pytest.fixture
def run(tmp_path):
    """Runs Python without the absent packages; returns its output."""
    for name in ABSENT:
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "__init__.py").write_text(
            f"raise ImportError('{name} is not installed here')\n"
        )

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ
            | {
                "PYTHONPATH": str(tmp_path / "absent"),
                "JAX_PLATFORMS": "cpu",
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_absent_packages_cannot_be_imported(run):
    for name in ABSENT:
        with pytest.raises(AssertionError, match="not installed here"):
            run("-c", f"import {name}")


@pytest.mark.slow  # torch.compile
def test_gpu_plan_needs_only_packages_of_a_gpu_machine(run, tmp_path):
    pytest.importorskip("torch")
    flags = ["--tiny", "--plan=gpu", "--samples=1", f"--results={tmp_path}"]
    parts = ["attention", "step", "--only", "vitg14"]
    output = run("-m", "benchmarks", *parts, *flags)
    results = {
        part: json.loads((tmp_path / f"{part}-cpu.json").read_text())
        for part in ("attention", "step")
    }
    for found in results.values():
        assert found["device"]["platform"] == "cpu" and found["tiny"]
        assert not [row["error"] for row in found["rows"] if "error" in row]
        assert not set(ABSENT) & set(found["versions"])
    by_name = {row["contestant"]: row for row in results["step"]["rows"]}
    assert set(by_name) == {"jax", "torch compiled", "torch eager"}
    for row in by_name.values():
        assert row["step"]["samples"] == 1 and row["images_per_second"] > 0
        assert row["gflops_per_image"] == by_name["jax"]["gflops_per_image"] > 0
    assert "images/s" in output and "forward + backward ms" in output


@pytest.mark.slow
def test_every_available_attention(run, tmp_path):
    run(
        "-m", "benchmarks", "attention", "--tiny", "--plan=gpu", f"--results={tmp_path}"
    )
    found = json.loads((tmp_path / "attention-cpu.json").read_text())
    assert found["device"]["platform"] == "cpu" and found["tiny"]
    assert not [row["error"] for row in found["rows"] if "error" in row]
    assert {row["length"] for row in found["rows"]} == {5, 17}


def test_out_of_time_is_a_result(run, tmp_path):
    flags = ["--tiny", "--minutes=0.0001", f"--results={tmp_path}"]
    output = run("-m", "benchmarks", "step", "--only", "vits14-drop0", *flags)
    assert "out of time" in output
    rows = json.loads((tmp_path / "step-cpu.json").read_text())["rows"]
    assert [row["error"] for row in rows] == ["out of time"] * len(rows)


def test_failed_worker_reports_the_reason(monkeypatch):
    with pytest.raises(workers.WorkerFailed, match="no_such_part"):
        workers.run_worker("no_such_part", [], {})
    with pytest.raises(workers.WorkerFailed, match="out of time"):
        workers.run_worker("environment", [], {}, timeout=0.01)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(workers.WorkerFailed, match="exit code 1"):
        workers.run_worker("environment", [], {})


@pytest.mark.slow
def test_contestants_on_the_cpu_take_turns(run, tmp_path):
    pytest.importorskip("torch")
    flags = ["--tiny", "--samples=3", f"--results={tmp_path}"]
    output = run("-m", "benchmarks", "step", "--only", "vits14-drop0", *flags)
    rows = json.loads((tmp_path / "step-cpu.json").read_text())["rows"]
    ours, torch = rows
    assert [row["contestant"] for row in rows] == ["jax", "torch"]
    assert len(ours["seconds"]) == len(torch["seconds"]) == 3
    for row in rows:
        assert row["images_per_second"] > 0
        assert row["gflops_per_image"] == ours["gflops_per_image"] > 0
    assert ours["ours_over_this"]["median"] == 1.0
    ratios = [b / a for a, b in zip(ours["seconds"], torch["seconds"])]
    assert torch["ours_over_this"] == timing.spread(ratios)
    assert f"{statistics.median(ratios):.2f} x (" in output


STUB = """
import json, sys, time
from benchmarks import timing

name, log, seconds, count = sys.argv[3:]

def call():
    for word in "begins", "ends":
        with open(log, "a") as file:
            file.write(f"{name} {word}\\n")
        time.sleep(float(seconds))

taken = timing.samples(call, count=int(count), warmup=1)
with open(log, "a") as file:
    file.write(f"{name} leaves\\n")
print(json.dumps({"seconds": taken}))
"""


@pytest.fixture
def contestants(monkeypatch, tmp_path):
    """Makes a command that notes when it computes, and what all of them noted."""
    stub, program, log = (tmp_path / name for name in ("stub.py", "python", "log"))
    stub.write_text(STUB)
    log.touch()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {stub} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    def make(name: str, seconds: float, count: int) -> workers.Command:
        arguments = (name, str(log), str(seconds), str(count))
        return workers.Command("stub", arguments, {"PYTHONPATH": str(ROOT)})

    return types.SimpleNamespace(make=make, noted=lambda: log.read_text().splitlines())


def test_one_contestant_computes_at_a_time(contestants):
    commands = [contestants.make(name, 0.02, 2) for name in "ab"]
    found = workers.alternate(commands, turns=2)
    assert [len(result["seconds"]) for result in found] == [2, 2]
    once = ["a begins", "a ends", "b begins", "b ends"]
    noted = contestants.noted()
    assert noted[:12] == once * 3  # a warm-up each, and the turns
    assert sorted(noted[12:]) == ["a leaves", "b leaves"]  # when all are done


def test_failed_contestant_leaves_its_turns_to_others(contestants):
    broken = contestants.make("a", 0.01, 2)._replace(arguments=["a", "log", "0", "x"])
    whole = contestants.make("b", 0.01, 2)
    first, second = workers.alternate([broken, whole], turns=2)
    assert isinstance(first, workers.WorkerFailed) and "ValueError" in str(first)
    assert len(second["seconds"]) == 2


def test_no_turns_after_the_deadline(contestants, monkeypatch):
    """By a clock that jumps when both have warmed up and taken three turns."""

    def clock():
        return 1e6 if contestants.noted().count("b ends") > 3 else 0.0

    fake = types.SimpleNamespace(monotonic=clock, sleep=lambda _: None)
    monkeypatch.setattr(workers, "time", fake)
    commands = [contestants.make(name, 0.01, 1000) for name in "ab"]
    found = workers.alternate(commands, turns=1000, timeout=1000)
    assert [len(result["seconds"]) for result in found] == [3, 3]
    for late in workers.alternate(commands, turns=2, timeout=0):
        assert isinstance(late, workers.WorkerFailed) and str(late) == "out of time"


def test_requests_for_extra_turns_end_the_worker(contestants):
    (found,) = workers.alternate([contestants.make("a", 0.01, 5)], turns=2)
    assert len(found["seconds"]) == 2


def test_ratios_compare_the_same_turn():
    first = [{"seconds": [1.0, 2.0]}, {"seconds": [2.0, 2.0]}, {"error": "why"}]
    contest.add_ratios(first)
    second = [{"seconds": [4.0, 1.0]}, {"error": "why"}, {"seconds": [2.0, 3.0]}]
    contest.add_ratios(second)
    totals = [{"seconds": []} for _ in first]
    for total, *found in zip(totals, first, second):
        for result in found:
            contest.add(total, result)
    assert [total["ratios"] for total in totals] == [[1.0] * 4, [2.0, 1.0], [0.5, 3.0]]


def test_the_line_that_names_the_error_is_reported():
    trace = "Traceback\n  File\nvalue.SomeError: too long\n-----\nFor simplicity ...\n"
    assert workers.last_error(trace) == "value.SomeError: too long"
    assert workers.last_error("error: no libtpu\n") == "error: no libtpu"
    assert workers.last_error("one\ntwo\n\n") == "two"
    assert workers.last_error("") == ""


def test_plans_are_tabulated(monkeypatch, tmp_path, capsys):
    plan = {
        "memory": {"needed": 12e9, "share": 0.75},
        "compile_seconds": 33.0,
        "prediction": {
            "link_bytes": 3e9,
            "hidden": {"step_seconds": 0.1, "mfu": 0.5},
            "exposed": {"step_seconds": 0.2, "mfu": 0.25},
        },
    }

    def compile(command, **_):
        (out,) = (flag[6:] for flag in command if flag.startswith("--out="))
        if "--topology=v6e:4x4" in command:
            return subprocess.CompletedProcess(command, 2, "", "error: no such chip\n")
        assert "--config.model.remat=full" in command
        if "--topology=v5e:4x4" in command:
            assert "--config.train.batch_size=192" in command
        pathlib.Path(out).write_text(json.dumps(plan))
        return subprocess.CompletedProcess(command, 1, "", "")  # it does not fit

    fake = types.SimpleNamespace(run=compile, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(aot, "subprocess", fake)
    aot.run(
        settings.Settings(
            device={"platform": "cpu", "kind": "cpu"},
            plan="cpu",
            results=tmp_path,
            rounds=1,
            samples=1,
            deadline=None,
            reference="",
            tiny=False,
            only=("vitl",),
            overrides=("model.remat=full",),
        )
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == (
        "vitl, v5e:4x4 12 12.00 75% 3.00 100 to 200 50 to 25 33".split()
    )
    assert "error: no such chip" in lines[2]
    rows = json.loads((tmp_path / "aot.json").read_text())["rows"]
    assert rows[0]["prediction"] == plan["prediction"] and len(rows) == 3


def test_installed_versions():
    found = environment.describe(("numpy", "no-such-package"))
    assert set(found["versions"]) == {"numpy"}


def test_samples_are_means_over_inner_calls():
    calls, ends = [], []
    seconds = timing.samples(
        lambda: calls.append(0),
        count=3,
        warmup=2,
        inner=4,
        finish=lambda: ends.append(len(calls)),
    )
    assert len(seconds) == 3 and ends == [2, 6, 10, 14]
    assert timing.spread([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "low": 1.0,
        "high": 3.0,
        "samples": 3,
    }


def test_missing_values_are_empty_cells(capsys):
    columns = {
        "name": lambda row: row["name"],
        "rate": lambda row: f"{row['rate']:.1f}",
    }
    report.show(columns, [{"name": "fast", "rate": 12.34}, {"name": "failed"}])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["name    rate", "fast    12.3", "failed"]


def test_fields_are_set_by_path():
    config = workloads.make_config(
        "vits", 4, ("model.drop_path_rate=0.5", "model.remat=full")
    )
    assert config.model.drop_path_rate == 0.5 and config.model.remat == "full"
    assert config.train.batch_size == config.train.group_size == 4
    with pytest.raises((AttributeError, KeyError)):
        workloads.make_config("vits", 4, ("model.no_such=1",))


@pytest.mark.slow  # nine starts of programs
def test_features_of_a_folder_equal_transformers(monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    flags = ["embed", "--tiny", "--samples=2", f"--results={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *flags])
    program.main()
    found = json.loads((tmp_path / "embed.json").read_text())
    assert found["difference"] < 0.05
    assert [len(row["seconds"]) for row in found["rows"]] == [2, 2, 2]
    assert found["rows"][0]["ours_over_this"]["median"] == 1.0


@pytest.mark.parametrize(
    "case",
    [
        "knn",
        *(
            pytest.param(c, marks=pytest.mark.slow)
            for c in ("linear", "logreg", "window")
        ),
    ],
)
def test_evaluations_beside_their_peers(run, tmp_path, case):
    package = evaluation.CASES[case][2][0]
    pytest.importorskip(package)
    flags = ["--tiny", "--samples=2", f"--results={tmp_path}", "--only", case]
    output = run("-m", "benchmarks", "evaluation", *flags)
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert not [row["error"] for row in rows if "error" in row]
    assert len(rows) >= 2 and {len(row["seconds"]) for row in rows} == {2}
    assert {row["case"] for row in rows} == {case} and "ours is" in output
    if case == "logreg":
        ours, theirs = (row["objective"] for row in rows)
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_every_part_has_its_module():
    for module, *_ in program.PARTS.values():
        assert callable(importlib.import_module(f"benchmarks.{module}").run)
    assert program.parse(["step", "aot", "--minutes=9"]).parts == ["step", "aot"]
    with pytest.raises(SystemExit):
        program.parse(["no-such-part"])


@pytest.mark.slow
def test_students_together_and_apart(run, tmp_path):
    flags = ["--tiny", "--samples=2", f"--results={tmp_path}"]
    output = run("-m", "benchmarks", "students", *flags)
    together, apart = json.loads((tmp_path / "students.json").read_text())["rows"]
    assert {len(row["seconds"]) for row in (together, apart)} == {2}
    assert together["flops"] < apart["flops"] and "together is" in output
