"""launch/local.sh: the supervisor with stand-ins, and real training over gloo."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import processes
import pytest
from PIL import Image

LOCAL = processes.ROOT / "launch/local.sh"
# Takes the place of Python: writes what it was called with, then does as a file of its
# own says, for each attempt a line "process 0's exit code, process 1's".
STAND_IN = r"""#!/usr/bin/env bash
cd "$(dirname -- "$0")"
process=$(grep -o 'process_id=[0-9]*' <<<"$*" | cut -d= -f2)
echo "${JAX_LOCAL_DEVICE_IDS-} $*" >>"calls$process"
attempt=$(wc -l <"calls$process")
does=$(sed -n "${attempt}p" plan | cut -d' ' -f$((process + 1)))
trap 'echo $process >>terminated; exit 42' TERM
case $does in
  wait) for _ in {1..300}; do sleep 0.1; done ;;
  kill) kill -KILL $$ ;;
  *) exit "$does" ;;
esac
"""


class StandIn:
    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        (folder / "python").write_text(STAND_IN)
        (folder / "python").chmod(0o755)

    def start(self, *plan: str, options=()):
        (self.folder / "plan").write_text("\n".join(plan) + "\n")
        return subprocess.Popen(
            [LOCAL, "2", *options, "--", "--config=a b"],
            env=os.environ | {"PYTHON": str(self.folder / "python")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *plan: str, options=()) -> processes.Finished:
        process = self.start(*plan, options=options)
        output, _ = process.communicate(timeout=30)
        return processes.Finished(process.returncode, output)

    def calls(self, process: int) -> list[str]:
        path = self.folder / f"calls{process}"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def stand_in(tmp_path):
    return StandIn(tmp_path)


def test_all_processes_are_told_of_each_other(stand_in):
    finished = stand_in.run("0 0", options=["--gpus", "--port", "7000"])
    assert (finished.code, finished.output) == (0, "")
    for process in range(2):
        assert stand_in.calls(process) == [
            f"{process} -m dinov2_jax.main --coordinator=localhost:7000 "
            f"--num_processes=2 --process_id={process} --config=a b"
        ]


@pytest.mark.parametrize("code", [2, 3, 1, 130])
def test_no_restart(stand_in, code):
    plan = f"{code} {code}" if code == 3 else f"wait {code}"
    assert stand_in.run(plan, "0 0").code == code
    assert len(stand_in.calls(0)) == 1


@pytest.mark.parametrize("plan", ["42 42", "134 wait", "wait kill", "kill 1"])
def test_restart(stand_in, plan):
    finished = stand_in.run(plan, "0 0", options=["--port", "7000"])
    assert finished.code == 0
    assert [f"localhost:{7000 + i}" in c for i, c in enumerate(stand_in.calls(1))] == [
        True,
        True,
    ]
    assert "restart 1 of at most 10" in finished.output


def test_bad_input_beside_a_killed_process_is_not_retried(stand_in):
    assert stand_in.run("kill 2", "0 0").code == 2


def test_restarts_end(stand_in):
    finished = stand_in.run(*["42 42"] * 4, options=["--restarts", "2"])
    assert finished.code == 42
    assert len(stand_in.calls(0)) == 3
    assert "after 2 restarts: giving up" in finished.output


def terminate(stand_in, process):
    deadline = time.monotonic() + 20
    while not (stand_in.calls(0) and stand_in.calls(1)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)  # the stand-in's trap is set after its call is written
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    return output


def test_sigterm_is_passed_on_and_no_restart_follows(stand_in):
    process = stand_in.start("wait wait", "0 0")
    terminate(stand_in, process)
    assert process.returncode == 42
    assert sorted((stand_in.folder / "terminated").read_text().split()) == ["0", "1"]
    assert len(stand_in.calls(0)) == 1


def test_processes_that_ignore_sigterm_are_killed(stand_in):
    text = STAND_IN.replace("echo $process >>terminated; exit 42", "")
    (stand_in.folder / "python").write_text(text)
    process = stand_in.start("wait wait", options=["--grace", "1"])
    output = terminate(stand_in, process)
    assert process.returncode == 137
    assert "killing the other 2 of 2 processes" in output


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "how many processes?"),
        (["two"], "N=two: a whole number"),
        (["0"], "at least one"),
        (["2", "--restart", "1"], "unknown option --restart"),
        (["2", "--restarts"], "--restarts needs a value"),
        (["2", "--restarts", "x"], "--restarts=x: a whole number"),
        (["2", "--flags", "fast"], "no such profile: use one of"),
    ],
)
def test_wrong_calls(arguments, words):
    finished = subprocess.run([LOCAL, *arguments], capture_output=True, text=True)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert len(finished.stderr.splitlines()) == 1


# --- real processes -------------------------------------------------------------

STEPS = 6


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """A run of seconds: no evaluation, for the images have no labels."""
    images = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for i in range(64):
        pixels = draw.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    return [
        "--config=configs/debug.py",
        "--config.data.source=folder",
        f"--config.data.path={images}",
        "--config.data.workers=0",
        "--config.data.augmentation=host",  # less to compile
        "--config.model.depth=1",
        "--config.train.batch_size=8",
        f"--config.train.steps={STEPS}",
        "--config.checkpoint.every=2",
        "--config.log.tensorboard=False",
    ]


@pytest.fixture(scope="module")
def environment(shared_folder):
    return os.environ | {
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in half the time
        "JAX_COMPILATION_CACHE_DIR": str(shared_folder / "compilations"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="module")
def alone(flags, environment, tmp_path_factory):
    """Rows of metrics.jsonl of one process."""
    workdir = tmp_path_factory.mktemp("alone")
    subprocess.run(
        [sys.executable, "-m", "dinov2_jax.main", *flags, f"--workdir={workdir}"],
        cwd=processes.ROOT,
        env=environment,
        check=True,
    )
    return processes.rows(workdir)


def assert_same_losses(workdir, alone):
    rows = processes.rows(workdir)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, expected in zip(rows, alone, strict=True):
        names = [name for name in expected if name.startswith("loss/")]
        assert len(names) == 5
        for name in names:
            assert row[name] == pytest.approx(expected[name], rel=1e-5), name


def pid_of(process: int, workdir: pathlib.Path) -> int | None:
    """Of a training process of a run."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if f"--process_id={process}" in words and f"--workdir={workdir}" in words:
            return int(path.parent.name)
    return None


def test_two_processes_one_killed(flags, environment, alone, tmp_path):
    """The losses of one process, through a kill and a restart."""
    workdir = tmp_path / "run"
    launcher = subprocess.Popen(
        [LOCAL, "2", "--restarts", "1", "--", *flags, f"--workdir={workdir}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while processes.steps_logged(workdir) < 3 and launcher.poll() is None:
            time.sleep(0.001)
        if launcher.poll() is None:
            os.kill(pid_of(1, workdir), signal.SIGKILL)
        output, _ = launcher.communicate(timeout=200)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, output
    assert "exit code 137: restart 1 of at most 1" in output
    assert "resumed from step 2" in output or "resumed from step 4" in output
    assert output.count("parameters ") == 2  # one process says it, at each start
    assert output.count("compiled the step") == 2
    assert "2 cpu, mesh replica 1 x fsdp 2" in output
    assert_same_losses(workdir, alone)
    assert pid_of(0, workdir) is None


def test_jax_finds_the_processes_of_slurm(flags, environment, alone, tmp_path):
    workdir = tmp_path / "run"
    job = {
        "SLURM_JOB_ID": str(os.getpid()),  # jax derives the port from it
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    tasks = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "dinov2_jax.main", *flags),
                *(f"--workdir={workdir}", "--config.mesh.devices=2"),
            ],
            cwd=processes.ROOT,
            env=environment
            | job
            | {"SLURM_PROCID": str(process), "SLURM_LOCALID": str(process)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    outputs = [task.communicate(timeout=200)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert "parameters " in outputs[0]
    # What a C++ library says of itself cannot be silenced.
    said = [x for x in outputs[1].splitlines() if not x.startswith("[Gloo]")]
    assert said == []
    assert_same_losses(workdir, alone)


def test_a_process_that_fails_alone_does_not_wait(flags, environment, tmp_path):
    """jax would have it wait five minutes for the other, which waits for it."""
    port = 30000 + os.getpid() % 20000
    tasks = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "dinov2_jax.main", *flags),
                *(f"--workdir={tmp_path}", f"--coordinator=localhost:{port}"),
                *("--num_processes=2", f"--process_id={process}"),
                f"--config.mesh.devices={2 + process}",
            ],
            cwd=processes.ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    try:
        output, _ = tasks[1].communicate(timeout=100)
        time.sleep(1)
        assert tasks[0].poll() is None  # which is on its own from here
    finally:
        for task in tasks:
            task.kill()
            task.wait()
    assert tasks[1].returncode == 2, output
    (error,) = [x for x in output.splitlines() if not x.startswith("[Gloo]")]
    assert error.startswith("error: process 1: mesh.devices = 3, but there are 2: ")
