"""launch/slurm.sbatch with stand-ins for sbatch, srun and scontrol."""

import os
import shutil
import signal
import subprocess
import sys
import time

import commands
import processes
import pytest

IN_JOB = ["--in-job", str(commands.LAUNCH)]
ARGUMENTS = ["--config=configs/vitl.py", "--workdir=/shared/a b"]


@pytest.fixture
def programs(tmp_path):
    return commands.Programs(tmp_path, "sbatch", "srun", "scontrol")


@pytest.fixture
def job():
    """What SLURM sets in a job; the number is no other test's."""
    number = str(os.getpid())
    yield {
        "SLURM_JOB_ID": number,
        "SLURM_NTASKS": "32",
        "SLURM_CPUS_PER_TASK": "12",
        "SLURM_SUBMIT_DIR": str(processes.ROOT),
    }
    (processes.ROOT / f".slurm-{number}.verdict").unlink(missing_ok=True)


def test_submits_itself(programs):
    options = ["--nodes", "4", "--sbatch", "--partition=x", "--flags", "gpu"]
    finished = programs.run("slurm.sbatch", *options, "--", *ARGUMENTS)
    assert finished.returncode == 0, finished.stderr
    assert programs.calls() == [
        "sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 "
        "--partition=x ROOT/launch/slurm.sbatch --in-job ROOT/launch --restarts 50 "
        "--flags gpu -- --config=configs/vitl.py [--workdir=/shared/a b]"
    ]


def test_submits_from_an_interactive_allocation(programs, job, tmp_path):
    """Also where the launchers are in a folder of another name."""
    shutil.copytree(commands.LAUNCH, tmp_path / "scripts")
    path = tmp_path / "scripts/slurm.sbatch"
    finished = programs.run(str(path), "--gpus", "0", "--", *ARGUMENTS, **job)
    assert finished.returncode == 0, finished.stderr
    (call,) = programs.calls()
    assert f"{path} --in-job {tmp_path / 'scripts'} --restarts 50 -- " in call


def test_a_verdict_that_cannot_be_written(tmp_path):
    task = commands.LAUNCH / "slurm_task.sh"
    command = ["bash", task, tmp_path / "none/verdict", "bash", "-c", "exit 2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "cannot write" in done.stderr


def test_dry_runs(programs, job):
    text = ""
    for options in (["--gpus", "0"], ["--nodes", "2", "--sbatch", "--time=1-0"]):
        finished = programs.run("slurm.sbatch", *options, "--dry-run", "--", *ARGUMENTS)
        assert finished.returncode == 0, finished.stderr
        text += finished.stdout
    job["SLURM_JOB_ID"] = "5"
    finished = programs.run(
        "slurm.sbatch",
        *IN_JOB,
        "--dry-run",
        "--flags",
        "gpu-fsdp",
        "--",
        *ARGUMENTS,
        **job,
    )
    commands.assert_as_recorded(text + finished.stdout + finished.stderr, "slurm")
    assert programs.calls() == []


@pytest.mark.parametrize("code", [42, 75, 134, 137, 143, 255])
def test_requeue(programs, job, code):
    programs.answer("srun", str(code))
    finished = programs.run("slurm.sbatch", *IN_JOB, "--", *ARGUMENTS, **job)
    assert finished.returncode == 0, finished.stderr
    number = job["SLURM_JOB_ID"]
    assert programs.calls() == [
        "srun --kill-on-bad-exit=1 --cpus-per-task=12 ROOT/launch/slurm_task.sh "
        f"ROOT/.slurm-{number}.verdict python -m dinov2_jax.main "
        "--config=configs/vitl.py [--workdir=/shared/a b] --config.mesh.processes=32",
        f"scontrol show job -o {number}",
        f"scontrol requeue {number}",
    ]


@pytest.mark.parametrize(
    "answer, cancelled",
    [
        ("0 JobId=7 JobState=CANCELLED Reason=None Requeue=1", True),
        ("0 JobId=7 JobState=COMPLETING Reason=None Requeue=1", True),
        ("0 JobId=7 JobState=COMPLETING Reason=TimeLimit Requeue=1", False),
        ("0 JobId=7 JobState=RUNNING Reason=None Requeue=1", False),
        ("1 slurm_load_jobs error: Socket timed out", False),
    ],
)
def test_a_cancelled_job_is_not_requeued(programs, job, answer, cancelled):
    programs.answer("srun", "143")
    programs.answer("scontrol", answer, "0")
    finished = programs.run("slurm.sbatch", *IN_JOB, "--", *ARGUMENTS, **job)
    requeue = f"scontrol requeue {job['SLURM_JOB_ID']}"
    assert (requeue in programs.calls()) != cancelled
    assert finished.returncode == (143 if cancelled else 0)
    assert ("so it is not requeued here" in finished.stderr) == cancelled


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_no_requeue(programs, job, code):
    programs.answer("srun", str(code))
    finished = programs.run("slurm.sbatch", *IN_JOB, "--", *ARGUMENTS, **job)
    assert finished.returncode == code
    assert len(programs.calls()) == 1


def test_requeues_end(programs, job):
    programs.answer("srun", "42")
    finished = programs.run(
        "slurm.sbatch", *IN_JOB, "--restarts", "3", "--", SLURM_RESTART_COUNT="3", **job
    )
    assert finished.returncode == 42
    assert len(programs.calls()) == 1
    assert "giving up" in finished.stderr


def test_bad_input_of_one_task_among_killed_ones(programs, job, tmp_path):
    """srun says 137, of the tasks that it killed."""
    verdict = processes.ROOT / f".slurm-{job['SLURM_JOB_ID']}.verdict"
    (tmp_path / "srun").write_text(f"#!/bin/sh\necho 2 >{verdict}\nexit 137\n")
    finished = programs.run("slurm.sbatch", *IN_JOB, "--", *ARGUMENTS, **job)
    assert finished.returncode == 2
    assert programs.calls() == []
    assert not verdict.exists()


@pytest.mark.parametrize("code", [0, 1, 2, 3, 42, 75])
def test_task_records_failures_that_no_restart_helps(tmp_path, code):
    verdict = tmp_path / "verdict"
    command = ["bash", "-c", f"exit {code}"]
    task = [commands.LAUNCH / "slurm_task.sh", verdict, *command]
    assert subprocess.run(task).returncode == code
    assert verdict.exists() == (code in (2, 3))


TASK = """
import pathlib, signal, sys, time
def asked(number, _):
    if number == signal.SIGUSR1:
        pathlib.Path("traced").touch()
    else:
        time.sleep(0.3)
        sys.exit(42)
if sys.argv[1] == "listens":
    signal.signal(signal.SIGUSR1, asked)
signal.signal(signal.SIGTERM, asked)
pathlib.Path("up").touch()
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("kind", ["listens", "deaf"])
def test_task_passes_signals_on(tmp_path, kind):
    """To a command that takes a while to end, and whose exit code counts."""

    def wait_for(name):
        while not (tmp_path / name).exists():
            time.sleep(0.01)

    task = subprocess.Popen(
        [commands.LAUNCH / "slurm_task.sh", tmp_path / "verdict"]
        + [sys.executable, "-c", TASK, kind],
        cwd=tmp_path,
    )
    wait_for("up")
    task.send_signal(signal.SIGUSR1)
    if kind == "listens":
        wait_for("traced")
    task.send_signal(signal.SIGTERM)
    assert task.wait(timeout=60) == 42
