"""Real processes train one model over gloo: they move, end and are lost."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import processes
import pytest
from PIL import Image

from dinov2_jax.checkpoint import best_weights
from dinov2_jax.weights import reading

LOCAL = processes.ROOT / "launch/local.sh"
PROGRAM = pathlib.Path(__file__).with_name("shared_compilations.py")
STEPS = 20
HEARTBEAT = 15  # seconds
# Weighted, a tenth of a mean of logarithms of distances near 1, which goes through 0:
# four roundings of such a distance.
KOLEO = 0.1 * 4 * 2**-23


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
        "--config.train.group_size=2",
        f"--config.train.steps={STEPS}",
        "--config.checkpoint.every=2",
        "--config.checkpoint.keep_last=100",
        "--config.log.tensorboard=False",
        f"--config.mesh.heartbeat_timeout={HEARTBEAT}",
    ]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    python = tmp_path_factory.mktemp("bin") / "python"  # -m dinov2_jax.main FLAGS
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {PROGRAM} "$@"\n')
    python.chmod(0o755)
    return os.environ | {
        "PYTHON": str(python),
        "PYTHONPATH": str(processes.ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_SHARE_BINARY_BETWEEN_HOSTS": "1",
        "JAX_SHARE_BINARY_BETWEEN_HOSTS_TIMEOUT_MS": "200000",
    }


class Cluster:
    """The processes of one start, which nobody supervises.

    Args:
      number: Of processes; one is a run alone.
      more: Of each process, what the others do not have: {1: ["--flag"]}.
    """

    def __init__(self, number, flags, environment, workdir, more=()):
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        self.processes, self._outputs = [], []
        for i in range(number):
            cluster = [
                f"--coordinator=localhost:{port}",
                f"--num_processes={number}",
                f"--process_id={i}",
            ]
            self._outputs.append(workdir.with_name(f"{workdir.name}-output-{i}"))
            with open(self._outputs[-1], "w") as output:
                self.processes.append(
                    subprocess.Popen(
                        [
                            *(environment["PYTHON"], "-m", "dinov2_jax.main", *flags),
                            f"--workdir={workdir}",
                            *(cluster if number > 1 else ()),
                            *dict(more).get(i, ()),
                        ],
                        cwd=processes.ROOT,
                        env=environment,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def output(self, process: int) -> str:
        return self._outputs[process].read_text()

    def wait_for_a_step(self) -> None:
        """Until this start has logged one."""
        deadline = time.monotonic() + 200
        while not re.search(r"^step \d+/", self.output(0), re.MULTILINE):
            assert time.monotonic() < deadline, self.output(0)
            assert self.processes[0].poll() is None, self.output(0)
            time.sleep(0.001)

    def codes(self) -> list[int]:
        """Exit codes, when all have ended."""
        return [process.wait(timeout=200) for process in self.processes]


@pytest.fixture
def start(flags, environment, tmp_path):
    """Starts N processes of the test's run."""
    return lambda number, **more: Cluster(
        number, flags, environment, tmp_path / "run", **more
    )


@pytest.fixture(scope="module")
def alone_in(flags, in_process, tmp_path_factory):
    """The folder of the run of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finished = in_process.run(*flags, f"--workdir={workdir}")
    assert finished.code == 0, finished.output
    return workdir


@pytest.fixture(scope="module")
def alone(alone_in):
    """Its rows of metrics.jsonl."""
    return processes.rows(alone_in)


def assert_same_losses(workdir, alone):
    """Each step once, with the losses of one process."""
    rows = processes.rows(workdir)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, expected in zip(rows, alone, strict=True):
        names = [name for name in expected if name.startswith("loss/")]
        assert len(names) == 5
        for name in names:
            near = KOLEO if name == "loss/koleo" else 1e-6 * expected[name]
            assert row[name] == pytest.approx(expected[name], abs=near, rel=0), name


def assert_saved_in_parts(workdir, step, number):
    """Each of the processes wrote its part of the weights."""
    folder = workdir / f"checkpoints/{step}/default"
    parts = {path.name for path in folder.glob("ocdbt.process_*")}
    assert parts == {f"ocdbt.process_{i}" for i in range(number)}
    sharding = json.loads((folder / "_sharding").read_text())
    specs = [json.loads(text)["partition_spec"] for text in sharding.values()]
    # The matrices of student, teacher and both moments.
    assert sum("fsdp" in spec for spec in specs) == 4 * 9


def test_two_processes_then_one(start, alone, flags, in_process, tmp_path):
    """SIGTERM to one ends both, and one process goes on."""
    workdir = tmp_path / "run"
    step = ended_by_sigterm(start, 2, workdir)
    assert_saved_in_parts(workdir, step, 2)
    finished = in_process.run(*flags, f"--workdir={workdir}")
    assert finished.code == 0, finished.output
    assert f"resumed from step {step}" in finished.output
    assert_same_losses(workdir, alone)


def ended_by_sigterm(start, number, workdir):
    """Starts processes and sends one of them SIGTERM; returns the step they saved."""
    with start(number) as cluster:
        cluster.wait_for_a_step()
        cluster.processes[-1].send_signal(signal.SIGTERM)
        assert cluster.codes() == [42] * number, cluster.output(0)
        mesh = f"{number} cpu, mesh replica 1 x fsdp {number}"
        assert mesh in cluster.output(0)
        # All stopped at one step, which is saved, once.
        step = max(processes.saved_steps(workdir))
        end = f"stopped on request: saved step {step}; run the same command to resume"
        assert cluster.output(0).splitlines()[-1] == end
        for i in range(1, number):
            assert f"process {i}: {end}\n" in cluster.output(i)
    return step


@pytest.mark.slow
def test_a_run_moves_between_numbers_of_processes(start, alone, tmp_path):
    """From four to two to one to two; SIGTERM, sent to one of them, ends each start."""
    workdir = tmp_path / "run"
    for number in (4, 2, 1):
        before = processes.saved_steps(workdir)
        step = ended_by_sigterm(start, number, workdir)
        due = range(2, step, 2)
        assert set(processes.saved_steps(workdir)) == {*before, *due, step}
        assert processes.steps_logged(workdir) == step
        if number > 1:
            assert_saved_in_parts(workdir, step, number)
    with start(2) as cluster:
        assert cluster.codes() == [0, 0], cluster.output(0)
        assert f"resumed from step {step}" in cluster.output(0)
    assert_same_losses(workdir, alone)


@pytest.mark.slow
def test_launcher_restarts_after_any_failure(flags, environment, alone, tmp_path):
    """A process asked to end, then each of the two lost: the losses of one process."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    with open(log, "w") as output:
        launcher = subprocess.Popen(
            [LOCAL, "2", "--restarts", "3", "--", *flags, f"--workdir={workdir}"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    events = [(1, signal.SIGTERM), (0, signal.SIGKILL), (1, signal.SIGKILL)]
    try:
        for attempt, (process, number) in enumerate(events, start=1):
            while launcher.poll() is None:
                starts = log.read_text().split("compiled the step")[1:]
                if len(starts) == attempt and "\nstep " in starts[-1]:
                    os.kill(processes.pid_of(process, workdir), number)
                    break
                time.sleep(0.005)
        launcher.wait(timeout=200)
    finally:
        launcher.kill()
    output = log.read_text()
    assert launcher.returncode == 0, output
    assert re.findall(r"exit code (\d+): restart (\d)", output) == [
        *[("42", "1"), ("137", "2"), ("137", "3")]
    ]
    assert len(re.findall("stopped on request: saved step", output)) == 2
    assert len(re.findall("resumed from step", output)) == 3
    assert output.count("parameters ") == 4  # one process says it, at each start
    assert_same_losses(workdir, alone)
    assert processes.pid_of(0, workdir) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost, how, seconds",
    [
        (0, signal.SIGKILL, 0),  # its connections close
        (1, signal.SIGKILL, 0),
        (1, signal.SIGSTOP, HEARTBEAT),  # as a host that hangs: they do not
    ],
)
def test_process_stops_when_another_is_lost(start, lost, how, seconds):
    with start(2) as cluster:
        cluster.wait_for_a_step()
        begin = time.monotonic()
        cluster.processes[lost].send_signal(how)
        code = cluster.processes[1 - lost].wait(timeout=100)
        assert code not in (0, 2, 3, 42), cluster.output(1 - lost)
        # Left alone they would wait for minutes, and a busy machine takes its time.
        assert time.monotonic() - begin < seconds + 60


@pytest.mark.slow
def test_jax_finds_the_processes_of_slurm(flags, environment, alone, tmp_path):
    """And they agree on when to save by the clock."""
    workdir = tmp_path / "run"
    by_the_clock = [
        "--config.checkpoint.every=1000",
        "--config.checkpoint.minutes=1e-9",
    ]
    job = {
        "SLURM_JOB_ID": str(os.getpid()),  # jax derives the port from it
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    tasks = [
        subprocess.Popen(
            [
                *(environment["PYTHON"], "-m", "dinov2_jax.main", *flags),
                *(f"--workdir={workdir}", "--config.mesh.devices=2", *by_the_clock),
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
    lines = [x for x in outputs[1].splitlines() if not x.startswith("[Gloo]")]
    assert lines == []
    assert processes.saved_steps(workdir) == [*range(1, STEPS + 1)]
    assert_same_losses(workdir, alone)


def test_single_failed_process_does_not_wait(start):
    """jax would have it wait five minutes for the other, which waits for it."""
    devices = {i: [f"--config.mesh.devices={2 + i}"] for i in range(2)}
    with start(2, more=devices) as cluster:
        assert cluster.processes[1].wait(timeout=100) == 2
        time.sleep(1)
        assert cluster.processes[0].poll() is None  # which is on its own from here
        lines = cluster.output(1).splitlines()
    (error,) = [x for x in lines if not x.startswith("[Gloo]")]
    assert error.startswith("error: process 1: mesh.devices = 3, but there are 2: ")


@pytest.mark.slow
def test_preflight(start, tmp_path):
    with start(2, more={i: ["--preflight"] for i in range(2)}) as cluster:
        assert cluster.codes() == [0, 0], cluster.output(0)
        lines = results(cluster.output(0))
    assert [line[:2] for line in lines] == [
        ["ok", name]
        for name in (
            *("devices", "all-reduce", "clocks", "folder", "one folder", "data"),
            *("weights", "step", "saving"),
        )
    ]
    assert lines[0][2] == "2 processes, 2 cpu, mesh replica 1 x fsdp 2"
    assert not (tmp_path / "run").exists()


def results(output):
    """[result, check, text] of each line."""
    lines = [
        re.split("  +", x, maxsplit=2)
        for x in output.splitlines()
        if not x.startswith("[Gloo]")
    ]
    assert all(len(line) == 3 for line in lines), output
    return lines


def test_preflight_names_the_process_that_fails(start, tmp_path):
    nowhere = f"--config.data.path={tmp_path / 'nowhere'}"
    more = {0: ["--preflight"], 1: ["--preflight", nowhere]}
    with start(2, more=more) as cluster:
        assert cluster.codes() == [2, 2], cluster.output(0)
        found = {
            name: (result, text) for result, name, text in results(cluster.output(0))
        }
    wrong = [name for name, (result, _) in found.items() if result == "WRONG"]
    assert wrong == ["data"] and found["weights"][0] == "ok"
    expected = f"process 1: data.path = {tmp_path / 'nowhere'} does not exist: set "
    assert found["data"][1].startswith(expected)
    assert found["step"] == ("skipped", "needs data")
    assert found["saving"] == ("skipped", "needs step")


def test_preflight_does_not_change_a_run(alone_in, flags, in_process):
    def files():
        return {p: p.stat().st_mtime_ns for p in alone_in.rglob("*")}

    before = files()
    flags = [*flags, f"--workdir={alone_in}", "--preflight"]
    finished = in_process.run(*flags, "--config.mesh.devices=1")
    assert finished.code == 0, finished.output
    assert files() == before
    wrong = ("--config.mesh.devices=2", "--config.seed=1")
    finished = in_process.run(*flags, *wrong)
    assert finished.code == 2, finished.output
    (devices, _, _, *others) = results(finished.output)
    assert devices[:2] == ["WRONG", "devices"]
    assert "mesh.devices = 2, but there are 1" in devices[2]
    assert {result for result, *_ in others} == {"skipped"}


@pytest.mark.slow
def test_two_processes_keep_the_same_best_weights(environment, flags, tmp_path):
    """Judged without labels, on images of the training data."""
    workdir = tmp_path / "run"
    more = [
        "--config.train.steps=4",
        "--config.optim.base_lr=0.1",
        "--config.train.max_nonfinite_steps=100",
        "--config.teacher.momentum_teacher=0.5",
        "--config.evaluation.every=2",
        "--config.evaluation.tasks=('matching',)",
        "--config.checkpoint.keep_best=all",
    ]
    with Cluster(2, [*flags, *more], environment, workdir) as cluster:
        assert cluster.codes() == [0, 0], cluster.output(0) + cluster.output(1)
        output = cluster.output(0)
    name = "matching/accuracy"
    measured = {r["step"]: r[name] for r in processes.rows(workdir) if name in r}
    best = max(measured, key=lambda step: (measured[step], -step))
    assert list(measured) == [0, 2, 4]
    record = best_weights.read(workdir)
    assert (record.step, record.best) == (best, {name: measured[best]})
    lines = [x for x in output.splitlines() if "the start" in x or "it began" in x]
    assert len(lines) == 1 and str(workdir) in lines[0]
    found = reading.read(workdir).params["backbone"]
    if best:
        chosen = reading.read(workdir / f"checkpoints/{best}").params["backbone"]
        jax.tree.map(np.testing.assert_array_equal, found, chosen)
