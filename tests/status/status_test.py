"""Output of `python -m dinov2_jax.status` for real runs."""

import datetime
import json
import subprocess
import sys

import processes
import pytest

from dinov2_jax import errors
from dinov2_jax.runtime import event_log
from dinov2_jax.status import __main__ as program
from dinov2_jax.status import summary


def lines(workdir, later=0.0):
    """{name: text}; so many seconds after the last event."""
    now = event_log.read(workdir)[-1]["time"] + datetime.timedelta(seconds=later)
    report = summary.status(workdir, now).splitlines()
    return {line.split()[0]: line[10:] for line in report}


def test_a_finished_run(uninterrupted):
    workdir, _ = uninterrupted
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dinov2_jax.status", workdir],
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 10
    assert "jax.numpy" not in done.stderr and "numpy" not in done.stderr  # quick
    report = lines(workdir, later=3600)
    assert report["run"] == f"{workdir}: custom, batch 32, 1 cpu"
    assert report["state"] == "finished, 1:00:00 ago"
    assert report["step"] == "20 of 20 (100.0%)"
    first, *_, last = (r for r in processes.rows(workdir) if "loss/total" in r)
    assert report["loss"] == (
        f"{last['loss/total']:.4f}, {first['loss/total']:.4f} 19 steps before; "
        f"lr {last['lr']:.3g}"
    )
    assert report["saved"].startswith("step 20, 1:00:")
    assert report["saved"].endswith(f"; 5 kept in {workdir / 'checkpoints'}")
    accuracy = processes.rows(workdir)[-1]["knn/top1"]
    assert report["accuracy"] == f"knn/top1 {accuracy:.1%} at step 20"
    assert "compile" in report["goodput"] and "down" not in report["goodput"]
    assert report["trouble"] == "none"
    assert report["last"].endswith("UTC, 1:00:00 ago: ended at step 20: done")


def test_a_clock_that_is_behind(uninterrupted):
    report = lines(uninterrupted[0], later=-4)
    assert report["state"] == "finished, 0:00 ago"


@pytest.fixture
def killed(uninterrupted, tmp_path):
    """A run without its end, its last step or its last checkpoint."""
    workdir = tmp_path / "run"
    processes.branch(uninterrupted[0], workdir, step=16)
    log = (workdir / "events.jsonl").read_text().splitlines()
    kept = [x for x in log if json.loads(x).get("step", 0) <= 16]
    (workdir / "events.jsonl").write_text("\n".join(kept) + "\n")
    return workdir


def test_running_and_silent_runs(killed):
    report = lines(killed, later=10)
    start = event_log.read(killed)[0]
    who = f"process {start['pid']} on {start['host']}"
    assert report["state"].startswith(f"training, {who}, started ")
    assert report["step"].startswith("16 of 20 (80.0%), ")
    assert report["step"].endswith(" to go")
    assert report["last"].endswith("0:10 ago: saved step 16")
    assert lines(killed, later=1000)["state"].startswith(f"silent for 16:40 ({who}):")


def test_trouble(killed):
    log = event_log.Events(killed)
    start = {"host": "b", "pid": 7, "processes": 4, "devices": 8, "device": "H100"}
    (killed / "bad_images.txt").write_text("a\twhy\nb\twhy\n")
    log.add("start", step=16, seconds={"start": 1.0}, **start)
    log.add("skip", step=17, terms="loss/total = nan", lr=1.0)
    log.add("rollback", step=18, to=12, why="loss/total = nan")
    # Ten days: what the run before took on this machine does not show beside them.
    seconds = {"step": 1e6}
    log.add("end", step=13, code=errors.REQUEUE, reason="saved", seconds=seconds)
    log.add("start", step=13, seconds={"start": 1.0}, **start)
    report = lines(killed)
    assert report["run"].endswith("batch 32, 8 H100, 4 processes")
    assert report["trouble"] == (
        "2 restarts, 1 preemption, 1 sudden end, 1 skipped step, 1 rollback, "
        "2 unreadable images"
    )
    assert "lost 66." in report["goodput"]  # two of the three steps
    log.add("hang", doing="step 14", path="/stacks.txt")
    report = lines(killed)
    assert report["state"] == "hung at step 14, 0:00 ago; stacks in /stacks.txt"
    assert report["trouble"].startswith(
        "2 restarts, 1 preemption, 1 sudden end, 1 hang"
    )


@pytest.mark.parametrize(
    "evaluations, text",
    [
        ([], "not measured yet"),
        ([{"knn/top1": 0.5, "knn/top1_pixels": 0.9}], "knn/top1 50.0% at step 0"),
        (
            [{"matching/accuracy": 0.5}, {"matching/accuracy": 0.25}],
            "matching/accuracy 25.0% at step 10, best 50.0% at step 0",
        ),
        (
            [{"a/knn/top1": 0.5}, {"b/knn/top1": 0.25}],
            "a/knn/top1 50.0% at step 0; b/knn/top1 25.0% at step 10",
        ),
    ],
)
def test_accuracy_of_any_evaluation(evaluations, text):
    log = [
        {"event": "evaluate", "step": 10 * i, "accuracies": accuracies}
        for i, accuracies in enumerate(evaluations)
    ]
    assert summary._accuracy(log) == text


def test_no_run(tmp_path, capsys):
    assert program.main([str(tmp_path)]) == errors.BAD_INPUT
    report = capsys.readouterr().err
    assert report.startswith(f"error: there is no run in {tmp_path}: ")


@pytest.mark.parametrize(
    "config, event, report",
    [
        (
            {"lr": 1},
            {"event": "start", "time": "2026-01-02T03:04:05+00:00"},
            "is not the folder",
        ),
        ({}, {"event": "start", "time": "2026-01-02T03:04:05"}, "there is no run"),
        (
            [],
            {"event": "start", "time": "2026-01-02T03:04:05+00:00"},
            "is not the folder",
        ),
    ],
)
def test_files_of_another_program(tmp_path, capsys, config, event, report):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert program.main([str(tmp_path)]) == errors.BAD_INPUT
    assert report in capsys.readouterr().err


def test_a_stray_folder_does_not_hide_the_runs(tmp_path, uninterrupted, capsys):
    run = str(uninterrupted[0])
    assert program.main([run, str(tmp_path), run]) == errors.BAD_INPUT
    report = capsys.readouterr()
    assert report.out.count("finished, ") == 2
    assert report.err.startswith(f"error: there is no run in {tmp_path}: ")
